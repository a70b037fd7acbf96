"""explain_image draws the map of the very crop that predict_image predicts."""

import numpy as np
import pytest
import torch

import hcd
from hcd import InputError, explain_image, load_bundle, predict_image, read_image, save_bundle
from hcd.errors import InputTypeError


@pytest.fixture(scope="module")
def bundle(learner, tmp_path_factory):
    return load_bundle(save_bundle(learner, tmp_path_factory.mktemp("explain") / "model"))


def normalised_crop(path, recipe):
    crop = read_image(path)[3:93, 3:93] / 255
    values = (crop - np.array(recipe.mean)) / np.array(recipe.std)
    return torch.from_numpy(values.astype(np.float32).transpose(2, 0, 1)[None].copy())


@pytest.mark.parametrize("category", [0, 1])
def test_it_is_the_map_of_the_centre_crop(bundle, sample, category):
    path = sample.test_path(sample.test_ids[0])
    batch = normalised_crop(path, bundle.recipe)
    last = hcd.grad_cam(*hcd.hooked_backward(bundle.model, batch, category)).numpy()
    found = explain_image(bundle, path, "grad_cam", None, category)
    np.testing.assert_allclose(found, last, rtol=1e-4, atol=1e-7)
    fine = explain_image(bundle, path, category=category)
    assert fine.shape == (11, 11) and fine.dtype == np.float32 and fine.min() >= 0


def test_it_leaves_the_model_as_it_was(bundle, sample):
    path = sample.test_path(sample.test_ids[0])
    before = predict_image(bundle, path)
    explain_image(bundle, path)
    assert predict_image(bundle, path) == before
    assert all(p.grad is None for p in bundle.model.parameters())


def test_what_cannot_be_explained(bundle, sample, refused, tmp_path):
    path = sample.test_path(sample.test_ids[0])
    with refused(InputError, "method='cam'"):
        explain_image(bundle, path, "cam")
    with refused(InputError, "category=2"):
        explain_image(bundle, path, category=2)
    with refused(InputError, "size=500"):
        explain_image(bundle, path, size=500)
    with refused(FileNotFoundError, "nothing.tif"):
        explain_image(bundle, tmp_path / "nothing.tif")
    with refused(InputTypeError, "explain_image was given a str"):
        explain_image("model", path)
