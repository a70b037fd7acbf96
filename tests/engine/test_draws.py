"""With an rng_seed a draw depends on its pass and its index alone; without one everything is as
fastai has it."""

import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fastai.vision
import numpy as np
import pytest
import torch
from fastai.basic_data import DatasetType

import hcd
from hcd import make_databunch, read_cropped_image
from hcd.engine.draws import Passes, PassLoader, leave_inherited


def everything(data):
    """Return the bytes of two passes over each part, validation in between as training does it."""
    parts = [data.train_dl, data.valid_dl, data.train_dl, data.valid_dl, data.test_dl, data.fix_dl]
    return [
        [(images.numpy().tobytes(), labels.tolist()) for images, labels in part] for part in parts
    ]


@pytest.mark.parametrize("fast", [False, True])
def test_the_number_of_workers_changes_no_draw_and_no_order(sample, small_recipe, split, fast):
    recipe = replace(small_recipe, fast=fast)
    seen, after = [], []
    for workers in (0, 1, 2):
        data = make_databunch(sample, recipe, split[1], num_workers=workers, device="cpu")
        random.seed(1), torch.manual_seed(1), np.random.seed(1)
        seen.append(everything(data))
        # no generator of the process was touched
        after.append((random.random(), torch.rand(1).item(), np.random.rand()))
    assert seen[0] == seen[1] == seen[2]
    assert after[0] == after[1] == after[2]
    assert seen[0][0] != seen[0][2] and seen[0][1] != seen[0][3]  # a fresh draw in each pass


def test_draws_are_those_of_the_pass_and_the_index(sample, small_recipe, split):
    data = make_databunch(sample, small_recipe, split[1], num_workers=2, device="cpu")
    list(data.valid_dl)
    images = torch.cat([x for x, _ in data.valid_dl])  # the second pass
    mean, std = (np.float32(values) for values in (small_recipe.mean, small_recipe.std))
    for index, item in enumerate(data.valid_ds.items):
        crop = read_cropped_image(
            sample.root / item, recipe=small_recipe, rng=Passes(small_recipe.rng_seed).rng(2, index)
        )
        np.testing.assert_allclose(
            images[index].numpy(), ((crop - mean) / std).transpose(2, 0, 1), atol=1e-5
        )


def test_another_rng_seed_draws_otherwise(sample, small_recipe, split):
    one, other = (
        everything(
            make_databunch(
                sample, replace(small_recipe, rng_seed=seed), split[1], num_workers=0, device="cpu"
            )
        )
        for seed in (0, 1)
    )
    assert all(mine != theirs for mine, theirs in zip(one, other))


def test_no_two_items_or_passes_share_a_generator():
    passes = Passes(3)
    draws = [
        passes.rng(number, index).random()
        for number in (1, 2, 3)
        for index in (-1, 0, 1, 2**32 - 2)
    ]
    draws += [Passes(4).rng(1, 0).random()]
    assert len(set(draws)) == len(draws)


def test_single_reads_draw_from_pythons_random_and_leave_passes_alone(databunch):
    before = databunch.passes.count
    random.seed(2)
    first = databunch.valid_ds[3][0].data
    random.seed(2)
    assert torch.equal(databunch.valid_ds[3][0].data, first)
    assert (
        not torch.equal(databunch.valid_ds[3][0].data, first) and databunch.passes.count == before
    )


def test_a_pass_that_is_left_early_or_within_another_changes_no_other(sample, small_recipe, split):
    data, other = (
        make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")
        for _ in range(2)
    )
    outer = iter(data.train_dl)
    first = next(outer)[0]
    inner = [x for x, _ in data.valid_dl]
    rest = [x for x, _ in outer]
    expected = [x for x, _ in other.train_dl]
    assert all(torch.equal(a, b) for a, b in zip([first, *rest], expected))
    assert all(torch.equal(a, b) for a, (b, _) in zip(inner, other.valid_dl))


def test_fastais_ways_to_read_still_work(databunch):
    assert databunch.one_batch()[0].shape == (8, 3, 90, 90)
    image, _ = databunch.valid_ds[0]
    assert databunch.one_item(image)[0].shape == (1, 3, 90, 90)
    unshuffled = databunch.train_dl.new(shuffle=False)
    labels = torch.cat([y for _, y in unshuffled])
    assert isinstance(unshuffled.dl, PassLoader) and labels.tolist() == [
        int(y) for y in databunch.train_ds.y.items[:40]
    ]
    assert databunch.dl(DatasetType.Fix).dl.passes is databunch.passes


def test_a_loaders_data_set_can_be_sent_to_a_process_that_was_not_forked(databunch, split):
    sent = pickle.loads(pickle.dumps(databunch.valid_dl.dl.dataset))
    assert (
        torch.equal(sent[(7, 2)][0].data, databunch.valid_dl.dl.dataset[(7, 2)][0].data)
        and len(sent) == 15
    )


def test_without_a_seed_the_loaders_are_fastais(sample, small_recipe, split):
    data = make_databunch(
        sample, replace(small_recipe, rng_seed=None), split[1], num_workers=0, device="cpu"
    )
    assert data.passes is None and type(data.train_dl.dl) is torch.utils.data.DataLoader


def test_fast_keeps_the_workers_of_training_and_validation_alive(sample, small_recipe, split):
    data = make_databunch(
        sample, replace(small_recipe, fast=True), split[1], num_workers=1, device="cpu"
    )
    kept = []
    for _ in range(2):
        list(data.train_dl)
        kept.append([worker.pid for worker in data.train_dl.dl._iterator._workers])
    assert kept[0] == kept[1]
    assert data.valid_dl.dl.persistent_workers and not data.test_dl.dl.persistent_workers
    plain = make_databunch(sample, small_recipe, split[1], num_workers=1, device="cpu")
    assert not plain.train_dl.dl.persistent_workers


def test_reading_does_not_remember_anything_of_each_item(databunch):
    list(databunch.valid_dl)
    assert not databunch.valid_ds.x.sizes


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of fastai and numpy 2
def test_fastais_own_augmented_passes_change_the_crops(sample, small_recipe, split, tmp_path):
    """They put their transforms into the set for a while, and the loader wraps the set."""
    data = make_databunch(sample, small_recipe.plain(), split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, small_recipe.plain(), tmp_path)
    plain = learner.get_preds()[0]
    passes = list(fastai.vision.tta._tta_only(learner))
    assert max(float((answers - plain).abs().max()) for answers in passes) > 1e-3
    assert torch.equal(learner.get_preds()[0], plain)


@pytest.mark.parametrize("resident", [None, True])
def test_a_sampler_of_somebodys_own_needs_no_rng_seed(
    sample, small_recipe, split, refused, resident
):
    """fastai's OverSamplingCallback gives one."""
    for rng_seed in (0, None):
        recipe = replace(small_recipe, rng_seed=rng_seed, resident=resident)
        data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
        sampler = torch.utils.data.WeightedRandomSampler([1.0] * len(data.train_ds), 16)
        if rng_seed is None:
            assert len(list(data.train_dl.new(shuffle=False, sampler=sampler))) == 2
            continue
        with refused(hcd.errors.InputError, "WeightedRandomSampler", "rng_seed=None"):
            data.train_dl.new(shuffle=False, sampler=sampler)


@pytest.mark.parametrize(
    "changes", [{}, {"rng_seed": 0}, {"fast": True}, {"resident": True}], ids=str
)
def test_every_loaders_workers_leave_what_they_inherit(sample, small_recipe, split, changes):
    data = hcd.make_databunch(sample, replace(small_recipe, **changes), split[1], 2, "cpu")
    for bound in (data.train_dl, data.valid_dl, data.fix_dl, data.test_dl):
        assert bound.dl.worker_init_fn is leave_inherited


FORKED = r"""
import gc, os, re
from hcd.engine.draws import leave_inherited

def own():
    with open("/proc/self/smaps_rollup") as file:
        return sum(map(int, re.findall(r"Private_\w+: +(\d+)", file.read())))

for prepare in (id, leave_inherited):
    if not os.fork():
        prepare(0)
        before = own()
        gc.collect()
        print(own() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads Linux's counts")
def test_a_workers_garbage_collector_copies_no_inherited_object():
    """Each object that it looks at is written into, and its page copied; of the libraries' objects,
    as of these."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    environment = {**os.environ, "PYTHONPATH": str(Path(hcd.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    usual, left = map(int, done.stdout.split())
    assert usual > 40_000 > 4 * left  # KiB
