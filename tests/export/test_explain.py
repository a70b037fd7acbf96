"""A loaded model's heatmap of one file: right class, layer and crop, and nothing left behind."""

import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from hcd import (
    InputError,
    explain_image,
    hires_cam,
    hooked_backward,
    layer_cam,
    load_bundle,
    predict_image,
    read_cropped_image,
    save_bundle,
)


@pytest.fixture(scope="module")
def bundle(learner, tmp_path_factory):
    return load_bundle(save_bundle(learner, tmp_path_factory.mktemp("explain") / "model"))


def plain_batch(bundle, path):
    crop = read_cropped_image(path, recipe=bundle.recipe.plain())
    mean, std = np.float32(bundle.recipe.mean), np.float32(bundle.recipe.std)
    return crop, torch.from_numpy(((crop - mean) / std).transpose(2, 0, 1)[None].copy())


def test_the_tumours_layer_cam_at_11_px_is_the_default(bundle, sample):
    path = sample.test_paths[0]
    crop, batch = plain_batch(bundle, path)
    found = explain_image(bundle, path)
    layer = bundle.model[0][0][7]
    maps = [layer_cam(*hooked_backward(bundle.model, batch, c, layer)).numpy() for c in (0, 1)]
    assert found.heatmap.shape == (11, 11) and found.heatmap.dtype == np.float32
    np.testing.assert_allclose(found.heatmap, maps[1], rtol=1e-4, atol=1e-6 * maps[1].max())
    assert not np.allclose(maps[0], maps[1], rtol=0.1)
    other = explain_image(bundle, path, category=0)
    np.testing.assert_allclose(other.heatmap, maps[0], rtol=1e-4, atol=1e-6 * maps[0].max())
    np.testing.assert_allclose(found.gray, crop @ np.float32([0.299, 0.587, 0.114]), atol=1e-5)
    assert found.prediction == predict_image(bundle, path)
    assert (found.category, found.layer) == (1, "0.0.7")
    assert found.title == "LayerCAM for tumour, 11 x 11 map"
    assert other.title == "LayerCAM for negative, 11 x 11 map"


def test_the_bodys_own_map(bundle, sample):
    path = sample.test_paths[1]
    found = explain_image(bundle, path, "hires_cam", size=None, category=1)
    expected = hires_cam(*hooked_backward(bundle.model, plain_batch(bundle, path)[1], 1))
    assert found.heatmap.shape == (5, 5)
    np.testing.assert_allclose(found.heatmap, expected, rtol=1e-4, atol=1e-6)
    assert bundle.model.get_submodule(found.layer) is bundle.model[0]


def test_nothing_is_left_behind(bundle, sample):
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    explain_image(bundle, sample.test_paths[0])
    assert all(parameter.grad is None for parameter in bundle.model.parameters())
    assert all(parameter.requires_grad for parameter in bundle.model.parameters())
    assert not any(m._forward_hooks or m.training for m in bundle.model.modules())
    assert all(torch.equal(value, before[n]) for n, value in bundle.model.state_dict().items())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


def test_what_predict_image_refuses(bundle, learner, sample, tmp_path, refused):
    path = Path(sample.test_paths[0])
    cut = tmp_path / "cut.tif"
    cut.write_bytes(path.read_bytes()[:500])
    for given, image, kind, text in [
        (learner, path, TypeError, "Learner"),
        (bundle, 5, TypeError, "int"),
        (bundle, tmp_path / "none.tif", FileNotFoundError, "none.tif"),
        (bundle, cut, InputError, "cut.tif"),
        (replace(bundle, model=nn.Sequential(nn.Conv2d(3, 2, 1))), path, InputError, "training"),
        (replace(bundle, recipe=replace(bundle.recipe, crop_size=4)), path, InputError, "4 px"),
    ]:
        with refused(kind, text) as predicted:
            predict_image(given, image)
        with refused(kind, text) as explained:
            explain_image(given, image)
        if image != 5:  # one takes paths alone
            assert str(explained.value) == str(predicted.value)


def test_bytes_are_explained_as_their_file(bundle, sample):
    path = Path(sample.test_paths[0])
    of_file, of_bytes = explain_image(bundle, path), explain_image(bundle, path.read_bytes())
    assert np.array_equal(of_file.heatmap, of_bytes.heatmap)
    assert of_bytes.prediction == replace(of_file.prediction, path="image 0")


def test_the_picture_shows_each_value_of_the_map_as_one_square(bundle, sample):
    found = explain_image(bundle, sample.test_paths[0])
    side = len(found.gray)
    flat = replace(found, heatmap=np.float32([[0, 1], [-1, 0]]))
    picture = cv2.imdecode(np.frombuffer(flat.png(zoom=4), np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert picture.shape == (4 * side, 4 * side, 3)
    coloured = np.ptp(picture, axis=2) > 2  # grey where the map says nothing
    half = 2 * side
    corner = coloured[:half, half:]
    assert (
        corner.mean() > 0.9 and not coloured[half + 1 :].any() and not coloured[:, : half - 1].any()
    )
    nothing = replace(found, heatmap=np.full((2, 2), -1, np.float32)).png()
    assert np.ptp(cv2.imdecode(np.frombuffer(nothing, np.uint8), 1), axis=2).max() == 0


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"method": "cam"}, "method='cam'"),
        ({"method": ["layer_cam"]}, "layer_cam"),
        ({"size": 0}, "size=0"),
        ({"size": 91}, "size=91"),
        ({"category": 2}, "category=2"),
        ({"category": "tumour"}, "category='tumour'"),
    ],
)
def test_what_cannot_be_explained(bundle, sample, refused, wrong, text):
    with refused(InputError, text):
        explain_image(bundle, sample.test_paths[0], **wrong)
