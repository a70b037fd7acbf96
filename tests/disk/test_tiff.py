"""The fast way into an uncompressed TIFF: what OpenCV reads, or None, and never anything else; and
the file that we write."""

import io
import random
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from hcd.disk import tiff as module
from hcd.disk.images import encode_tiff
from hcd.disk.tiff import plain_rgb


def noise(height, width, rng_seed=0):
    return np.random.default_rng(rng_seed).integers(0, 256, (height, width, 3), np.uint8)


def tiff(rgb, *options):
    done, content = cv2.imencode(".tif", rgb[:, :, ::-1], list(options))
    assert done
    return content.tobytes()


PLAIN = (cv2.IMWRITE_TIFF_COMPRESSION, 1)


def competition_file(rgb):
    """A file as nearly all of the competition's are, written down from one of them."""
    description, software, date = (
        b'{"shape": [96, 96, 3]}\0',
        b"tifffile.py\0",
        b"2018:11:01 00:00:00\0",
    )
    tags = [(254, 4, 1, 0), (256, 4, 1, 96), (257, 4, 1, 96), (258, 3, 3, 194), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (270, 2, 23, 200), (273, 4, 1, 287), (277, 3, 1, 3), (278, 4, 1, 96)]
    tags += [(279, 4, 1, 27648), (284, 3, 1, 1), (305, 2, 12, 255), (306, 2, 20, 267)]
    tags += [(339, 3, 1, 1)]
    content = b"II*\0" + struct.pack("<IH", 8, 15)
    content += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    content += struct.pack("<3H", 8, 8, 8) + description + bytes(32) + software + date
    return content + rgb.tobytes()


KINDS = {
    "OpenCV's": lambda rgb: tiff(rgb, *PLAIN),
    "ours": encode_tiff,
    "the competition's": competition_file,
    "a few of the competition's": lambda rgb: plain_file(rgb, texts={}),
}


@pytest.fixture(params=KINDS, ids=str)
def content(request):
    """A file of 96 x 96 px of noise, whose layout is remembered."""
    made = KINDS[request.param](noise(96, 96))
    assert np.array_equal(plain_rgb(made), noise(96, 96))
    return made


@pytest.mark.parametrize(("height", "width"), [(96, 96), (1, 1), (8, 8), (50, 97), (300, 3)])
@pytest.mark.parametrize("encode", [KINDS["OpenCV's"], encode_tiff])
def test_plain_files_are_read_as_they_were_written(encode, height, width):
    rgb = noise(height, width)
    assert np.array_equal(plain_rgb(encode(rgb)), rgb)


def test_ours_is_laid_out_as_the_competitions():
    """Byte for byte, but for who wrote it and when."""
    ours, theirs = encode_tiff(noise(96, 96)), competition_file(noise(96, 96))
    assert len(ours) == len(theirs) == 27_935
    assert ours[:255] == theirs[:255] and ours[287:] == theirs[287:]
    assert ours[255:287] == b"hcd.dataset\0    :  :     :  :  \0"


@pytest.mark.parametrize("shape", [(96, 96), (1, 1), (300, 3), (1000, 1000)])
def test_other_readers_read_what_we_write(shape):
    rgb = noise(*shape)
    content = encode_tiff(rgb)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded[..., ::-1], rgb)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "RGB" and np.array_equal(image, rgb)
        assert image.tag_v2[270] == f'{{"shape": [{shape[0]}, {shape[1]}, 3]}}'
        assert image.tag_v2[305] == "hcd.dataset"


def test_a_patch_that_is_a_view_is_written_as_it_is_seen():
    rgb = noise(96, 96)
    assert encode_tiff(rgb[:, ::-1]) == encode_tiff(np.ascontiguousarray(rgb[:, ::-1]))
    assert np.array_equal(plain_rgb(encode_tiff(rgb[::-1, ::2])), rgb[::-1, ::2])


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


def test_a_file_cut_anywhere_is_not_plain(content):
    for end in [*range(0, len(content) - 300, 977), *range(len(content) - 300, len(content) - 6)]:
        refused = plain_rgb(content[:end]) is None
        assert refused, end


def test_damaged_directories_give_none_or_bytes_of_the_file(content):
    start = int.from_bytes(content[4:8], "little")
    directory = range(start, min(start + 300, len(content)))
    rng = random.Random(0)
    kept = 0
    for _ in range(5000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.choice([rng.randrange(8), rng.choice(directory)])] = rng.randrange(256)
        pixels = plain_rgb(bytes(damaged))
        if pixels is not None:
            kept += 1
            assert pixels.dtype == np.uint8
            assert pixels.size == 96 * 96 * 3
            inside = pixels.tobytes() in bytes(damaged)
            assert inside
    assert 0 < kept < 5000


def test_a_remembered_layout_is_held_against_each_file(content):
    """The same tags in a file of another length, or behind another header, are judged anew."""
    rgb = noise(96, 96)
    assert np.array_equal(plain_rgb(content), rgb)
    start = int.from_bytes(content[4:8], "little")
    for head in (b"MM\0*", b"II+\0", b"II*\1"):
        assert plain_rgb(head + content[4:]) is None
    for other in (start + 1, start - 2, len(content), len(content) - 1, (1 << 32) - 1):
        assert plain_rgb(content[:4] + struct.pack("<I", other) + content[8:]) is None


TEXTS = {270: b"made for the test\0", 305: b"software\0"}


def plain_file(rgb, texts=TEXTS, **changes):
    """A TIFF with its tags before its pixels, some of them changed or added by number."""
    height, width = rgb.shape[:2]
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 284: 1}
    tags.update({int(name[1:]): value for name, value in changes.items()})
    count = len(tags) + len(texts) + 3
    place = 8 + 2 + 12 * count + 4
    rows, data = {tag: struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items()}, b""
    for tag, text in texts.items():
        rows[tag] = struct.pack("<HHII", tag, 2, len(text), place + len(data))
        data += text
    rows[258] = struct.pack("<HHII", 258, 3, 3, place + len(data))
    data += struct.pack("<3H", 8, 8, 8)
    rows[273] = struct.pack("<HHII", 273, 4, 1, place + len(data))
    rows[279] = struct.pack("<HHII", 279, 4, 1, rgb.size)
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + b"".join(rows[tag] for tag in sorted(rows)) + bytes(4) + data + rgb.tobytes()


def test_tags_before_the_pixels_are_read_and_remembered():
    module._one_strip.cache_clear()
    for seed in range(5):
        rgb = noise(96, 96, seed)
        content = plain_file(rgb)
        assert np.array_equal(plain_rgb(content), rgb)
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(decoded[..., ::-1], rgb)
    assert module._one_strip.cache_info().hits == 4


def test_other_sample_sizes_in_one_file_of_a_set_are_noticed():
    content = plain_file(noise(96, 96))
    assert plain_rgb(content) is not None
    place = content.index(struct.pack("<3H", 8, 8, 8))
    other = content[:place] + struct.pack("<3H", 8, 8, 4) + content[place + 6 :]
    assert plain_rgb(other) is None


@pytest.mark.parametrize(
    "change",
    [{"t266": 2}, {"t278": 10}, {"t278": 0}, {"t274": 6}, {"t317": 2}, {"t338": 1}, {"t330": 9}]
    + [{"t322": 96}, {"t254": 1}, {"t32997": 1}, {"t700": 3}],
    ids=str,
)
def test_a_layout_tag_that_is_not_understood_is_for_a_real_decoder(change):
    rgb = noise(96, 96)
    assert plain_rgb(plain_file(rgb, **change)) is None
    assert plain_rgb(plain_file(rgb)) is not None


def test_harmless_tags_stay_on_the_fast_way():
    rgb = noise(96, 96)
    assert np.array_equal(plain_rgb(plain_file(rgb, t296=2, t297=0, t266=1, t254=0)), rgb)
