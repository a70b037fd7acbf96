"""The grid of cells that a slide is judged on, and the pixels of a block of them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .opened import Slide

CELL = 32  # px of a patch's centre, which the label of PatchCamelyon is about
BLOCK = 16, 64  # rows and columns of cells that are read at once
NEAR = 0.05  # a level whose spacing is that near the model's is read as it is
COARSEST = 1.5  # times the model's spacing; what lies between its pixels cannot be made up
FINEST_UM, REMEDY = 0.01, "give the right one with --mpp (mpp=...)"


@dataclass(frozen=True)
class Grid:
    """Cells over a slide, in pixels of the image that the model sees: a level, or one resampled.

    Attributes:
        level: that is read. factor: its pixels to one of the image (x, y); 1 where it is read as it
            is. cell: length of a cell in pixels of level 0 (x, y). shape: rows and columns of
            cells. patch: side of a patch, in px.
    """

    level: int
    factor: tuple[float, float]
    cell: tuple[float, float]
    shape: tuple[int, int]
    patch: int

    def blocks(self) -> list[tuple[slice, slice]]:
        """Return rows and columns of each block, which together cover the grid."""
        rows, columns = self.shape
        return [
            (slice(top, min(top + BLOCK[0], rows)), slice(left, min(left + BLOCK[1], columns)))
            for top in range(0, rows, BLOCK[0])
            for left in range(0, columns, BLOCK[1])
        ]


def make_grid(slide: Slide, mpp: tuple[float, float], spacing_um: float, patch: int = 96) -> Grid:
    """Choose the level to read and lay the cells over it.

    Args:
        slide: see `open_slide`. mpp: um a pixel of level 0 (x, y). spacing_um: that the model was
            trained at. patch: side of what the model reads, in px.
    Returns:
        Grid on the level that is nearest the spacing, where one is within 5 %; otherwise on the
        coarsest that is finer, or else on level 0, resampled.
    Raises:
        InputError: level 0 is too coarse for the model, or no scanner has its spacing.
    """
    if not FINEST_UM <= min(mpp) <= max(mpp) <= COARSEST * spacing_um:
        raise InputError(
            f"{slide.path} has {mpp[0]:.6g} x {mpp[1]:.6g} um a pixel, and the model, trained at"
            f" {spacing_um:g}, takes {FINEST_UM:g} to {COARSEST * spacing_um:g}; {REMEDY}"
        )
    level, factor = _chosen(slide, mpp, spacing_um)
    down = slide.downsample(level)
    cell = CELL * factor[0] * down[0], CELL * factor[1] * down[1]
    width, height = slide.sizes[0]
    if width < cell[0] or height < cell[1]:
        raise InputError(
            f"{slide.path} has {width} x {height} px at {mpp[0]:.6g} um, less than one cell of"
            f" {cell[0]:.0f} x {cell[1]:.0f}; name the file of a whole slide"
        )
    # a hair above a whole number of cells is a rounding error, not a cell
    shape = math.ceil(height / cell[1] - 1e-6), math.ceil(width / cell[0] - 1e-6)
    return Grid(level, factor, cell, shape, patch)


def _chosen(slide, mpp, spacing_um):
    """Return the level to read, and its pixels to one of the model's (x, y)."""
    ratios = []
    for level in range(len(slide.sizes)):
        x, y = slide.downsample(level)
        ratios.append((mpp[0] * x / spacing_um, mpp[1] * y / spacing_um))
    nearest = int(np.argmin([max(abs(math.log(x)), abs(math.log(y))) for x, y in ratios]))
    if max(abs(ratio - 1) for ratio in ratios[nearest]) <= NEAR:
        return nearest, (1.0, 1.0)
    finer = [level for level, both in enumerate(ratios) if max(both) <= 1]
    level = finer[-1] if finer else 0
    return level, (1 / ratios[level][0], 1 / ratios[level][1])


def shares(image: np.ndarray, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """Average an image of the whole slide over each cell.

    Args:
        image: (H, W) float32. grid: the cells. size: (width, height) of the slide at level 0.
    Returns:
        (rows, columns) float32; of a cell that reaches beyond the slide, over what lies on it.
    """
    rows, columns = grid.shape
    height, width = image.shape
    edges = []
    for cell, count, length, whole in (
        (grid.cell[1], rows, height, size[1]),
        (grid.cell[0], columns, width, size[0]),
    ):
        edges.append(np.minimum(np.arange(count + 1) * cell / whole, 1) * length)
    down = _means(image.astype(float), edges[0])
    return _means(down.T, edges[1]).T.astype(np.float32)


def _means(image, edges):
    """Return means between fractional rows, from the running sum."""
    sums = np.concatenate([np.zeros_like(image[:1]), np.cumsum(image, axis=0)])
    whole = np.minimum(edges.astype(int), len(image) - 1)
    at = sums[whole] + (edges - whole)[:, None] * image[whole]
    return np.diff(at, axis=0) / np.maximum(np.diff(edges), 1e-9)[:, None]


def read_block(
    slide: Slide, grid: Grid, rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Read the pixels of a block of cells and of what its patches show around them.

    Returns:
        (H, W, 3) uint8 RGB, white beyond the slide: the patch of the block's cell (i, j) begins at
        (CELL * i, CELL * j); (rows, columns) float32, how much of each cell is there, of a cell
        that reaches beyond the slide how much of what lies on it.
    Raises:
        InputError: the slide cannot be read there.
    """
    margin = (grid.patch - CELL) // 2
    counts = rows.stop - rows.start, columns.stop - columns.start
    down = _span(CELL * rows.start - margin, CELL * rows.stop + margin, grid, slide, 1)
    across = _span(CELL * columns.start - margin, CELL * columns.stop + margin, grid, slide, 0)
    pixels, real = slide.read(
        grid.level, across.low, down.low, across.high - across.low, down.high - down.low
    )
    there: np.ndarray = real.astype(np.float32)
    if grid.factor != (1, 1):
        box = (*(edge for ends in zip(across.box, down.box) for edge in ends),)
        size = across.stop - across.start, down.stop - down.start
        # of a fractional box, with what lies around it, so that blocks meet without a seam
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.HAMMING, box))
        there = np.asarray(Image.fromarray(there).resize(size, Image.Resampling.HAMMING, box))
    side = grid.patch - CELL
    rgb = np.full((CELL * counts[0] + side, CELL * counts[1] + side, 3), 255, np.uint8)
    rgb[down.start : down.stop, across.start : across.stop] = pixels
    both = np.zeros((2, *rgb.shape[:2]), np.float32)
    both[:, down.start : down.stop, across.start : across.stop] = there, np.ones_like(there)
    cells = both[:, margin : margin + CELL * counts[0], margin : margin + CELL * counts[1]]
    here, on_slide = cells.reshape(2, counts[0], CELL, counts[1], CELL).mean(axis=(2, 4))
    return rgb, here / np.maximum(on_slide, 1e-9)


class _Span(NamedTuple):
    """What is read along one axis: `low` to `high` of the level, of which `box` becomes `start` to
    `stop` of the block; what else the block has lies beyond the slide."""

    low: int
    high: int
    box: tuple[float, float]
    start: int
    stop: int


def _span(first, last, grid, slide, axis):
    """Return the span of the pixels `first` to `last` of the image that the model sees."""
    factor, length = grid.factor[axis], slide.sizes[grid.level][axis]
    begin, end = max(0, first), min(last, math.floor(length / factor + 1e-6))
    support = 0 if factor == 1 else math.ceil(factor) + 1  # of the resampling
    low = max(0, math.floor(begin * factor) - support)
    high = min(length, math.ceil(end * factor) + support)
    box = begin * factor - low, min(end * factor - low, high - low)
    return _Span(low, high, box, begin - first, end - first)
