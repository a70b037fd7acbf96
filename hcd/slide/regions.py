"""Regions of a slide: cells above a threshold that share a side, and their outlines."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.distance import pdist

from .answer import SlideAnswer

DIGITS = 2  # of coordinates: 0.01 px of level 0 are some nanometres


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of an answer, the largest first; of equal ones the one that begins higher.

    Attributes:
        outlines: of each region its rings, the outer one first, then its holes; a ring is (K, 2)
            whole numbers (column, row) of the corners of cells, not closed.
        cells: (N,) how many cells each has. area: (N,) mm2, within the slide. mean, most: (N,)
            mean and largest probability of its cells.
    """

    outlines: list
    cells: np.ndarray
    area: np.ndarray
    mean: np.ndarray
    most: np.ndarray

    def __len__(self):
        return len(self.outlines)


def grid_lines(answer: SlideAnswer) -> tuple[np.ndarray, np.ndarray]:
    """Return where the cells of a slide begin and end, (columns + 1,) and (rows + 1,), px of level
    0; the last cells end where the slide does."""
    lines = []
    for count, cell, end in zip(answer.probabilities.shape[::-1], answer.cell, answer.size):
        line = np.round(np.minimum(np.arange(count + 1) * cell, end), DIGITS)
        # rounding leaves nothing of a last cell that is thinner than a digit
        line[-1] = max(line[-1], line[-2] + 10.0**-DIGITS)
        lines.append(line)
    return lines[0], lines[1]


def cell_areas(answer: SlideAnswer) -> np.ndarray:
    """Return the area of each cell within the slide, (rows, columns), mm2."""
    x, y = grid_lines(answer)
    return np.outer(np.diff(y) * answer.mpp[1], np.diff(x) * answer.mpp[0]) / 1e6


def find_regions(answer: SlideAnswer, threshold: float) -> Regions:
    """Find the regions of cells above a threshold.

    Cells that touch at a corner alone are two regions, so each is one valid polygon.
    """
    above = answer.probabilities > threshold  # NaN is not
    count, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=4)
    of = labels[above]
    found = answer.probabilities[above]
    cells = np.bincount(of, minlength=count)[1:]
    area = np.bincount(of, cell_areas(answer)[above], minlength=count)[1:]
    mean = np.bincount(of, found, minlength=count)[1:] / cells
    most = np.zeros(count, found.dtype)
    np.maximum.at(most, of, found)
    order = np.argsort(-np.round(area, 9), kind="stable")
    outlines = trace_outlines(labels, count)
    return Regions(
        [outlines[i] for i in order], cells[order], area[order], mean[order], most[1:][order]
    )


def trace_outlines(labels: np.ndarray, count: int) -> list[list[np.ndarray]]:
    """Trace the outlines of labelled cells along the sides of the cells.

    Each step goes along one side with its cell on the right, first to the right, then down, left
    and up. At a crossing it turns left where the cell across the corner has its label too. So a
    ring passes no corner twice: if it did, the two cells outside would lie on one side of the
    ring, but cells of one label are joined by sides, and that path parts the two.

    Args:
        labels: (rows, columns), 0 for none, else 1 to count - 1; cells of one label are joined by
            sides, and those of two labels share none.
    Returns:
        rings of each label from 1 up, see `Regions`. In (x, y) the outer ring's area is positive
        and those of holes are negative, as RFC 7946 wants it.
    """
    padded = np.pad(labels, 1)
    width = padded.shape[1]
    flat = padded.ravel()
    ahead = np.array([1, width, -1, -width])
    left = np.array([-width, 1, width, -1])
    sides = [np.flatnonzero((flat > 0) & (flat != np.roll(flat, -step))) for step in left]
    which = np.full((4, flat.size), -1, np.int32)  # the number of a cell's side
    begin = np.cumsum([0, *map(len, sides)])
    for way in range(4):
        which[way, sides[way]] = np.arange(begin[way], begin[way + 1])
    following = []
    for way, cell in enumerate(sides):
        forward, across = cell + ahead[way], cell + ahead[way] + left[way]
        follow = np.where(
            flat[forward] == flat[cell], which[way, forward], which[(way + 1) % 4, cell]
        )
        turns = flat[across] == flat[cell]
        following.append(np.where(turns, which[(way + 3) % 4, across], follow))
    return _rings(flat, width, sides, np.concatenate(following), count)


def _rings(flat, width, sides, following, count):
    """Walk from side to side until each is in a ring; return the rings' corners by label."""
    ways: np.ndarray = np.repeat(np.arange(4), [len(side) for side in sides])
    cells = np.concatenate(sides)
    # where a side begins, in (column, row); the padding moved all by one
    x = cells % width - 1 + np.isin(ways, (1, 2))
    y = cells // width - 1 + (ways >= 2)
    corner: np.ndarray = np.zeros(len(cells), bool)
    corner[following] = ways[following] != ways
    steps, corners, places = following.tolist(), corner.tolist(), np.stack([x, y], axis=1)
    rings: list[list] = [[] for _ in range(count)]
    # of each label the highest side comes first, so its outer ring does
    for start in np.flatnonzero(corner).tolist():
        if not corners[start]:  # in a ring already
            continue
        ring, side = [], start
        while True:
            if corners[side]:
                ring.append(side)
                corners[side] = False
            side = steps[side]
            if side == start:
                break
        rings[flat[cells[start]]].append(places[ring])
    return rings[1:]


def longest_extent(outline: list, answer: SlideAnswer) -> float:
    """Return the largest distance between two points of a region, mm."""
    x, y = grid_lines(answer)
    outer = outline[0]
    points = np.stack([x[outer[:, 0]], y[outer[:, 1]]], axis=1) * answer.mpp / 1000
    hull = cv2.convexHull(points.astype(np.float32), returnPoints=False).ravel()
    return float(pdist(points[hull]).max())
