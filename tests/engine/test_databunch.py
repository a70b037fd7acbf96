"""The databunch reads an added test set as it reads the others, and writes no pickle."""

from dataclasses import replace
from pathlib import Path

import cv2
import fastai.vision
import pytest
import torch
from fastai.basic_data import DatasetType

import hcd
from hcd.engine.draws import PassLoader


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_an_added_test_set_is_read_as_the_own_one(sample, split, small_recipe, kind):
    data = hcd.make_databunch(sample, small_recipe.plain(), split[1], num_workers=0, device="cpu")
    before = data.one_batch(DatasetType.Test)[0]
    data.add_test([kind(sample.test_path(name)) for name in sample.test_ids])
    assert torch.equal(data.one_batch(DatasetType.Test)[0], before)  # and nothing warns
    assert len(data.test_ds) == len(sample.test_ids)
    assert data.test_dl.batch_size == data.valid_dl.batch_size


def test_an_added_test_set_draws_by_the_rng_seed(sample, split, small_recipe):
    batches = []
    for number in range(2):
        torch.rand(number)
        data = hcd.make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")
        data.add_test([str(path) for path in sample.test_paths])
        assert isinstance(data.test_dl.dl, PassLoader)
        batches.append(data.one_batch(DatasetType.Test)[0])
    assert torch.equal(*batches)


@pytest.mark.parametrize("method", ["save", "export"])
def test_no_pickle_is_written(databunch, sample, method, refused):
    before = sorted(path.name for path in sample.root.iterdir())
    with refused(ValueError, "data.pkl", "make_databunch"):
        getattr(databunch, method)("data.pkl")
    assert sorted(path.name for path in sample.root.iterdir()) == before


def test_no_pickle_is_read(databunch, tmp_path, refused):
    (tmp_path / "export.pkl").write_bytes(b"no pickle")
    with refused(ValueError, "load_empty of export.pkl", "make_databunch"):
        type(databunch).load_empty(tmp_path)


def test_own_notebooks_get_it_too(sample, small_recipe):
    recipe = replace(small_recipe, rng_seed=None)
    items = hcd.CroppedImageList.from_df(
        sample.labels, sample.root, cols="id", folder="train", suffix=".tif", recipe=recipe
    )
    data = items.split_by_rand_pct(0.25, seed=0).label_from_df(cols="label")
    data = data.transform([[], []], size=recipe.crop_size)
    data = data.databunch(bs=8, num_workers=0, pin_memory=False)
    data.single_dl.dl.pin_memory = False
    assert isinstance(data, fastai.vision.ImageDataBunch)
    data.add_test([str(path) for path in sample.test_paths])
    assert len(data.one_batch(DatasetType.Test)[0]) == 8


def test_files_of_the_current_folder_are_no_items_of_the_data_set(
    sample, split, small_recipe, tmp_path, monkeypatch
):
    data = hcd.make_databunch(sample, small_recipe.plain(), split[1], num_workers=0, device="cpu")
    own = data.one_batch(DatasetType.Test, denorm=False)[0]
    (tmp_path / "test").mkdir()
    for name in sample.test_ids:  # the same names, and other pixels
        inverted = 255 - hcd.read_image(sample.test_path(name))
        cv2.imwrite(str(tmp_path / f"test/{name}.tif"), inverted[..., ::-1])
    monkeypatch.chdir(tmp_path)
    found = []
    for kind in (Path, str):
        data.add_test([kind(f"test/{name}.tif") for name in sample.test_ids])
        found.append(data.one_batch(DatasetType.Test, denorm=False)[0])
    monkeypatch.chdir("/")
    found.append(data.one_batch(DatasetType.Test, denorm=False)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert float((found[0] - own).abs().mean()) > 0.1
    data.add_test([f"test/{name}.tif" for name in sample.test_ids])  # of the data set, by name
    assert torch.equal(data.one_batch(DatasetType.Test, denorm=False)[0], own)
