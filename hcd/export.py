"""Save a model for another machine, load it there, predict one file."""
import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .compat import load_trusted_export
from .files import whole_write
from .learner import build_model
from .reader import augment, read_patch
from .recipe import Recipe

FORMAT = "hcd-model-1"
CLASSES = ["negative", "tumour"]
CARD, WEIGHTS, NOTES = "card.json", "model.safetensors", "README.md"
MOST_CARD_BYTES = 1 << 20
INTENDED_USE = ("Research and teaching: the probability that the centre 32 x 32 px of one 96 x 96 px H&E patch of lymph-node "
                "tissue holds tumour.")
LIMITS = ("Not a medical device and not validated for diagnosis. It judges single patches, not slides or patients. Validation "
          "patches come from the same slides as training patches, so the validation AUC is higher than on new slides; other "
          "scanners, stains and tissues were not tested.")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded model folder: `model` in evaluation mode on the CPU, `recipe` to read patches by, `card` as written."""

    model: torch.nn.Module
    recipe: Recipe
    card: dict


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file: its `path`, the `label` ("negative" or "tumour") and the tumour `probability`."""

    path: str
    label: str
    probability: float


def save_bundle(learner, folder, metrics=None, data_fingerprint=None):
    """Write a learner's model as weights and a card that run no code when loaded.

    Args:
        learner: see `get_learner`.
        folder: gets model.safetensors, card.json and README.md; made when missing.
        metrics: numbers to put on the card, such as the validation AUC. data_fingerprint: see `Dataset.fingerprint`.
    Returns:
        Path of the folder.
    Raises:
        ValueError: an architecture that has no name to build it by. OSError: the folder cannot be written.

    CHANGED C8: the walkthrough exports a pickle, which runs whatever code is in it; see `load_export` for that.

    Source: In 43.
    """
    recipe = learner.data.train_ds.x.recipe
    if not isinstance(recipe.arch, str):
        raise ValueError(f"arch={recipe.arch!r} cannot be named on a card; train with a torchvision model's name to save a bundle")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in learner.model.state_dict().items()})
    card = {"format": FORMAT, "classes": CLASSES, "recipe": asdict(recipe), "metrics": metrics or {},
            "data_fingerprint": data_fingerprint, "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "versions": library_versions(), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "intended_use": INTENDED_USE,
            "limits": LIMITS}
    for name, content in ((WEIGHTS, weights), (CARD, json.dumps(card, indent=1, allow_nan=False).encode()),
                          (NOTES, _model_notes(card).encode())):
        with whole_write(folder / name) as file:
            file.write(content)
    return folder


def load_bundle(folder):
    """Load what `save_bundle` wrote; nothing in it is run, and every field, shape and hash is checked.

    Args:
        folder: holds card.json and model.safetensors.
    Returns:
        Bundle.
    Raises:
        FileNotFoundError: a file is missing. ValueError: unknown format, a field that breaks its rule, or other weights than
        the card names.

    Source: In 44.
    """
    folder = Path(folder)
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; a model folder holds {CARD} and {WEIGHTS}, copy both")
    card = _read_card(folder / CARD)
    recipe = _card_recipe(card, folder / CARD)
    with torch.device("meta"):  # shapes alone, so that a card cannot ask for memory that its weights do not need
        model, _ = build_model(recipe)
    model.load_state_dict(_read_weights(folder / WEIGHTS, card["weights_sha256"], model.state_dict()), assign=True)
    return Bundle(model.eval(), recipe, card)


def predict_image(bundle, path):
    """Predict one image file with a loaded model: centre crop, no augmentation.

    Args:
        bundle: see `load_bundle`.
        path: an 8-bit RGB patch of the size that the recipe names, 96 x 96 px.
    Returns:
        Prediction.
    Raises:
        FileNotFoundError, ValueError: no such file, or no such patch.

    CHANGED C9: the walkthrough crops 68 px and divides by 256 here; this is the crop and scale that the model was trained on.

    Source: In 45.
    """
    recipe = bundle.recipe.plain()
    crop = augment(read_patch(path, recipe), recipe)
    batch = (torch.from_numpy(crop) - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)  # (H, W, 3)
    with torch.inference_mode():
        logits = bundle.model(batch.permute(2, 0, 1)[None].contiguous())
    probability = float(torch.softmax(logits.double(), 1)[0, 1])
    return Prediction(str(path), CLASSES[int(probability > 0.5)], probability)


def load_export(path, trust=False):
    """Load a fastai `Learner.export` file; loading it RUNS CODE that its author put in.

    Args:
        path: the export.pkl.
        trust: True says that you know who wrote the file and would run their program.
    Returns:
        fastai Learner with empty data.
    Raises:
        ValueError: trust was not given. FileNotFoundError: no such file.

    Source: In 43, In 44.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name the file that Learner.export wrote")
    if trust is not True:
        raise ValueError(f"{path} is a pickle, and loading a pickle runs the code in it; pass trust=True only for a file of your own, "
                         "and hand models on with save_bundle")
    return load_trusted_export(path)


def library_versions():
    """Return the versions of Python and of the libraries that the numbers depend on, as a dict of str."""
    names = ("hcd", "torch", "torchvision", "fastai", "numpy", "pandas", "scikit-learn")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), "opencv": __import__("cv2").__version__, **found}


def _read_card(path):
    if path.stat().st_size > MOST_CARD_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a card has at most {MOST_CARD_BYTES}, get the right file")
    try:
        card = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({str(error)[:100]}); restore it from where the model was saved") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        shown = repr(card.get("format"))[:60] if isinstance(card, dict) else f"a {type(card).__name__}"
        raise ValueError(f"{path} has format {shown}; this hcd reads {FORMAT!r}, save the model again or install the hcd that wrote it")
    rules = {"classes": list, "recipe": dict, "metrics": dict, "versions": dict, "weights_sha256": str, "created": str,
             "intended_use": str, "limits": str}
    for name, kind in rules.items():
        if not isinstance(card.get(name), kind):
            raise ValueError(f"{path}: field {name!r} is missing or no {kind.__name__}; restore the card")
    if card["classes"] != CLASSES:
        raise ValueError(f"{path}: classes {str(card['classes'])[:80]} are not {CLASSES}; this is another kind of model")
    return card


def _card_recipe(card, path):
    names = {field.name for field in fields(Recipe)}
    if set(card["recipe"]) != names:
        odd = sorted(set(map(str, card["recipe"])) ^ names)
        raise ValueError(f"{path}: the recipe's fields differ from this hcd's in {', '.join(odd)[:120]}; install the hcd that wrote it")
    try:
        return replace(Recipe(**card["recipe"]), pretrained=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_weights(path, wanted_hash, shapes):
    """Read tensors that match `shapes` by name, shape and type, from a file with the hash that the card names."""
    least = sum(tensor.numel() * tensor.element_size() for tensor in shapes.values())
    if not least <= path.stat().st_size <= least + MOST_CARD_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes where the card's model needs {least}; copy it again, in full")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted_hash:
        raise ValueError(f"{path} is not the file that the card names (its SHA-256 differs); copy both again from where they were saved")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no safetensors file ({str(error)[:100]}); copy it again") from error
    for name in sorted(set(tensors) ^ set(shapes)):
        raise ValueError(f"{path}: tensor {name[:80]!r} is {'missing' if name in shapes else 'not one of this model'}; save it again")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name].shape or tensor.dtype != shapes[name].dtype:
            raise ValueError(f"{path}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} where the model has {shapes[name].dtype} "
                             f"{tuple(shapes[name].shape)}; save it again")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} holds values that are not numbers; train and save again")
    return tensors


def _model_notes(card):
    metrics = "".join(f"- {name}: {value}\n" for name, value in card["metrics"].items()) or "- none recorded\n"
    recipe = card["recipe"]
    return (f"# {recipe['arch']}, {' / '.join(card['classes'])}\n\n{card['intended_use']}\n\n**Limits.** {card['limits']}\n\n"
            f"- input: {recipe['original_size']} x {recipe['original_size']} px RGB, centre {recipe['crop_size']} px, mean "
            f"{recipe['mean']}, std {recipe['std']}\n- saved: {card['created']}\n- data: {card['data_fingerprint']}\n"
            f"- weights: SHA-256 {card['weights_sha256']}\n\n## Metrics\n\n{metrics}\n"
            f"Load it with `hcd.load_bundle(folder)` or `hcd predict <folder> <image>`.\n")
