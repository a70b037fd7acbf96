"""Do the levels of a slide agree about where there is something?

A tile that a file lacks is returned as transparent by openslide and as black by tiffslide, without
a word, and so is glass that a scanner left out, or that an alpha channel hides. Glass is missing on
every level; tissue that one level shows and another lacks is a fault of the file. On a slide of one
level nothing can tell the two apart.
"""

import numpy as np

from ..errors import InputError
from .cells import Grid
from .opened import Slide
from .tissue import overview_level

SEEN, UNSEEN = 0.9, 0.1  # share of a cell that is there, and that is not
PROBES, PROBE = 8, 16  # cells of a block that are looked at, and px of one


def require_whole_block(
    slide: Slide,
    grid: Grid,
    place: tuple[slice, slice],
    tissue: np.ndarray,
    seen: np.ndarray,
    there: np.ndarray,
) -> None:
    """Require a block that was read to hold the tissue that the overview shows.

    Args:
        place: of the block. tissue: (rows, columns) bool. seen, there: (rows, columns), how much of
            each cell is there on the overview and on the level that was read.
    Raises:
        InputError: it does not.
    """
    lost = np.argwhere(tissue & (seen > SEEN) & (there < 0.5))
    if len(lost):
        row, column = lost[0] + (place[0].start, place[1].start)
        raise _missing(slide, grid, grid.level, row, column)


def require_same_presence(slide: Slide, grid: Grid, seen: np.ndarray) -> None:
    """Require what the overview lacks to be missing on another level too, by looking at a few cells
    of each block.

    Args:
        seen: see `require_whole_block`, of the whole grid.
    Raises:
        InputError: it is not.
    """
    overviews = overview_level(slide)
    level = grid.level if grid.level != overviews else 0
    if level == overviews:
        return
    draw = np.random.default_rng(0)  # cells at a fixed distance might all lie on a black edge
    for rows, columns in grid.blocks():
        unseen = np.argwhere(seen[rows, columns] < UNSEEN)
        for cell in draw.permutation(unseen)[:PROBES]:
            row, column = cell + (rows.start, columns.start)
            if _is_there(slide, grid, level, row, column):
                raise _missing(slide, grid, overviews, row, column)


def _is_there(slide, grid, level, row, column):
    """Say whether a level has something in the middle of a cell."""
    place, extent = [], []
    for axis, number in enumerate((column, row)):
        length = slide.sizes[level][axis]
        middle = int((number + 0.5) * grid.cell[axis] / slide.downsample(level)[axis])
        place.append(max(0, min(middle - PROBE // 2, length - PROBE)))
        extent.append(min(PROBE, length))
    return slide.read(level, *place, *extent)[1].mean() > SEEN


def _missing(slide, grid, level, row, column):
    x, y = round(column * grid.cell[0]), round(row * grid.cell[1])
    return InputError(
        f"level {level} of {slide.path} is missing at {x}, {y} of level 0, where another level has"
        " pixels; the file is damaged, get it again"
    )
