"""An image file's bytes -> pixels, and back; what a header claims is known before a decoder makes
room for it."""

import io
import os
import re
import stat
import struct
import warnings
from functools import cache
from threading import Lock

import cv2
import numpy as np
from PIL import Image

from ..errors import InputError
from .tiff import LENGTH, WIDTH

# every kind that libtiff takes for a size
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
WIDTHS, LENGTHS = (WIDTH, 322), (LENGTH, 323)  # of the image, of its tiles
QUIET = Lock()  # Python's filters of warnings belong to all threads


def claimed_size(content):
    """Return the size that an image file's header claims, so that no decoder makes room for more
    pixels than there can be.

    Args:
        content: bytes of a file of any kind.
    Returns:
        (width, height) in px, of a tile where that is larger; None for what is no TIFF, PNG or
        JPEG, or claims no size.
    """
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) >= 24:
        return struct.unpack_from(">II", content, 16)
    if content[:3] == b"\xff\xd8\xff":
        return _jpeg_size(content)
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if not order or content[2:4] not in (struct.pack(f"{order}H", version) for version in (42, 43)):
        return None
    try:
        return _tiff_size(content, order, 43 in content[2:4])
    except struct.error:
        return None


def _jpeg_size(content):
    """Walk a JPEG's segments to the frame header, which comes before any pixels."""
    place = 2
    while found := re.compile(rb"\xff+([^\xff\0])").search(content, place):
        kind, place = found[1][0], found.end()
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (
                struct.unpack_from(">HH", content, place + 3)
                if len(content) >= place + 7
                else (0, 0)
            )
            return (width, height) if width and height else None
        if kind != 1 and not 0xD0 <= kind <= 0xD9:  # those have no length
            place += int.from_bytes(content[place : place + 2], "big")
    return None


def _tiff_size(content, order, big):
    """Read the tags of a TIFF's first directory, of 12 bytes each or, in a BigTIFF, of 20."""
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
    if start > len(content):
        return None
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
    first, size = start + (8 if big else 2), 20 if big else 12
    found = dict.fromkeys((*WIDTHS, *LENGTHS), 0)
    for place in range(first, min(first + size * count, len(content) - size + 1), size):
        tag, kind = struct.unpack_from(f"{order}HH", content, place)
        if tag in found and kind in WHOLE:
            (value,) = struct.unpack_from(
                f"{order}{WHOLE[kind]}", content, place + (12 if big else 8)
            )
            found[tag] = max(found[tag], value)
    return max(found[tag] for tag in WIDTHS), max(found[tag] for tag in LENGTHS)


# in a JPEG's and a PNG's metadata; OpenCV turns such an image as a camera was held
ORIENTED = (b"Exif\0\0", b"eXIf")
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


def pillow_agrees(content, image):
    """Say whether Pillow decodes a TIFF or JPEG without an error, a TIFF to the same pixels.

    OpenCV passes over the errors of libtiff and libjpeg, a wrong checksum of deflated pixels among
    them, and returns whatever was decoded by then. Of a JPEG two decoders may differ in a rounding,
    so its pixels are not compared.

    Args:
        content: bytes of the file. image: (H, W, 3) uint8 BGR, what OpenCV made of them.
    """
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=["TIFF", "JPEG"]) as file:
                other = np.asarray(file)[..., ::-1]
                return file.mode == "RGB" and (
                    np.array_equal(other, image)
                    if file.format == "TIFF"
                    else other.shape == image.shape
                )
        except Exception:
            # Pillow lets a dozen kinds out of damaged bytes; each says that the file is damaged
            return False


# 4096 x 4096 px, and 256 MiB, which hold them in any type and number of channels
MOST_PIXELS, MOST_BYTES = 1 << 24, 1 << 28
# Windows has the one, others the other
READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def read_content(path):
    """Return a file's bytes. Neither a pipe, which would be waited for without end, nor a file that
    fills the memory is read.

    Raises:
        FileNotFoundError: no such file. InputError: too large for any image.
    """
    try:
        file = os.open(path, READING)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_file(path) from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(path)
        if status.st_size > MOST_BYTES:
            raise InputError(
                f"{path} has {status.st_size} bytes; an image file has at most {MOST_BYTES},"
                " restore it from the data set"
            )
        content = os.read(file, status.st_size)
        # a network's short reads
        while len(content) < status.st_size and (
            rest := os.read(file, status.st_size - len(content))
        ):
            content += rest
        return content
    finally:
        os.close(file)


def _no_file(path):
    return FileNotFoundError(
        f"{path} does not exist or is no file; check the path and the data folder"
    )


@cache
def silence_opencv() -> None:
    """Keep OpenCV from printing lines of its own about damaged images, such as "[ERROR:0@5.8]
    global loadsave.cpp:1409 imdecode_ ...", where the user has not asked for them.

    4.5.5, 4.10 and 4.14 all do; 4.10 has the switch in another place than 4.14.
    """
    if "OPENCV_LOG_LEVEL" in os.environ:
        return
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _require_opencv(version: str) -> None:
    """Require an OpenCV that turns as the one of 2019 did; 5 changed warpAffine.

    An opencv-python-headless beside opencv-python replaces it in silence, by version 5 if it may.

    Raises:
        ImportError: another version.
    """
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    if not [4, 10] <= numbers < [5]:
        raise ImportError(
            f"OpenCV {version} is installed and hcd needs 4.10 or later but not 5, which turns"
            " images otherwise; run `pip uninstall -y opencv-python opencv-python-headless"
            " opencv-contrib-python` and then `pip install 'opencv-python>=4.10,<5'`"
        )


_require_opencv(cv2.__version__)


def decode_image(content):
    """Return an image file's bytes as the array that they hold, channels in OpenCV's order.

    cv2.imread would turn grey, 16-bit and alpha images into 8-bit colour in silence; UNCHANGED
    shows what is there.

    Returns:
        array; None where there is none, where the header claims more than MOST_PIXELS, and for all
        but TIFF, PNG and JPEG.
    """
    size = claimed_size(content)
    if size is None or size[0] * size[1] > MOST_PIXELS:
        return None
    silence_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a header that breaks OpenCV's own rules
        return None
    if image is None or image.dtype != np.uint8 or image.shape[2:] != (3,):
        return image
    # a PNG has checksums
    if content[:1] != b"\x89" and not pillow_agrees(content, image):
        return None
    if any(mark in content for mark in ORIENTED):  # which UNCHANGED passes over
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return image


def other_kind(content: bytes) -> str:
    """Return what kind of image it is that Pillow can decode and a patch is not, such as "palette";
    "" for what it cannot decode either, or what is RGB."""
    size = claimed_size(content)
    if size is None or size[0] * size[1] > MOST_PIXELS:
        return ""
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=["TIFF", "JPEG", "PNG"]) as file:
                file.load()
                compression = file.info.get("compression")
                unread = f"{compression}-compressed" if compression in UNREAD else ""
                return KINDS.get(file.mode, unread)
        except Exception:  # as in `pillow_agrees`
            return ""


def encode_tiff(patch):
    """Return an (H, W, 3) uint8 RGB patch as the bytes of an uncompressed TIFF, the kind that the
    competition's files are."""
    return cv2.imencode(".tif", patch[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
