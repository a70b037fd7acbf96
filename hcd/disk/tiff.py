"""A plain TIFF's pixels without a decoder, as the competition's files are."""

import struct
from functools import lru_cache

import numpy as np

WIDTH, LENGTH, BITS, STRIPS, STRIP_BYTES, FORMAT = 256, 257, 258, 273, 279, 339
# compression, photometric, orientation, samples, planar: the value that each must have, and has
# when it is left out
RULES = {259: (1, 1), 262: (2, None), 274: (1, 1), 277: (3, 1), 284: (1, 1)}
KINDS = {3: ("H", 2), 4: ("I", 4)}  # a tag's SHORT and LONG: struct's letter, bytes


def plain_rgb(content):
    """Return the pixels of an uncompressed 8-bit RGB TIFF whose strips lie one behind the other.

    Args:
        content: bytes of a file of any kind.
    Returns:
        (H, W, 3) uint8 RGB, a read-only view of `content`; None for any other kind of file, a
        damaged one included, which is for a real decoder to judge.
    """
    if content[:4] != b"II*\0" or len(content) < 8:
        return None
    start = int.from_bytes(content[4:8], "little")
    # libtiff puts the tags behind the pixels, the same ones in every file of a set: they are read
    # once and remembered
    layout = _layout if len(content) - start < 1024 else _layout.__wrapped__
    found = layout(len(content), start, content[start:])
    if found is None:
        return None
    offset, length, width = found
    return np.frombuffer(content, np.uint8, length * width * 3, offset).reshape(length, width, 3)


@lru_cache(maxsize=64)
def _layout(size, start, tail):
    """Return (offset of the pixels, length, width) from the tags, which begin at `start`; None
    where a rule is broken."""
    try:
        (count,) = struct.unpack_from("<H", tail)
        tags = {
            tag: _values(tail, start, *entry)
            for tag, *entry in struct.iter_unpack("<HHII", tail[2 : 2 + 12 * count])
        }
        (width,), (length,) = tags[WIDTH], tags[LENGTH]
        offsets, sizes = tags[STRIPS], tags[STRIP_BYTES]
        ends = [offset + bytes_ for offset, bytes_ in zip(offsets, sizes)]
    except (struct.error, KeyError, ValueError, TypeError):
        return None
    plain = all(tags.get(tag, (default,)) == (wanted,) for tag, (wanted, default) in RULES.items())
    if (
        not plain
        or len(tags) != count
        or tags.get(BITS) != (8, 8, 8)
        or set(tags.get(FORMAT, (1,)) or ()) != {1}
    ):
        return None
    if not ends or len(offsets) != len(sizes) or list(offsets[1:]) != ends[:-1]:
        return None
    whole = 0 < sum(sizes) == width * length * 3 and offsets[0] >= 8 and ends[-1] <= size
    return (offsets[0], length, width) if whole else None


def _values(tail, start, kind, number, value):
    """Return the numbers of one tag: in its entry where four bytes hold them, else where it points,
    behind `start`."""
    if kind not in KINDS or number > 65535:
        return None  # a tag such as a text, which no rule asks for
    letter, size = KINDS[kind]
    if number * size <= 4:
        return struct.unpack_from(f"<{number}{letter}", value.to_bytes(4, "little"))
    if value < start:
        raise ValueError("the numbers lie before the tags")
    return struct.unpack_from(f"<{number}{letter}", tail, value - start)
