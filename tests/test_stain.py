"""Stain jitter against its formula written out in float64, and what must stay as it was."""

import random
from dataclasses import replace

import numpy as np
import pytest

import hcd
from hcd import Recipe, predict_tta, read_cropped_image, read_image
from hcd.reader import augment, draw_augmentation, draw_size
from hcd.stain import STAINS, draw_stains, jitter_stains

JITTER = Recipe(stain_jitter=0.2)


@pytest.fixture(scope="module")
def patch(sample):
    return read_image(sample.train_paths[3])


def written_out(crop, draw, jitter):
    """Concentrations, each changed by itself, and back, pixel by pixel."""
    density = -np.log(np.maximum(crop.astype(float), 1 / 255)).reshape(-1, 3)
    concentrations = np.linalg.solve(STAINS.T, density.T)  # (3, P)
    for stain in range(3):
        factor = 1 + jitter * draw[stain] / 1000
        concentrations[stain] = concentrations[stain] * factor + jitter * draw[3 + stain] / 1000
    return np.exp(-(concentrations.T @ STAINS)).clip(0, 1).reshape(crop.shape)


def test_it_is_the_formula_after_the_walkthroughs_own_augmentation(patch):
    for rng_seed in range(20):
        rng, again = random.Random(rng_seed), random.Random(rng_seed)
        found = augment(patch, JITTER, rng)
        plain = augment(patch, Recipe(), again)  # the same draws come first
        wanted = written_out(plain, draw_stains(again), 0.2)
        assert rng.getstate() == again.getstate()
        np.testing.assert_allclose(found, wanted, atol=2e-6)
        assert found.dtype == np.float32 and found.shape == (90, 90, 3)
        assert np.abs(found - plain).max() > 0.01


def test_off_draws_nothing_and_changes_nothing(patch):
    rng, again = random.Random(1), random.Random(1)
    np.testing.assert_array_equal(
        augment(patch, Recipe(stain_jitter=0), rng), augment(patch, Recipe(), again)
    )
    assert rng.getstate() == again.getstate()
    assert draw_size() == len(draw_augmentation(rng=rng)) == 7
    assert draw_size(JITTER) == len(draw_augmentation(JITTER, rng)) == 13
    assert not JITTER.plain().stain_jitter


def test_a_draw_of_zeros_gives_the_crop_back(patch):
    crop = patch.astype(np.float32) / 255
    logs = np.log(np.maximum(crop, 1 / 255))
    np.testing.assert_allclose(jitter_stains(logs, [0] * 6, 0.9), np.maximum(crop, 1 / 255), 1e-5)


def test_one_stain_is_moved_and_the_others_are_not():
    """More haematoxylin darkens what is stained with it, and leaves eosin and glass alone."""
    stained = np.exp(-np.eye(3) @ STAINS)[None]  # one pixel of each stain alone, at 1
    glass = np.ones((1, 1, 3))
    logs = np.log(np.concatenate([stained, glass], 1)).astype(np.float32)
    found = jitter_stains(logs, [1000, 0, 0, 0, 0, 0], 0.5)
    np.testing.assert_allclose(found[0, 0], np.exp(-1.5 * STAINS[0]), rtol=1e-5)
    np.testing.assert_allclose(found[0, 1:], np.exp(logs[0, 1:]), rtol=1e-5)
    shifted = jitter_stains(logs, [0, 0, 0, 0, 500, 0], 0.2)
    np.testing.assert_allclose(shifted, np.exp(logs - 0.1 * STAINS[1]), rtol=1e-5)


def test_light_is_never_above_1(patch):
    logs = np.log(np.maximum(patch.astype(np.float32) / 255, 1 / 255))
    for draw in ([-1000] * 6, [1000] * 6, [1000, -1000] * 3):
        found = jitter_stains(logs, draw, 0.99)
        assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


def test_averaged_passes_read_the_very_crops_that_the_reader_draws(
    sample, small_recipe, split, tmp_path
):
    recipe = replace(small_recipe, stain_jitter=0.2)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    random.seed(5)
    crops = hcd.predict.DrawnCrops(data.test_ds, 2)
    random.seed(5)
    first = read_cropped_image(sample.test_paths[0], recipe=recipe)
    np.testing.assert_array_equal(crops[0][0].numpy().transpose(1, 2, 0), first)
    hcd.set_rng_seed(0)
    learner = hcd.get_learner(data, recipe, tmp_path)
    assert predict_tta(learner, 2, progress=False).shape == (12, 2)


def test_a_bundle_predicts_the_plain_crop(sample, small_recipe, split, tmp_path):
    found = []
    for jitter in (0.0, 0.3):
        recipe = replace(small_recipe, stain_jitter=jitter)
        data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
        hcd.set_rng_seed(0)
        learner = hcd.get_learner(data, recipe, tmp_path)
        bundle = hcd.load_bundle(hcd.save_bundle(learner, tmp_path / f"model {jitter}"))
        assert bundle.recipe.stain_jitter == jitter
        found.append(hcd.predict_image(bundle, sample.test_paths[0]).probability)
    assert found[0] == found[1]
