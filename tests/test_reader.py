"""The reader equals the walkthrough's bit for bit, and takes nothing but whole 8-bit RGB
patches."""

import hashlib
import math
import random
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcd import Recipe, read_cropped_image, read_image
from hcd.corners import corner_depth
from hcd.disk.images import encode_tiff
from hcd.disk.parallel import map_patches
from hcd.reader import augment, read_patch

GOLDEN = Path(__file__).parent / "golden" / "reader.npz"


def noise(size=96, rng_seed=0):
    return np.random.default_rng(rng_seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encode(rgb, kind=".tif", *options):
    return cv2.imencode(kind, rgb[..., ::-1], options)[1].tobytes()


def uncompressed(rgb):
    """Return a TIFF as the competition's are: one strip, uncompressed, its directory at the end."""
    return encode(rgb, ".tif", cv2.IMWRITE_TIFF_COMPRESSION, 1)


def directory_first(rgb, rows_per_strip):
    """Return an uncompressed TIFF whose directory comes before its strips, so that a cut leaves
    whole strips readable."""
    height, width, channels = rgb.shape
    strips = [rgb[row : row + rows_per_strip].tobytes() for row in range(0, height, rows_per_strip)]
    count, tags = len(strips), 9
    lists = 8 + 2 + 12 * tags + 4 + 6  # header, directory, bits per sample
    starts = np.cumsum([lists + 8 * count, *map(len, strips[:-1])]).tolist()
    one = count == 1
    rows = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, lists - 6),
        (259, 4, 1, 1),
        (262, 4, 1, 2),
        (273, 4, count, starts[0] if one else lists),
        (277, 4, 1, channels),
        (278, 4, 1, rows_per_strip),
        (279, 4, count, len(strips[0]) if one else lists + 4 * count),
    ]
    parts = [
        b"II*\0",
        struct.pack("<IH", 8, tags),
        *(struct.pack("<HHII", *row) for row in rows),
        struct.pack("<I3H", 0, 8, 8, 8),
        struct.pack(f"<{2 * count}I", *starts, *map(len, strips)),
        *strips,
    ]
    return b"".join(parts)


class Script:
    """Stand in for `random`: hand out given draws and note what was asked for."""

    def __init__(
        self, turn=0, quarter=0, down=0, right=0, mirror=0, upend=0, brightness=0, contrast=0
    ):
        self.answers = [turn, quarter, down, right, mirror, upend, brightness, contrast]
        self.asked = []

    def randint(self, low, high):
        self.asked.append((low, high))
        answer = self.answers.pop(0)
        assert low <= answer <= high
        return answer

    def getrandbits(self, bits):
        self.asked.append(bits)
        return self.answers.pop(0)


# equal to the walkthrough's reader


def golden_cases():
    with np.load(GOLDEN) as golden:
        return {name: golden[name] for name in golden}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    cases, folder = golden_cases(), tmp_path_factory.mktemp("golden")
    for number, rgb in enumerate(cases["rgb"]):
        (folder / f"{number}.tif").write_bytes(uncompressed(rgb))
    return {**cases, "folder": folder}


@pytest.mark.parametrize("case", range(48))
def test_golden_case(golden, case):
    random.seed(int(golden["rng_seed"][case]))
    crop = read_cropped_image(golden["folder"] / f"{golden['image_index'][case]}.tif")
    assert crop.shape == (90, 90, 3) and crop.dtype == np.float32 and crop.flags.c_contiguous
    assert hashlib.sha1(crop.tobytes()).hexdigest() == golden["sha1"][case]


def test_golden_crops_kept_in_full(golden):
    assert (
        len(golden["sha1"]) == 48
        and len(set(golden["sha1"])) == 48
        and len(golden["expected_rows"]) == 12
    )
    for row, expected in zip(golden["expected_rows"], golden["expected"]):
        path, rng_seed = (
            golden["folder"] / f"{golden['image_index'][row]}.tif",
            int(golden["rng_seed"][row]),
        )
        assert np.array_equal(read_cropped_image(path, rng=random.Random(rng_seed)), expected)


def test_the_golden_file_is_the_one_that_was_recorded(shared):
    assert GOLDEN.read_bytes() == (shared / "golden" / "reader.npz").read_bytes()


def step_by_step(rgb, recipe, rng):
    """Redo an augmented read in float64, one operation after the other on every pixel."""
    size, half = recipe.original_size, recipe.original_size // 2
    degrees = rng.randint(-recipe.max_rotation, recipe.max_rotation)
    if recipe.quarter_turns:
        degrees = degrees + 90 * rng.randint(-1, 1)
    cos, sin = math.cos(degrees * math.pi / 180), math.sin(degrees * math.pi / 180)
    about = np.array(
        [[cos, sin, (1 - cos) * half - sin * half], [-sin, cos, sin * half + (1 - cos) * half]]
    )
    canvas = cv2.warpAffine(
        rgb,
        about,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    row = (size - recipe.crop_size) // 2 + rng.randint(-recipe.max_shift, recipe.max_shift)
    column = (size - recipe.crop_size) // 2 + rng.randint(-recipe.max_shift, recipe.max_shift)
    values = np.zeros((recipe.crop_size, recipe.crop_size, 3), np.float64)
    values[:] = canvas[row : row + recipe.crop_size, column : column + recipe.crop_size]
    values = values / 255
    if recipe.flips:
        left_right, up_down = rng.getrandbits(1), rng.getrandbits(1)
        values = np.fliplr(values) if left_right else values
        values = np.flipud(values) if up_down else values
    values = values + rng.randint(-recipe.max_brightness, recipe.max_brightness) / 100
    values = values * (1 + rng.randint(-recipe.max_contrast, recipe.max_contrast) / 100)
    # np.maximum would turn the -0.0 of a contrast of -100 % into 0.0
    return np.clip(values, 0, 1).astype(np.float32)


@st.composite
def recipes(draw):
    size = draw(st.one_of(st.just(96), st.integers(1, 130)))
    crop = draw(st.one_of(st.integers(max(1, size - 12), size), st.integers(1, size)))
    geometry = dict(
        original_size=size,
        crop_size=crop,
        max_shift=draw(st.integers(0, (size - crop) // 2)),
        max_rotation=draw(st.one_of(st.integers(0, 10), st.integers(0, 180))),
        quarter_turns=draw(st.booleans()),
    )
    if corner_depth(**geometry) > 3.3:
        geometry["max_rotation"] = 3
    return Recipe(
        **geometry,
        max_brightness=draw(st.integers(0, 100)),
        max_contrast=draw(st.integers(0, 100)),
        flips=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=300)
@given(recipes(), st.integers(0, 2**32 - 1))
def test_any_recipe_equals_float64_step_by_step(recipe, rng_seed):
    patch = noise(recipe.original_size, rng_seed)
    ours, theirs = random.Random(rng_seed), random.Random(rng_seed)
    crop, expected = augment(patch, recipe, ours), step_by_step(patch, recipe, theirs)
    assert crop.shape == expected.shape and crop.dtype == np.float32 and crop.flags.c_contiguous
    assert crop.min() >= 0 and crop.max() <= 1
    assert crop.tobytes() == expected.tobytes()
    assert ours.getstate() == theirs.getstate()  # as many draws


def test_every_grey_level_at_every_tone_equals_float64():
    recipe = Recipe(original_size=16, crop_size=16, max_shift=0)
    patch = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    for brightness in range(-7, 8):
        for contrast in range(-5, 6):
            crop = augment(patch, recipe, Script(brightness=brightness, contrast=contrast))
            expected = np.clip(
                (patch / 255 + brightness / 100) * (1 + contrast / 100), 0, 1
            ).astype(np.float32)
            assert np.array_equal(crop, expected), (brightness, contrast)


# known answers, one operation at a time


def test_draws_are_asked_for_in_the_walkthroughs_order():
    script = Script()
    augment(noise(), Recipe(), script)
    assert script.asked == [(-3, 3), (-1, 1), (-2, 2), (-2, 2), 1, 1, (-7, 7), (-5, 5)]


def test_no_draw_changes_nothing_but_the_scale():
    patch = noise()
    assert np.array_equal(
        augment(patch, Recipe(), Script()), (patch[3:93, 3:93] / 255).astype(np.float32)
    )


def test_the_plain_recipe_returns_the_centre_crop_whatever_the_generator():
    patch = noise()
    for rng_seed in range(5):
        crop = augment(patch, Recipe().plain(), random.Random(rng_seed))
        assert np.array_equal(crop, (patch[3:93, 3:93] / 255).astype(np.float32))


@pytest.mark.parametrize("down, right", [(-2, 0), (0, -2), (2, 1), (-1, 2)])
def test_shift_goes_down_first_and_right_second(down, right):
    patch = noise()
    crop = augment(patch, Recipe(), Script(down=down, right=right))
    assert np.array_equal(
        crop, (patch[3 + down : 93 + down, 3 + right : 93 + right] / 255).astype(np.float32)
    )


@pytest.mark.parametrize("mirror, upend", [(0, 1), (1, 0), (1, 1)])
def test_the_first_flip_swaps_left_and_right_the_second_up_and_down(mirror, upend):
    patch = noise()
    expected = augment(patch, Recipe(), Script())[:: -1 if upend else 1, :: -1 if mirror else 1]
    assert np.array_equal(augment(patch, Recipe(), Script(mirror=mirror, upend=upend)), expected)


def test_quarter_turns_are_about_48_48_half_a_pixel_off_the_centre():
    patch, whole = noise(), Recipe(crop_size=96, max_shift=0)
    left = augment(patch, whole, Script(quarter=1))
    right = augment(patch, whole, Script(quarter=-1))
    turned = (patch / 255).astype(np.float32)
    assert not left[0].any() and np.array_equal(left[1:], np.rot90(turned)[:-1])
    assert not right[:, 0].any() and np.array_equal(right[:, 1:], np.rot90(turned, -1)[:, :-1])


def black_corners(recipe):
    """Count the black pixels that each combination of turn and shift leaves in the crop of a white
    patch."""
    white, steps = (
        np.full((96, 96, 3), 255, np.uint8),
        range(-recipe.max_shift, recipe.max_shift + 1),
    )
    return {
        (turn, quarter, down, right): int(
            (augment(white, recipe, Script(turn, quarter, down, right)) == 0).sum()
        )
        for turn in range(-3, 4)
        for quarter in (-1, 0, 1)
        for down in steps
        for right in steps
    }


def test_k2_a_turned_and_shifted_crop_can_show_black_corners():
    counts = black_corners(Recipe())
    seen = {draw for draw, count in counts.items() if count}
    # 38 px in three channels
    assert (len(seen), len(counts), max(counts.values())) == (116, 525, 3 * 38)
    assert all(abs(turn) + max(abs(down), abs(right)) >= 4 for turn, _, down, right in seen)


def test_without_a_shift_no_edge_of_the_turn_shows():
    assert not any(black_corners(Recipe(max_shift=0)).values())


def test_k1_without_augmentations_the_whole_patch_comes_back_and_nothing_is_drawn(tmp_path):
    path, patch, rng = tmp_path / "a.tif", noise(), random.Random(0)
    path.write_bytes(uncompressed(patch))
    before = rng.getstate()
    whole = read_cropped_image(path, augmentations=False, rng=rng)
    assert (
        whole.dtype == np.float32
        and np.array_equal(whole, (patch / 255).astype(np.float32))
        and rng.getstate() == before
    )


def test_each_read_is_a_fresh_draw_from_pythons_random_and_of_its_own_memory(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(uncompressed(noise()))
    random.seed(3)
    first, second = read_cropped_image(path), read_cropped_image(path)
    assert not np.array_equal(first, second)
    kept = first.copy()
    random.seed(3)
    again = read_cropped_image(path)
    assert np.array_equal(again, kept)
    again[:] = 0
    assert np.array_equal(first, kept)
    for augmentations in (True, False):
        read_cropped_image(path, augmentations, Recipe().plain())[:] = 0
    assert (
        read_cropped_image(path, True, Recipe().plain()).any()
        and read_cropped_image(path, False).any()
    )


def test_the_patch_given_is_left_as_it_was():
    patch = noise()
    kept = patch.copy()
    for rng_seed in range(20):
        augment(patch, Recipe(), random.Random(rng_seed))
    assert np.array_equal(patch, kept)


# files


@pytest.mark.parametrize(
    "content",
    [
        uncompressed(noise()),
        encode(noise()),
        encode(noise(), ".png"),
        encode(noise(), ".tif", cv2.IMWRITE_TIFF_COMPRESSION, 8),
        *(directory_first(noise(), rows) for rows in (96, 28, 1)),
    ],
    ids=["uncompressed", "lzw", "png", "deflate", "one strip", "four strips", "96 strips"],
)
def test_whole_files_are_read_exactly(tmp_path, content):
    path = tmp_path / "pätch 1.tif"
    path.write_bytes(content)
    assert np.array_equal(read_image(path), noise()) and np.array_equal(
        read_image(str(path)), noise()
    )
    assert np.array_equal(read_patch(path), noise())


def test_jpeg_equals_opencvs_own_reader(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(cv2.GaussianBlur(noise(), (9, 9), 3), ".jpg"))
    assert np.array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])


def test_the_samples_files_are_as_long_as_the_competitions(sample):
    assert {Path(path).stat().st_size for path in sample.train_paths} == {27_935}


def test_read_image_takes_any_size_and_read_patch_the_recipes(tmp_path, refused):
    path = tmp_path / "a.tif"
    for height, width in ((95, 96), (96, 97), (1, 1), (200, 300)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.write_bytes(uncompressed(image))
        assert np.array_equal(read_image(path), image)
        for read in (read_patch, read_cropped_image):
            with refused(ValueError, path, f"{width} x {height} px", "96 x 96 px"):
                read(path)
    path.write_bytes(uncompressed(noise(64)))
    assert read_cropped_image(path, recipe=Recipe(original_size=64, crop_size=60)).shape == (
        60,
        60,
        3,
    )


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path, refused):
    for path in (tmp_path / "none.tif", tmp_path):
        with refused(FileNotFoundError, path):
            read_image(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"id,label\n", b"<html>gone</html>", b"II*\0", bytes(27_830), b"\xff\xd8\xff"],
    ids=["empty", "one byte", "csv", "html", "header", "zeros", "jpeg header"],
)
def test_what_is_no_image_is_refused(tmp_path, refused, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for read in (read_image, read_patch, read_cropped_image):
        with refused(ValueError, path, f"{len(content)} bytes", "cannot be decoded"):
            read(path)


ODD = {
    "grey": (noise()[..., 0], "1 channel(s) of uint8"),
    "alpha": (noise()[..., [0, 1, 2, 0]], "4 channel(s) of uint8"),
    "16-bit": (noise().astype(np.uint16) * 257, "3 channel(s) of uint16"),
    "16-bit grey": (noise()[..., 0].astype(np.uint16), "1 channel(s) of uint16"),
    "float": (noise().astype(np.float32) / 255, "3 channel(s) of float32"),
}


@pytest.mark.parametrize(
    "name, kind",
    [*((name, ".tif") for name in ODD), *((name, ".png") for name in ODD if name != "float")],
)
def test_images_that_are_not_8_bit_rgb_are_refused(tmp_path, refused, name, kind):
    image, words = ODD[name]
    path = tmp_path / f"a{kind}"
    path.write_bytes(cv2.imencode(kind, image)[1].tobytes())
    for read in (read_image, read_cropped_image):
        with refused(ValueError, path, words, "8-bit RGB"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [
        uncompressed(noise()),
        encode(noise()),
        encode_tiff(noise()),
        *(directory_first(noise(), rows) for rows in (96, 8)),
    ],
    ids=["uncompressed", "lzw", "as the competition's", "directory first", "twelve strips"],
)
def test_a_tiff_cut_anywhere_is_never_read(tmp_path, refused, content):
    path, end = tmp_path / "a.tif", len(content)
    cuts = {*range(0, 300, 7), *range(300, end, 500), *range(end - 300, end, 11), end - 2, end - 1}
    for cut in sorted(cuts):
        path.write_bytes(content[:cut])
        with refused(ValueError, path, f"{cut} bytes"):
            read_patch(path)
    path.write_bytes(content)
    assert np.array_equal(read_patch(path), noise())


# all files at once


def test_map_patches_keeps_the_order():
    def slower_first(number):
        time.sleep(0.003 if number < 8 else 0)
        return number * number

    assert list(map_patches(slower_first, list(range(50)), "", progress=False, chunk=3)) == [
        n * n for n in range(50)
    ]
    assert list(map_patches(slower_first, [], "", progress=False)) == []


def test_map_patches_shows_progress_only_when_asked(capsys):
    for progress in (False, True):
        list(map_patches(str, list(range(5)), "counting", progress))
        shown = capsys.readouterr().err
        assert ("counting: 100%" in shown and "5/5" in shown) if progress else not shown


def test_map_patches_stops_at_an_error_and_when_left():
    done = []

    def fail(number):
        done.append(number)
        time.sleep(0.002)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(map_patches(fail, list(range(2000)), "", progress=False, chunk=1))
    assert len(done) < 1000
    del done[:]
    results = map_patches(fail, list(range(4, 2000)), "", progress=False, chunk=1)
    assert next(results) == 4
    results.close()
    assert len(done) < 1000
