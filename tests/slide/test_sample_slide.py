"""The drawn slide is one that every reader opens, with tumour where it says and nowhere else."""

import sys

import numpy as np
import pytest
import tifffile

import hcd.slide.sample
from hcd import InputError, make_slide_sample


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_slide_sample(tmp_path_factory.mktemp("drawn") / "slide.tif")


def test_it_is_a_tiled_pyramid_that_knows_its_spacing(drawn):
    with tifffile.TiffFile(drawn.path) as file:
        shapes = [page.shape for page in file.pages]
        assert shapes == [(1600, 2400, 3), (800, 1200, 3), (400, 600, 3)]
        for level, page in enumerate(file.pages):
            above, below = page.tags["XResolution"].value
            assert 10_000 * below / above == pytest.approx(0.486 * 2**level, rel=1e-5)
            assert page.is_tiled and page.is_reduced == (level > 0)
        fine, coarse = (file.pages[level].asarray().astype(float) for level in (0, 1))
    means = fine.reshape(800, 2, 1200, 2, 3).mean(axis=(1, 3))
    assert np.abs(means - coarse).max() <= 0.75


def test_tumour_is_where_it_says_and_nowhere_else(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(hcd.slide.sample, "PLACES", ())
    healthy = make_slide_sample(tmp_path / "healthy.tif")
    assert healthy.places == ()
    one, other = (tifffile.imread(path).astype(int) for path in (drawn.path, healthy.path))
    changed = np.abs(one - other).max(axis=2) > 8  # more than the grain of glass
    y, x = np.mgrid[:1600, :2400]
    cell = 32 * 0.972 / 0.486
    inside, near = np.zeros((2, 1600, 2400), bool)
    for to_x, to_y, radius in drawn.places:
        far = np.hypot(x - to_x, y - to_y)
        inside |= far < radius - cell
        near |= far < radius + cell
    assert not changed[~near].any()
    assert changed[inside].mean() > 0.8


def test_there_is_glass_around_the_tissue_and_tissue_at_the_places(drawn):
    slide = tifffile.imread(drawn.path).astype(int)
    spread = slide.max(axis=2) - slide.min(axis=2)
    for corner in (spread[:100, :100], spread[-100:, -100:], spread[:100, -100:]):
        assert corner.max() < 30
    for x, y, radius in drawn.places:
        assert (
            spread[y - radius // 2 : y + radius // 2, x - radius // 2 : x + radius // 2].mean() > 40
        )


def test_the_same_call_keeps_it_and_another_does_not_write_over_it(drawn, refused, tmp_path):
    before = drawn.path.stat().st_mtime_ns
    assert make_slide_sample(str(drawn.path)) == drawn
    with refused(FileExistsError, drawn.path, "rng_seed=1"):
        make_slide_sample(drawn.path, rng_seed=1)
    with refused(FileExistsError, tmp_path):
        make_slide_sample(tmp_path)
    assert drawn.path.stat().st_mtime_ns == before


def test_wrong_inputs(tmp_path, refused, monkeypatch):
    for rng_seed in (-1, 0.5, None):
        with refused(InputError, f"rng_seed={rng_seed}"):
            make_slide_sample(tmp_path / "a.tif", rng_seed)
    (tmp_path / "link.tif").symlink_to(tmp_path / "a.tif")
    with refused(OSError, "is a link"):
        make_slide_sample(tmp_path / "link.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with refused(InputError, "tifffile", "pip install 'hcd[slide]'"):
        make_slide_sample(tmp_path / "a.tif")
    assert not (tmp_path / "a.tif").exists()
