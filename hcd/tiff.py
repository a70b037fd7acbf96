"""What a file's bytes tell without a decoder: a plain TIFF's pixels, as the competition's files are, and any image's size."""
import io
import re
import struct
import warnings
from functools import lru_cache
from threading import Lock

import numpy as np
from PIL import Image

WIDTH, LENGTH, BITS, STRIPS, STRIP_BYTES, FORMAT = 256, 257, 258, 273, 279, 339
# compression, photometric, orientation, samples, planar: the value that each must have, and has when it is left out
RULES = {259: (1, 1), 262: (2, None), 274: (1, 1), 277: (3, 1), 284: (1, 1)}
KINDS = {3: ("H", 2), 4: ("I", 4)}  # a tag's SHORT and LONG: struct's letter, bytes
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # every kind that libtiff takes for a size
WIDTHS, LENGTHS = (WIDTH, 322), (LENGTH, 323)  # of the image, of its tiles
QUIET = Lock()  # Python's filters of warnings belong to all threads


def plain_rgb(content):
    """Return the pixels of an uncompressed 8-bit RGB TIFF whose strips lie one behind the other.

    Args:
        content: bytes of a file of any kind.
    Returns:
        (H, W, 3) uint8 RGB, a read-only view of `content`; None for any other kind of file, a damaged one included, which is
        for a real decoder to judge.
    """
    if content[:4] != b"II*\0" or len(content) < 8:
        return None
    start = int.from_bytes(content[4:8], "little")
    # libtiff puts the tags behind the pixels, the same ones in every file of a set: they are read once and remembered
    layout = _layout if len(content) - start < 1024 else _layout.__wrapped__
    found = layout(len(content), start, content[start:])
    if found is None:
        return None
    offset, length, width = found
    return np.frombuffer(content, np.uint8, length * width * 3, offset).reshape(length, width, 3)


@lru_cache(maxsize=64)
def _layout(size, start, tail):
    """Return (offset of the pixels, length, width) from the tags, which begin at `start`; None where a rule is broken."""
    try:
        count, = struct.unpack_from("<H", tail)
        tags = {tag: _values(tail, start, *entry) for tag, *entry in struct.iter_unpack("<HHII", tail[2:2 + 12 * count])}
        (width,), (length,) = tags[WIDTH], tags[LENGTH]
        offsets, sizes = tags[STRIPS], tags[STRIP_BYTES]
        ends = [offset + bytes_ for offset, bytes_ in zip(offsets, sizes)]
    except (struct.error, KeyError, ValueError, TypeError):
        return None
    plain = all(tags.get(tag, (default,)) == (wanted,) for tag, (wanted, default) in RULES.items())
    if not plain or len(tags) != count or tags.get(BITS) != (8, 8, 8) or set(tags.get(FORMAT, (1,)) or ()) != {1}:
        return None
    if not ends or len(offsets) != len(sizes) or list(offsets[1:]) != ends[:-1]:
        return None
    whole = 0 < sum(sizes) == width * length * 3 and offsets[0] >= 8 and ends[-1] <= size
    return (offsets[0], length, width) if whole else None


def _values(tail, start, kind, number, value):
    """Return the numbers of one tag: in its entry where four bytes hold them, else where it points, behind `start`."""
    if kind not in KINDS or number > 65535:
        return None  # a tag such as a text, which no rule asks for
    letter, size = KINDS[kind]
    if number * size <= 4:
        return struct.unpack_from(f"<{number}{letter}", value.to_bytes(4, "little"))
    if value < start:
        raise ValueError("the numbers lie before the tags")
    return struct.unpack_from(f"<{number}{letter}", tail, value - start)


def claimed_size(content):
    """Return the size that an image file's header claims, so that no decoder makes room for more pixels than there can be.

    Args:
        content: bytes of a file of any kind.
    Returns:
        (width, height) in px, of a tile where that is larger; None for what is no TIFF, PNG or JPEG, or claims no size.
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
        if 0xc0 <= kind <= 0xcf and kind not in (0xc4, 0xc8, 0xcc):
            height, width = struct.unpack_from(">HH", content, place + 3) if len(content) >= place + 7 else (0, 0)
            return (width, height) if width and height else None
        if kind != 1 and not 0xd0 <= kind <= 0xd9:  # those have no length
            place += int.from_bytes(content[place:place + 2], "big")
    return None


def _tiff_size(content, order, big):
    """Read the tags of a TIFF's first directory, of 12 bytes each or, in a BigTIFF, of 20."""
    start, = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
    if start > len(content):
        return None
    count, = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
    first, size = start + (8 if big else 2), 20 if big else 12
    found = dict.fromkeys((*WIDTHS, *LENGTHS), 0)
    for place in range(first, min(first + size * count, len(content) - size + 1), size):
        tag, kind = struct.unpack_from(f"{order}HH", content, place)
        if tag in found and kind in WHOLE:
            value, = struct.unpack_from(f"{order}{WHOLE[kind]}", content, place + (12 if big else 8))
            found[tag] = max(found[tag], value)
    return max(found[tag] for tag in WIDTHS), max(found[tag] for tag in LENGTHS)


def pillow_agrees(content, image):
    """Say whether Pillow decodes a TIFF or JPEG without an error, a TIFF to the same pixels.

    OpenCV passes over the errors of libtiff and libjpeg, a wrong checksum of deflated pixels among them, and returns whatever was
    decoded by then. Of a JPEG two decoders may differ in a rounding, so its pixels are not compared.

    Args:
        content: bytes of the file. image: (H, W, 3) uint8 BGR, what OpenCV made of them.
    """
    with QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=["TIFF", "JPEG"]) as file:
                other = np.asarray(file)[..., ::-1]
                return file.mode == "RGB" and (np.array_equal(other, image) if file.format == "TIFF" else other.shape == image.shape)
        except Exception:  # Pillow lets a dozen kinds out of damaged bytes; each says that the file is damaged
            return False
