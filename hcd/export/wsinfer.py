"""Write a model in WSInfer's form, which its tools and QuPath's extension run on whole slides."""

import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ..disk.locks import PATIENCE, take_lock
from ..disk.whole import (
    SCRATCH,
    StrPath,
    read_json,
    refuse_link,
    sweep_parts,
    unwritable,
    writable_folder,
)
from ..errors import InputError
from .answer import require_bundle
from .bundle import Bundle
from .graph import CentreCrop, check_patches, require_equal
from .prediction import CLASSES

MODEL, CONFIG = "torchscript_model.pt", "config.json"
MOST_BYTES = 1 << 20


def export_wsinfer(bundle: Bundle, folder: StrPath) -> Path:
    """Write a model folder for WSInfer: a TorchScript model and its config.json (spec 1.0).

    The model takes patches that config.json's transforms have normalised, (N, 3, S, S) float32,
    crops their centre and gives logits, (N, 2); WSInfer and QuPath's extension apply the softmax.
    They cut tiles of config.json's size and spacing, and answer for a whole tile what is said of
    its centre 32 x 32 px.

    Args:
        bundle: see `load_bundle`. folder: gets torchscript_model.pt and config.json; made when
            missing.
    Returns:
        Path of the folder, once the model has answered as the bundle does, to 1e-5.
    Raises:
        InputError: a model that TorchScript cannot hold, or that would answer otherwise.
            InputTypeError: no Bundle. FileExistsError: the folder holds another's files. OSError:
            it cannot be written, a file of it is a link, or another export is writing there.
    """
    require_bundle(bundle)
    folder = writable_folder(folder)
    lock = take_lock(
        folder, f"{folder} is written by another export; name another folder or wait", PATIENCE
    )
    try:
        for name in (MODEL, CONFIG):
            refuse_link(folder / name)
        _refuse_others(folder)
        sweep_parts(folder)
        _write(bundle, folder)
    finally:
        lock.release()
    return folder


def _write(bundle, folder):
    """Write the files, and put them in their places once they are whole and right."""
    try:
        with TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
            pending = Path(scratch, MODEL)
            _trace(CentreCrop(bundle).eval(), bundle.recipe, pending)
            require_equal(bundle, _as_a_reader(pending, bundle.recipe), what=str(folder / MODEL))
            with open(Path(scratch, CONFIG), "w", encoding="utf-8") as file:
                json.dump(_config(bundle), file, indent=2)
                _settle(file)
            _put_in_place(Path(scratch), folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def _put_in_place(scratch, folder):
    """Exchange an older pair of files for a new one; where that fails the older one comes back.

    The model goes first and comes last. So all that a kill can leave is a folder without a model,
    which its readers turn down and the next export fills: never a model alone, which would be taken
    for another's, or beside the config of another one.
    """
    kept = {name: scratch / f"older-{name}" for name in (MODEL, CONFIG) if (folder / name).exists()}
    try:
        for name, place in kept.items():
            os.replace(folder / name, place)
        for name in (CONFIG, MODEL):
            os.replace(scratch / name, folder / name)
    except BaseException:
        for name in (CONFIG, MODEL):
            if name not in kept:
                (folder / name).unlink(missing_ok=True)
            elif kept[name].exists():
                os.replace(kept[name], folder / name)
        raise


def _settle(file):
    """Bring what was written to the disk, so that no name comes there before its content."""
    file.flush()
    os.fsync(file.fileno())


def _refuse_others(folder):
    """Require what would be written over to be an older export."""
    config = folder / CONFIG
    if not config.exists() and not (folder / MODEL).exists():
        return
    held = read_json(config, MOST_BYTES) if config.is_file() else None
    name = held.get("name") if isinstance(held, dict) else None
    if not str(name).startswith("hcd-"):
        raise FileExistsError(
            f"{folder} holds a {CONFIG} or {MODEL} that is not of hcd and would be written over;"
            " name an empty folder"
        )


def _trace(model, recipe, path):
    """Write a model as TorchScript, for any number of patches."""
    patches = torch.from_numpy(_normalised(check_patches(recipe.original_size), recipe))
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # torch would have its users move on, and WSInfer's tools read TorchScript alone
            warnings.simplefilter("ignore")
            traced = io.BytesIO()  # a full disk would end the process in torch's own writer
            torch.jit.save(torch.jit.trace(model, patches[:2]), traced)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"arch={recipe.arch} cannot be written as TorchScript ({reason}); use --onnx"
        ) from error
    _without_sources(traced, path)


def _without_sources(traced, path):
    """Copy a TorchScript file without the lines and folders of this machine's source, which torch
    notes for tracebacks."""
    with zipfile.ZipFile(traced) as old, open(path, "xb") as file:
        with zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                if not name.endswith(".debug_pkl"):
                    new.writestr(zipfile.ZipInfo(name), old.read(name))  # stored, as torch has it
        _settle(file)


def _normalised(patches, recipe):
    """Return patches as config.json's transforms leave them, (N, 3, S, S) float32."""
    levels = patches.transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (
        np.array(values, np.float32)[:, None, None] for values in (recipe.mean, recipe.std)
    )
    return (levels - mean) / std


def _as_a_reader(path, recipe):
    """Return a function that answers pixels by the written file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(path))

    def answer(patches):
        with torch.inference_mode():
            logits = model(torch.from_numpy(_normalised(patches, recipe)))
        return torch.softmax(logits.double(), 1)[:, 1].numpy()

    return answer


def _config(bundle):
    """Return what WSInfer must know to cut and normalise tiles."""
    recipe = bundle.recipe
    normalise = {"mean": list(recipe.mean), "std": list(recipe.std)}
    return {
        "spec_version": "1.0",
        "architecture": recipe.arch,
        "name": f"hcd-{recipe.arch}",
        "num_classes": len(CLASSES),
        "class_names": CLASSES,
        "patch_size_pixels": recipe.original_size,
        "spacing_um_px": bundle.card["spacing_um_px"],
        "transform": [
            {"name": "Resize", "arguments": {"size": recipe.original_size}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": normalise},
        ],
    }
