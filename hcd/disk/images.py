"""An image file's bytes -> pixels, and back."""

import os
import stat

import cv2
import numpy as np

from ..errors import InputError, InputTypeError
from .headers import claimed_size, may_be_turned
from .opencv import silence_opencv
from .pillow import second_opinion
from .tiff import plain_head

# 4096 x 4096 px, and 256 MiB, which hold them in any type and number of channels
MOST_PIXELS, MOST_BYTES = 1 << 24, 1 << 28
# Windows has the one, others the other
READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def read_content(path):
    """Return a file's bytes. Neither a pipe, which would be waited for without end, nor a file that
    fills the memory is read.

    Raises:
        FileNotFoundError: no such file. InputError: too large for any image. InputTypeError: no
            path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputTypeError(
            f"{type(path).__name__} is no path of an image; give the name of a file"
        )
    try:
        file = os.open(path, READING)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_file(path) from None
    except ValueError as error:  # a NUL byte, as of a list that is separated by them
        raise InputError(
            f"{path!r} is no file's name ({error}); check the list that it stands in"
        ) from error
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


def decode_image(content: bytes, proven: bool = False) -> np.ndarray | None:
    """Return an image file's bytes as the array that they hold, channels in OpenCV's order.

    cv2.imread would turn grey, 16-bit and alpha images into 8-bit colour in silence; UNCHANGED
    shows what is there.

    Args:
        content: bytes of the file. proven: True leaves out Pillow's second opinion, for a file that
            was decoded with it before, as `verify_patches` does; it takes three times as long.
    Returns:
        array; None where there is none, where the header claims more than MOST_PIXELS, where Pillow
        disagrees, and for all but TIFF, PNG and JPEG.
    """
    size = claimed_size(content)
    if size is None or size[0] * size[1] > MOST_PIXELS:
        return None
    is_tiff = content[:1] in b"IM"
    mode, other = ("RGB", None) if proven else second_opinion(content)
    # OpenCV tells kinds of TIFF that Pillow does not know
    if not mode and not is_tiff:
        return None
    silence_opencv()
    encoded = np.frombuffer(content, np.uint8)
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype != np.uint8 or image.shape[2:] != (3,):
            return image
        if may_be_turned(content):  # which UNCHANGED passes over
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error:  # a header that breaks OpenCV's own rules
        return None
    if proven:
        return image
    return image if _agree(image, mode, other, content) else None


def _agree(image, mode, other, content):
    """Say whether OpenCV's image is Pillow's. Of a JPEG two decoders may differ in a rounding, and
    Pillow does not turn it, so its pixels are not compared."""
    if content[:1] == b"\x89":  # has checksums, and a palette's colours are exact
        return True
    if mode != "RGB":
        return False
    return content[:1] == b"\xff" or np.array_equal(other[..., ::-1], image)


def encode_tiff(patch):
    """Return an (H, W, 3) uint8 RGB patch as the bytes of an uncompressed TIFF, laid out as the
    competition's files are."""
    return plain_head(*patch.shape[:2]) + patch.tobytes()
