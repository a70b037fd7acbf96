"""A model as an ONNX file, run by onnxruntime alone: nothing here imports torch."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.whole import StrPath, shorten
from ..errors import InputError
from .prediction import CLASSES, require_threads

FORMAT = "hcd-onnx-1"
MOST_BYTES = 2 << 30  # what protobuf, which an ONNX file is written in, can hold
# the word by which a tensor names the file that its values lie in; ours have none
OUTSIDE = b"location"
INSTALL = "install it with pip install 'hcd[onnx]'"


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A loaded ONNX file, to be given to `predict_images` in the place of a Bundle.

    Attributes:
        path: of the file. original_size: side of a patch, in px. temperature: by which the logits
            are divided in it, None for none. metadata: texts by name, as they stand in the file.
    """

    path: str
    original_size: int
    temperature: float | None
    metadata: dict
    session: Any = field(repr=False)

    def probabilities(self, patches: np.ndarray) -> np.ndarray:
        """Return the tumour probability of each patch.

        Args:
            patches: (N, S, S, 3) uint8 RGB, S the original_size.
        Returns:
            (N,) float64.
        """
        (found,) = self.session.run(None, {"patches": patches})
        return found.astype(float)


def load_onnx(path: StrPath, threads: int | None = None) -> OnnxModel:
    """Load what `export_onnx` wrote.

    Args:
        path: the file. threads: that compute a batch; None takes one a core.
    Returns:
        OnnxModel.
    Raises:
        FileNotFoundError: no such file. InputError: no ONNX file of hcd, a damaged one, one of
            another format, or no onnxruntime here.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file that `hcd export` wrote")
    require_threads(threads)
    session = _session(path, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    given = metadata.get("hcd_format")
    if given != FORMAT:
        raise InputError(
            f"{path} has format {shorten(repr(given))} and this hcd reads {FORMAT!r}; give a file"
            " of `hcd export`, or install the hcd that wrote it"
        )
    size, temperature = _stated(path, metadata)
    _require_form(path, session, size)
    return OnnxModel(str(path), size, temperature, dict(metadata), session)


def import_onnxruntime() -> Any:
    """Return the library onnxruntime, which comes with the extra [onnx].

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"an ONNX file is run by onnxruntime, which is not installed; {INSTALL}"
        ) from error
    return onnxruntime


def _session(path, threads):
    """Open a file that anybody may have written."""
    runtime = import_onnxruntime()
    size = os.path.getsize(path)
    if not 0 < size <= MOST_BYTES or _names_files(path):
        what = "names files beside it" if 0 < size <= MOST_BYTES else f"has {size} bytes"
        raise InputError(
            f"{path} {what} and is no ONNX file of hcd; give one that `hcd export` wrote"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said below
    options.intra_op_num_threads = threads or 0
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class of their own
        reason = shorten(" ".join(str(error).split()), 120)
        raise InputError(
            f"{path} cannot be read as an ONNX file ({reason}); copy it again, in full"
        ) from error


def _names_files(path):
    """Say whether tensors of a file lie in other files; it is read by pieces, to save memory."""
    before = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            if OUTSIDE in before + piece:
                return True
            before = piece[-len(OUTSIDE) :]
    return False


def _stated(path, metadata):
    """Return patch size and temperature as the metadata state them."""
    try:
        size, temperature = (json.loads(metadata[name]) for name in ("patch_size", "temperature"))
        classes = json.loads(metadata["classes"])
        whole = isinstance(size, int) and 0 < size <= 65535
        good = temperature is None or 0.01 <= temperature <= 100
    except (KeyError, ValueError, TypeError):
        whole = good = False
    if not whole or not good or classes != CLASSES:
        raise InputError(
            f"{path} does not state its patch size, classes and temperature as hcd does; give a"
            " file of `hcd export`"
        )
    return size, temperature


def _require_form(path, session, size):
    """Require pixels in and probabilities out."""
    wanted: list = [("patches", "tensor(uint8)", [size, size, 3])]
    wanted.append(("probabilities", "tensor(float)", []))
    given = []
    for some in (session.get_inputs(), session.get_outputs()):
        given += [(one.name, one.type, one.shape[1:]) for one in some]
    if given != wanted:
        raise InputError(
            f"{path} takes and gives {shorten(str(given), 200)}, and a file of hcd pixels and"
            " probabilities; give a file of `hcd export`"
        )
