"""Channel statistics equal plain numpy's in float64; outliers are cut exactly where the walkthrough
cuts them."""

import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hcd
from hcd import Recipe, channel_statistics, read_image


def save(path, rgb):
    path.write_bytes(
        cv2.imencode(
            ".tif", np.ascontiguousarray(rgb)[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1]
        )[1].tobytes()
    )
    return path


def plain(paths):
    """Return mean, std, dark, bright and count as the walkthrough computes them, all pixels of all
    patches at once."""
    patches = {Path(path).stem: cv2.imread(str(path))[..., ::-1] / 255 for path in paths}
    dark = [name for name, patch in patches.items() if patch.max() < 10 / 255]
    bright = [name for name, patch in patches.items() if patch.min() > 245 / 255]
    counted = np.array(
        [patch for name, patch in patches.items() if name not in (*dark, *bright)]
    ).reshape(-1, 3)
    return counted.mean(axis=0), counted.std(axis=0), dark, bright, len(counted) // 96**2


def test_sample_equals_plain_numpy(sample):
    statistics = channel_statistics(sample.train_paths, progress=False)
    mean, std, dark, bright, counted = plain(sample.train_paths)
    assert np.abs(np.subtract(statistics.mean, mean)).max() < 1e-12
    assert np.abs(np.subtract(statistics.std, std)).max() < 1e-12
    assert (statistics.too_dark, statistics.too_bright, statistics.counted) == (
        dark,
        bright,
        counted,
    )
    assert (len(dark), len(bright), counted) == (1, 2, 57)


def test_sums_over_patches_as_the_walkthrough_takes_them(sample):
    paths = [
        path
        for path in sample.train_paths
        if read_image(path).max() >= 10 and read_image(path).min() <= 245
    ]
    total, total_squares = np.zeros(3), np.zeros(3)
    for path in paths:
        pixels = (read_image(path) / 255).reshape(-1, 3)
        total += pixels.mean(axis=0)
        total_squares += (pixels**2).mean(axis=0)
    mean = total / len(paths)
    statistics = channel_statistics(sample.train_paths, progress=False)
    assert np.abs(statistics.mean - mean).max() < 1e-12
    assert np.abs(statistics.std - np.sqrt(total_squares / len(paths) - mean**2)).max() < 1e-12


def test_values_are_plain_floats_that_a_recipe_takes(sample):
    statistics = channel_statistics(sample.train_paths, progress=False)
    assert all(type(value) is float for value in (*statistics.mean, *statistics.std))
    assert Recipe(mean=statistics.mean, std=statistics.std).mean == statistics.mean


def test_the_order_of_the_files_changes_no_bit(sample):
    first = channel_statistics(sample.train_paths, progress=False)
    for rng_seed in range(3):
        order = np.random.default_rng(rng_seed).permutation(sample.train_paths).tolist()
        other = channel_statistics(order, progress=False)
        assert (other.mean, other.std, other.counted) == (first.mean, first.std, first.counted)
        assert other.too_bright == [
            Path(path).stem for path in order if Path(path).stem in first.too_bright
        ]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(10, 245), st.integers(0, 40), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=4,
    )
)
def test_any_patches_equal_exact_fractions(tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("kinds")
    patches = [
        np.clip(
            np.random.default_rng(rng_seed).integers(
                level - spread, level + spread + 1, (96, 96, 3)
            ),
            10,
            245,
        )
        for level, spread, rng_seed in kinds
    ]
    paths = [
        save(folder / f"{number}.tif", patch.astype(np.uint8))
        for number, patch in enumerate(patches)
    ]
    statistics = channel_statistics(paths, progress=False)
    # whole numbers, summed without rounding
    levels = np.concatenate([patch.reshape(-1, 3) for patch in patches])
    for channel in range(3):
        mean = Fraction(int(levels[:, channel].sum()), len(levels))
        variance = Fraction(int((levels[:, channel] ** 2).sum()), len(levels)) - mean**2
        assert statistics.mean[channel] == pytest.approx(float(mean / 255), rel=1e-15)
        assert statistics.std[channel] == pytest.approx(math.sqrt(variance) / 255, rel=1e-14)


@pytest.mark.parametrize("level", [10, 77, 128, 201, 245])
def test_patches_of_one_colour_have_no_deviation_at_all(tmp_path, level):
    path = save(tmp_path / "a.tif", np.full((96, 96, 3), level, np.uint8))
    statistics = channel_statistics([path] * 7, progress=False)
    assert statistics.std == (0, 0, 0) and statistics.mean == pytest.approx(
        (level / 255,) * 3, abs=1e-15
    )


def test_one_pixel_off_shows_in_the_deviation(tmp_path):
    patch = np.full((96, 96, 3), 128, np.uint8)
    patch[5, 7, 1] += 1
    statistics = channel_statistics([save(tmp_path / "a.tif", patch)], progress=False)
    assert statistics.std == (0, pytest.approx(math.sqrt(9215) / 9216 / 255, rel=1e-12), 0)


# outliers


def bounded(low, high, odd_level=None):
    """Return a patch that reaches `low` and `high` and no further, or has one value of another
    level besides."""
    patch = np.random.default_rng(0).integers(low, high + 1, (96, 96, 3), dtype=np.uint8)
    patch[0, 0, 0], patch[95, 95, 2] = low, high
    if odd_level is not None:
        patch[50, 40, 1] = odd_level
    return patch


CASES = {  # name: (patch, too dark, too bright)
    "max 9": (bounded(0, 9), True, False),
    "max 10": (bounded(0, 10), False, False),
    "one value 10": (bounded(0, 9, 10), False, False),
    "black": (bounded(0, 0), True, False),
    "one white value": (bounded(0, 0, 255), False, False),
    "min 246": (bounded(246, 255), False, True),
    "min 245": (bounded(245, 255), False, False),
    "one value 245": (bounded(246, 255, 245), False, False),
    "white": (bounded(255, 255), False, True),
    "one black value": (bounded(255, 255, 0), False, False),
    "red alone is dark": (bounded(0, 9) + np.array([0, 60, 90], np.uint8), False, False),
    "red alone is bright": (bounded(246, 255) - np.array([0, 60, 90], np.uint8), False, False),
}


@pytest.mark.parametrize("name", CASES)
def test_outliers_exactly_at_the_thresholds(tmp_path, name):
    patch, dark, bright = CASES[name]
    other, path = (
        save(tmp_path / "other.tif", bounded(100, 200)),
        save(tmp_path / "patch.tif", patch),
    )
    statistics = channel_statistics([path, other], progress=False)
    assert (statistics.too_dark, statistics.too_bright) == (["patch"] * dark, ["patch"] * bright)
    assert statistics.counted == 2 - dark - bright
    alone = channel_statistics([other], progress=False)
    # outliers do not count
    assert (statistics.mean == alone.mean and statistics.std == alone.std) == (dark or bright)


def test_outliers_stand_in_the_order_of_the_paths(tmp_path):
    kinds = {"d": bounded(0, 9), "b": bounded(246, 255), "n": bounded(10, 245)}
    names = ["n2", "d9", "b5", "d1", "b1", "n1", "d5"]
    statistics = channel_statistics(
        [str(save(tmp_path / f"{name}.tif", kinds[name[0]])) for name in names], progress=False
    )
    assert (
        statistics.too_dark == ["d9", "d1", "d5"]
        and statistics.too_bright == ["b5", "b1"]
        and statistics.counted == 2
    )


# what is refused


def test_nothing_left_to_count(tmp_path, refused):
    paths = [save(tmp_path / "a.tif", bounded(0, 9)), save(tmp_path / "b.tif", bounded(246, 255))]
    with refused(ValueError, "none of the 2 patches", "1 are too dark and 1"):
        channel_statistics(paths, progress=False)
    with refused(ValueError, "none of the 0 patches"):
        channel_statistics([], progress=False)


def test_files_that_are_no_patches(tmp_path, refused):
    good, small = (
        save(tmp_path / "good.tif", bounded(0, 255)),
        save(tmp_path / "small.tif", np.zeros((64, 96, 3), np.uint8)),
    )
    with refused(ValueError, small, "96 x 64 px"):
        channel_statistics([good, small], progress=False)
    with refused(FileNotFoundError, tmp_path / "none.tif"):
        channel_statistics([good, tmp_path / "none.tif"], progress=False)


def test_progress_is_shown_once_and_only_when_asked(sample, capsys):
    channel_statistics(sample.train_paths, progress=False)
    assert not capsys.readouterr().err
    channel_statistics(sample.train_paths)
    assert "channel statistics: 100%" in capsys.readouterr().err


def test_whatever_yields_paths_will_do_but_one_path_alone(sample, refused):
    paths = [*map(Path, sample.train_paths)]
    expected = channel_statistics(paths, progress=False)
    assert channel_statistics((path for path in paths), progress=False) == expected
    assert hcd.verify_patches(iter(paths[:3]), progress=False) == 3
    for one in (str(paths[0]), paths[0]):
        for read in (channel_statistics, hcd.verify_patches):
            with refused(TypeError, one, "one path", "give a list"):
                read(one, progress=False)
