"""Pillow's second opinion of an image file, and what kind of image it is that is no patch."""

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import numpy as np
from PIL import Image, _imaging

# without a handler Python prints what Pillow logs, such as "More samples per pixel than can be ..."
logging.getLogger("PIL").addHandler(logging.NullHandler())
QUIET = Lock()  # Python's filters of warnings and libtiff's printing belong to all threads
FORMATS = ["TIFF", "JPEG", "PNG"]
UNREAD = ("zstd", "webp", "lzma")  # compressions of TIFF that Pillow reads and OpenCV may not
# Pillow's modes that are no 8-bit RGB
KINDS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBA": "RGB with alpha",
    "RGBX": "RGB with a fourth channel",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
    "I": "32-bit",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "F": "floating-point",
}


def second_opinion(content: bytes) -> tuple[str, np.ndarray | None]:
    """Decode a TIFF, JPEG or PNG with Pillow.

    OpenCV passes over the errors of libtiff and libjpeg, a wrong checksum of deflated pixels among
    them, and returns whatever was decoded by then.

    Returns:
        (Pillow's mode, (H, W, 3) uint8 RGB where that is "RGB", else None); ("", None) for what
        Pillow cannot decode without an error.
    """
    with _opened(content) as file:
        if file is None:
            return "", None
        return file.mode, np.asarray(file) if file.mode == "RGB" else None


def other_kind(content: bytes) -> str:
    """Return what kind of image it is that Pillow can decode and a patch is not, such as "palette";
    "" for what it cannot decode either, or what is RGB."""
    with _opened(content) as file:
        if file is None:
            return ""
        compression = file.info.get("compression")
        unread = f"{compression}-compressed" if compression in UNREAD else ""
        return KINDS.get(file.mode, unread)


@contextmanager
def _opened(content) -> Iterator[Image.Image | None]:
    """Yield a decoded file of Pillow's; None where it cannot be decoded. Nothing is printed."""
    with QUIET, warnings.catch_warnings(), _quiet_libtiff():
        warnings.simplefilter("ignore")
        try:
            file = Image.open(io.BytesIO(content), formats=FORMATS)
            file.load()
        except Exception:
            # Pillow lets a dozen kinds out of damaged bytes; each says that the file is damaged
            file = None
    yield file


@contextmanager
def _quiet_libtiff():
    """Keep Pillow's libtiff from printing "ZIPDecode: Decoding error at scanline 0, ..."."""
    set_handler = _libtiff_switch()
    before = set_handler(None) if set_handler else None
    try:
        yield
    finally:
        if set_handler:
            set_handler(before)


@cache
def _libtiff_switch():
    """Return libtiff's TIFFSetErrorHandler; None where Pillow hides it, as on Windows, and lines
    are printed."""
    found = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_void_p
    return found
