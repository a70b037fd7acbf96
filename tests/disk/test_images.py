"""OpenCV's version and its own lines."""

import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import CHECKOUT
from PIL import Image

import hcd
from hcd.disk import images
from hcd.disk.images import encode_tiff
from hcd.disk.opencv import require_opencv

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
        require_opencv(version)


@pytest.mark.parametrize("version", ["4.10.0", "4.14.0", "4.100.1"])
def test_an_opencv_that_turns_as_in_2019(version):
    require_opencv(version)


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


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_a_compression_that_opencv_lacks_is_named_and_the_remedy_works(
    image, tmp_path, refused, compression
):
    path = tmp_path / "a.tif"
    image.save(path, compression=compression)
    if cv2.imread(str(path)) is None:
        with refused(hcd.InputError, path, f"{compression}-compressed", "convert it"):
            hcd.read_image(path)
    Image.open(path).convert("RGB").save(tmp_path / "new.tif", compression="raw")
    assert np.array_equal(hcd.read_image(tmp_path / "new.tif"), np.asarray(image))


@pytest.mark.parametrize(
    "kind", ["palette.png", "palette.tif", "grey.png", "alpha.tif", "cmyk.jpg"]
)
def test_the_remedy_makes_a_patch_of_another_kind(image, tmp_path, kind):
    mode = {"palette": "P", "grey": "L", "alpha": "RGBA", "cmyk": "CMYK"}[kind.partition(".")[0]]
    image.convert(mode).save(tmp_path / kind)
    wanted = np.asarray(Image.open(tmp_path / kind).convert("RGB"))
    Image.open(tmp_path / kind).convert("RGB").save(tmp_path / "new.tif", compression="raw")
    assert np.array_equal(hcd.read_image(tmp_path / "new.tif"), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_compressed_tiff_is_turned_as_opencv_turns_it(image, tmp_path, orientation):
    path = tmp_path / "turned.tif"
    image.save(path, compression="tiff_lzw", tiffinfo={274: orientation})
    for proven in (False, True):
        found = hcd.read_image(path, proven=proven)
        assert np.array_equal(found, cv2.imread(str(path))[..., ::-1])


def deflated(image, path):
    """A deflated TIFF with one wrong bit, of which OpenCV passes on what it decoded."""
    image.save(path, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0x55
    path.write_bytes(content)
    return path


def test_a_second_opinion_before_training_and_none_in_it(image, tmp_path, monkeypatch, refused):
    path = tmp_path / "a.jpg"
    image.save(path)
    asked, whole = [], images.second_opinion
    monkeypatch.setattr(
        images, "second_opinion", lambda content: (asked.append(content), whole(content))[1]
    )
    hcd.CroppedImageList([str(path)]).get(0)  # as training reads it
    assert asked == []
    hcd.read_image(path)
    hcd.read_cropped_image(path)  # by anybody else, of a file that nobody has verified
    hcd.verify_patches([path], progress=False)
    assert len(asked) == 3
    with refused(hcd.InputError, "1 of 1 patches", "cannot be decoded"):
        hcd.verify_patches([deflated(image, tmp_path / "b.tif")], progress=False)
    assert len(asked) == 4


NOISY = """
import random, sys, hcd
rng = random.Random(0)
for name in sys.argv[1:]:
    whole = open(name, "rb").read()
    for number in range(60):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        open(name, "wb").write(content[: rng.randrange(len(content)) if number % 4 == 0 else None])
        for read in (hcd.read_image, hcd.read_cropped_image):
            try:
                read(name)
            except hcd.InputError:
                pass
"""


def test_no_damaged_tiff_prints_a_librarys_line(image, tmp_path, monkeypatch):
    """libtiff is in OpenCV and in Pillow, and each of them prints unless it is told not to."""
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    names = []
    for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        names.append(str(tmp_path / f"{kind}.tif"))
        image.save(names[-1], compression=kind)
    command = [sys.executable, "-c", NOISY, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_samples_without_end_are_refused_and_pillows_log_is_not_printed(tmp_path):
    content = encode_tiff(np.zeros((96, 96, 3), np.uint8))
    damaged = content.replace(
        struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 256)
    )
    assert damaged != content
    (tmp_path / "a.tif").write_bytes(damaged)
    code = "import sys, hcd\ntry: hcd.read_image(sys.argv[1])\nexcept hcd.InputError: print('no')"
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("no\n", "")
