"""Cells tile the slide, and each patch is the very pixels around its cell."""

import numpy as np
import pytest
from PIL import Image
from slide.helpers import SIZE, of_array

from hcd import InputError
from hcd.slide.cells import CELL, make_grid, read_block, shares
from hcd.slide.libraries import open_slide


def pyramid(width, height, *downs, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    image = rng.integers(9, 256, (height, width, 3), np.uint8)
    return of_array([image[::down, ::down] for down in downs])


@pytest.mark.parametrize(
    "mpp, downs, level, factor",
    [
        (0.25, (1, 2, 4, 8), 2, 1),  # 1.0 is within 5 % of 0.972
        (0.243, (1, 4, 16), 1, 1),
        (0.5, (1, 2, 4), 1, 1),
        (0.25, (1, 8), 0, 0.972 / 0.25),  # 2.0 is too coarse
        (0.25, (1, 2, 8), 1, 0.972 / 0.5),
        (0.23, (1, 4), 0, 0.972 / 0.23),  # 0.92 is off by 5.3 % and finer: read from it
        (1.2, (1,), 0, 0.972 / 1.2),  # coarser, but not by much
        (0.972, (1,), 0, 1),
    ],
)
def test_the_level_that_is_read(mpp, downs, level, factor):
    slide = pyramid(1600, 800, *downs)
    grid = make_grid(slide, (mpp, mpp), 0.972)
    if (mpp, downs) == (0.23, (1, 4)):
        level, factor = 1, 0.972 / 0.92
    assert grid.level == level and grid.factor == pytest.approx((factor, factor))
    length = CELL * factor * downs[level]
    assert grid.cell == pytest.approx((length, length))
    rows, columns = grid.shape
    assert (rows - 1) * length < 800 <= rows * length + 1e-3
    assert (columns - 1) * length < 1600 <= columns * length + 1e-3
    covered = np.zeros(grid.shape, int)
    for place in grid.blocks():
        covered[place] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("mpp", [(0.972, 0.972), (0.9, 0.9), (0.3, 0.3), (0.5, 0.6), (1.3, 1.3)])
def test_each_patch_is_the_pixels_around_its_cell(mpp):
    """Against the whole image at once, read as it is or resampled, white around it."""
    slide = pyramid(3001, 1999, 1)
    grid = make_grid(slide, mpp, 0.972)
    size = [int(length / factor + 1e-6) for length, factor in zip(slide.sizes[0], grid.factor)]
    box = (0, 0, size[0] * grid.factor[0], size[1] * grid.factor[1])
    image = Image.fromarray(slide.read(0, 0, 0, 3001, 1999)[0])
    if grid.factor != (1, 1):
        image = image.resize(size, Image.Resampling.HAMMING, box)
    wide = np.full((CELL * grid.shape[0] + 64, CELL * grid.shape[1] + 64, 3), 255, np.uint8)
    wide[32 : 32 + size[1], 32 : 32 + size[0]] = image
    most = 0 if grid.factor == (1, 1) else 1  # of a fractional box the weights are rounded
    for rows, columns in grid.blocks():
        rgb, there = read_block(slide, grid, rows, columns)
        here = wide[CELL * rows.start :, CELL * columns.start :][: len(rgb), : rgb.shape[1]]
        assert np.abs(rgb.astype(int) - here).max() <= most
        assert there.shape == (rows.stop - rows.start, columns.stop - columns.start)
        assert (there > 0.999).all()  # of a cell at the end, of its few pixels on the slide


def test_other_sides_of_a_patch():
    slide = pyramid(200, 100, 1)
    for side in (32, 64, 128):
        grid = make_grid(slide, (0.972, 0.972), 0.972, side)
        rgb, _ = read_block(slide, grid, slice(0, 1), slice(1, 3))
        assert rgb.shape == (side, side + CELL, 3)
        middle = (side - CELL) // 2
        expected = slide.read(0, 32, 0, 64, 32)[0]
        assert (rgb[middle : middle + 32, middle : middle + 64] == expected).all()


def test_shares_are_means_over_cells():
    image = np.random.default_rng(0).random((50, 70)).astype(np.float32)
    grid = make_grid(pyramid(700, 500, 1), (0.8, 0.8), 0.972)
    found = shares(image, grid, (700, 500))
    fine = np.kron(image, np.ones((100, 100)))  # 10 fine pixels to one of level 0
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            top, left = round(row * grid.cell[1] * 10), round(column * grid.cell[0] * 10)
            bottom, right = top + round(grid.cell[1] * 10), left + round(grid.cell[0] * 10)
            expected = fine[top:bottom, left:right].mean()
            assert found[row, column] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("mpp", [0.009, 1.5, 2, 352.8])
def test_a_spacing_that_the_model_cannot_take(refused, mpp):
    with refused(InputError, f"{mpp:g} x {mpp:g} um", "--mpp"):
        make_grid(pyramid(1600, 800, 1), (mpp, mpp), 0.972)


@pytest.mark.parametrize("size", [(1, 1), (31, 400), (400, 31)])
def test_a_slide_smaller_than_a_cell(refused, size):
    with refused(InputError, f"{size[0]} x {size[1]} px", "one cell of 32 x 32"):
        make_grid(pyramid(*size, 1), (0.972, 0.972), 0.972)


def test_a_file_is_read_by_level_2(slide_file):
    with open_slide(slide_file()) as slide:
        grid = make_grid(slide, slide.mpp, 0.972)
        assert (grid.level, grid.factor, grid.cell) == (2, (1, 1), (128, 128))
        assert grid.shape == (SIZE[1] / 128, SIZE[0] / 128)
        rgb, _ = read_block(slide, grid, slice(2, 5), slice(3, 9))
        assert (rgb == slide.read(2, 64, 32, 256, 160)[0]).all()
