"""Several ranks that train and predict together come to what one process does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from torchvision.models import resnet18

import hcd
from hcd.engine import sharded
from hcd.engine.ranks import Ranks
from hcd.engine.sharded import own_batch, require_shareable, shared
from tests.ranks import predicted, run_ranks, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data/, 140 labelled and 13 test patches."""
    folder = tmp_path_factory.mktemp("ranks")
    hcd.make_sample(folder / "data", train=140, test=13)
    return folder


def on_ranks(case, folder, world):
    """Return what a case of tests/ranks.py comes to on each rank."""
    codes = run_ranks([["tests.ranks", case, folder]] * world, folder, 240)
    assert codes == [0] * world, [(folder / f"err{r}.txt").read_text() for r in range(world)]
    names = [folder / f"{case}-{rank}-of-{world}.pt" for rank in range(world)]
    return [torch.load(name, weights_only=True) for name in names]


@pytest.mark.long
def test_two_ranks_of_16_train_as_one_of_32(folder):
    """float64, frozen batch norms, no dropout: only the order of sums differs."""
    alone, together = trained(folder), on_ranks("trained", folder, 2)
    for found in together:
        assert (found["gradient"] - alone["gradient"]).abs().max() < 1e-14
        assert (found["weights"] - alone["weights"]).abs().max() < 1e-10
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found["val_losses"], alone["val_losses"], rtol=1e-6, atol=0)
        torch.testing.assert_close(found["accuracy"], alone["accuracy"])
    for name, values in together[0].items():  # to the bit, and the generators in step
        assert torch.equal(values, together[1][name]), name
    assert torch.equal(together[0]["dropout"], alone["dropout"])
    assert alone["gradient"].abs().max() > 1e-3 and len(alone["losses"]) == 6


@pytest.fixture(scope="module")
def alone(folder):
    """What one process predicts."""
    return predicted(folder)


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_has_the_predictions_of_one(folder, alone, world):
    """Last batches smaller than the ranks count nothing twice."""
    for found in on_ranks("predicted", folder, world):
        assert found.keys() == alone.keys()
        for name, values in alone.items():
            tolerance = 1e-6 if "validated" in name else 1e-10  # fastai averages in float32
            torch.testing.assert_close(found[name], values, rtol=tolerance, atol=1e-12)


def shares(monkeypatch, items, world, batch_size, drop_last):
    """Return what each rank reads of items, batch by batch."""
    found = []
    for rank in range(world):
        monkeypatch.setattr(sharded, "current", lambda rank=rank: Ranks(rank, world))
        mine = shared(SequentialSampler(range(items)), batch_size, drop_last)
        order = list(mine)
        assert len(order) == len(mine)
        batches = range(0, len(order), batch_size)
        found.append([order[start : start + batch_size] for start in batches])
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 11, 12, 20, 60, 61])
def test_the_shares_make_the_batches_of_one(monkeypatch, items, world, batch_size):
    whole = batch_size * world
    found = shares(monkeypatch, items, world, batch_size, drop_last=False)
    for number, parts in enumerate(zip(*found, strict=True)):
        assert len({len(part) for part in parts}) == 1  # all ranks take part in every batch
        expected = list(range(number * whole, min((number + 1) * whole, items)))
        together = sum(parts, [])
        assert together[: len(expected)] == expected
        assert set(together[len(expected) :]) <= {expected[-1]}
    found = shares(monkeypatch, items, world, batch_size, drop_last=True)
    full = [sum(parts, []) for parts in zip(*found, strict=True)]
    assert full == [list(range(n * whole, (n + 1) * whole)) for n in range(items // whole)]


def test_batch_norms_of_all_ranks_have_the_very_tensors_and_go_again():
    """On GPUs alone they count the whole batch; what is swapped can be looked at anywhere."""
    model = resnet18().eval()
    before, images = dict(model.named_modules()), torch.rand(2, 3, 32, 32)
    tensors = {name: values.data_ptr() for name, values in model.state_dict().items()}
    outputs = model(images)
    swapped = sharded._synchronised(model, None)
    kinds = [type(layer) for layer in model.modules()]
    assert nn.BatchNorm2d not in kinds and kinds.count(nn.SyncBatchNorm) == len(swapped) == 20
    assert torch.equal(model(images), outputs)
    assert {name: v.data_ptr() for name, v in model.state_dict().items()} == tensors
    sharded._give_back(swapped, model.train())
    assert dict(model.named_modules()) == before
    assert all(layer.training for layer in model.modules())


def test_one_process_alone_keeps_its_sampler():
    sampler = SequentialSampler(range(3))
    assert shared(sampler, 2) is sampler and own_batch(7) == 7
    require_shareable(hcd.Recipe())


def test_what_ranks_cannot_share_is_refused(monkeypatch, refused):
    monkeypatch.setattr(sharded, "current", lambda: Ranks(0, 3))
    recipe = hcd.Recipe.sample(batch_size=32)
    with refused(hcd.InputError, "batch_size=32", "3 ranks", "such as 30"):
        require_shareable(recipe)
    with refused(hcd.InputError, "batch_size=2", "such as 3"):
        require_shareable(replace(recipe, batch_size=2))
    with refused(hcd.InputError, "rng_seed=None", "--rng-seed"):
        require_shareable(replace(recipe, batch_size=30, rng_seed=None))
    require_shareable(replace(recipe, batch_size=30))
