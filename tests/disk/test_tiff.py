"""The fast way into an uncompressed TIFF: what OpenCV reads, or None, and never anything else."""

import random
import struct

import cv2
import numpy as np
import pytest

from hcd.disk.tiff import plain_rgb


def noise(height, width, rng_seed=0):
    return np.random.default_rng(rng_seed).integers(0, 256, (height, width, 3), np.uint8)


def tiff(rgb, *options):
    done, content = cv2.imencode(".tif", rgb[:, :, ::-1], list(options))
    assert done
    return content.tobytes()


PLAIN = (cv2.IMWRITE_TIFF_COMPRESSION, 1)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (1, 1), (50, 97), (300, 3)])
def test_plain_files_are_read_as_they_were_written(height, width):
    rgb = noise(height, width)
    assert np.array_equal(plain_rgb(tiff(rgb, *PLAIN)), rgb)


def test_several_strips_one_behind_the_other():
    rgb = noise(96, 96)
    content = tiff(rgb, *PLAIN, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8)
    sizes = struct.pack("<12H", *[8 * 96 * 3] * 12), struct.pack("<12I", *[8 * 96 * 3] * 12)
    assert any(size in content for size in sizes)
    assert np.array_equal(plain_rgb(content), rgb)


def test_other_kinds_are_left_to_a_decoder():
    rgb = noise(96, 96)
    gray = cv2.imencode(".tif", rgb[:, :, 0], list(PLAIN))[1].tobytes()
    deep = cv2.imencode(".tif", rgb.astype(np.uint16), list(PLAIN))[1].tobytes()
    alpha = cv2.imencode(".tif", np.dstack([rgb, rgb[:, :, :1]]), list(PLAIN))[1].tobytes()
    others = [
        b"",
        b"II*\0",
        b"MM\0*" + bytes(40),
        tiff(rgb, cv2.IMWRITE_TIFF_COMPRESSION, 5),
        gray,
        deep,
        alpha,
        cv2.imencode(".png", rgb)[1].tobytes(),
        b"II*\0\x08\0\0\0" + bytes(100),
    ]
    assert [plain_rgb(content) for content in others] == [None] * len(others)


def test_a_file_cut_anywhere_is_not_plain():
    content = tiff(noise(96, 96), *PLAIN)
    for end in [*range(0, len(content) - 300, 977), *range(len(content) - 300, len(content) - 6)]:
        refused = plain_rgb(content[:end]) is None
        assert refused, end


def test_damaged_directories_give_none_or_bytes_of_the_file():
    content = tiff(noise(96, 96), *PLAIN)
    start = int.from_bytes(content[4:8], "little")
    rng = random.Random(0)
    kept = 0
    for _ in range(20000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.choice([rng.randrange(8), rng.randrange(start, len(content))])] = (
                rng.randrange(256)
            )
        pixels = plain_rgb(bytes(damaged))
        if pixels is not None:
            kept += 1
            assert pixels.dtype == np.uint8
            assert pixels.size == 96 * 96 * 3
            inside = pixels.tobytes() in bytes(damaged)
            assert inside
    assert 0 < kept < 20000
