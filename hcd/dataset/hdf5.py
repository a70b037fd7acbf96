"""HDF5 files, plain or gzipped, that anybody may have written: opened, judged, read by rows."""

import gzip
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.shown import progress_bar
from ..disk.whole import shorten, whole_write
from ..errors import InputError
from .tables import MOST_ROWS

# rows that one thread reads at once, of a patch 7 and 57 MB; a chunk is decompressed as a whole
FEW_ROWS, MANY_ROWS, MOST_CHUNK = 256, 2048, 1 << 28
SPARE = 1 << 26  # bytes of an HDF5 file that are not its rows
HARM: tuple = (gzip.BadGzipFile, EOFError, zlib.error)
open_gzip: Any = gzip.open
with suppress(ImportError):  # of the extra [pcam]; it takes half the time
    from isal import igzip, isal_zlib

    open_gzip = igzip.open
    HARM += (isal_zlib.error,)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of an HDF5 file. Attributes: path: the user's file. data: (N, ...) uint8, an h5py
    Dataset. batch: how many rows to read at once."""

    path: Path
    data: Any
    batch: int

    def read(self, start: int, count: int = 0) -> np.ndarray:
        """Return `count` rows from `start` on, a batch by default, or what is left."""
        try:
            return self.data[start : start + (count or self.batch)]
        except (OSError, RuntimeError) as error:
            raise _no_hdf5(self.path, error) from error


def import_h5py() -> Any:
    """Return the library h5py, which comes with the extra [pcam].

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "PCam's files are HDF5 and h5py, which reads them, is not installed; install it with"
            " pip install 'hcd[pcam]'"
        ) from error
    return h5py


def decompress(path: Path, plain: Path, most_bytes: int, progress: bool) -> None:
    """Decompress a file as a stream into the file `plain`.

    Raises:
        InputError: it is damaged, or longer than most_bytes; `plain` is not there then. OSError: no
            space.
    """
    try:
        with (
            open_gzip(path) as packed,
            whole_write(plain) as file,
            progress_bar(None, path.name, progress, unit="B", unit_scale=True) as bar,
        ):
            while block := packed.read(1 << 20):
                most_bytes -= len(block)
                if most_bytes < 0:
                    raise InputError(
                        f"{path} decompresses to more bytes than its patches need; get it again"
                    )
                file.write(block)
                bar.update(len(block))
    except HARM as error:
        raise no_gzip(path, error) from error


def open_rows(stack: ExitStack, place: Any, path: Path, name: str, shape: tuple) -> Rows:
    """Open a dataset of uint8.

    Args:
        stack: closes the file. place: the file, or its bytes as an open file. path: the user's, for
            messages. name: the dataset's. shape: of one row.
    Returns:
        Rows of a dataset of shape (N, *shape), N at least 1.
    Raises:
        InputError: it is no HDF5 file, or holds something else.
    """
    h5py = import_h5py()
    try:
        file = stack.enter_context(h5py.File(place, "r"))
        held = file.get(name, getlink=True)
        # a link into another file would have us read that one
        data = file[name] if isinstance(held, h5py.HardLink) else None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _no_hdf5(path, error) from error
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{path} holds no dataset {name!r} of its own; get the official file")
    shaped = data.shape is not None and data.shape[1:] == shape
    if data.dtype != np.uint8 or not shaped or not 0 < len(data) <= MOST_ROWS:
        raise InputError(
            f"{path}: {name} is {data.dtype} of shape {data.shape} and must be uint8 of shape"
            f" {('N', *shape)}, N from 1 to {MOST_ROWS}; get the official file".replace("'N'", "N")
        )
    chunk = data.chunks or (1, 1)
    if np.prod(chunk, dtype=float) > MOST_CHUNK:
        raise InputError(
            f"{path}: {name} has chunks of {np.prod(chunk, dtype=float):.0f} bytes, which would"
            f" fill the memory; save it with chunks of at most {MOST_CHUNK}, or get the official"
            " file"
        )
    return Rows(path, data, int(np.clip(chunk[0], FEW_ROWS, MANY_ROWS)))


def _no_hdf5(path, error):
    reason = shorten(" ".join(str(error).split()), 120)
    return InputError(f"{path} cannot be read as HDF5 ({reason}); get it again")


def no_gzip(path: Path, error: Exception) -> InputError:
    """Return the error of a file that cannot be decompressed."""
    return InputError(f"{path} is no whole gzip file ({error}); get it again")
