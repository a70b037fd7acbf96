"""Tissue is told from glass, ink and black edges, whatever the level it is looked for on."""

import cv2
import numpy as np
import pytest
from slide import painted
from slide.helpers import SIZE, of_array

from hcd import InputError
from hcd.slide import tissue
from hcd.slide.libraries import open_slide
from hcd.slide.opened import Slide
from hcd.slide.tissue import overview, tissue_mask


def stained(section):
    """Return the tissue without its gaps, which are glass; (H, W) bool."""
    smooth = cv2.blur(section.rgb, (15, 15)).min(axis=2)
    return section.tissue & (smooth < 215)


def of_cells(mask):
    """Return the share of each whole cell that is in a mask."""
    rows, columns = mask.shape[0] // 32, mask.shape[1] // 32
    cut = mask[: 32 * rows, : 32 * columns].reshape(rows, 32, columns, 32)
    return cut.mean(axis=(1, 3))


@pytest.mark.parametrize("rng_seed", range(3))
@pytest.mark.parametrize("stain", [2, 3, 5])
def test_cells_of_tissue_are_those_that_were_painted(monkeypatch, stain, rng_seed):
    monkeypatch.setattr(painted, "STAIN", stain)
    section = painted.paint(1500, 1100, [(700, 500, 100)], rng_seed)
    mask = tissue_mask(section.rgb, painted.SPACING)
    found, real = of_cells(mask) >= 0.1, of_cells(stained(section))
    ink = of_cells((section.rgb == painted.INK).all(axis=2)) > 0
    assert (real > 0.3).sum() > 700 and ink.sum() > 20
    assert found[(real > 0.3) & ~ink].mean() > 0.99
    assert not found[of_cells(section.tissue) == 0].any()
    assert not mask[(section.rgb == painted.INK).all(axis=2)].any()


INKS = [(40, 70, 190), (20, 120, 60), (20, 20, 20), (200, 30, 40), (0, 150, 170)]


@pytest.mark.parametrize("ink", INKS)
def test_ink_of_any_colour_is_no_tissue(section, ink):
    rgb = section.rgb.copy()
    rgb[200:260, 100:700] = ink
    found = tissue_mask(rgb, painted.SPACING)
    assert not found[200:260, 100:700].any()
    real = of_cells(stained(section))
    real[5:9] = 0
    real[of_cells((section.rgb == painted.INK).all(axis=2)) > 0] = 0
    assert (of_cells(found) >= 0.1)[real > 0.3].all()


def test_a_slide_of_glass_and_one_of_tissue_have_no_two_kinds(section):
    rng = np.random.default_rng(0)
    glass = rng.normal(240, 3, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    assert not tissue_mask(glass, 8).any()
    assert not tissue_mask(np.zeros_like(glass), 8).any()
    inner = section.rgb[250:350, 250:450]
    assert tissue_mask(inner, painted.SPACING).mean() > 0.9


@pytest.mark.parametrize("shape", [(3000, 5001), (2049, 1000), (700, 900), (1, 1)])
def test_the_overview_of_strips_is_that_of_the_whole(monkeypatch, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(9, 256, (*shape, 3), np.uint8)
    image[: shape[0] // 2, : shape[1] // 2] = 0
    slide = of_array([image])
    rgb, there = overview(slide)
    assert rgb.shape[:2] == there.shape and max(there.shape) == min(2048, max(shape))
    monkeypatch.setattr(tissue, "STRIP", 1 << 16)
    again, seen = overview(slide)
    # a strip's edge is a fraction of a pixel, and that fraction is rounded
    assert np.abs(rgb.astype(int) - again).max() <= 1 and np.abs(there - seen).max() < 0.01
    assert there.mean() == pytest.approx((image > 0).any(axis=2).mean(), abs=0.01)
    assert rgb.mean() == pytest.approx(image.mean(), abs=1)


def test_the_smallest_level_that_is_large_enough_is_read():
    levels = [np.full((h, 2 * h, 3), 99, np.uint8) for h in (4800, 2400, 1200, 600)]
    read = []
    slide = of_array(levels)
    pixels = slide._pixels
    spied = Slide(
        *(getattr(slide, name) for name in ("path", "sizes", "mpp", "reader", "identity")),
        lambda *place: read.append(place[0]) or pixels(*place),
        slide._close,
    )
    rgb, _ = overview(spied)
    assert set(read) == {2} and rgb.shape == (1024, 2048, 3)


def test_a_level_that_is_too_large_to_look_at(slide_file, monkeypatch, refused):
    monkeypatch.setattr(tissue, "MOST_PIXELS", 100_000)
    one = slide_file(levels=1)
    with open_slide(one) as slide, refused(InputError, one, "one level only", f"{SIZE[0]} x"):
        overview(slide)
    many = slide_file(levels=2)
    with open_slide(many) as slide, refused(InputError, many, "no small level", "pyramid"):
        overview(slide)
