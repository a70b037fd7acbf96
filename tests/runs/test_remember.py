"""After a resume, a fit's callbacks end as they would have without the interruption."""

import collections
import enum
import threading
from functools import partial

import numpy as np
import pytest
import torch
from fastai.basic_train import LearnerCallback
from fastai.callbacks import (
    CSVLogger,
    EarlyStoppingCallback,
    ReduceLROnPlateauCallback,
    SaveModelCallback,
    TerminateOnNaNCallback,
)
from fastai.metrics import accuracy
from torch import nn

import hcd
from hcd.engine.compat import load_tensors

EPOCHS, BATCHES = 4, 5
NOT_COMPARED = {"_learn", "opt", "path", "file", "start_epoch"}


class PowerCut(Exception):
    """Stands for a kill: nothing in hcd catches it."""


class Cut(LearnerCallback):
    """Stop everything at the end of an epoch, or in the middle of it."""

    def __init__(self, learn, epoch, batch=None, order=200):
        super().__init__(learn)
        self.epoch, self.batch, self._order = epoch, batch, order

    def on_backward_begin(self, epoch, num_batch, **kwargs):
        if (epoch, num_batch) == (self.epoch, self.batch):
            raise PowerCut

    def on_epoch_end(self, epoch, **kwargs):
        if (epoch, None) == (self.epoch, self.batch):
            raise PowerCut


AT_THE_END = {"epoch": 1}
IN_THE_MIDDLE = {"epoch": 2, "batch": 2}
BEFORE_THE_CHECKPOINT = {"epoch": 2, "order": 50}


def cuts(**kinds):
    """Repeat a test for each of these interruptions."""
    return pytest.mark.parametrize("cut", kinds.values(), ids=kinds)


class Tally(LearnerCallback):
    """A callback of one's own: `add` makes its next value of the last one and a batch's loss."""

    def __init__(self, learn, value, add):
        super().__init__(learn)
        self.value, self.add = value, add

    def on_backward_begin(self, last_loss, **kwargs):
        self.value = self.add(self.value, last_loss.item())


def one_more(value, loss):
    return value + 1


class Holder(LearnerCallback):
    """A callback that holds something and does nothing."""

    def __init__(self, learn, held):
        super().__init__(learn)
        self.held = held


class Odd:
    """Stands for any class that hcd does not know."""


class Colour(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "low high")


def small_learner(databunch, folder, seed):
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(nn.Sequential(*body), nn.Sequential(nn.Linear(4, 2)))
    return hcd.Learner(databunch, model, path=folder, metrics=[accuracy])


@pytest.fixture
def fit(databunch, sample, small_recipe):
    """Function that fits 4 epochs with the callbacks that `make` makes for a learner, up to `cut`,
    and returns learner and callbacks; a resumed fit begins with other weights and generators."""

    def run(folder, make, resume=False, cut=None):
        seed = 9 if resume else 4
        hcd.set_rng_seed(seed)
        databunch.passes.count = 0
        learner = small_learner(databunch, folder, seed)
        checkpoints = hcd.Checkpoints(folder / "checkpoints", small_recipe, sample, resume=resume)
        callbacks = make(learner)
        everyone = [checkpoints.callback(learner, "fit"), *callbacks]
        if cut is None:
            learner.fit(EPOCHS, 1e-2, callbacks=everyone)
        else:
            with pytest.raises(PowerCut):
                learner.fit(EPOCHS, 1e-2, callbacks=[*everyone, Cut(learner, **cut)])
        return learner, callbacks

    return run


def outcome(learner, callbacks):
    """Return all that must be the same after a resume, to the bit."""
    recorder, folder = learner.recorder, learner.path
    return {
        "weights": learner.model.state_dict(),
        "optimiser": learner.opt.state_dict(),
        **{
            name: getattr(recorder, name)
            for name in ("losses", "val_losses", "metrics", "lrs", "moms")
        },
        "callbacks": [attributes(one) for one in callbacks],
        "files": {
            str(path.relative_to(folder)): read(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def attributes(callback):
    return {name: value for name, value in vars(callback).items() if name not in NOT_COMPARED}


def read(path):
    if path.suffix == ".pth":
        return load_tensors(path)
    rows = path.read_text().splitlines()
    return [row.rsplit(",", 1)[0] for row in rows] if path.name == "history.csv" else rows


def assert_equal(one, other, where="fit"):
    """Compare to the bit, and name the first place that differs; a number of numpy's may come back
    as Python's."""
    if not isinstance(one, np.generic) and not isinstance(other, np.generic):
        assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{where}[{place}]")
    elif isinstance(one, (np.ndarray, torch.Tensor)):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert (one == other).all(), where
    else:
        assert one == other, where


@pytest.fixture
def same_after_resume(fit, tmp_path):
    """Function that wants a fit that was cut and resumed to end as one that nothing interrupted,
    and returns the outcome of the latter."""

    def compare(make, cut):
        whole = outcome(*fit(tmp_path / "whole", make))
        fit(tmp_path / "cut", make, cut=cut)
        assert_equal(outcome(*fit(tmp_path / "cut", make, resume=True)), whole)
        return whole

    return compare


@cuts(end=AT_THE_END, middle=IN_THE_MIDDLE)
def test_the_best_model_is_that_of_all_epochs(same_after_resume, cut):
    whole = same_after_resume(
        lambda learner: [SaveModelCallback(learner, "valid_loss", mode="max", name="best")], cut
    )
    losses = whole["val_losses"]
    best = int(np.argmax(losses))
    assert len(losses) == EPOCHS and best < 2, "the best epoch must lie before the interruption"
    assert whole["callbacks"][0]["best"] == losses[best]
    assert_equal(whole["files"]["models/best.pth"]["model"], whole["weights"])


@cuts(middle=IN_THE_MIDDLE, unsaved=BEFORE_THE_CHECKPOINT)
def test_a_model_is_saved_at_the_end_of_every_epoch(same_after_resume, cut):
    files = same_after_resume(lambda learner: [SaveModelCallback(learner, every="epoch")], cut)[
        "files"
    ]
    saved = [files.pop(f"models/bestmodel_{epoch}.pth")["model"] for epoch in range(EPOCHS)]
    assert list(files) == ["checkpoints/fit.pth", "checkpoints/start.pth", "history_fit.csv"]
    firsts = {tuple(model["0.0.bias"].tolist()) for model in saved}
    assert len(firsts) == EPOCHS


def impatient(learner, patience):
    """Return a callback to which no epoch but the first is an improvement."""
    return EarlyStoppingCallback(learner, min_delta=100, patience=patience)


def test_early_stopping_has_counted_the_epochs_before(same_after_resume):
    whole = same_after_resume(lambda learner: [impatient(learner, patience=1)], IN_THE_MIDDLE)
    assert len(whole["val_losses"]) == 3 and whole["callbacks"][0]["wait"] == 2


def test_a_fit_that_had_ended_early_stays_ended(fit, tmp_path, capsys):
    def make(learner):
        return [impatient(learner, patience=0), Tally(learner, 0, one_more)]

    first = outcome(*fit(tmp_path, make))
    assert len(first["val_losses"]) == 2 and first["callbacks"][1]["value"] == 2 * BATCHES
    capsys.readouterr()
    assert_equal(outcome(*fit(tmp_path, make, resume=True)), first)
    assert "fit: going on after epoch 2 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("patience", [0, 1], ids=["lowered before the cut", "lowered after it"])
def test_every_batch_has_the_learning_rate_that_a_plateau_left(same_after_resume, patience):
    whole = same_after_resume(
        lambda learner: [
            ReduceLROnPlateauCallback(
                learner, min_delta=100, patience=patience, factor=0.5, min_lr=1e-6
            )
        ],
        IN_THE_MIDDLE,
    )
    rates = [1e-2, 1e-2, 5e-3, 2.5e-3] if patience == 0 else [1e-2, 1e-2, 1e-2, 5e-3]
    assert whole["lrs"] == [rate for rate in rates for _ in range(BATCHES)]


@cuts(end=AT_THE_END, middle=IN_THE_MIDDLE, unsaved=BEFORE_THE_CHECKPOINT)
def test_a_log_has_one_header_and_one_row_an_epoch(same_after_resume, cut):
    rows = same_after_resume(lambda learner: [CSVLogger(learner)], cut)["files"]["history.csv"]
    assert rows[0] == "epoch,train_loss,valid_loss,accuracy"
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3"]


@cuts(end=AT_THE_END, unsaved=BEFORE_THE_CHECKPOINT)
def test_a_log_keeps_the_rows_of_the_fit_before(same_after_resume, tmp_path, cut):
    earlier = ["epoch,train_loss,valid_loss,accuracy", "0,0.9,0.8,0.4", "1,0.9,0.7,0.4", "2,0,0,1"]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.csv").write_text("".join(f"{row},00:00\n" for row in earlier))
    rows = same_after_resume(lambda learner: [CSVLogger(learner, append=True)], cut)["files"][
        "history.csv"
    ]
    assert rows[:4] == earlier and [row.split(",")[0] for row in rows[4:]] == ["0", "1", "2", "3"]


def test_terminate_on_nan_changes_nothing_while_there_is_no_nan(same_after_resume):
    whole = same_after_resume(lambda learner: [TerminateOnNaNCallback()], AT_THE_END)
    assert len(whole["val_losses"]) == EPOCHS and whole["callbacks"] == [{"stop": False}]
    assert whole["files"]["checkpoints/fit.pth"]["callbacks"] == [
        ["TerminateOnNaNCallback", {"stop": False}]
    ]


VALUES = {
    "an int": (0, one_more),
    "a list of floats": ([], lambda value, loss: [*value, loss]),
    "a dict": ({}, lambda value, loss: {**value, len(value): (loss, "batch")}),
    "a tensor": (torch.zeros(2), lambda value, loss: value + loss),
    "a numpy array": (np.zeros(2), lambda value, loss: value + loss),
    "a numpy number": (np.float64(0), lambda value, loss: value + loss),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_callback_of_ones_own_goes_on_with_its_value(same_after_resume, kind):
    start, add = VALUES[kind]
    whole = same_after_resume(lambda learner: [Tally(learner, start, add)], IN_THE_MIDDLE)
    value = whole["callbacks"][0]["value"]
    if kind == "an int":
        assert value == EPOCHS * BATCHES
    elif kind in ("a list of floats", "a dict"):
        assert len(value) == EPOCHS * BATCHES
    else:
        assert type(value) is type(start) and (value > 1).all()


def test_two_callbacks_of_one_class_are_not_mixed_up(same_after_resume):
    def make(learner):
        return [
            SaveModelCallback(learner, "valid_loss", mode=mode, name=mode)
            for mode in ("max", "min")
        ]

    whole = same_after_resume(make, AT_THE_END)
    bests = [callback["best"] for callback in whole["callbacks"]]
    assert bests == [max(whole["val_losses"]), min(whole["val_losses"])]


def test_callbacks_that_belong_to_the_learner_are_remembered_too(same_after_resume):
    def make(learner):
        learner.callback_fns.append(partial(EarlyStoppingCallback, min_delta=100, patience=1))
        learner.callbacks.append(Tally(learner, 0, one_more))
        return []

    whole = same_after_resume(make, AT_THE_END)
    assert len(whole["val_losses"]) == 3
    kept = dict(whole["files"]["checkpoints/fit.pth"]["callbacks"])
    assert kept["Tally"]["value"] == 3 * BATCHES and kept["EarlyStoppingCallback"]["wait"] == 2


def test_a_new_callback_of_ones_own_begins_afresh(fit, tmp_path):
    fit(tmp_path, lambda learner: [], cut=AT_THE_END)
    _, (tally,) = fit(tmp_path, lambda learner: [Tally(learner, 0, one_more)], resume=True)
    assert tally.value == 2 * BATCHES


@pytest.mark.parametrize("kind", [SaveModelCallback, EarlyStoppingCallback])
def test_a_new_callback_that_tracks_the_best_loss_is_refused(fit, tmp_path, refused, kind):
    fit(tmp_path, lambda learner: [], cut=AT_THE_END)
    before = (tmp_path / "checkpoints" / "fit.pth").read_bytes()
    with refused(hcd.InputError, kind.__name__, "fit.pth"):
        fit(tmp_path, lambda learner: [kind(learner)], resume=True)
    assert (tmp_path / "checkpoints" / "fit.pth").read_bytes() == before
    assert not list(tmp_path.rglob("best*"))


def refuse(databunch, sample, recipe, folder, held, refused, *parts):
    """Want a fit with a callback that holds something to be refused before it has done a thing."""
    learner = small_learner(databunch, folder, 4)
    weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
    checkpoints = hcd.Checkpoints(folder / "checkpoints", recipe, sample)
    callbacks = [CSVLogger(learner), checkpoints.callback(learner, "fit"), Holder(learner, held)]
    with refused(hcd.InputError, "Holder", "held=", *parts):
        learner.fit(EPOCHS, 1e-2, callbacks=callbacks)
    assert_equal(dict(learner.model.state_dict()), weights)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["start.pth"]


@pytest.mark.parametrize("kind", ["TextIOWrapper", "lock", "Odd", "list", "dict"])
def test_what_cannot_be_kept_is_refused_by_name_before_anything_is_done(
    databunch, sample, small_recipe, tmp_path, refused, kind
):
    with open(tmp_path / "log.txt", "w") as file:
        held = {
            "TextIOWrapper": file,
            "lock": threading.Lock(),
            "Odd": Odd(),
            "list": [1.5, Odd()],
            "dict": {"odd": threading.Lock()},
        }[kind]
        refuse(databunch, sample, small_recipe, tmp_path / "fit", held, refused, kind)


@pytest.mark.parametrize(
    "held",
    [
        [np.zeros(2)],
        np.array(["a", "b"]),
        np.array([None, 1.5], dtype=object),
        collections.defaultdict(int, a=1),
        Pair(0, 1),
        Colour.RED,
        1 + 2j,
    ],
    ids=[
        "numpy array in a list",
        "numpy texts",
        "numpy objects",
        "defaultdict",
        "named tuple",
        "enum",
        "complex",
    ],
)
def test_a_value_is_put_back_as_it_was_or_refused_before_anything_is_done(
    databunch, sample, small_recipe, fit, tmp_path, refused, held
):
    try:
        fit(tmp_path / "cut", lambda learner: [Holder(learner, held)], cut=AT_THE_END)
    except hcd.InputError:
        refuse(databunch, sample, small_recipe, tmp_path / "fit", held, refused)
        return
    _, (holder,) = fit(tmp_path / "cut", lambda learner: [Holder(learner, held)], resume=True)
    assert_equal(holder.held, held)
