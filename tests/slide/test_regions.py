"""Regions are the connected cells, and their outlines valid polygons that cover just those."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline
from scipy import ndimage
from scipy.spatial.distance import pdist

from hcd.slide.answer import SlideAnswer
from hcd.slide.regions import cell_areas, find_regions, grid_lines, longest_extent

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))
# diagonal neighbours: of two regions, of one (a ring closed at a corner), of two holes
CORNERS = np.array([[1, 0], [0, 1]], bool)
RING = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
HOLES = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)


def answer_of(probabilities, cell=(10.0, 10.0), mpp=(0.5, 0.5), size=None):
    probabilities = np.asarray(probabilities, np.float32)
    if size is None:
        size = tuple(round(n * c) for n, c in zip(probabilities.shape[::-1], cell))
    thumbnail = np.full((6, 8, 3), 200, np.uint8)
    return SlideAnswer("a.tif", size, mpp, cell, probabilities, thumbnail, {})


def area_of(ring):
    x, y = np.asarray(ring).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


def covered(outline, shape):
    """Which cells' centres lie in a polygon with holes."""
    centres = np.argwhere(np.ones(shape))[:, ::-1] + 0.5
    inside = [Outline(np.vstack([ring, ring[:1]])).contains_points(centres) for ring in outline]
    return (inside[0] & ~np.any([np.zeros(len(centres), bool), *inside[1:]], axis=0)).reshape(shape)


def unit_sides(ring):
    """Each side of a cell that a ring runs along, whichever way."""
    found = []
    for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0)):
        assert (x == to_x) != (y == to_y)
        for step in range(abs(to_x - x) + abs(to_y - y)):
            here = x + step * np.sign(to_x - x), y + step * np.sign(to_y - y)
            there = here[0] + np.sign(to_x - x), here[1] + np.sign(to_y - y)
            found.append(tuple(sorted([here, there])))
    return found


@settings(deadline=None, max_examples=300)
@given(MASKS)
@example(CORNERS)
@example(CORNERS[::-1])
@example(RING)
@example(RING[::-1, ::-1])
@example(HOLES)
@example(HOLES[::-1])
def test_outlines_are_valid_and_cover_their_cells(mask):
    regions = find_regions(answer_of(np.where(mask, 0.75, 0.25)), 0.5)
    labels, count = ndimage.label(mask)  # another library's; side by side too
    assert len(regions) == count
    seen = np.zeros(mask.shape, int)
    for number, outline in enumerate(regions.outlines):
        cells = covered(outline, mask.shape)
        assert len(set(labels[cells])) == 1 and cells.sum() == regions.cells[number]
        seen += cells
        areas = [area_of(ring) for ring in outline]
        assert areas[0] > 0 and all(area < 0 for area in areas[1:])
        assert sum(areas) == cells.sum()
        # as many holes as its complement has parts that do not reach the outside
        outside = ndimage.label(~np.pad(cells, 1))[1]
        assert len(outline) == outside
        for ring in outline:
            assert len(set(map(tuple, ring.tolist()))) == len(ring)  # touches itself nowhere
            turns = np.diff(np.vstack([ring, ring[:1]]), axis=0)
            assert ((turns != 0).sum(axis=1) == 1).all()
            assert (turns[:, 0] * np.roll(turns[:, 0], -1) == 0).all()  # every corner turns
    assert (seen == mask).all()
    sides = Counter(s for o in regions.outlines for ring in o for s in unit_sides(ring))
    assert set(sides.values()) <= {1}  # no two rings share a side, none crosses another
    padded = np.pad(mask, 1)
    assert len(sides) == sum((padded != np.roll(padded, 1, axis)).sum() for axis in (0, 1))


def test_cells_that_touch_at_a_corner_are_two_regions():
    regions = find_regions(answer_of(np.where(CORNERS, 0.9, 0.1)), 0.5)
    assert [outline[0].tolist() for outline in regions.outlines] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


@settings(deadline=None, max_examples=60)
@given(MASKS, st.integers(0, 2**32 - 1))
def test_numbers_of_regions(mask, seed):
    rng = np.random.default_rng(seed)
    found = np.where(mask, rng.uniform(0.51, 1, mask.shape), rng.uniform(0, 0.5, mask.shape))
    cell, mpp = (62.2, 124.4), (0.5, 0.25)
    size = tuple(int(np.ceil((n - 0.6) * c)) for n, c in zip(mask.shape[::-1], cell))
    answer = answer_of(found, cell, mpp, size)
    regions = find_regions(answer, 0.5)
    assert (np.diff(regions.area) <= 1e-9).all()  # the largest first
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    wide = np.minimum((x + 1) * cell[0], size[0]) - x * cell[0]
    tall = np.minimum((y + 1) * cell[1], size[1]) - y * cell[1]
    area = wide * mpp[0] * tall * mpp[1] / 1e6
    assert cell_areas(answer) == pytest.approx(area, abs=1e-6)
    for number, outline in enumerate(regions.outlines):
        cells = covered(outline, mask.shape)
        assert regions.area[number] == pytest.approx(area[cells].sum(), abs=1e-6)
        assert regions.mean[number] == pytest.approx(answer.probabilities[cells].mean(), abs=1e-6)
        assert regions.most[number] == answer.probabilities[cells].max()
        corners = [
            (x * mpp[0] / 1000, y * mpp[1] / 1000)
            for r, c in np.argwhere(cells)
            for x in np.minimum([c * cell[0], (c + 1) * cell[0]], size[0])
            for y in np.minimum([r * cell[1], (r + 1) * cell[1]], size[1])
        ]
        longest = longest_extent(outline, answer)
        assert longest == pytest.approx(pdist(np.array(corners)).max(), abs=1e-4)


def test_a_threshold_is_not_above_itself_and_glass_never_is():
    answer = answer_of([[0.5, np.nan, np.nextafter(np.float32(0.5), np.float32(1))]])
    regions = find_regions(answer, 0.5)
    assert [outline[0].tolist() for outline in regions.outlines] == [
        [[2, 0], [3, 0], [3, 1], [2, 1]]
    ]
    assert len(find_regions(answer, 0)) == 2


def test_lines_end_where_the_slide_does_and_always_grow():
    x, y = grid_lines(answer_of(np.zeros((2, 3)), (62.208, 31.104), size=(130, 31.1045)))
    assert x.tolist() == [0, 62.21, 124.42, 130]
    assert (np.diff(y) > 0).all() and y[-1] == pytest.approx(31.1045, abs=0.011)
