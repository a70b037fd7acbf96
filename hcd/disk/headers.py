"""What an image file's header says, known before a decoder makes room for it."""

import re
import struct

from .tiff import LENGTH, WIDTH

# every kind that libtiff takes for a size
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
WIDTHS, LENGTHS = (WIDTH, 322), (LENGTH, 323)  # of the image, of its tiles
EXIF = re.compile(rb"Exif\0\0|eXIf")  # in a JPEG, in a PNG; a small TIFF follows


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
    found = _tiff_values(content, (*WIDTHS, *LENGTHS))
    return found and tuple(max(found[tag] for tag in tags) for tags in (WIDTHS, LENGTHS))


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


def _tiff_values(content, tags):
    """Read some whole numbers of a TIFF's first directory, whose entries have 12 bytes each or, in
    a BigTIFF, 20.

    Returns:
        {tag: its largest value, 0 where it is left out}; None for what is no TIFF or is cut off.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if not order or content[2:4] not in (struct.pack(f"{order}H", version) for version in (42, 43)):
        return None
    big = 43 in content[2:4]
    found = dict.fromkeys(tags, 0)
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
        if start > len(content):
            return None
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
        first, size = start + (8 if big else 2), 20 if big else 12
        for place in range(first, min(first + size * count, len(content) - size + 1), size):
            tag, kind = struct.unpack_from(f"{order}HH", content, place)
            if tag in found and kind in WHOLE:
                (value,) = struct.unpack_from(
                    f"{order}{WHOLE[kind]}", content, place + (12 if big else 8)
                )
                found[tag] = max(found[tag], value)
    except struct.error:
        return None
    return found


def may_be_turned(content: bytes) -> bool:
    """Say whether a TIFF, or the metadata of a PNG or JPEG, may ask for the image to be turned or
    mirrored, as cameras do."""
    if content[:2] in (b"II", b"MM"):
        blocks = [content]
    else:
        blocks = [content[mark.end() :] for mark in EXIF.finditer(content)]
    return any((_tiff_values(block, [274]) or {274: 9})[274] > 1 for block in blocks)
