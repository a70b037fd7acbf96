"""What a fit reports is what fastai's recorder has, also after a resume, and nothing else."""

import sys
from functools import partial

import pytest
import torch
from fastai.basic_train import Learner as PlainLearner
from fastai.basic_train import LearnerCallback
from fastai.metrics import accuracy
from torch import nn

import hcd

EPOCHS = 3


class Cut(LearnerCallback):
    """Stop everything in the middle of an epoch."""

    def __init__(self, learn, epoch, error=RuntimeError):
        super().__init__(learn)
        self.epoch, self.error = epoch, error

    def on_backward_begin(self, epoch, num_batch, **kwargs):
        if (epoch, num_batch) == (self.epoch, 2):
            raise self.error("power cut")


class Kept:
    """Keeps what is reported: [(values, step)]."""

    def __init__(self):
        self.rows, self.closed = [], 0

    def __call__(self, values, step):
        self.rows.append((values, step))

    def close(self):
        self.closed += 1

    def curve(self, name):
        return [(step, values[name]) for values, step in self.rows if name in values]


@pytest.fixture
def make(databunch, tmp_path):
    """Function that returns an untrained learner of a few weights."""

    def build(kind=hcd.Learner, seed=4, **more):
        hcd.set_rng_seed(seed)
        databunch.passes.count = 0
        body = [nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(nn.Sequential(*body), nn.Sequential(nn.Linear(4, 2)))
        return kind(databunch, model, path=tmp_path, metrics=[accuracy], **more)

    return build


def recorded(learner):
    """Return every curve of fastai's recorder as [(step, value)] by name."""
    found = learner.recorder
    batches = {"train_loss": found.losses, "learning_rate": found.lrs, "momentum": found.moms}
    curves = {
        name: [(step, float(value)) for step, value in enumerate(values)]
        for name, values in batches.items()
    }
    ends = torch.tensor(found.nb_batches).cumsum(0).tolist()
    epochs = {"valid_loss": found.val_losses, "accuracy": [row[0] for row in found.metrics]}
    for name, values in epochs.items():
        curves[name] = [(end - 1, float(value)) for end, value in zip(ends, values)]
    return curves


@pytest.mark.parametrize("kind", [hcd.Learner, PlainLearner])
def test_it_reports_what_the_recorder_has(make, kind):
    learner, kept = make(kind), Kept()
    learner.fit_one_cycle(EPOCHS, 1e-2, callbacks=[hcd.LogCallback(learner, kept)])
    wanted = recorded(learner)
    assert len(wanted["train_loss"]) == EPOCHS * len(learner.data.train_dl) > EPOCHS
    assert {name: kept.curve(name) for name in wanted} == wanted
    assert len({value for _, value in wanted["learning_rate"]}) > EPOCHS  # a schedule, no constant
    steps = [step for _, step in kept.rows]
    assert steps == sorted(steps) and kept.closed == 1
    assert all(type(value) is float for values, _ in kept.rows for value in values.values())


def test_plain_functions_and_partials_will_do(make):
    learner, rows = make(), []
    log = partial(lambda rows, values, step: rows.append(step), rows)
    learner.fit(1, 1e-2, callbacks=[hcd.LogCallback(learner, log)])
    assert len(rows) == len(learner.data.train_dl) + 1


def test_lr_find_and_validate_report_nothing(make):
    learner, kept = make(), Kept()
    learner.callbacks.append(hcd.LogCallback(learner, kept))
    learner.lr_find(num_it=7)
    learner.validate()
    learner.get_preds()
    assert kept.rows == []
    learner.fit(1, 1e-2)
    assert {name: kept.curve(name) for name in recorded(learner)} == recorded(learner)
    rows = list(kept.rows)
    learner.validate()
    assert kept.rows == rows


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_closed_when_the_fit_fails(make, error):
    learner, kept = make(), Kept()
    with pytest.raises(error):
        learner.fit(2, 1e-2, callbacks=[hcd.LogCallback(learner, kept), Cut(learner, 0, error)])
    assert kept.closed == 1 and len(kept.rows) == 2


def fit(make, sample, recipe, folder, log, resume=False, cut=None):
    learner = make(seed=9 if resume else 4)
    checkpoints = hcd.Checkpoints(folder, recipe, sample, resume=resume)
    callbacks = [checkpoints.callback(learner, "fit"), hcd.LogCallback(learner, log)]
    if cut is None:
        learner.fit_one_cycle(EPOCHS, 1e-2, callbacks=callbacks)
        return learner
    with pytest.raises(RuntimeError):
        learner.fit_one_cycle(EPOCHS, 1e-2, callbacks=[*callbacks, Cut(learner, cut)])
    return learner


def test_a_resumed_fit_reports_the_rest_of_the_same_curves(make, sample, small_recipe, tmp_path):
    whole, first, rest = Kept(), Kept(), Kept()
    learner = fit(make, sample, small_recipe, tmp_path / "whole", whole)
    fit(make, sample, small_recipe, tmp_path / "cut", first, cut=2)
    fit(make, sample, small_recipe, tmp_path / "cut", rest, resume=True)
    done = 2 * len(learner.data.train_dl)
    before = [row for row in first.rows if row[1] < done]
    assert len(first.rows) == len(before) + 2  # batches of the epoch that is done again
    assert before + rest.rows == whole.rows
    assert {name: whole.curve(name) for name in recorded(learner)} == recorded(learner)


def read_back(folder):
    """Return every curve that TensorBoard reads from a folder, as [(step, value)] by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def rounded(curves):
    """Return curves as TensorBoard's 32 bits hold them."""
    return {
        name: [(step, torch.tensor(value, dtype=torch.float32).item()) for step, value in curve]
        for name, curve in curves.items()
    }


@pytest.fixture
def tensorboard():
    return pytest.importorskip("tensorboard", reason="needs pip install 'hcd[tensorboard]'")


def test_tensorboard_reads_the_recorders_curves(make, tensorboard, tmp_path):
    learner = make()
    log = hcd.tensorboard_log(tmp_path / "logs/stage1")
    learner.fit_one_cycle(EPOCHS, 1e-2, callbacks=[hcd.LogCallback(learner, log)])
    assert read_back(tmp_path / "logs/stage1") == rounded(recorded(learner))


def test_tensorboard_goes_on_after_a_resume(make, tensorboard, sample, small_recipe, tmp_path):
    logs = tmp_path / "logs"
    fit(make, sample, small_recipe, tmp_path / "cut", hcd.tensorboard_log(logs), cut=1)
    left = len(read_back(logs)["train_loss"])
    learner = fit(
        make, sample, small_recipe, tmp_path / "cut", hcd.tensorboard_log(logs), resume=True
    )
    assert left == len(learner.data.train_dl) + 2  # two batches are done again, and stand once
    assert read_back(logs) == rounded(recorded(learner))


def test_a_fit_that_reports_nothing_leaves_no_file(make, tensorboard, tmp_path):
    learner, log = make(), hcd.tensorboard_log(tmp_path / "logs")
    learner.callbacks.append(hcd.LogCallback(learner, log))
    learner.lr_find(num_it=5)
    assert not list((tmp_path / "logs").iterdir())
    learner.fit(1, 1e-2)
    assert len(list((tmp_path / "logs").iterdir())) == 1


def test_one_log_serves_one_fit(make, tensorboard, tmp_path, refused):
    learner, log = make(), hcd.tensorboard_log(tmp_path / "logs")
    learner.fit(1, 1e-2, callbacks=[hcd.LogCallback(learner, log)])
    before = read_back(tmp_path / "logs")
    with refused(hcd.InputError, tmp_path / "logs", "a fit that is over"):
        learner.fit(1, 1e-2, callbacks=[hcd.LogCallback(learner, log)])
    assert read_back(tmp_path / "logs") == before


def test_without_tensorboard_a_sentence_says_what_to_install(monkeypatch, tmp_path, refused):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with refused(hcd.InputError, "pip install 'hcd[tensorboard]'"):
        hcd.tensorboard_log(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_wrong_things_are_refused(make, tensorboard, tmp_path, refused):
    for log in (None, "logs", {}):
        with refused(TypeError, f"log={log!r}", "tensorboard_log"):
            hcd.LogCallback(make(), log)
    (tmp_path / "file").touch()
    with refused(OSError, tmp_path / "file", "is a file"):
        hcd.tensorboard_log(tmp_path / "file")
    with refused(hcd.InputError, 'folder ""'):
        hcd.tensorboard_log("")
