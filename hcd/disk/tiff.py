"""A plain TIFF's pixels without a decoder, as the competition's files are."""

import struct
from functools import lru_cache

import numpy as np

WIDTH, LENGTH, BITS, STRIPS, STRIP_ROWS, STRIP_BYTES, FORMAT = 256, 257, 258, 273, 278, 279, 339
SIZES = {WIDTH, LENGTH, BITS, STRIPS, STRIP_ROWS, STRIP_BYTES, FORMAT}
# subfile, compression, photometric, fill order, orientation, samples, planar, predictor: the value
# that each must have, and has when it is left out
RULES = {
    254: (0, 0),
    259: (1, 1),
    262: (2, None),
    266: (1, 1),
    274: (1, 1),
    277: (3, 1),
    284: (1, 1),
    317: (1, 1),
}
# names, makers, resolutions, pages, software, dates: they say nothing about where pixels lie. Any
# other tag is not understood here, and its file is for a real decoder.
HARMLESS = {269, 270, 271, 272, 280, 281, 282, 283, 285, 286, 287, 296, 297, 305, 306, 315, 316}
HARMLESS |= {33432}
MOST_TAGS = 64
BITS_8 = struct.pack("<3H", 8, 8, 8)
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
    # the tags are the same ones in every file of a set: they are read once and remembered
    if len(content) - start < 1024:  # behind the pixels, where libtiff puts them
        found = _layout(len(content), start, content[start:])
    else:  # before them, as in the competition's own files
        found = _first_layout(len(content), start, content[start : start + 2 + 12 * MOST_TAGS])
        bits = found and content[found[3] : found[3] + 6]
        found = (
            found[:3]
            if bits == BITS_8
            else _layout.__wrapped__(len(content), start, content[start:])
        )
    if found is None:
        return None
    offset, length, width = found
    return np.frombuffer(content, np.uint8, length * width * 3, offset).reshape(length, width, 3)


def _first_layout(size, start, head):
    """Return (offset of the pixels, length, width, place of the three sample sizes) from a
    directory of few tags, all of one strip; None for any other."""
    count = int.from_bytes(head[:2], "little")
    return _one_strip(size, start, head[: 2 + 12 * count]) if 0 < count <= MOST_TAGS else None


@lru_cache(maxsize=64)
def _one_strip(size, start, directory):
    """Return the same from the directory's bytes alone: of the values that do not fit into it only
    the sample sizes matter, which the caller compares in each file."""
    try:
        entries = list(struct.iter_unpack("<HHII", directory[2:]))
    except struct.error:  # cut off
        return None
    places = [value for tag, kind, number, value in entries if (tag, kind, number) == (BITS, 3, 3)]
    if len(places) != 1 or places[0] < start:
        return None
    # a directory with the sample sizes right behind it, for the rules to judge
    end = start + len(directory)
    moved = directory.replace(
        struct.pack("<HHII", BITS, 3, 3, places[0]), struct.pack("<HHII", BITS, 3, 3, end), 1
    )
    found = _layout.__wrapped__(size, start, moved + BITS_8)
    return (*found, places[0]) if found else None


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
    known = tags.keys() <= SIZES | RULES.keys() | HARMLESS
    rows = tags.get(STRIP_ROWS, (length,))
    if (
        not plain
        or not known
        or len(tags) != count
        or not rows
        or rows[0] < 1
        or len(offsets) != -(-length // rows[0])
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
