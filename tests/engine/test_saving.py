"""Learners are saved whole and load again; no file that holds code is ever run."""

import contextlib
import inspect
import io
import os
import pickle
import random
import shutil
import subprocess
import tracemalloc
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import fastai.basic_train
import fastai.vision
import numpy as np
import pytest
import torch
from fastai.basic_data import DatasetType
from torch import nn

import hcd
from hcd.engine import compat, saving


def small_model(rng_seed=0):
    torch.manual_seed(rng_seed)
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        nn.Sequential(nn.Linear(4, 2)),
    )


def make(kind, databunch, folder, rng_seed=0):
    learner = kind(databunch, small_model(rng_seed), path=folder)
    learner.split(lambda model: (model[1],))
    return learner


@pytest.fixture
def fitted(databunch, tmp_path):
    learner = make(hcd.Learner, databunch, tmp_path)
    learner.fit_one_cycle(1, 1e-2)
    return learner


def weights(learner):
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def equal(some, other):
    return some.keys() == other.keys() and all(
        torch.equal(some[name], other[name]) for name in some
    )


def moments(learner):
    """Return Adam's first moments, in the order of the parameters."""
    state = learner.opt.opt.state_dict()["state"]
    return [state[number]["exp_avg"].clone() for number in sorted(state)]


# Learner


def test_fastais_own_load_fails_after_a_fit_and_ours_restores_all(databunch, fitted, tmp_path):
    fitted.save("a")
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        make(fastai.basic_train.Learner, databunch, tmp_path).load("a")
    fresh = make(hcd.Learner, databunch, tmp_path, rng_seed=1)
    assert not equal(weights(fresh), weights(fitted)) and fresh.load("a") is fresh
    assert equal(weights(fresh), weights(fitted))
    assert len(moments(fresh)) == len(moments(fitted)) > 0
    assert all(torch.equal(a, b) for a, b in zip(moments(fresh), moments(fitted)))
    assert [group["betas"] for group in fresh.opt.opt.param_groups] == [
        group["betas"] for group in fitted.opt.opt.param_groups
    ]


def test_fastais_own_lr_find_fails_after_a_fit_and_ours_leaves_the_weights(
    databunch, fitted, tmp_path
):
    plain = make(fastai.basic_train.Learner, databunch, tmp_path / "plain")
    plain.fit_one_cycle(1, 1e-2)
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        plain.lr_find(num_it=3)
    before, kept = weights(fitted), moments(fitted)
    fitted.lr_find(num_it=3)
    assert len(fitted.recorder.losses) >= 2
    assert equal(weights(fitted), before) and all(
        torch.equal(a, b) for a, b in zip(moments(fitted), kept)
    )


def test_a_loaded_learner_trains_on_as_the_saved_one_would(databunch, fitted, tmp_path):
    fitted.save("a")
    other = make(hcd.Learner, databunch, tmp_path, rng_seed=1).load("a")
    results = []
    for learner in (fitted, other):
        hcd.set_rng_seed(7)
        databunch.passes.count = 0
        learner.fit(1, 1e-2)
        results.append(weights(learner))
    assert equal(*results)


def test_save_writes_what_fastais_save_writes(databunch, fitted, tmp_path):
    path = fitted.save("ours", return_path=True)
    assert path == tmp_path / "models" / "ours.pth" and fitted.save("ours") is None
    fastai.basic_train.Learner.save(fitted, "plain")
    ours, plain = (
        compat.load_tensors(tmp_path / "models" / f"{name}.pth") for name in ("ours", "plain")
    )
    assert (
        equal(ours["model"], plain["model"])
        and ours["opt"]["param_groups"] == plain["opt"]["param_groups"]
    )
    assert sorted(os.listdir(tmp_path / "models")) == ["ours.pth", "plain.pth"]
    fitted.save("weights", with_opt=False)
    assert equal(compat.load_tensors(tmp_path / "models" / "weights.pth"), weights(fitted))
    fitted.save("stage/1")
    assert (tmp_path / "models" / "stage" / "1.pth").is_file()


def test_save_and_load_take_open_files(databunch, fitted, tmp_path):
    buffer = io.BytesIO()
    fitted.save(buffer)
    buffer.seek(0)
    assert equal(weights(make(hcd.Learner, databunch, tmp_path, 1).load(buffer)), weights(fitted))


def test_an_interrupted_save_leaves_the_older_file(fitted, tmp_path, monkeypatch, refused):
    path = fitted.save("a", return_path=True)
    before = path.read_bytes()
    for error in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(
                torch, "save", lambda *args, error=error, **kwargs: (_ for _ in ()).throw(error)
            )
            fitted.save("a")
    with monkeypatch.context() as patch, refused(OSError, path, "No space left"):
        patch.setattr(
            os,
            "fsync",
            lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        fitted.save("a")
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.pth"]


def test_a_place_that_cannot_be_written(fitted, tmp_path, refused):
    (tmp_path / "file").touch()
    fitted.path = tmp_path / "file"
    with refused(OSError, tmp_path / "file" / "models", "Not a directory"):
        fitted.save("a")


def test_c2_fastais_load_swallows_a_failed_restore_and_ours_raises(databunch, tmp_path, refused):
    learner = make(hcd.Learner, databunch, tmp_path)
    learner.freeze()
    learner.create_opt(1e-3)
    learner.save("frozen")
    plain = make(fastai.basic_train.Learner, databunch, tmp_path)
    plain.create_opt(5e-2)
    plain.load("frozen")  # no word
    assert plain.opt.opt.param_groups[0]["lr"] != learner.opt.opt.param_groups[0]["lr"]
    ours = make(hcd.Learner, databunch, tmp_path, rng_seed=1)
    ours.create_opt(5e-2)
    with refused(
        ValueError, tmp_path / "models" / "frozen.pth", "other trainable layers", "with_opt=False"
    ):
        ours.load("frozen")
    assert equal(weights(ours), weights(learner))  # in place by then
    assert equal(weights(ours.load("frozen", with_opt=False)), weights(learner))
    ours.freeze()
    ours.create_opt(5e-2)
    ours.load("frozen")
    assert ours.opt.opt.param_groups[0]["lr"] == learner.opt.opt.param_groups[0]["lr"]


def test_files_that_do_not_fit_are_refused(databunch, fitted, tmp_path, refused):
    folder = tmp_path / "models"
    fitted.save("weights", with_opt=False)
    other = hcd.Learner(
        databunch,
        nn.Sequential(nn.Sequential(nn.Flatten()), nn.Linear(3 * 90 * 90, 2)),
        path=tmp_path,
    )
    with refused(ValueError, folder / "weights.pth", "another model", "the arch that was saved"):
        other.load("weights")
    with refused(ValueError, folder / "weights.pth", "no optimiser state", "with_opt=False"):
        fitted.load("weights", with_opt=True)
    with refused(FileNotFoundError, folder / "none.pth"):
        fitted.load("none")
    (folder / "folder.pth").mkdir()
    with refused(FileNotFoundError, folder / "folder.pth", "is no file"):
        fitted.load("folder")
    with refused(FileNotFoundError, folder / "weights.pth" / "a.pth", "is no file"):
        fitted.load("weights.pth/a")
    for option in ("purge", "remove_module"):
        with refused(ValueError, option, "leave them False"):
            fitted.load("weights", **{option: True})
    wrong = {
        "list": [1],
        "tensor": torch.ones(2),
        "model": {"model": 3, "opt": {}},
        "empty": {},
        "names": {1: 2},
    }
    for name, state in wrong.items():
        torch.save(state, folder / f"{name}.pth")
        with refused(ValueError, folder / f"{name}.pth"):
            fitted.load(name)
    for opt in ({}, 7, {"state": {}, "param_groups": 3}, {"state": {}, "param_groups": []}):
        torch.save({"model": fitted.model.state_dict(), "opt": opt}, folder / "opt.pth")
        with refused(ValueError, folder / "opt.pth", "with_opt=False"):
            fitted.load("opt")


def test_it_has_fastais_signatures():
    for name in ("save", "load"):
        ours, theirs = (
            inspect.signature(getattr(kind, name)).parameters
            for kind in (saving.Learner, fastai.basic_train.Learner)
        )
        assert [(p.name, p.default) for p in ours.values()] == [
            (p.name, p.default) for p in theirs.values()
        ]


# no code is run


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attempts(witness):
    """Return objects that would write the file `witness`, were they unpickled in full."""
    touch = f"open({str(witness)!r}, 'w').close()"
    nested = Call(eval, touch)
    array = np.empty(1, dtype=object)
    array[0] = Call(exec, touch)
    return {
        "os.system": Call(os.system, f"touch {witness}"),
        "eval": Call(eval, touch),
        "exec": Call(exec, touch),
        "subprocess": Call(subprocess.call, ["touch", str(witness)]),
        "open": Call(open, str(witness), "w"),
        "in the model": {"model": {"a": nested}, "opt": {}},
        "in the optimiser": {"model": {}, "opt": {"state": nested}},
        "in a list": [torch.ones(1), [nested]],
        "as a key": {Call(os.makedirs, str(witness)): 1},
        "in a numpy array": array,
        "beside numpy numbers": {"lr": np.float64(1), "x": Call(exec, touch)},
        "through getattr": Call(getattr, Call(__import__, "os"), "getpid"),
        "torch.load": Call(torch.load, str(witness)),
        "numpy.load": Call(np.load, str(witness), None, True),
        "in an OrderedDict": OrderedDict(a=nested),
        "a dtype with code": Call(np.dtype, Call(eval, touch)),
        "a module": nn.Linear(1, 1),
    }


FORMS = [(name, form) for name in attempts("") for form in ("zip", "legacy", "pickle")]


@pytest.mark.parametrize("name, form", [*FORMS, ("TorchScript", "zip")])
def test_a_file_that_holds_code_runs_nothing(
    databunch, sample, tmp_path, refused, monkeypatch, name, form
):
    """Handed to Learner.load, to the cache of pretrained weights and to a resumed run; model
    folders are in test_export.py."""
    witness, path = tmp_path / "witness", tmp_path / "models" / "a.pth"
    path.parent.mkdir()
    if name == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(attempts(witness)[name]))
    else:
        torch.save(attempts(witness)[name], path, _use_new_zipfile_serialization=form == "zip")
    learner = make(hcd.Learner, databunch, tmp_path)
    before = weights(learner)
    with refused(ValueError, path, "cannot be loaded as plain weights"):
        learner.load("a")
    with open(path, "rb") as file, refused(ValueError, path):
        compat.load_tensors(file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    shutil.copy(path, tmp_path / "start.pth")
    with refused(ValueError, tmp_path / "start.pth"):
        hcd.Checkpoints(tmp_path, hcd.Recipe.sample(), sample, resume=True)
    path.rename(cache / "squeezenet1_1-b8a52dc0.pth")
    with refused(ValueError, cache):
        hcd.get_learner(
            databunch, hcd.Recipe.sample(arch="squeezenet1_1", pretrained=True), path=tmp_path
        )
    assert not witness.exists() and equal(weights(learner), before)


@pytest.mark.parametrize(
    "name",
    ["os.system", "eval", "exec", "subprocess", "in the optimiser", "as a key", "in a numpy array"],
)
def test_these_files_do_run_code_when_unpickled_in_full(tmp_path, name):
    torch.save(attempts(tmp_path / "witness")[name], tmp_path / "a.pth")
    with contextlib.suppress(TypeError):  # of a dict with an unhashable key, after the call
        torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "witness").exists()


def test_only_numpys_numbers_are_let_in_and_only_while_loading(tmp_path):
    before = torch.serialization.get_safe_globals()
    for value in (np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True)):
        torch.save({"lr": value, "t": torch.ones(2)}, tmp_path / "a.pth")
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "a.pth", weights_only=True)
        loaded = compat.load_tensors(tmp_path / "a.pth")["lr"]
        assert loaded == value and type(loaded) is type(value)
    (tmp_path / "a.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError):
        compat.load_tensors(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_or_read_never_anything_else(fitted, tmp_path, refused, zipped):
    buffer, path = io.BytesIO(), tmp_path / "a.pth"
    torch.save(
        {"model": fitted.model.state_dict(), "opt": fitted.opt.state_dict()},
        buffer,
        _use_new_zipfile_serialization=zipped,
    )
    content, rng, outcomes = buffer.getvalue(), random.Random(0), {True: 0, False: 0}
    for number in range(250):
        damaged = bytearray(content)
        if number % 3:
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            compat.load_tensors(path)
        except ValueError as error:
            assert (
                "it is damaged or holds code" in str(error)
                and str(path) in str(error)
                and "\n" not in str(error)
            )
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert outcomes[False] > 100
    for cut in (b"", b"\x80", content[:100]):
        path.write_bytes(cut)
        with refused(ValueError, path, "damaged"):
            compat.load_tensors(path)


def test_damaged_lengths_ask_for_no_memory_that_the_file_has_not(tmp_path, refused):
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x02X\xff\xff\xff\x7f")  # a text of 2 GiB
    tracemalloc.start()
    try:
        with open(path, "rb") as file:
            for source in (path, file):
                with refused(ValueError, path, "damaged"):
                    compat.load_tensors(source)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_another_pickle_protocol_loads_without_a_warning(fitted, tmp_path, refused):
    path = tmp_path / "a.pth"
    torch.save(weights(fitted), path, pickle_protocol=3)
    with pytest.warns(UserWarning, match="pickle protocol 3"):
        torch.load(path, weights_only=True)
    assert equal(compat.load_tensors(path), weights(fitted))
    torch.save(weights(fitted), path, pickle_protocol=4)  # which torch's safe unpickler cannot read
    with refused(ValueError, path, "Unsupported operand 149"):
        compat.load_tensors(path)


def test_only_what_damaged_bytes_raise_is_called_damage(fitted, monkeypatch, refused):
    path = fitted.save("a", return_path=True)
    for owner, name, error in (
        (Path, "read_bytes", OSError(5, "Input/output error")),
        (Path, "read_bytes", PermissionError(13, "no")),
        (Path, "read_bytes", MemoryError()),
        (torch, "load", MemoryError()),
    ):
        with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
            patch.setattr(
                owner, name, lambda *args, error=error, **kwargs: (_ for _ in ()).throw(error)
            )
            compat.load_tensors(path)
        assert caught.value is error
    monkeypatch.setattr(
        torch,
        "load",
        lambda *args, **kwargs: (_ for _ in ()).throw(OSError(22, "Invalid argument")),
    )
    with refused(ValueError, path, "Invalid argument", "damaged"):
        compat.load_tensors(path)


@pytest.mark.parametrize("state", ["built", "frozen", "unfrozen", "fitted"])
def test_a_learner_loads_what_it_has_saved_whatever_it_has_done(databunch, tmp_path, state):
    learner = make(hcd.Learner, databunch, tmp_path)
    learner.split(lambda model: [model[-1]])
    {
        "built": lambda: None,
        "frozen": learner.freeze,
        "unfrozen": learner.unfreeze,  # fastai leaves a slice for the learning rate
        "fitted": lambda: learner.fit(1, slice(1e-4, 1e-3)),
    }[state]()
    saved = weights(learner)
    learner.save("kept")
    learner.fit(1, 1e-2)
    assert not equal(weights(learner), saved)
    learner.load("kept")
    assert equal(weights(learner), saved)
    learner.lr_find(num_it=2)  # ends by loading a temporary save
    assert equal(weights(learner), saved)


@pytest.mark.parametrize("clear", [True, False])
def test_purge_keeps_the_model_and_what_it_needs_to_train_on(fitted, clear):
    before, callbacks, recorder = weights(fitted), fitted.callbacks, fitted.recorder
    optimiser = fitted.opt
    assert fitted.purge(clear_opt=clear) is fitted
    assert equal(weights(fitted), before) and fitted.callbacks is callbacks
    assert all(values.grad is None for values in fitted.model.parameters())
    assert fitted.recorder is recorder and getattr(fitted, "opt", None) is (
        None if clear else optimiser
    )
    fitted.fit(1, 1e-3)
    assert not equal(weights(fitted), before)


# an export, for those who trust it


def test_fastais_load_learner_fails_and_ours_gives_the_same_probabilities(
    databunch, fitted, tmp_path
):
    fitted.export()
    with pytest.raises(pickle.UnpicklingError):
        fastai.basic_train.load_learner(tmp_path)
    again = saving.load_trusted_export(tmp_path / "export.pkl")
    image = databunch.valid_ds[0][0]
    assert torch.allclose(again.predict(image)[2], fitted.predict(image)[2], atol=1e-7)
    assert again.data.classes == databunch.classes and type(again) is hcd.Learner


def test_an_export_keeps_recipe_source_and_predictions(sample, split, small_recipe, tmp_path):
    chosen = replace(small_recipe, crop_size=64, rng_seed=None).plain()
    data = hcd.make_databunch(sample, chosen, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, chosen, tmp_path / "not there yet")
    learner.fit(1, 1e-3)
    before = learner.get_preds(DatasetType.Test)[0]
    with open(tmp_path / "opened.pkl", "wb") as file:
        learner.export(file)
    learner.export()
    for path in (tmp_path / "opened.pkl", tmp_path / "not there yet" / "export.pkl"):
        loaded = hcd.load_export(path, trust=True)
        assert loaded.data.train_ds.x.recipe == loaded.data.valid_ds.x.recipe == chosen
        assert loaded.data.valid_ds.x.source.fingerprint == sample.fingerprint
        assert len(loaded.layer_groups) == len(learner.layer_groups)
        for paths in (sample.test_paths, [f"test/{name}.tif" for name in sample.test_ids]):
            loaded.data.add_test([str(path) for path in paths])
            assert torch.equal(loaded.get_preds(DatasetType.Test)[0], before)
        bundle = hcd.load_bundle(hcd.save_bundle(loaded, tmp_path / "model"))
        assert bundle.recipe == replace(chosen, pretrained=False)
        one = hcd.predict_image(bundle, sample.test_paths[0]).probability
        assert abs(one - float(before[0, 1])) < 1e-6
        loaded.freeze()  # needs the layer groups


def test_an_export_without_a_recipe_asks_for_it(databunch, small_recipe, tmp_path, refused):
    learner = hcd.get_learner(databunch, small_recipe, tmp_path)
    with open(tmp_path / "old.pkl", "wb") as file:  # as hcd 0.1.0 did
        fastai.basic_train.Learner.export(learner, file)
    with refused(ValueError, tmp_path / "old.pkl", "hcd 0.1.0", "recipe="):
        hcd.load_export(tmp_path / "old.pkl", trust=True)
    loaded = hcd.load_export(tmp_path / "old.pkl", trust=True, recipe=small_recipe)
    assert loaded.data.train_ds.x.recipe == small_recipe
    learner.export("new.pkl")
    with refused(ValueError, tmp_path / "new.pkl", "another recipe"):
        hcd.load_export(tmp_path / "new.pkl", trust=True, recipe=replace(small_recipe, flips=False))


def test_an_export_that_fails_leaves_the_older_file(databunch, small_recipe, tmp_path, refused):
    learner = hcd.get_learner(databunch, small_recipe, tmp_path)
    (tmp_path / "export.pkl").write_text("older")
    learner.metrics = [lambda predictions, labels: torch.tensor(0.0)]
    with refused(ValueError, "cannot be exported", "save_bundle"):
        learner.export()
    assert [path.name for path in tmp_path.iterdir()] == ["export.pkl"]
    assert (tmp_path / "export.pkl").read_text() == "older"


# one step off the path


def test_a_model_in_dataparallel_loads_what_it_has_saved(databunch, tmp_path):
    learner = make(hcd.Learner, databunch, tmp_path)
    learner.model = nn.DataParallel(learner.model)
    before = weights(learner)
    learner.save("wrapped")
    with torch.no_grad():
        learner.model.module[1][0].weight += 1
    learner.load("wrapped", with_opt=False)
    assert equal(weights(learner), before)
    plain = make(hcd.Learner, databunch, tmp_path, rng_seed=1)
    plain.load("wrapped", with_opt=False)
    assert equal(weights(plain), weights(make(hcd.Learner, databunch, tmp_path)))
    learner.lr_find(num_it=3, end_lr=100)
    assert equal(weights(learner), before)


def test_a_whole_patch_is_predicted_by_its_centre_crop(sample, split, small_recipe, tmp_path):
    recipe = small_recipe.plain()
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe, tmp_path)
    bundle = hcd.load_bundle(hcd.save_bundle(learner, tmp_path / "model"))
    for path in sample.test_paths[:3]:
        item = fastai.vision.open_image(path)
        probability = float(learner.predict(item)[2][1])
        assert probability == pytest.approx(hcd.predict_image(bundle, path).probability, abs=1e-6)
        assert tuple(item.shape) == (3, 96, 96)
    assert learner.predict(data.valid_ds.x[0])[2].sum() == pytest.approx(1)


def test_an_image_of_another_size_is_not_shrunk_to_a_crop(learner, refused):
    with refused(ValueError, "50 x 40 px", "96 px", "90 px"):
        learner.predict(fastai.vision.Image(torch.zeros(3, 40, 50)))


def test_a_set_without_labels_has_no_accuracy(learner, refused):
    with refused(ValueError, "no labels", "get_preds"):
        learner.validate(learner.data.test_dl)
    assert len(learner.validate()) == 2
