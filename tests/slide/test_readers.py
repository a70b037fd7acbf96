"""Slides are opened by the library that sees their levels, and both libraries read one truth."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
from slide import painted
from slide.helpers import SIZE, drop_tiles, saved_levels

from hcd import InputError
from hcd.slide import libraries
from hcd.slide.libraries import open_slide

FORMS = [
    {"compression": compression, "sub": sub, "mpp": mpp, **({"alpha": True} if alpha else {})}
    for compression, sub, mpp, alpha in (
        ("deflate", False, 0.25, False),
        ("deflate", True, 0.25, False),
        ("deflate", False, 0.5, True),
        ("deflate", True, 0.5, True),
        ("jpeg", False, 0.25, False),
        ("jpeg", True, 0.5, False),
    )
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_is_read_as_it_was_saved(slide_file, form):
    path = slide_file(**form)
    with open_slide(path) as slide:
        assert slide.reader == ("tiffslide" if form["sub"] else "openslide")
        assert slide.sizes == [(SIZE[0] >> level, SIZE[1] >> level) for level in range(4)]
        assert slide.mpp == pytest.approx((form["mpp"],) * 2)
        for level, pixels in enumerate(saved_levels(path)):
            width, height = slide.sizes[level]
            for x, y, w, h in ((0, 0, width, height), (101, 77, 130, 90), (width - 9, 3, 9, 5)):
                rgb, there = slide.read(level, x, y, w, h)
                expected = pixels[y : y + h, x : x + w]
                bright = expected[..., :3].max(axis=2) > 8
                if "alpha" in form:  # the reductions have some that is neither 0 nor 255
                    alpha = expected[..., 3:] / 255
                    expected = np.rint(expected[..., :3] * alpha + 255 * (1 - alpha))
                    bright &= alpha[..., 0] > 0
                # openslide keeps colours multiplied by alpha, in 8 bits
                apart = np.abs(rgb.astype(int) - expected)
                assert apart.max() <= (1 if "alpha" in form else 0), (level, x, y)
                assert (there == bright).all()


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
@pytest.mark.parametrize("alpha", [False, True])
def test_both_libraries_return_the_same_pixels(slide_file, compression, alpha):
    if alpha and compression == "jpeg":
        compression = "lzw"
    path = slide_file(compression=compression, **({"alpha": True} if alpha else {}))
    one, other = libraries._of_openslide(openslide, path), libraries._of_tiffslide(tiffslide, path)
    with one, other:
        assert one.sizes == other.sizes and one.mpp == pytest.approx(other.mpp)
        for level, size in enumerate(one.sizes):
            (a, there), (b, seen) = one.read(level, 0, 0, *size), other.read(level, 0, 0, *size)
            whole = there | ~seen  # of partly transparent pixels the colour is rounded
            assert np.abs(a.astype(int) - b).max() <= int(alpha) and whole.all()
            if not alpha or level == 0:
                assert (a == b).all()


@pytest.mark.parametrize("unit, factor", [("µm", 1), ("nm", 1000), ("mm", 0.001)])
def test_ome_tiff_states_its_spacing_in_its_own_units(tmp_path, section, unit, factor):
    path = tmp_path / "a.ome.tif"
    painted.save(path, section, size=(768, 576), levels=2, ome=True)
    with tifffile.TiffFile(path) as file:
        text = file.pages[0].description
    changed = text.replace('PhysicalSizeX="0.25"', f'PhysicalSizeX="{0.25 * factor:g}"')
    changed = changed.replace('PhysicalSizeY="0.25"', f'PhysicalSizeY="{0.25 * factor:g}"')
    tifffile.tiffcomment(path, changed.replace("µm", unit).encode())
    with open_slide(path) as slide:
        assert slide.reader == "tiffslide" and slide.mpp == pytest.approx((0.25, 0.25))


def test_no_spacing_is_none(slide_file):
    for form in ({"ome": True, "stated": False}, {"stated": False}, {"sub": True, "stated": False}):
        with open_slide(slide_file(**form)) as slide:
            assert slide.mpp is None, form


@pytest.mark.parametrize("sub", [False, True])
def test_threads_read_one_slide_at_once(slide_file, sub):
    places = [(x, y) for x in range(0, 1400, 100) for y in range(0, 1000, 250)] * 2
    with open_slide(slide_file(sub=sub)) as slide:
        alone = [slide.read(1, x, y, 100, 100)[0] for x, y in places]
        with ThreadPoolExecutor(8) as pool:
            together = pool.map(lambda place: slide.read(1, *place, 100, 100)[0], places)
        assert all((a == b).all() for a, b in zip(alone, together))


def test_a_tile_that_the_file_lacks_is_not_there(slide_file, tmp_path):
    for sub in (False, True):
        path = shutil.copy(slide_file(sub=sub), tmp_path / f"{sub}.tif")
        drop_tiles(path, 1, [0])
        with open_slide(path) as slide:
            _, there = slide.read(1, 0, 0, 512, 256)
            with open_slide(slide_file(sub=sub)) as whole:
                bright = whole.read(1, 0, 0, 512, 256)[1]
            assert not there[:, :256].any() and (there[:, 256:] == bright[:, 256:]).all()


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.4, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("sub", [False, True])
def test_a_truncated_file_is_told_when_opened_or_read(slide_file, tmp_path, refused, share, sub):
    content = slide_file(sub=sub, compression="jpeg").read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(content[: int(share * len(content))])
    with refused(InputError, path, "get it again"), open_slide(path) as slide:
        for level, size in enumerate(slide.sizes):
            slide.read(level, 0, 0, *size)


def test_what_is_no_slide(tmp_path, refused):
    with refused(FileNotFoundError, tmp_path / "no.svs", "does not exist"):
        open_slide(tmp_path / "no.svs")
    with refused(FileNotFoundError, tmp_path, "is a folder"):
        open_slide(tmp_path)
    (tmp_path / "a.svs").write_text("text")
    with refused(InputError, tmp_path / "a.svs", "no slide"):
        open_slide(tmp_path / "a.svs")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with refused(InputError, tmp_path / "a.png", "no slide"):
        open_slide(tmp_path / "a.png")
    for name, image in {
        "deep": np.zeros((64, 64, 3), np.uint16),
        "grey": np.zeros((64, 64), np.uint8),
    }.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
        with refused(InputError, tmp_path / f"{name}.tif", "8-bit RGB"):
            open_slide(tmp_path / f"{name}.tif")


def test_a_place_that_is_not_there(slide_file, refused):
    with open_slide(slide_file()) as slide:
        for place in ((4, 0, 0, 1, 1), (-1, 0, 0, 1, 1), (3, 380, 0, 5, 1), (0, -1, 0, 9, 9)):
            with refused(InputError, "is not there"):
                slide.read(*place)


@pytest.mark.parametrize("library", ["openslide", "tiffslide"])
def test_a_library_that_is_missing(slide_file, refused, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with refused(InputError, library, "pip install 'hcd[slide]'"):
        open_slide(slide_file())
