"""A run that was stopped anywhere and resumed ends with the very bits of one that was not."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.basic_train import LearnerCallback

import hcd
from hcd import (
    Checkpoints,
    get_learner,
    make_databunch,
    predict,
    predict_tta,
    set_rng_seed,
    sweep_weight_decay,
    walkthrough,
)
from hcd.engine.compat import load_tensors
from hcd.runs import checkpoint

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)


class PowerCut(Exception):
    """Stands for a kill: nothing in hcd catches it."""


class CutAfter(LearnerCallback):
    """Stop everything in the middle of training batch number `batches`."""

    _order = 200

    def __init__(self, learn, batches):
        super().__init__(learn)
        self.left = batches

    def on_backward_begin(self, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise PowerCut


def play(data_folder, recipe, folder, resume=False, cut=None, cut_in=None, device="cpu"):
    """Go through the walkthrough's chapters that can be resumed; the interruption comes after `cut`
    batches of step `cut_in`.

    Returns:
        all that must be the same after a resume, to the bit, and the run.
    """
    run = walkthrough.begin(data_folder, recipe, folder, device, resume)
    walkthrough.split(run, num_workers=0, device=device)
    callback = run.checkpoints.callback

    def cutting(learner, name):
        if cut_in == "sweep":
            raise PowerCut
        if cut_in == name:
            learner.callbacks.append(CutAfter(learner, cut))
        return callback(learner, name)

    run.checkpoints.callback = cutting
    walkthrough.train(run)
    walkthrough.predict(run)
    learner = run.learner
    return {
        "metrics": run.metrics,
        "history": [path.read_text() for path in sorted(folder.glob("history_*.csv"))],
        "answers": next(folder.glob("*_submission.csv")).read_text(),
        # losses, rates, momentums, optimiser, scalers and generators at the end of each step
        "kept": {
            path.stem: load_tensors(path)
            for path in sorted((folder / "checkpoints").glob("s*.pth"))
        },
        "weights": learner.model.state_dict(),
        "opt": learner.opt.state_dict(),
        "next": [random.random(), torch.rand(1), np.random.rand()],
        "passes": run.data.passes and run.data.passes.count,
    }, run


def assert_equal(one, other, where="run"):
    """Compare nested dicts, lists and tensors to the bit, and name the first place that differs."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (mine, theirs) in enumerate(zip(one, other)):
            assert_equal(mine, theirs, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def recipe(small_recipe):
    return replace(
        small_recipe,
        head_epochs=2,
        finetune_epochs=2,
        sweep_iterations=2,
        sweep_weight_decays=(1e-4, 1e-2),
    )


@pytest.fixture(scope="module")
def whole(sample, recipe, tmp_path_factory):
    """What the run gives that nothing interrupts; an epoch has 5 batches."""
    return play(sample.root, recipe, tmp_path_factory.mktemp("run") / "whole")[0]


@pytest.mark.parametrize("stage, cut", [("sweep", 0), ("stage1", 0), ("stage1", 7), ("stage2", 5)])
def test_resumed_run_ends_with_the_same_bits(sample, recipe, tmp_path, whole, stage, cut):
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path, cut=cut, cut_in=stage)
    assert_equal(play(sample.root, recipe, tmp_path, resume=True)[0], whole)


@pytest.mark.long
def test_a_resumed_fast_densenet_ends_with_the_same_bits(sample, small_recipe, tmp_path):
    """Its layers compute in ways of their own, see `engine.dense`."""
    recipe = replace(
        small_recipe,
        arch="densenet121",
        fast=True,
        finetune_epochs=2,
        sweep_iterations=2,
        sweep_weight_decays=(1e-2,),
        crop_size=64,
    )
    whole = play(sample.root, recipe, tmp_path / "whole")[0]
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path / "cut", cut=7, cut_in="stage2")
    assert_equal(play(sample.root, recipe, tmp_path / "cut", resume=True)[0], whole)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    "mode", ["fast", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("plain", "float16"))]
)
def test_a_run_on_a_pack_on_every_device_and_in_every_mode(
    packed_root, small_recipe, tmp_path, request, device, mode
):
    if mode == "float16":
        request.getfixturevalue("float16")
    recipe = replace(
        small_recipe,
        fast=mode != "plain",
        resident=mode == "fast",
        mean_weights=mode == "fast",
        finetune_epochs=2,
        sweep_iterations=2,
        sweep_weight_decays=(1e-2,),
        crop_size=64,
    )  # half the work, for float16 is slow on a CPU
    whole, run = play(packed_root, recipe, tmp_path / "whole", device=device)
    with pytest.raises(PowerCut):
        play(packed_root, recipe, tmp_path / "cut", cut=7, cut_in="stage2", device=device)
    resumed, again = play(packed_root, recipe, tmp_path / "cut", resume=True, device=device)
    if device == "cpu":
        assert_equal(resumed, whole)
    assert len(whole["kept"]["stage2"]["scalers"]) == (mode == "float16")
    assert run.dataset.packed is not None
    shapes = []
    for found, learner in ((whole, run.learner), (resumed, again.learner)):
        batch, _ = learner.data.one_batch(denorm=False, cpu=False)
        assert {value.device.type for value in (batch, *learner.model.parameters())} == {device}
        heatmap, gray = hcd.get_heatmap(learner, 0)
        prediction = hcd.predict_image(
            hcd.load_bundle(hcd.save_bundle(learner, tmp_path / "model")), run.dataset.test_paths[0]
        )
        fits = [found["kept"][stage]["recorder"] for stage in ("stage1", "stage2")]
        rows = [
            *(
                torch.as_tensor(fit[name]).numpy()
                for fit in fits
                for name in ("losses", "val_losses", "lrs", "moms")
            ),
            *heatmap,
        ]
        assert all(np.isfinite(row).all() for row in rows) and 0 <= prediction.probability <= 1
        shapes.append((list(map(len, rows)), gray.shape))
    assert shapes[0] == shapes[1]


def test_a_run_interrupted_twice_and_in_the_averaged_passes(
    sample, recipe, tmp_path, whole, monkeypatch
):
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path, cut=8, cut_in="stage1")
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path, resume=True, cut=2, cut_in="stage2")
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_SAVES", -1)
    read, plain_apply = [], predict.apply_draw

    def cut_at_the_tenth_crop(*args):
        read.append(args)
        if len(read) == 10:
            raise PowerCut
        return plain_apply(*args)

    monkeypatch.setattr(predict, "apply_draw", cut_at_the_tenth_crop)
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path, resume=True)
    assert_equal(play(sample.root, recipe, tmp_path, resume=True)[0], whole)
    # of 12 patches with 2 passes each, the first batch of 4 was not read again
    assert len(read) - 10 == 2 * (12 - 4)


def test_a_finished_fit_is_not_trained_again(sample, small_recipe, tmp_path, capsys):
    first, _ = play(sample.root, small_recipe, tmp_path)
    capsys.readouterr()
    again, _ = play(sample.root, small_recipe, tmp_path, resume=True)
    assert "stage1: going on after epoch 1 of 1" in capsys.readouterr().out
    assert_equal(first, again)


def test_without_resume_a_cell_that_is_run_again_trains_again(
    databunch, sample, small_recipe, tmp_path
):
    checkpoints = Checkpoints(tmp_path, small_recipe, sample)
    learner = get_learner(databunch, small_recipe, tmp_path)
    for _ in range(2):
        before = learner.model[1][4].weight.clone()
        learner.fit_one_cycle(1, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])
        assert not torch.equal(before, learner.model[1][4].weight)


def test_a_resumed_process_trains_again_what_it_has_saved_itself(
    databunch, sample, small_recipe, tmp_path
):
    checkpoints = Checkpoints(tmp_path, small_recipe, sample, resume=True)
    learner = get_learner(databunch, small_recipe, tmp_path)
    learner.fit_one_cycle(1, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])
    before = learner.model[1][4].weight.clone()
    learner.fit_one_cycle(1, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])
    assert not torch.equal(before, learner.model[1][4].weight)


def test_an_unseeded_run_resumes_with_the_same_generators(sample, small_recipe, tmp_path):
    recipe = replace(
        small_recipe,
        rng_seed=None,
        finetune_epochs=2,
        sweep_iterations=2,
        sweep_weight_decays=(1e-2,),
    )
    set_rng_seed(5)
    first, _ = play(sample.root, recipe, tmp_path / "whole")
    set_rng_seed(5)
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path / "cut", cut=7, cut_in="stage2")
    set_rng_seed(6)
    assert_equal(play(sample.root, recipe, tmp_path / "cut", resume=True)[0], first)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 4}, ["batch_size=8", "4"]),
        ({"rng_seed": None}, ["rng_seed=0", "None"]),
        ({"arch": "resnet18"}, ["arch='squeezenet1_1'", "'resnet18'"]),
    ],
    ids=str,
)
def test_another_recipe_is_refused(sample, small_recipe, tmp_path, refused, change, words):
    Checkpoints(tmp_path, small_recipe, sample)
    with refused(ValueError, "start.pth", *words):
        Checkpoints(tmp_path, replace(small_recipe, **change), sample, resume=True)


def test_another_data_set_is_refused(sample, small_recipe, tmp_path, refused):
    Checkpoints(tmp_path, small_recipe, sample)
    with refused(ValueError, "labelled patches=60", "59"):
        Checkpoints(
            tmp_path, small_recipe, sample.without(list(sample.labels["id"][:1])), resume=True
        )
    labels = sample.labels.assign(label=1 - sample.labels["label"])
    with refused(ValueError, "data fingerprint=", sample.fingerprint):
        Checkpoints(tmp_path, small_recipe, replace(sample, labels=labels), resume=True)


def test_another_split_or_length_is_refused(sample, small_recipe, split, tmp_path, refused):
    play(sample.root, small_recipe, tmp_path)
    other = make_databunch(
        sample, small_recipe, np.sort(split[0])[:15], num_workers=0, device="cpu"
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", small_recipe, sample, resume=True)
    learner = get_learner(other, small_recipe, tmp_path)
    with refused(ValueError, "stage1.pth", "split="):
        learner.fit_one_cycle(1, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])
    learner = get_learner(
        make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu"),
        small_recipe,
        tmp_path,
    )
    with refused(ValueError, "epochs=1", "2"):
        learner.fit_one_cycle(2, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])
    with refused(ValueError, "sweep0.pth", "split="):
        sweep_weight_decay(other, small_recipe, tmp_path, checkpoints)


def test_averaged_passes_of_another_model_are_not_gone_on_with(
    databunch, sample, small_recipe, tmp_path, monkeypatch, refused
):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_SAVES", -1)
    learner = get_learner(databunch, small_recipe, tmp_path)
    predict_tta(learner, 2, progress=False, checkpoints=Checkpoints(tmp_path, small_recipe, sample))
    with torch.no_grad():
        learner.model[1][-1].bias[1] += 5
    with refused(ValueError, "tta.pth", "weights="):
        predict_tta(
            learner,
            2,
            progress=False,
            checkpoints=Checkpoints(tmp_path, small_recipe, sample, resume=True),
        )
    with refused(ValueError, "tta.pth", "passes=2", "3"):
        predict_tta(
            learner,
            3,
            progress=False,
            checkpoints=Checkpoints(tmp_path, small_recipe, sample, resume=True),
        )


def test_averaged_passes_of_another_test_set_or_crop_are_not_gone_on_with(
    databunch, sample, small_recipe, split, tmp_path, monkeypatch, refused
):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_SAVES", -1)
    learner = get_learner(databunch, small_recipe, tmp_path)
    predict_tta(learner, 2, progress=False, checkpoints=Checkpoints(tmp_path, small_recipe, sample))
    kept = Checkpoints(tmp_path, small_recipe, sample, resume=True)
    learner.data = make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")
    learner.data.add_test([str(path) for path in sample.test_paths[:5]])
    with refused(ValueError, "tta.pth", "test items="):
        predict_tta(learner, 2, progress=False, checkpoints=kept)
    small = replace(small_recipe, crop_size=64)
    learner.data = make_databunch(sample, small, split[1], num_workers=0, device="cpu")
    with refused(ValueError, "crop_size=64", "90"):
        predict_tta(learner, 2, progress=False, checkpoints=kept)


@pytest.mark.parametrize(
    "change", [{"sweep_iterations": 3}, {"sweep_weight_decays": (0.3,)}, {"head_dropout": 0.1}]
)
def test_a_sweep_by_another_recipe_than_the_databunchs_is_not_gone_on_with(
    databunch, sample, small_recipe, tmp_path, refused, change
):
    recipe = replace(small_recipe, sweep_iterations=2, sweep_weight_decays=(1e-2,))
    sweep_weight_decay(databunch, recipe, tmp_path, Checkpoints(tmp_path, small_recipe, sample))
    kept = Checkpoints(tmp_path, small_recipe, sample, resume=True)
    with refused(ValueError, "sweep0.pth"):
        sweep_weight_decay(databunch, replace(recipe, **change), tmp_path, kept)


@pytest.mark.parametrize("change", [{"max_lr": 1e-2}, {"wd": 0.3}, {"pct_start": 0.5}], ids=str)
def test_a_fit_at_other_rates_is_not_gone_on_with(
    databunch, sample, small_recipe, tmp_path, refused, change
):
    learner = get_learner(databunch, small_recipe, tmp_path)
    first = Checkpoints(tmp_path, small_recipe, sample).callback(learner, "stage1")
    learner.fit_one_cycle(1, max_lr=1e-3, wd=1e-2, callbacks=[first])
    again = Checkpoints(tmp_path, small_recipe, sample, resume=True).callback(learner, "stage1")
    with refused(ValueError, "stage1.pth", "this one has"):
        learner.fit_one_cycle(1, **{"max_lr": 1e-3, "wd": 1e-2, **change}, callbacks=[again])
    learner.fit_one_cycle(1, max_lr=1e-3, wd=1e-2, callbacks=[again])


def test_a_kill_before_an_epochs_checkpoint_loses_no_row_of_its_history(
    sample, recipe, tmp_path, whole, monkeypatch
):
    save = Checkpoints.save

    def save_all_but_the_last(self, name, *args, **content):
        if content.get("epoch") == recipe.head_epochs:
            raise PowerCut
        save(self, name, *args, **content)

    monkeypatch.setattr(Checkpoints, "save", save_all_but_the_last)
    with pytest.raises(PowerCut):
        play(sample.root, recipe, tmp_path / "cut")
    monkeypatch.setattr(Checkpoints, "save", save)
    resumed, _ = play(sample.root, recipe, tmp_path / "cut", resume=True)
    assert resumed["history"] == whole["history"]


def test_a_damaged_checkpoint_is_refused(sample, small_recipe, tmp_path, refused):
    """One that holds code is among the files of test_compat.py."""
    Checkpoints(tmp_path, small_recipe, sample)
    content = (tmp_path / "start.pth").read_bytes()
    good = torch.load(tmp_path / "start.pth")
    (tmp_path / "start.pth").write_bytes(content[: len(content) // 2])
    with refused(ValueError, "start.pth", "cannot be loaded"):
        Checkpoints(tmp_path, small_recipe, sample, resume=True)
    changes = [
        {"identity": None},
        {"call": 3},
        {"generators": None},
        {"generators": {}},
        *(
            {"generators": {**good["generators"], name: "odd"}}
            for name in ("python", "numpy", "torch")
        ),
    ]
    for odd in (
        torch.ones(2),
        [1],
        {},
        {**good, "format": "hcd-checkpoint-9"},
        *({**good, **change} for change in changes),
    ):
        torch.save(odd, tmp_path / "start.pth")
        with refused(ValueError, "start.pth", "start a new run"):
            Checkpoints(tmp_path, small_recipe, sample, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None},
        {"epoch": 5},
        {"model": {}},
        {"opt": 3},
        {"recorder": {}},
        {"smoothed": 1},
        {"scalers": None},
    ],
    ids=str,
)
def test_a_fit_does_not_go_on_from_an_odd_checkpoint(
    databunch, sample, small_recipe, tmp_path, refused, change
):
    learner = get_learner(databunch, small_recipe, tmp_path)
    learner.fit_one_cycle(
        1, 1e-3, callbacks=[Checkpoints(tmp_path, small_recipe, sample).callback(learner, "stage1")]
    )
    torch.save({**load_tensors(tmp_path / "stage1.pth"), **change}, tmp_path / "stage1.pth")
    with refused(ValueError, "stage1.pth", "start a new run"):
        checkpoints = Checkpoints(tmp_path, small_recipe, sample, resume=True)
        learner.fit_one_cycle(1, 1e-3, callbacks=[checkpoints.callback(learner, "stage1")])


def test_the_best_epoch_so_far_is_kept(whole):
    stage2 = whole["kept"]["stage2"]
    losses = stage2["recorder"]["val_losses"]
    assert len(losses) == 2
    assert stage2["best"] == {"epoch": int(np.argmin(losses)), "valid_loss": min(losses)}
