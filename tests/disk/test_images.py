"""OpenCV's version and its own lines."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import CHECKOUT
from PIL import Image

import hcd
from hcd.disk import images

DAMAGED = """
import sys, numpy as np, hcd
from hcd.disk.images import encode_tiff
content = encode_tiff(np.zeros((96, 96, 3), np.uint8))
open("damaged.tif", "wb").write(content[:9000] + b"II")
open("damaged.jpg", "wb").write(bytes([0xFF, 0xD8, 0xFF, 0xC0, 0, 17, 8, 0, 96, 0, 96]) + bytes(99))
for name in ("damaged.tif", "damaged.jpg"):
    try:
        hcd.read_image(name)
    except hcd.InputError as error:
        print(error)
"""


@pytest.mark.parametrize("version", ["4.5.5", "4.9.0", "5.0.0", "5.1.0-dev", "3.4"])
def test_another_opencv_is_refused(version):
    with pytest.raises(ImportError, match=f"^OpenCV {version} is installed .*pip uninstall"):
        images._require_opencv(version)


@pytest.mark.parametrize("version", ["4.10.0", "4.14.0", "4.100.1"])
def test_an_opencv_that_turns_as_in_2019(version):
    images._require_opencv(version)


def test_a_damaged_image_prints_no_librarys_lines(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    command = [sys.executable, "-c", DAMAGED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2 and done.stderr == ""


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_turned_as_opencv_turns_it(image, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{kind}"
    image.save(path, exif=exif)
    assert np.array_equal(hcd.read_image(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize(
    "mode, name, kind",
    [
        ("P", "a.tif", "palette"),
        ("CMYK", "a.jpg", "CMYK"),
        ("LAB", "a.tif", "Lab"),
    ],
)
def test_an_undamaged_image_of_another_kind_is_told_as_one(
    image, tmp_path, refused, mode, name, kind
):
    path = tmp_path / name
    (image if mode != "LAB" else Image.new("LAB", (96, 96))).convert(mode).save(path)
    with refused(hcd.InputError, path, kind, "convert"):
        hcd.read_image(path)
