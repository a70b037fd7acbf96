"""No edge of the rotation is visible in the crop, or `corner_depth` says how deep, or the recipe is
refused."""

import random
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hcd import Recipe
from hcd.corners import corner_depth, require_shallow_corners
from hcd.reader import augment


@cache
def darkened(size, degrees):
    """Return where a white patch, turned as the reader turns it, is not white: (size, size)
    bool."""
    white = np.full((size, size, 3), 255, np.uint8)
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), degrees, 1)
    return (
        (cv2.warpAffine(white, turn, (size, size)) < 255).any(axis=2)
        if degrees
        else white[..., 0] < 255
    )


def shows(size, crop, rotation, shift, quarters):
    """Say whether any turn leaves a dark pixel in the square that all shifts of the crop cover."""
    first = (size - crop) // 2 - shift
    square = slice(first, first + 2 * shift + crop)
    return any(
        darkened(size, turn + quarter)[square, square].any()
        for turn in range(-rotation, rotation + 1)
        for quarter in ((-90, 0, 90) if quarters else (0,))
    )


@st.composite
def geometries(draw):
    size = draw(st.one_of(st.just(96), st.integers(1, 130)))
    crop = draw(st.integers(1, size))
    rotation = draw(st.one_of(st.integers(0, 10), st.integers(0, 180)))
    return size, crop, rotation, draw(st.integers(0, (size - crop) // 2)), draw(st.booleans())


@settings(deadline=None, max_examples=200)
@given(geometries())
def test_depth_is_above_0_exactly_where_a_corner_can_show(geometry):
    assert (corner_depth(*geometry) > 0) == shows(*geometry)


@settings(deadline=None, max_examples=100)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_a_white_patch_stays_white_where_the_depth_is_0(geometry, rng_seed):
    assume(corner_depth(*geometry) == 0)
    size, crop, rotation, shift, quarters = geometry
    recipe = Recipe(
        original_size=size,
        crop_size=crop,
        max_rotation=rotation,
        max_shift=shift,
        quarter_turns=quarters,
        max_brightness=0,
        max_contrast=0,
    )
    white, rng = np.full((size, size, 3), 255, np.uint8), random.Random(rng_seed)
    assert recipe.corner_depth == 0
    for _ in range(10):
        assert (augment(white, recipe, rng) == 1).all()


def test_depths_by_hand():
    # 93 degrees: the crop's corner (-47, -47) comes from 47 (sin 93 - cos 93) = 49.395; the patch
    # ends at 47
    assert Recipe().corner_depth == pytest.approx(47 * (0.9986295 + 0.0523360) - 47, abs=1e-4)
    assert corner_depth(96, 90, 3, 2, False) == pytest.approx(
        46 * 0.9986295 + 47 * 0.0523360 - 47, abs=1e-4
    )
    assert (
        corner_depth(96, 90, 0, 2, True)
        == corner_depth(96, 90, 1, 2, False)
        == corner_depth(96, 68, 3, 2, True)
        == 0
    )
    # the pivot, half a pixel off
    assert corner_depth(96, 96, 0, 0, True) == 1 and corner_depth(95, 95, 0, 0, True) == 0
    # 45 degrees
    assert corner_depth(96, 96, 45, 0, False) == pytest.approx((47 + 48) / 2**0.5 - 47, abs=1e-4)


@pytest.mark.parametrize(
    "geometry",
    [
        (96, 90, 3, 3, True),
        (96, 96, 3, 0, True),
        (96, 68, 10, 2, True),
        (192, 180, 3, 4, True),
        (16, 16, 3, 0, True),
        (96, 60, 180, 2, True),
    ],
    ids=str,
)
def test_what_the_walkthroughs_3_degrees_can_show_is_taken(geometry):
    require_shallow_corners(*geometry)


@pytest.mark.parametrize(
    "geometry, words",
    [
        ((96, 90, 45, 2, True), "lower max_rotation to 4 or crop_size to "),
        ((96, 90, 6, 2, True), "lower max_rotation to 4 or crop_size to 8"),
    ],
    ids=str,
)
def test_c21_deeper_corners_are_refused(refused, geometry, words):
    with refused(ValueError, f"max_rotation={geometry[2]} would show black corners up to", words):
        require_shallow_corners(*geometry)
    with refused(ValueError, words):
        Recipe(original_size=96, crop_size=geometry[1], max_rotation=geometry[2])
