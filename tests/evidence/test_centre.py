"""How much of a map the centre can hold at all, against sums by brute force, and what blurring
leaves."""

import cv2
import hypothesis.strategies as st
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings

from hcd import InputError, Recipe
from hcd.evidence.centre import (
    SIGMA,
    blur_region,
    centre_box,
    share_in,
    share_range,
    spread_over,
    square,
)

CHANCE = (32 / 90) ** 2  # 0.126
PATCH_BOX, CROP_BOX = centre_box(Recipe())
SEEN = square(90, CROP_BOX)


def test_the_centre_of_patch_and_crop_are_the_same_pixels():
    assert slice(32, 64) == PATCH_BOX and slice(29, 61) == CROP_BOX
    for crop_size in (33, 64, 89, 91, 96):
        recipe = Recipe(crop_size=crop_size, max_shift=0)
        in_patch, in_crop = centre_box(recipe)
        assert in_patch == slice(32, 64) and in_crop.start + recipe.margin == 32
        assert in_crop.start >= 0 and in_crop.stop <= crop_size
    assert SEEN.sum() == 32 * 32 and SEEN.mean() == CHANCE


def test_a_crop_without_surroundings(refused):
    with refused(InputError, "crop_size=32", "larger"):
        centre_box(Recipe(crop_size=32, max_shift=0))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=4).filter(lambda v: max(v) > 1e-3))
def test_every_non_negative_2_x_2_map_has_its_chance_share_in_the_centre(values):
    share = share_in(np.reshape(np.float32(values), (2, 2)), SEEN)
    assert share == pytest.approx(CHANCE, rel=1e-6)


def test_a_2_x_2_map_has_no_choice_and_a_larger_one_has():
    assert share_range((2, 2), 90, CROP_BOX) == pytest.approx((CHANCE, CHANCE), rel=1e-12)
    assert share_range((1, 1), 90, CROP_BOX) == pytest.approx((CHANCE, CHANCE), rel=1e-12)
    for size, most in ((3, 0.6), (5, 0.97), (11, 0.999), (23, 0.999)):
        low, high = share_range((size, size), 90, CROP_BOX)
        assert low < 0.03 and high > most


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 4), (5, 5), (11, 11)])
def test_the_range_is_that_of_the_cells_one_by_one(shape):
    alone = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    shares = [share_in(cell, SEEN) for cell in alone]
    assert share_range(shape, 90, CROP_BOX) == pytest.approx((min(shares), max(shares)), abs=1e-12)
    generator = np.random.default_rng(0)
    for _ in range(20):
        share = share_in(generator.exponential(size=shape) ** 4, SEEN)
        assert min(shares) - 1e-12 <= share <= max(shares) + 1e-12


def test_maps_are_spread_as_opencv_does_and_as_the_overview_shows_them():
    heatmap = np.random.default_rng(1).uniform(-1, 3, (5, 5)).astype(np.float32)
    spread = spread_over(heatmap, 90)
    positive = heatmap.clip(0)
    np.testing.assert_allclose(
        spread, cv2.resize(positive, (90, 90), interpolation=cv2.INTER_LINEAR), atol=1e-5
    )
    figure = plt.figure(figsize=(0.9, 0.9), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(positive, "gray", vmin=0, vmax=3, interpolation="bilinear", extent=(0, 90, 90, 0))
    axis.axis("off")
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., 0] / 255 * 3
    # matplotlib reckons in 1/256 of a cell
    assert drawn.shape == (90, 90) and np.abs(drawn - spread).max() < 0.05


def test_shares():
    region = np.zeros((4, 4), bool)
    region[:, :1] = True
    assert share_in(np.ones((4, 4)), region) == 0.25
    assert share_in(np.float32([[3, -9, 0, 1]] * 4), region) == 0.75  # the negative counts nothing
    assert share_in(np.full((4, 4), -1.0), region) is None


@pytest.fixture(scope="module")
def patch():
    return np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def test_a_blurred_whole_is_a_gaussian_and_the_rest_stays(patch):
    whole = np.ones((96, 96), bool)
    expected = cv2.GaussianBlur(patch.astype(np.float32), (0, 0), SIGMA)
    assert np.abs(blur_region(patch, whole) - expected).max() <= 0.51
    centre = square(96, PATCH_BOX)
    for region in (centre, ~centre):
        blurred = blur_region(patch, region)
        assert blurred.dtype == np.uint8
        assert np.array_equal(blurred[~region], patch[~region])
        assert blurred[region].std() < 10 < 70 < patch[region].std()
        assert blurred[region].mean() == pytest.approx(patch[region].mean(), abs=4)


def test_nothing_crosses_the_edge_of_the_region(patch):
    centre = square(96, PATCH_BOX)
    for region in (centre, ~centre):
        other = np.where(region[..., None], patch, 255 - patch)
        assert np.array_equal(
            blur_region(other, region)[region], blur_region(patch, region)[region]
        )
        flat = np.where(region[..., None], np.uint8(200), patch)
        assert (blur_region(flat, region)[region] == 200).all()
