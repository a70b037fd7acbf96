"""A small slide to try things on: drawn, not scanned."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..dataset.sample import SIDE, draw_patch, draw_stain
from ..disk.whole import StrPath, refuse_link, whole_write
from ..errors import InputError
from ..export.card import SPACING_UM_PX
from .heatmap import import_tifffile

WIDTH, HEIGHT = 2400, 1600  # px
MPP = SPACING_UM_PX / 2  # um/px: level 1 has the spacing of the patches
PLACES = ((680, 640, 180), (1680, 980, 290))  # x, y, radius, px: where tumour is
LEVELS, TILE, CELL = 3, 256, 32


@dataclass(frozen=True)
class SlideSample:
    """A drawn slide. Attributes: path: of its file. places: (x, y, radius) of each place with
    tumour, px of level 0."""

    path: Path
    places: tuple[tuple[int, int, int], ...]


def make_slide_sample(path: StrPath, rng_seed: int = 0) -> SlideSample:
    """Draw a slide of 2400 x 1600 px at 0.486 um/px with two places of tumour, from the nuclei and
    the stroma of the synthetic sample; the same call again keeps it.

    Args:
        path: of the file, a tiled TIFF of three levels. rng_seed: int from 0; the same one draws
            the same pixels.
    Returns:
        SlideSample.
    Raises:
        InputError: a bad rng_seed, or tifffile is not installed. FileExistsError: path is anything
            else. OSError: it cannot be written, or is a link.
    """
    if not isinstance(rng_seed, (int, np.integer)) or rng_seed < 0:
        raise InputError(
            f"rng_seed={rng_seed!r} starts no random generator; pass a whole number from 0 up"
        )
    import_tifffile()
    path = Path(path).expanduser()
    refuse_link(path)
    content = b"" if path.is_dir() else _encode(_draw_slide(np.random.default_rng(rng_seed)))
    if path.exists() and (not path.is_file() or path.read_bytes() != content):
        raise FileExistsError(
            f"{path} is something other than the slide of rng_seed={rng_seed}; name a file that"
            " does not exist, or remove this one"
        )
    if not path.exists():
        with whole_write(path) as file:
            file.write(content)
    return SlideSample(path, PLACES)


def _draw_slide(rng):
    """Draw the pixels of level 0, (1600, 2400, 3) uint8 RGB: at the spacing of patches first."""
    rows, columns = (int(np.ceil(side / 2 / SIDE)) for side in (HEIGHT, WIDTH))
    stain = draw_stain(rng)
    tissue = np.vstack(
        [np.hstack([draw_patch(0, rng, stain) for _ in range(columns)]) for _ in range(rows)]
    )
    first = (SIDE - CELL) // 2
    for top in range(0, len(tissue), CELL):
        for left in range(0, tissue.shape[1], CELL):
            x, y = 2 * left + CELL, 2 * top + CELL
            if any(np.hypot(x - to_x, y - to_y) < radius for to_x, to_y, radius in PLACES):
                centre = draw_patch(1, rng, stain)[first : first + CELL, first : first + CELL]
                tissue[top : top + CELL, left : left + CELL] = centre
    slide = tissue[: HEIGHT // 2, : WIDTH // 2]
    # a piece of tissue whose edge is no circle, on glass
    y, x = np.mgrid[-1 : 1 : 1j * (HEIGHT // 2), -1 : 1 : 1j * (WIDTH // 2)]
    angle = np.arctan2(y * HEIGHT, x * WIDTH)
    outside = np.hypot(x, y) > 0.93 + 0.04 * np.cos(3 * angle + 1) + 0.02 * np.cos(7 * angle)
    lamp = np.floor(stain[1]).astype(np.uint8)  # as it shines through the gaps of the tissue
    slide[outside] = lamp - rng.integers(0, 4, (outside.sum(), 1), np.uint8)
    return cv2.resize(slide, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def _encode(slide) -> bytes:
    """Return a slide as a tiled TIFF whose levels are halves, as every reader of slides knows."""
    buffer = io.BytesIO()
    with import_tifffile().TiffWriter(buffer) as file:
        for level in range(LEVELS):
            file.write(
                slide,
                photometric="rgb",
                tile=(TILE, TILE),
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(10_000 / MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                software="hcd",
            )
            slide = cv2.resize(slide, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return buffer.getvalue()
