"""A fit with checkpoints writes its history, says where it goes on, and saves no lost numbers."""

import csv
import math

import fastai.basic_train
import numpy as np
import pytest
import torch
from fastai.basic_train import LearnerCallback
from fastai.callbacks import TerminateOnNaNCallback
from fastai.metrics import accuracy
from torch import nn

import hcd
from hcd.errors import Diverged

EPOCHS, BATCHES = 4, 5


class PowerCut(Exception):
    """Stands for a kill: nothing in hcd catches it."""


class Cut(LearnerCallback):
    """Stop everything at the end of the second epoch, when it has been saved."""

    _order = 200

    def on_epoch_end(self, epoch, **kwargs):
        if epoch == 1:
            raise PowerCut


class Lose(LearnerCallback):
    """Lose the weights in the second epoch, before its training or only before its validation."""

    def __init__(self, learn, training):
        super().__init__(learn)
        self.training = training

    def on_batch_begin(self, epoch, train, **kwargs):
        if epoch == 1 and train == self.training:
            with torch.no_grad():
                self.learn.model[1].weight.mul_(math.inf)


class Note(LearnerCallback):
    """Note the weights at the beginning of each epoch."""

    def __init__(self, learn, note):
        super().__init__(learn)
        self.note = note

    def on_epoch_begin(self, **kwargs):
        self.note(copy_of(self.learn.model.state_dict()))


def copy_of(state):
    return {name: value.clone() for name, value in state.items()}


def equal(some, other):
    return some.keys() == other.keys() and all(
        torch.equal(some[name], other[name]) for name in some
    )


def small_model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        nn.Linear(4, 2),
    )


@pytest.fixture
def begin(databunch, sample, small_recipe):
    """Function that returns a learner and the checkpoints of a folder; a resumed fit begins with
    other weights and generators."""

    def make(folder, resume=False, kind=hcd.Learner):
        seed = 9 if resume else 4
        hcd.set_rng_seed(seed)
        databunch.passes.count = 0
        learner = kind(databunch, small_model(seed), path=folder, metrics=[accuracy])
        return learner, hcd.Checkpoints(folder / "kept", small_recipe, sample, resume=resume)

    return make


def fit(learner, checkpoints, *callbacks, lr=1e-2):
    callback = checkpoints.callback(learner, "fit")
    learner.fit(EPOCHS, lr, callbacks=[callback, *callbacks])
    return learner


def rows_of(folder):
    with open(folder / "history_fit.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_a_fit_that_loses_its_numbers_stops_and_keeps_the_epoch_before(
    begin, tmp_path, refused, capsys, training
):
    whole = fit(*begin(tmp_path / "whole"))
    folder = tmp_path / "lost"
    learner, checkpoints = begin(folder)
    with refused(Diverged, "fit diverged in epoch 2", "nan", "0.01"):
        fit(learner, checkpoints, Lose(learner, training))
    assert len(learner.recorder.val_losses) == 2 and files(folder) == [
        "fit.pth",
        "history_fit.csv",
        "start.pth",
    ]
    assert rows_of(folder) == rows_of(tmp_path / "whole")[:1]
    capsys.readouterr()
    again = fit(*begin(folder, resume=True))
    assert "fit: going on after epoch 1 of 4" in capsys.readouterr().out
    assert equal(again.model.state_dict(), whole.model.state_dict())
    assert again.recorder.val_losses == whole.recorder.val_losses


def test_terminate_on_nan_leaves_it_to_the_checkpoints_to_say_what_happened(
    begin, tmp_path, refused
):
    learner, checkpoints = begin(tmp_path)
    with refused(Diverged, "fit diverged in epoch 2", "nan", "0.01"):
        fit(learner, checkpoints, Lose(learner, True), TerminateOnNaNCallback())
    assert files(tmp_path) == ["fit.pth", "history_fit.csv", "start.pth"]
    assert len(rows_of(tmp_path)) == 1


def test_a_rate_far_too_high_is_named_and_nothing_of_the_first_epoch_is_saved(
    begin, tmp_path, refused
):
    with refused(Diverged, "fit diverged in epoch 1", "1e+12"):
        fit(*begin(tmp_path), lr=1e12)
    assert files(tmp_path) == ["start.pth"]


def test_diverged_is_what_a_user_can_mend():
    assert issubclass(Diverged, hcd.InputError)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut and resumed"])
def test_the_history_has_one_row_an_epoch_with_its_losses(begin, tmp_path, cut):
    learner, checkpoints = begin(tmp_path)
    if cut:
        with pytest.raises(PowerCut):
            fit(learner, checkpoints, Cut(learner))
        assert [row["epoch"] for row in rows_of(tmp_path)] == ["0", "1"]
        learner, checkpoints = begin(tmp_path, resume=True)
    recorder, rows = fit(learner, checkpoints).recorder, rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss", "accuracy"]
    ends = [recorder.losses[BATCHES * (epoch + 1) - 1] for epoch in range(EPOCHS)]
    for name, numbers in {
        "train_loss": ends,
        "valid_loss": recorder.val_losses,
        "accuracy": [values[0] for values in recorder.metrics],
    }.items():
        numbers = list(map(float, numbers))
        assert len(set(numbers)) > 1 and np.isfinite(numbers).all()
        assert [row[name] for row in rows] == [f"{number:.6f}" for number in numbers]


def test_the_history_of_a_learner_without_metrics_has_the_losses(begin, tmp_path):
    learner, checkpoints = begin(tmp_path)
    learner.metrics = []
    losses, rows = fit(learner, checkpoints).recorder.val_losses, rows_of(tmp_path)
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss"]
    assert [row["valid_loss"] for row in rows] == [f"{float(loss):.6f}" for loss in losses]


def test_a_resumed_fit_says_after_which_epoch_it_goes_on_and_a_new_one_says_nothing(
    begin, tmp_path, capsys
):
    learner, checkpoints = begin(tmp_path)
    with pytest.raises(PowerCut):
        fit(learner, checkpoints, Cut(learner))
    assert "going on" not in capsys.readouterr().out
    for done, trained in ((2, 2), (4, 0)):
        before, begun = learner.model.state_dict(), []
        learner, checkpoints = begin(tmp_path, resume=True)
        fit(learner, checkpoints, Note(learner, begun.append))
        assert f"fit: going on after epoch {done} of 4\n" in capsys.readouterr().out
        assert len(begun) == trained
        assert equal([*begun, learner.model.state_dict()][0], before)


def test_a_learner_of_fastais_own_is_refused_before_it_trains(begin, tmp_path, refused):
    learner, checkpoints = begin(tmp_path, kind=fastai.basic_train.Learner)
    before = copy_of(learner.model.state_dict())
    with refused(hcd.InputError, "hcd.get_learner"):
        fit(learner, checkpoints)
    assert equal(learner.model.state_dict(), before) and files(tmp_path) == ["start.pth"]
