"""Write a model as an ONNX file, which needs no torch to run."""

import hashlib
import json
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..disk.whole import SCRATCH, StrPath, refuse_link, unwritable
from ..errors import InputError
from .answer import require_bundle, require_temperature
from .bundle import Bundle
from .graph import TumourProbability, check_patches, require_equal
from .onnx import FORMAT, INSTALL, import_onnxruntime, load_onnx
from .prediction import CLASSES


def export_onnx(bundle: Bundle, path: StrPath, calibrated: bool = False) -> Path:
    """Write a model as an ONNX file: pixels in, tumour probabilities out.

    The graph takes `patches`, (N, S, S, 3) uint8 RGB, N of any number and S the recipe's
    original_size, crops and normalises them, and gives `probabilities`, (N,) float32. The file's
    metadata name classes, spacing, patch size, and the hashes of card and weights.

    Args:
        bundle: see `load_bundle`. path: file to write, whole or not at all; its name ends with
            .onnx. calibrated: divide the logits by the temperature on the model's card.
    Returns:
        Path of the file, once it has answered as the bundle does, to 1e-5.
    Raises:
        InputError: a library is missing, no such name, no temperature, or a file that would answer
            otherwise. InputTypeError: no Bundle. FileExistsError: a file that is no ONNX file of
            hcd. OSError: it cannot be written, or is a link.
    """
    require_bundle(bundle)
    temperature = require_temperature(bundle) if calibrated else None
    path = Path(path).expanduser()
    if path.suffix != ".onnx":
        raise InputError(f"{path} does not end with .onnx; give a name that does")
    onnx = _import_onnx()
    import_onnxruntime()
    _require_place(path)
    graph = TumourProbability(bundle, temperature or 1).eval()
    try:
        with TemporaryDirectory(prefix=SCRATCH, dir=path.parent) as scratch:
            pending = Path(scratch, path.name)
            _export(graph, bundle.recipe.original_size, pending)
            written = _without_sources(onnx.load(pending))
            onnx.helper.set_model_props(written, _metadata(bundle, temperature))
            onnx.save(written, pending)
            require_equal(bundle, load_onnx(pending).probabilities, temperature or 1, str(path))
            os.replace(pending, path)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def _import_onnx():
    """Return the library onnx; the exporter needs onnxscript too."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"exporting needs {error.name}, which is not installed; {INSTALL}"
        ) from error
    return onnx


def _require_place(path):
    """Require the place of a new file, or of an earlier one of hcd."""
    refuse_link(path)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} is no place for a file; name one in a folder that exists")
    if path.exists():
        try:
            load_onnx(path)
        except InputError as error:
            raise FileExistsError(
                f"{path} is no ONNX file of hcd and would be written over; name another file"
            ) from error


def _export(graph, size, path):
    """Have torch write the graph, for any number of patches."""
    patches = torch.from_numpy(check_patches(size)[:2])
    number = torch.export.Dim("number", min=1)
    with _quiet():
        torch.onnx.export(
            graph,
            (patches,),
            path,
            input_names=["patches"],
            output_names=["probabilities"],
            dynamic_shapes=[{0: number}],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _without_sources(model):
    """Take off what the exporter notes of each node: lines and folders of this machine's source."""
    for part in (*model.graph.node, *model.graph.value_info, *model.functions, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for node in function.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    return model


@contextmanager
def _quiet():
    """Keep the exporter's remarks to itself: its result is compared with the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(bundle, temperature):
    """Return what the file says of itself, texts by name."""
    card = json.dumps(bundle.card, sort_keys=True).encode()
    return {
        "hcd_format": FORMAT,
        "classes": json.dumps(CLASSES),
        "patch_size": json.dumps(bundle.recipe.original_size),
        "spacing_um_px": json.dumps(bundle.card["spacing_um_px"]),
        "temperature": json.dumps(temperature),
        "card_sha256": hashlib.sha256(card).hexdigest(),
        "weights_sha256": bundle.card["weights_sha256"],
        "limits": bundle.card["limits"],
    }
