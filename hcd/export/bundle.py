"""Save a model for another machine, load it there."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors
import safetensors.torch
import torch

from .. import __version__
from ..dataset.sample import is_sample
from ..disk.whole import SCRATCH, StrPath, read_json, refuse_link, whole_write, writable_folder
from ..engine.given import (
    applied_recipe,
    class_names,
    head_width,
    require_float32,
    require_learner,
    require_negative_then_tumour,
    require_softmax,
    require_width,
    unwrapped,
)
from ..engine.saving import Learner, load_trusted_export
from ..errors import InputError
from ..learner import build_shapes
from ..recipe import Recipe
from .card import MOST_BYTES, SYNTHETIC, make_card, read_card, with_temperature
from .notes import card_notes
from .prediction import CLASSES

CARD, WEIGHTS, NOTES = "card.json", "model.safetensors", "README.md"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded model folder: `model` in evaluation mode on the CPU, `recipe` to read patches by,
    `card` as written."""

    model: torch.nn.Module
    recipe: Recipe
    card: dict


def save_bundle(
    learner: Learner,
    folder: StrPath,
    metrics: dict | None = None,
    data_fingerprint: str | None = None,
    splits: dict | None = None,
    license: str = "unspecified",
    temperature: float | None = None,
    dataset: str | None = None,
) -> Path:
    """Write a learner's model as weights and a card that run no code when loaded.

    Args:
        learner: see `get_learner`.
        folder: gets model.safetensors, card.json and README.md; made when missing.
        metrics: numbers to put on the card, such as the validation AUC. data_fingerprint: see
            `Dataset.fingerprint`. splits, license: see `make_card`.
        temperature: that calibrates its probabilities, see `fit_temperature`.
        dataset: name of what it was trained on, such as a hub's "owner/name"; None says so where
            that is the synthetic sample, see `is_sample`.
    Returns:
        Path of the folder.
    Raises:
        InputError: a model that `load_bundle` would turn down: not the one that the recipe of its
        databunch names, or with weights that are not finite; or one that would answer otherwise
        there than here, for its classes, loss or transforms; nothing is written then. OSError: the
        folder cannot be written, or it or a file of the model is a link.

    CHANGED C8: the walkthrough exports a pickle, which runs whatever code is in it; see
        `load_export` for that.
    CHANGED C17: what `load_bundle` would not read back is not written.

    Source: In 43.
    """
    recipe, weights = _savable(learner)
    digest = hashlib.sha256(weights).hexdigest()
    source = getattr(learner.data.train_ds.x, "source", None)
    if dataset is None and source is not None and is_sample(source.root):
        dataset = SYNTHETIC
    card, content = make_card(
        recipe, digest, metrics, data_fingerprint, splits, license, temperature, dataset
    )
    folder = writable_folder(folder)
    pending = _pending(folder, card)
    for path in (folder / CARD, folder / WEIGHTS, folder / NOTES, pending):
        refuse_link(path)
    _refuse_others_files(folder)
    # a full disk spoils neither new nor older model
    with TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        files = {WEIGHTS: weights, CARD: content, NOTES: card_notes(card).encode()}
        for name, written in files.items():
            with whole_write(Path(scratch, name)) as file:
                file.write(written)
        os.replace(Path(scratch, WEIGHTS), pending)
        # up to here the folder holds the older model, from here on the new one
        os.replace(Path(scratch, CARD), folder / CARD)
        os.replace(pending, folder / WEIGHTS)
        os.replace(Path(scratch, NOTES), folder / NOTES)
    return folder


def _savable(learner):
    """Return the recipe of a learner's patches and its weights as bytes of safetensors, once both
    are what a model folder can hold."""
    require_learner(learner)
    require_negative_then_tumour(learner.data)
    require_width(head_width(learner.model), class_names(learner.data))
    require_softmax(learner)
    require_float32(learner.model)
    recipe = applied_recipe(learner.data)
    _require_trained_on(learner, recipe)
    if not isinstance(recipe.arch, str):
        raise InputError(
            f"arch={recipe.arch!r} cannot be named on a card; train with a torchvision model's name"
            " to save a bundle"
        )
    model = unwrapped(learner.model)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    shapes = build_shapes(recipe)
    _check_tensors("the learner's model", tensors, shapes.state_dict())
    shapes.load_state_dict(tensors, assign=True)
    _require_same_answers(model, shapes.eval(), recipe)
    return recipe, _serialised(tensors, recipe)


def _serialised(tensors, recipe):
    """Return tensors as bytes of safetensors, with metadata; the same bytes every time, which the
    library's own header, of names in any order, is not."""
    content = safetensors.torch.save(tensors)
    start = 8 + int.from_bytes(content[:8], "little")
    metadata = {"format": "pt", "arch": recipe.arch, "classes": json.dumps(CLASSES)}
    header = {"__metadata__": {**metadata, "hcd": __version__}, **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[start:]


def _require_trained_on(learner, recipe):
    """Require the databunch in hand to read patches as that of the last fit did."""
    data = getattr(learner, "trained_on", None)
    if data is None or data is learner.data:
        return
    trained = applied_recipe(data)
    for name in ("original_size", "crop_size", "mean", "std"):
        was, now = getattr(trained, name), getattr(recipe, name)
        if was != now:
            raise InputError(
                f"the learner was trained on {name}={was} and its databunch now has {now}; put that"
                " databunch back, or fit on this one"
            )


def _require_same_answers(model, loaded, recipe):
    """Require the model to answer as the one that `load_bundle` will build: layers without weights,
    such as activations, are not among the tensors."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 3, recipe.crop_size, recipe.crop_size, generator=generator)
    training = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    # in 16 bits there are three digits, and a slice of such a model computes in 32
    plain = model[:] if isinstance(model, torch.nn.Sequential) else model
    try:
        with torch.inference_mode():
            here, there = plain.eval()(batch.to(device)).cpu(), loaded(batch)
    finally:
        for module, was in training.items():
            module.training = was
    scale = float(there.abs().max())
    largest = float((here - there).abs().max())
    if not largest <= (1e-3 if device.type == "cpu" else 2e-2) * (1 + scale):
        raise InputError(
            f"the learner's model answers otherwise than {recipe.arch} with its weights (logits up"
            f" to {largest:.3g} apart), so a layer without weights was changed; build it with"
            " get_learner and train again"
        )


def _refuse_others_files(folder):
    """Require what would be written over to be an older model."""
    if not any((folder / name).exists() for name in (CARD, WEIGHTS, NOTES)):
        return
    card = read_json(folder / CARD, MOST_BYTES) if (folder / CARD).is_file() else None
    card = card if isinstance(card, dict) else {}
    ours = str(card.get("format")).startswith("hcd-model-")
    notes = (folder / NOTES).read_text("utf-8") if (folder / NOTES).is_file() else ""
    # of whichever model: a kill between the two files leaves the notes of the one before
    if not ours or (notes and not re.search("^- weights: SHA-256 [0-9a-f]{64}$", notes, re.M)):
        raise FileExistsError(
            f"{folder / (NOTES if ours else CARD)} is not of an older model, and saving here would"
            f" write over {CARD}, {WEIGHTS} and {NOTES}; name an empty folder"
        )


def write_temperature(folder: StrPath, temperature: float) -> Path:
    """Put a temperature on the card of a saved model, whose weights stay as they are.

    Args:
        folder: see `load_bundle`. temperature: see `fit_temperature`.
    Returns:
        Path of the folder.
    Raises:
        FileNotFoundError, InputError: no such model, or no such temperature; nothing is written
        then. OSError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    for name in (CARD, NOTES):
        refuse_link(folder / name)
    card, content = with_temperature(read_card(_existing(folder / CARD))[0], float(temperature))
    for name, written in ((CARD, content), (NOTES, card_notes(card).encode())):
        with whole_write(folder / name) as file:
            file.write(written)
    return folder


def load_bundle(folder: StrPath) -> Bundle:
    """Load what `save_bundle` wrote; nothing in it is run, and every field, shape and hash is
    checked.

    Args:
        folder: holds card.json and model.safetensors.
    Returns:
        Bundle.
    Raises:
        FileNotFoundError: a file is missing. InputError: unknown format, a field that breaks its
        rule, or other weights than the card names.

    Source: In 44.
    """
    folder = Path(folder).expanduser()
    card, recipe = read_card(_existing(folder / CARD))
    pending = _pending(folder, card)
    try:
        model = build_shapes(recipe)  # a card cannot ask for memory that its weights do not need
    except InputError as error:
        raise InputError(f"{folder / CARD}: {str(error)[:300]}") from error
    weights = pending if pending.is_file() else _existing(folder / WEIGHTS)
    model.load_state_dict(
        _read_weights(weights, card["weights_sha256"], model.state_dict()), assign=True
    )
    return Bundle(model.eval(), recipe, card)


def load_export(path: StrPath, trust: bool = False, recipe: Recipe | None = None) -> Learner:
    """Load a fastai `Learner.export` file; loading it RUNS CODE that its author put in.

    Args:
        path: the export.pkl.
        trust: True says that you know who wrote the file and would run their program.
        recipe: for a file of hcd 0.1.0, which kept none: the recipe the learner was built by.
    Returns:
        fastai Learner on the CPU with empty data, that reads patches by the recipe it had.
    Raises:
        InputError: trust was not given, or a recipe that is missing or another than the file's.
            FileNotFoundError: no such file.

    Source: In 43, In 44.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name the file that Learner.export wrote")
    if trust is not True:
        raise InputError(
            f"{path} is a pickle, and loading a pickle runs the code in it; pass trust=True only"
            " for a file of your own, and hand models on with save_bundle"
        )
    return load_trusted_export(path, recipe)


def _existing(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a model folder holds {CARD} and {WEIGHTS}, copy both"
        )
    return path


def _pending(folder, card):
    """Name the weights between a new card's arrival and their own: a process killed in between
    leaves a model that loads."""
    return folder / f".{card['weights_sha256']}.safetensors"


def _read_weights(path, wanted_hash, shapes):
    """Read tensors that match `shapes` by name, shape and type, from a file with the hash that the
    card names."""
    least = sum(tensor.numel() * tensor.element_size() for tensor in shapes.values())
    if not least <= path.stat().st_size <= least + MOST_BYTES:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes where the card's model needs {least}; copy it"
            " again, in full"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != wanted_hash:
        raise InputError(
            f"{path} is not the file that the card names (its SHA-256 differs); copy both again"
            " from where they were saved"
        )
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is no safetensors file ({' '.join(str(error).split())[:100]}); copy it again"
        ) from error
    _check_tensors(path, tensors, shapes)
    return tensors


def _check_tensors(where, tensors, shapes):
    """Require the tensors to be those of `shapes` by name, shape and type, and all their values to
    be finite."""
    remedy = (
        "so this is not the model that the recipe names; build data and learner by one recipe and"
        " save it again"
    )
    for name in sorted(set(tensors) ^ set(shapes)):
        raise InputError(
            f"{where}: tensor {name[:80]!r} is {'missing' if name in shapes else 'unknown'},"
            f" {remedy}"
        )
    for name, tensor in tensors.items():
        wanted = shapes[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise InputError(
                f"{where}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)} instead of"
                f" {wanted.dtype} {tuple(wanted.shape)}, {remedy}"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{where}: tensor {name!r} holds infinity or NaN; train again with a lower learning"
                " rate"
            )
