"""Crops that are cut on the device have the reader's bits, and change no number of a training."""

import copy
import hashlib
import pickle
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fastai.vision
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hcd
from hcd import Recipe, make_databunch
from hcd import data as data_module
from hcd.engine import device, resident
from hcd.engine.device import set_rng_seed
from hcd.engine.resident import ResidentItems, ResidentPatches
from hcd.errors import InputError
from hcd.reader import apply_draw, draw_augmentation

GOLDEN = Path(__file__).parents[1] / "golden" / "reader.npz"


def patches_of(pixels, recipe):
    names = np.array([f"train/{number}.tif" for number in range(len(pixels))])
    return ResidentPatches(torch.from_numpy(pixels), names, recipe)


def test_every_golden_read():
    golden, recipe = np.load(GOLDEN), Recipe()
    draws = [draw_augmentation(recipe, random.Random(int(seed))) for seed in golden["rng_seed"]]
    rows = torch.from_numpy(golden["image_index"].astype(np.int64))
    crops = patches_of(golden["rgb"], recipe).crops(rows, torch.tensor(draws))
    found = crops.permute(0, 2, 3, 1).contiguous().numpy()
    assert len(found) == 48
    assert [hashlib.sha1(crop.tobytes()).hexdigest() for crop in found] == [
        value.decode() if isinstance(value, bytes) else str(value) for value in golden["sha1"]
    ]


@st.composite
def recipes(draw):
    """Draw a recipe of any geometry that `Recipe` takes."""
    size = draw(st.integers(2, 40))
    crop = draw(st.integers(1, size))
    values = dict(
        original_size=size,
        crop_size=crop,
        max_shift=draw(st.integers(0, (size - crop) // 2)),
        max_rotation=draw(st.integers(0, 180)),
        max_brightness=draw(st.integers(0, 9)),
        max_contrast=draw(st.integers(0, 9)),
        quarter_turns=draw(st.booleans()),
        flips=draw(st.booleans()),
    )
    while True:
        try:
            return Recipe(**values)
        except InputError:  # black corners that are too deep
            values["max_rotation"] //= 2


@settings(max_examples=60, deadline=None)
@given(recipes(), st.integers(0, 2**32))
def test_any_recipe_cuts_as_the_reader_does(recipe, seed):
    size, count = recipe.original_size, 12
    pixels = np.random.default_rng(seed).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    rng = random.Random(seed)
    draws, rows = [draw_augmentation(recipe, rng) for _ in range(count)], torch.arange(count) % 3
    crops = patches_of(pixels, recipe).crops(rows, torch.tensor(draws))
    expected = np.stack([apply_draw(pixels[i % 3], draws[i], recipe) for i in range(count)])
    assert crops.dtype == torch.float32 and crops.is_contiguous()
    assert crops.numpy().tobytes() == expected.transpose(0, 3, 1, 2).tobytes()


def everything(data):
    """Return the bytes of two passes over each part."""
    parts = [data.train_dl, data.valid_dl, data.train_dl, data.valid_dl, data.test_dl, data.fix_dl]
    return [
        [(images.numpy().tobytes(), labels.tolist()) for images, labels in part] for part in parts
    ]


def seeded(data):
    random.seed(1), torch.manual_seed(1), np.random.seed(1)
    return everything(data), random.random(), torch.rand(1).item()


@pytest.mark.parametrize("rng_seed", [None, 0])
@pytest.mark.parametrize("fast, workers", [(False, 0), (True, 2)])
def test_every_batch_is_that_of_the_workers(sample, small_recipe, split, rng_seed, fast, workers):
    seen = []
    for where in (False, True):
        recipe = replace(small_recipe, rng_seed=rng_seed, fast=fast, resident=where)
        data = make_databunch(sample, recipe, split[1], num_workers=workers, device="cpu")
        assert isinstance(data.train_dl.dl.dataset, ResidentItems) == where
        seen.append(seeded(data))
    assert seen[0] == seen[1]


def test_two_epochs_and_averaged_passes_end_with_the_same_bits(sample, small_recipe, split):
    ends = []
    for where in (False, True):
        recipe = replace(small_recipe, rng_seed=3, resident=where)
        hcd.engine.device.set_rng_seed(3)
        data = make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
        learner = hcd.get_learner(data, recipe)
        learner.fit_one_cycle(2, 1e-3)
        ends.append(
            (
                [float(loss) for loss in learner.recorder.losses + learner.recorder.val_losses],
                {name: value.tolist() for name, value in learner.model.state_dict().items()},
                learner.get_preds()[0].tolist(),
                hcd.predict_tta(learner, 3, progress=False).tolist(),
            )
        )
    assert ends[0] == ends[1]


def test_a_pack_is_read_too(packed_root, small_recipe, split):
    dataset = hcd.open_dataset(packed_root)
    one, other = (
        make_databunch(dataset, replace(small_recipe, resident=where), split[1], 0, "cpu")
        for where in (False, True)
    )
    assert everything(one) == everything(other)


def test_what_somebody_changes_in_a_set_is_done_to_its_items(sample, small_recipe, split):
    data = make_databunch(sample, replace(small_recipe, resident=True), split[1], 0, "cpu")
    plain = data.valid_dl.dl.dataset
    assert plain.unchanged()
    first = data.valid_ds.x.items
    data.valid_ds.x.items = first[::-1].copy()  # other files under the same indices
    assert not plain.unchanged()
    (images, labels), *_ = data.valid_dl
    assert images.shape[1:] == (3, 90, 90) and images.is_floating_point()


@pytest.mark.parametrize(
    "change",
    [{"max_contrast": 20}, {"max_brightness": 20}, {"resident": None, "stain_jitter": 0.2}],
)
def test_another_recipe_that_somebody_gives_a_set_is_followed(sample, small_recipe, split, change):
    seen = []
    for where in (False, True):
        recipe = replace(small_recipe, rng_seed=0, resident=where)
        data = make_databunch(sample, recipe, split[1], 0, "cpu")
        data.valid_ds.x.recipe = replace(recipe, **change)
        np.random.seed(0)
        seen.append([images.numpy().tobytes() for images, _ in data.valid_dl])
    assert seen[0] == seen[1]


def test_items_that_somebody_writes_into_the_list_are_read(sample, small_recipe, split):
    seen = []
    for where in (False, True):
        data = make_databunch(sample, replace(small_recipe, resident=where), split[1], 0, "cpu")
        data.valid_ds.x.items[:] = data.valid_ds.x.items[::-1].copy()
        data.test_ds.x.items[:3] = data.test_ds.x.items[3:6].copy()
        learner = hcd.get_learner(data, small_recipe)
        set_rng_seed(0)
        hcd.predict_tta(learner, 2, progress=False)
        seen.append([images.numpy().tobytes() for images, _ in (*data.valid_dl, *data.test_dl)])
    assert seen[0] == seen[1]


def test_fastais_own_augmentation_on_top_is_done_to_images(sample, small_recipe, split):
    seen = []
    for where in (False, True):
        recipe = replace(small_recipe, rng_seed=0, resident=where)
        data = make_databunch(sample, recipe, split[1], 0, "cpu")
        data.valid_ds.tfms = [fastai.vision.rotate(degrees=(9, 9), p=1.0)]
        random.seed(0), np.random.seed(0)
        seen.append([images.numpy().tobytes() for images, _ in data.valid_dl])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("rng_seed", [None, 0])
def test_a_test_set_that_is_added_later_is_read_from_its_files(
    sample, small_recipe, split, rng_seed
):
    seen = []
    for where in (False, True):
        recipe = replace(small_recipe, rng_seed=rng_seed, resident=where)
        data = make_databunch(sample, recipe, split[1], 0, "cpu")
        data.add_test([sample.test_path(patch_id) for patch_id in sample.test_ids[:5]])
        random.seed(0)
        seen.append([images.numpy().tobytes() for images, _ in data.test_dl])
        learner = hcd.get_learner(data, recipe)
        torch.manual_seed(0), random.seed(0)
        assert hcd.predict_tta(learner, 2, progress=False).shape == (5, 2)
    assert seen[0] == seen[1]


def test_only_a_gpu_takes_patches_unasked(sample, small_recipe, split):
    data = make_databunch(sample, replace(small_recipe, fast=True), split[1], 0, "cpu")
    assert not isinstance(data.train_dl.dl.dataset, ResidentItems)


def test_a_data_set_larger_than_the_memory(sample, small_recipe, split, refused):
    with refused(InputError, "1,000,000,000,000 patches take 25749206.5 GiB on cpu", "resident"):
        resident._room(10**12, Recipe(), torch.device("cpu"))


def test_without_room_reading_goes_on_in_workers(sample, small_recipe, split, monkeypatch, capsys):
    def full(count, recipe, device):
        raise InputError("72 patches take 1 GiB on cuda; leave resident at None")

    data = make_databunch(sample, replace(small_recipe, fast=True), split[1], 0, "cpu")
    before = data.train_dl.dl
    monkeypatch.setattr(resident, "_room", full)
    data.device = torch.device("cuda")  # the rule is asked, not the device
    resident.make_resident(data, replace(small_recipe, fast=True))
    assert data.train_dl.dl is before
    assert capsys.readouterr().err == (
        "72 patches take 1 GiB on cuda; leave resident at None; reading goes on in worker"
        " processes\n"
    )
    with pytest.raises(InputError):
        resident.make_resident(data, replace(small_recipe, resident=True))
    resident.make_resident(data, replace(small_recipe, fast=True, resident=False))
    resident.make_resident(data, small_recipe)  # not fast
    assert data.train_dl.dl is before and not capsys.readouterr().err


def test_jittered_stains_are_no_whole_numbers(refused):
    with refused(InputError, "stain_jitter=0.1", "resident"):
        Recipe(resident=True, stain_jitter=0.1)
    with refused(TypeError, "resident='yes'"):
        Recipe(resident="yes")


def test_workers_that_only_draw_need_little_shared_memory(sample, small_recipe, split, monkeypatch):
    """A row and a draw of 64 bytes and a label of each patch, not its crop of 97,200 bytes."""
    needed = 4 * small_recipe.batch_size * (64 + 8)
    room = SimpleNamespace(f_bavail=needed, f_frsize=1)
    monkeypatch.setattr(device.os, "statvfs", lambda folder: room)
    resident = replace(small_recipe, resident=True)
    make_databunch(sample, resident, split[1], 2, "cpu")
    room.f_bavail -= 1
    with pytest.raises(InputError, match=f"for {needed:,}; give fewer num_workers"):
        make_databunch(sample, resident, split[1], 2, "cpu")


def test_where_workers_read_after_all_they_need_room_for_crops(
    sample, small_recipe, split, monkeypatch
):
    """A fast recipe on a GPU that turns out to be too small for the patches."""
    room = SimpleNamespace(f_bavail=100_000, f_frsize=1)
    monkeypatch.setattr(device.os, "statvfs", lambda folder: room)
    monkeypatch.setattr(data_module, "is_to_be_resident", lambda recipe, device: True)
    with pytest.raises(InputError, match="batches of .* bytes in"):
        make_databunch(sample, small_recipe, split[1], 2, "cpu")


def test_patches_on_the_device_are_not_pickled(sample, small_recipe, split, refused):
    data = make_databunch(sample, replace(small_recipe, resident=True), split[1], 0, "cpu")
    with refused(InputError, f"{len(sample.train_paths) + len(sample.test_paths)} patches lie on"):
        pickle.dumps(data.train_dl.dl)
    twin = copy.deepcopy(data.train_dl.dl)
    assert twin.patches is data.train_dl.dl.patches
    items = pickle.loads(pickle.dumps(data.train_dl.dl.dataset))  # what a spawned worker is sent
    assert items.rows.tolist() == data.train_dl.dl.dataset.rows.tolist()
