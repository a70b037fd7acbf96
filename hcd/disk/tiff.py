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
        found = _first_layout(content, start)
    if found is None:
        return None
    offset, length, width = found
    return np.frombuffer(content, np.uint8, length * width * 3, offset).reshape(length, width, 3)


def _first_layout(content, start):
    """Return (offset of the pixels, length, width) from tags that stand before the pixels; None
    where a rule is broken."""
    count = content[start] | content[start + 1] << 8
    if 0 < count <= MOST_TAGS:
        found = _one_strip(len(content), start, content[start : start + 2 + 12 * count])
        if found and content.startswith(BITS_8, found[3]):
            return found[:3]
    return _layout.__wrapped__(len(content), start, content[start:])


@lru_cache(maxsize=64)
def _one_strip(size, start, directory):
    """Return (offset of the pixels, length, width, place of the three sample sizes) from the bytes
    of a directory of one strip alone: of the values that do not fit into it only the sample sizes
    matter, which the caller compares in each file. None for any other."""
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


@lru_cache(maxsize=64)
def plain_head(height: int, width: int) -> bytes:
    """Return what stands before the pixels of a patch in a file like the competition's: 15 tags at
    byte 8, the texts that they point to, and the only strip at 287.

    The texts have the competition's lengths; of the date EXIF's blanks, for one that is not known.
    """
    shape = f'{{"shape": [{height}, {width}, 3]}}\0'.encode()
    software, when = b"hcd.dataset\0", b"    :  :     :  :  \0"
    tags = (
        (254, 4, 1, 0),
        (WIDTH, 4, 1, width),
        (LENGTH, 4, 1, height),
        (BITS, 3, 3, 194),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (270, 2, len(shape), 200),
        (STRIPS, 4, 1, 287),
        (277, 3, 1, 3),
        (STRIP_ROWS, 4, 1, height),
        (STRIP_BYTES, 4, 1, height * width * 3),
        (284, 3, 1, 1),
        (305, 2, len(software), 255),
        (306, 2, len(when), 267),
        (FORMAT, 3, 1, 1),
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return (head + BITS_8 + shape).ljust(255, b"\0") + software + when
