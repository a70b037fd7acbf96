"""The heatmap of a slide as a pyramidal OME-TIFF, which QuPath, napari and Fiji open."""

import hashlib
import io
import uuid
from typing import Any

import numpy as np

from ..errors import InputError
from .answer import SlideAnswer

TILE = 256  # px; a level that fits into one tile is the last


def import_tifffile() -> Any:
    """Return the library tifffile, which comes with the extra [slide].

    Raises:
        InputError: it is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise InputError(
            "heatmaps of slides are written by tifffile, which is not installed; install it with"
            " pip install 'hcd[slide]'"
        ) from error
    return tifffile


def encode_heatmap(answer: SlideAnswer) -> bytes:
    """Return a heatmap as the bytes of an OME-TIFF.

    One float32 pixel a cell, with the cell's length as PhysicalSize in um and the slide's upper
    left corner as its own; NaN where there is no tissue, which viewers leave blank. Each further
    level, a SubIFD, has the mean of the tissue in 2 x 2 pixels.
    """
    tifffile = import_tifffile()
    levels = [np.ascontiguousarray(answer.probabilities, np.float32)]
    while max(levels[-1].shape) > TILE:
        levels.append(_halve(levels[-1]))
    length = [float(cell * mpp) for cell, mpp in zip(answer.cell, answer.mpp)]
    digest = hashlib.sha256(repr(length).encode() + levels[0].tobytes()).digest()
    about = {
        "axes": "YX",
        "Name": "Tumour probability",
        "Channel": {"Name": ["Tumour probability"]},
        "PhysicalSizeX": length[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": length[1],
        "PhysicalSizeYUnit": "µm",
        "Creator": "hcd",
        "UUID": str(uuid.UUID(bytes=digest[:16], version=4)),  # the same heatmap, the same bytes
    }
    # zlib's is the one compression for which tifffile needs no other library
    options = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "minisblack"}
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:
        for number, level in enumerate(levels):
            centimetre = [10_000 / side / 2**number for side in length]
            options |= {"resolution": centimetre, "resolutionunit": "CENTIMETER"}
            if number:
                file.write(level, subfiletype=1, metadata=None, **options)
            else:
                below = len(levels) - 1
                file.write(level, subifds=below, metadata=about, software="hcd", **options)
    return buffer.getvalue()


def _halve(level):
    """Return the mean of the tissue in each 2 x 2 pixels; NaN where there is none."""
    rows, columns = level.shape
    even = np.pad(level, ((0, rows % 2), (0, columns % 2)), constant_values=np.nan)
    blocks = even.reshape(len(even) // 2, 2, -1, 2)
    tissue = np.isfinite(blocks)
    count = tissue.sum(axis=(1, 3))
    total = np.where(tissue, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)
