"""Passes over the data whose draws depend on the rng_seed alone: not on workers, nor on what ran
before."""

import gc
import random

import torch
from torch.utils.data import Dataset, Sampler

from ..errors import InputError
from .compat import DataLoader
from .sharded import own_batch, shared, whole_labels

CHUNK = 10_000  # items of a pass whose numbers are there at a time


def leave_inherited(worker: int) -> None:
    """Keep Python's garbage collector off what a forked worker inherits, for it writes into each
    object that it looks at, and the libraries' would be copied into every worker: 128 MiB."""
    gc.freeze()


class Passes:
    """The passes over the data that were begun with an rng_seed; each has a number, and each item
    of it draws by (pass, index).

    `count` is all that a resumed run has to know.

    CHANGED C19: with an rng_seed neither the number of workers nor their order changes a draw;
    without one they do, as in the walkthrough.
    """

    def __init__(self, rng_seed):
        self.rng_seed, self.count = rng_seed, 0

    def rng(self, number, index):
        """Return the generator of one item, by its index, or of the order of the items, index
        -1."""
        return random.Random((self.rng_seed << 64) + (number << 32) + index + 1)


class _Sampler(Sampler):
    """Begins a pass each time it is asked for an order, and gives (pass, index) of each item."""

    def __init__(self, dataset, shuffle, passes):
        self.dataset, self.shuffle, self.passes = dataset, shuffle, passes

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        self.passes.count += 1
        number, order = self.passes.count, torch.arange(len(self))
        if self.shuffle:
            seed = self.passes.rng(number, -1).getrandbits(63)
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        # millions of Python's numbers at once would take as much as all the ids
        return ((number, index) for part in order.split(CHUNK) for index in part.tolist())


class DrawnByKey(Dataset):
    """A data set that takes (pass, index) too, and then draws from the generator of that item."""

    own: tuple = ("dataset", "passes")  # attributes of this one; all others are the data set's

    def __init__(self, dataset, passes):
        self.dataset, self.passes = dataset, passes

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        if name in self.own:  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name, value):
        if name in self.own:
            super().__setattr__(name, value)
        else:  # such as the transforms that fastai's TTA puts in for a while
            setattr(self.dataset, name, value)

    def __getitem__(self, key):
        if not isinstance(key, tuple):
            return self.dataset[key]
        items = self.dataset.x
        items.rng = self.passes.rng(*key)
        try:
            return self.dataset[key[1]]
        finally:
            del items.rng


class PassLoader(DataLoader):
    """DataLoader whose every pass is a function of the rng_seed and the pass's number alone, and
    touches no other generator."""

    def __init__(self, dataset, passes, shuffle=False, sampler=None, **kwargs):
        if sampler is not None:
            raise InputError(
                f"a {type(sampler).__name__} cannot order patches that are drawn by an rng_seed;"
                " build the databunch with rng_seed=None to give it a sampler"
            )
        if not isinstance(dataset, DrawnByKey):
            dataset = DrawnByKey(dataset, passes)
        share = kwargs.get("batch_size", 1), bool(kwargs.get("drop_last"))
        super().__init__(
            dataset,
            sampler=shared(_Sampler(dataset, shuffle, passes), *share),
            generator=torch.Generator(),
            **kwargs,
        )
        self.init_kwargs = {"passes": passes, "shuffle": shuffle, **kwargs}

    def __iter__(self):
        """Begin a pass; with other ranks, over this rank's share of it."""
        return whole_labels(self, super().__iter__())


def replace_loaders(data, recipe):
    """Give a databunch loaders that draw by the recipe's rng_seed, or where it is fast, whose
    workers live on between epochs.

    Without either it keeps fastai's own, which draw from Python's `random` as the walkthrough does.
    `data.passes` is None then.
    """
    data.passes = None if recipe.rng_seed is None else Passes(recipe.rng_seed)
    if data.passes is None and not recipe.fast:
        return
    for bound in (data.train_dl, data.valid_dl, data.fix_dl, data.test_dl):
        if bound is None:
            continue
        options = {**bound.dl.init_kwargs, "collate_fn": bound.collate_fn}
        if recipe.fast and bound in (data.train_dl, data.valid_dl) and options["num_workers"]:
            options["persistent_workers"] = True
        if data.passes:
            del options["sampler"], options["batch_sampler"]
            options["batch_size"] = own_batch(options["batch_size"])
            bound.dl = PassLoader(bound.dl.dataset, data.passes, **options)
        else:
            bound.dl = DataLoader(bound.dl.dataset, **options)
