"""Each piece of compat is needed, works, and touches nothing outside hcd; no file that holds code
is ever run."""

import contextlib
import inspect
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
import warnings
from collections import OrderedDict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import fastai.basic_train
import fastai.vision
import numpy as np
import pytest
import torch
import torchvision
from fastai.basic_data import DatasetType, DeviceDataLoader
from torch import nn

import hcd
from hcd.engine import compat


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
            for kind in (compat.Learner, fastai.basic_train.Learner)
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
    again = compat.load_trusted_export(tmp_path / "export.pkl")
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


# DataLoader


class Numbers(torch.utils.data.Dataset):
    note = "of the data set"

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index


@pytest.mark.parametrize(
    "options",
    [
        dict(generator=torch.Generator()),
        dict(num_workers=1, persistent_workers=True),
        dict(num_workers=1, prefetch_factor=3),
    ],
    ids=lambda options: list(options)[-1],
)
def test_torchs_loader_takes_its_options_again_and_so_does_ours(options):
    for kind in (torch.utils.data.DataLoader, compat.DataLoader):
        loader = kind(Numbers(), batch_size=5, **options)
        assert all(getattr(loader, name) == value for name, value in options.items())
        assert len(list(loader)) == 4


def test_fastai_copies_torchs_own_loader_with_all_its_options():
    torchs = torch.utils.data.DataLoader
    batches = [[3, 1], [2]]
    for options in (
        dict(batch_size=6, shuffle=True, drop_last=True),
        dict(batch_size=3, sampler=torch.utils.data.SubsetRandomSampler([1, 2, 3, 4])),
        dict(batch_size=4, num_workers=1, persistent_workers=True, prefetch_factor=3),
        dict(shuffle=True, generator=torch.Generator(), worker_init_fn=print, timeout=0),
        dict(batch_sampler=batches),
    ):
        bound = DeviceDataLoader(torchs(Numbers(), **options), torch.device("cpu"))
        found = bound.dl.init_kwargs
        for name, value in options.items():
            assert found[name] == value, name
        copy = bound.new()
        assert type(copy.dl) is torchs and copy.dl.init_kwargs == found and copy.note
        assert len(copy) == len(bound)
    plain = DeviceDataLoader(torchs(Numbers(), 4, True), torch.device("cpu"))
    plain.batch_size = 10
    assert [len(y) for _, y in plain] == [10, 10] and plain.dl.init_kwargs["shuffle"]
    assert not hasattr(torchs(Numbers()), "no_such_name")
    assert torchs(Numbers()).note == "of the data set"  # as fastai has it


def test_a_cpu_is_not_warned_about_pinned_memory(sample):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy, of fastai's transforms
        warnings.simplefilter("error", UserWarning)
        data = fastai.vision.ImageDataBunch.from_df(
            sample.root,
            sample.labels,
            folder="train",
            suffix=".tif",
            size=32,
            bs=8,
            num_workers=0,
            fn_col="id",
            label_col="label",
            ds_tfms=fastai.vision.get_transforms(max_warp=0),
        )
        data.add_test(list(sample.test_paths))
        assert [len(list(loader)) for loader in (data.train_dl, data.valid_dl, data.test_dl)]
        assert data.one_batch()[0].shape == (8, 3, 32, 32)


def test_a_generator_of_its_own_decides_the_order():
    def order(rng_seed):
        loader = compat.DataLoader(
            Numbers(), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(rng_seed)
        )
        return [n for _, y in loader for n in y.tolist()]

    assert order(1) == order(1) != order(2) and sorted(order(1)) == list(range(20))


def test_persistent_workers_stay_between_passes():
    loader = compat.DataLoader(Numbers(), batch_size=7, num_workers=1, persistent_workers=True)
    passes = []
    for _ in range(2):
        seen = [y.tolist() for _, y in loader]
        passes.append((seen, loader._iterator._workers[0].pid))
    assert passes[0] == passes[1] and sum(passes[0][0], []) == list(range(20))
    loader._iterator._shutdown_workers()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("amid", [False, True], ids=["between passes", "amid a pass"])
def test_after_workers_have_died_a_pass_gives_everything(ctrl_c, monkeypatch, stop, amid):
    # torch raises from a signal handler, which could hit any line of this test; in its passes it
    # finds out all the same
    monkeypatch.setattr(
        torch.utils.data._utils.signal_handling, "_error_if_any_worker_fails", lambda: None
    )
    loader = compat.DataLoader(
        Numbers(), batch_size=1, num_workers=2, persistent_workers=True, timeout=1
    )
    assert len(list(loader)) == 20
    workers = loader._iterator._workers
    running = iter(loader) if amid else iter(())
    next(running, None)
    # Ctrl-C in a notebook goes to all
    for worker in workers if stop == signal.SIGINT else workers[:1]:
        os.kill(worker.pid, stop)
        worker.join()
    with contextlib.suppress(Exception):  # of many kinds, by what was under way
        list(running)
    for _ in range(2):
        assert [n for _, y in loader for n in y.tolist()] == list(range(20))
    # nor is one that was left alive forgotten
    assert not any(worker.is_alive() for worker in workers)
    loader._iterator._shutdown_workers()


def test_fastai_copies_and_uses_it():
    ours = DeviceDataLoader(
        compat.DataLoader(Numbers(), batch_size=4, drop_last=True), torch.device("cpu")
    )
    assert len(list(ours)) == 5 and ours.note == "of the data set"
    copy = ours.new(batch_size=6, shuffle=False)
    assert type(copy.dl) is compat.DataLoader and [len(y) for _, y in copy] == [6, 6, 6]
    ours.batch_size = 10
    assert [len(y) for _, y in ours] == [10, 10]


# architectures and their weights


def test_find_arch(refused):
    assert compat.find_arch("densenet169") is torchvision.models.densenet169
    assert compat.find_arch(small_model) is small_model
    for name, meant in (
        ("densenet-169", "densenet169"),
        ("resnet19", "resnet1"),
        ("ResNet18", "resnet18"),
        ("", "densenet169"),
        ("list_models", ""),
        ("resnet", "resnet"),
        ("fasterrcnn_resnet50_fpn", ""),
        ("__doc__", ""),
    ):
        with refused(ValueError, f"arch={name!r}", "did you mean", meant):
            compat.find_arch(name)


def test_an_unknown_arch_is_found_before_training(databunch, refused):
    recipe = hcd.Recipe.sample(arch="densenet170")
    for call in (lambda: hcd.check_machine(recipe), lambda: hcd.get_learner(databunch, recipe)):
        with refused(ValueError, "arch='densenet170'", "densenet1"):
            call()


def test_torchvision_warns_of_a_pretrained_flag_and_ours_does_not(shared, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights"))
    squeezenet = torchvision.models.squeezenet1_1
    with pytest.warns(UserWarning, match="pretrained|weight enum"):
        squeezenet(pretrained=True)
    compat.require_weights(squeezenet)
    model = compat.with_pretrained_flag(squeezenet)(True)
    stored = compat.load_tensors(next((shared / "weights").glob("**/squeezenet1_1-*.pth")))
    assert equal(OrderedDict(model.state_dict()), OrderedDict(stored))


def test_without_pretrained_weights_none_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert isinstance(
        compat.with_pretrained_flag(torchvision.models.squeezenet1_1)(False),
        torchvision.models.SqueezeNet,
    )
    assert os.listdir(tmp_path) == []


def test_an_arch_of_ones_own_is_called_as_fastai_calls_it(monkeypatch):
    def own(pretrained):
        return pretrained

    def squeezenet1_1(pretrained):
        return pretrained

    for arch in (own, squeezenet1_1, SimpleNamespace()):
        assert compat.with_pretrained_flag(arch) is arch and compat.require_weights(arch) is None


def test_an_arch_that_torchvision_has_no_such_weights_for(refused):
    huge = torchvision.models.vit_h_14  # has others than IMAGENET1K_V1
    with refused(ValueError, "vit_h_14", "IMAGENET1K_V1", "pretrained=False"):
        compat.require_weights(huge)
    assert compat.with_pretrained_flag(huge) is not huge


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Empty weights cache and no network; the list says what was asked for."""
    asked = []

    def fail(url, *args, **kwargs):
        asked.append(url)
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return asked


def test_no_weights_and_no_network(databunch, offline, tmp_path, refused):
    file, recipe = (
        tmp_path / "cache" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth",
        hcd.Recipe(arch="squeezenet1_1"),
    )
    for call in (
        lambda: compat.require_weights(torchvision.models.squeezenet1_1),
        lambda: hcd.check_machine(recipe),
        lambda: hcd.get_learner(databunch, recipe),
    ):
        with refused(
            FileNotFoundError, "squeezenet1_1", file, "name resolution", "pretrained=False"
        ):
            call()
    assert len(offline) == 3 and all(url.endswith("/squeezenet1_1-b8a52dc0.pth") for url in offline)
    hcd.check_machine(hcd.Recipe(arch="squeezenet1_1", pretrained=False))
    assert len(offline) == 3


def test_a_weights_cache_that_cannot_be_written(offline, tmp_path, refused):
    (tmp_path / "cache").touch()
    with refused(FileNotFoundError, tmp_path / "cache", "Not a directory"):
        compat.require_weights(torchvision.models.squeezenet1_1)
    assert not offline


def test_weights_are_downloaded_once_and_checked_by_their_hash(monkeypatch, tmp_path, refused):
    calls = []

    def download(url, file, hash_prefix):
        calls.append((url.rsplit("/", 1)[1], hash_prefix))
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        compat.require_weights(torchvision.models.squeezenet1_1)
    assert calls == [("squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]
    damaged = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    with refused(ValueError, damaged, "damaged"):
        compat.require_weights(torchvision.models.squeezenet1_1)


# what importing hcd does to the rest of the process

STATE = """
def state():
    import json, locale, logging, multiprocessing, os, random, signal, socket, sys, warnings
    import cv2, matplotlib, numpy, pandas, PIL.Image, PIL.ImageFile, torch, torch.utils.data
    return json.dumps({
        "warnings": sorted(map(repr, warnings.filters)), "showwarning": warnings.showwarning.__module__,
        "torch.load": torch.load.__module__, "safe globals": sorted(str(kind).split(" at 0x")[0]
                                                                    for kind in torch.serialization.get_safe_globals()),
        "DataLoader": [torch.utils.data.DataLoader.__init__.__module__, torch.utils.data.DataLoader.__init__.__qualname__],
        "random": repr(random.getstate()), "numpy": repr(numpy.random.get_state()), "torch": torch.get_rng_state().tolist(),
        "rcParams": {name: repr(value) for name, value in matplotlib.rcParams.items()},
        "threads": [cv2.getNumThreads(), torch.get_num_threads(), torch.get_num_interop_threads()],
        "numpy print": repr(numpy.get_printoptions()), "numpy errors": numpy.geterr(),
        "torch print": repr(vars(torch._tensor_str.PRINT_OPTS)),
        "pandas": [pandas.get_option(name) for name in ("display.max_columns", "display.max_colwidth", "display.precision")],
        "torch defaults": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
                           torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark,
                           torch.multiprocessing.get_sharing_strategy()],
        "PIL": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES], "cv2": cv2.useOptimized(),
        "environ": dict(os.environ), "logging": [logging.root.level, repr(logging.root.handlers), logging.root.manager.disable],
        "process": [[path for path in sys.path if "/tmp" not in path],  # torch 2.6 adds a folder of its own
                    sys.excepthook.__qualname__, sys.displayhook.__qualname__, sys.getrecursionlimit(), os.getcwd(), os.umask(0o22),
                    repr(signal.getsignal(signal.SIGINT)), repr(signal.getsignal(signal.SIGTERM)), socket.getdefaulttimeout(),
                    locale.setlocale(locale.LC_ALL), multiprocessing.get_start_method(allow_none=True)],
    })

def seed():
    import random, numpy, torch
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
"""

BESIDE = (
    STATE
    + """
import sys, types, warnings
quiet = ("ignore", None, Warning, None, 0)
warnings.filters.insert(0, quiet)  # not what is under test
import fastai.metrics, fastai.train, fastai.vision, fastai.vision.learner
warnings.filters.remove(quiet)
import cv2, matplotlib.pyplot, pandas, safetensors.torch, sklearn.metrics, sklearn.model_selection, torchvision, tqdm
main = ("__main__", "__mp_main__")
watched = [name for name, module in sys.modules.items() if type(module) is types.ModuleType and name not in main]

def contents():
    found = {}
    for module in watched:
        for name, value in list(vars(sys.modules[module]).items()):
            found[module, name] = value
            if issubclass(type(value), type) and vars(value).get("__module__") == module:
                found.update({(module, name, inner): part for inner, part in list(vars(value).items())})
    return found

seed()
before, state_before = contents(), state()
import hcd, hcd.walkthrough  # which loads all of it but the command
after, state_after = contents(), state()
new = [key for key in after.keys() - before.keys() if type(after[key]) is not types.ModuleType and key[-1] != "__warningregistry__"]
other = [key for key in before if key not in after or before[key] is not after[key]]
print(len(before), sorted(map(str, new)), sorted(map(str, other)), sep="\\n")
print(state_before, state_after, sep="\\n")
"""
)

ALONE = (
    STATE
    + """
import hcd, hcd.walkthrough  # which loads all of it but the command
seed()
print(state())
"""
)


def run_python(code):
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def beside():
    count, new, other, before, after = run_python(BESIDE)[0][-5:]
    return SimpleNamespace(
        count=int(count), new=new, other=other, before=json.loads(before), after=json.loads(after)
    )


def test_importing_hcd_replaces_nothing_but_what_fastai_has_put_into_torchs_loader(beside):
    assert beside.count > 100_000 and beside.new == "[]"
    assert beside.before["DataLoader"] == ["fastai.basic_data", "intercept_args"]
    changed = [eval(entry) for entry in json.loads(beside.other)]
    torchs = ("torch.utils.data.dataloader", "DataLoader")
    assert changed == [(*torchs, "__getattr__"), (*torchs, "__init__")]


OURS = ("pkg_resources is deprecated", "invalid escape sequence")  # see hcd/__init__.py


TORCHS = ["torch.utils.data.dataloader", "DataLoader.__init__"]  # which fastai had replaced


def without_ours(settings):
    """Return settings without the three filters that keep fastai's import quiet."""
    filters = [text for text in settings["warnings"] if not any(our in text for our in OURS)]
    return {**settings, "warnings": filters}


def test_importing_hcd_changes_no_setting_and_draws_nothing(beside):
    assert len(beside.after["warnings"]) == len(beside.before["warnings"]) + 3
    after = without_ours(beside.after)
    assert after.pop("DataLoader") == TORCHS
    for name in after:
        assert after[name] == beside.before[name], name


def test_hcd_alone_leaves_the_settings_that_fastai_and_the_other_libraries_leave(beside):
    (line,), errors = run_python(ALONE)
    assert not errors  # no warning shows
    alone = without_ours(json.loads(line))
    assert alone.pop("DataLoader") == TORCHS
    for name in alone:
        assert alone[name] == beside.before[name], name


TERMINAL = """
import hcd
recipe = hcd.Recipe.sample(arch="squeezenet1_1", batch_size=8)
hcd.make_sample("data", train=24, test=4)
dataset = hcd.open_dataset("data")
train_idx, valid_idx = hcd.stratified_split(dataset.labels["label"], recipe.valid_fraction, recipe.rng_seed)
data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0)
learner = hcd.get_learner(data, recipe)
learner.fit_one_cycle(1, recipe.head_max_lr, wd=recipe.weight_decay)
learner.lr_find(num_it=3)
learner.save("stage1")
learner.load("stage1")
score = hcd.score_predictions(*learner.get_preds())
hcd.write_submission("submission.csv", dataset, learner, hcd.predict_tta(learner, 2))
hcd.save_bundle(learner, "model", {"validation AUC": score.auc})
"""


@pytest.mark.long
def test_in_a_terminal_fastai_prints_its_table_and_nothing_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hcd.__file__).parents[1]))
    printed, errors = run_python(TERMINAL)
    table = printed.index("epoch     train_loss  valid_loss  accuracy  time    ")
    rows = [line for line in printed[table:] if re.match(r"\d", line)]
    assert re.fullmatch(r"0 +\d+\.\d{6} +\d+\.\d{6} +[01]\.\d{6} +\d\d:\d\d +", rows[0]), rows
    assert "Warning" not in errors, errors
    assert all(
        os.path.isfile(name) for name in ("models/stage1.pth", "submission.csv", "model/card.json")
    )


@pytest.mark.long
@pytest.mark.skipif(
    int(version("setuptools").split(".")[0]) < 67, reason="setuptools began to warn with 67"
)
def test_fastai_alone_warns_on_import():
    assert "pkg_resources is deprecated" in run_python("import fastai.vision")[1]
