"""A folder for WSInfer keeps to its published rules, and gives others the model's answers."""

import copy
import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hcd
from hcd.cli import main
from hcd.disk.locks import take_lock
from hcd.export import graph, wsinfer


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory):
    return hcd.save_bundle(learner, tmp_path_factory.mktemp("wsinfer") / "model")


@pytest.fixture(scope="module")
def bundle(folder):
    return hcd.load_bundle(folder)


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    return hcd.export_wsinfer(bundle, tmp_path_factory.mktemp("exported") / "folder")


def test_the_config_keeps_to_the_published_rules(exported, bundle):
    """The fields of SBU-BMI/wsinfer-zoo's model-config.schema.json."""
    config = json.loads((exported / "config.json").read_text("utf-8"))
    assert config["spec_version"] == "1.0"
    assert isinstance(config["architecture"], str)
    assert type(config["num_classes"]) is int and config["num_classes"] >= 1
    assert type(config["patch_size_pixels"]) is int and config["patch_size_pixels"] >= 1
    assert isinstance(config["spacing_um_px"], float) and config["spacing_um_px"] >= 0
    names = config["class_names"]
    assert len(names) == len(set(names)) == config["num_classes"] and isinstance(names[0], str)
    for step in config["transform"]:
        assert step["name"] in ("Resize", "ToTensor", "Normalize")
        assert set(step) <= {"name", "arguments"} and isinstance(step.get("arguments", {}), dict)
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (96, 0.972)
    assert config["class_names"] == ["negative", "tumour"]
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["config.json", "torchscript_model.pt"]


def test_another_program_gets_the_same_answers_for_30_patches(exported, bundle, sample):
    """As WSInfer does it: Pillow, torchvision's transforms by the config, a softmax."""
    from torchvision import transforms

    config = json.loads((exported / "config.json").read_text("utf-8"))
    steps = [getattr(transforms, s["name"])(**s.get("arguments", {})) for s in config["transform"]]
    prepare = transforms.Compose(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(exported / "torchscript_model.pt")
    paths = [*sample.test_paths, *sample.train_paths][:30]
    assert len(paths) == 30
    tiles = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        found = torch.softmax(model(tiles), 1)[:, config["class_names"].index("tumour")]
    expected = [one.probability for one in hcd.predict_images(bundle, paths)]
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-3


def test_an_older_one_is_replaced_and_anothers_is_not(bundle, exported, tmp_path, refused):
    for name in ("torchscript_model.pt", "config.json"):
        place = tmp_path / name
        place.mkdir()
        (place / name).write_text('{"name": "somebody\'s"}')
        with refused(FileExistsError, str(place), "name an empty folder"):
            hcd.export_wsinfer(bundle, place)
        assert (place / name).read_text() == '{"name": "somebody\'s"}'
    again = hcd.export_wsinfer(bundle, hcd.export_wsinfer(bundle, tmp_path / "new"))
    assert (again / "config.json").read_bytes() == (exported / "config.json").read_bytes()


def test_what_answers_otherwise_or_finds_no_space_is_not_written(
    bundle, learner, tmp_path, refused, monkeypatch
):
    with refused(TypeError, "Learner"):
        hcd.export_wsinfer(learner, tmp_path / "a")
    right = graph.CentreCrop.forward
    with monkeypatch.context() as patch:
        patch.setattr(graph.CentreCrop, "forward", lambda self, x: 1.01 * right(self, x))
        with refused(hcd.InputError, "answers otherwise than the model"):
            hcd.export_wsinfer(bundle, tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wsinfer, "_trace", full)
    with refused(OSError, "cannot be written (No space left on device)"):
        hcd.export_wsinfer(bundle, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.json").symlink_to(tmp_path / "elsewhere")
    with refused(OSError, "c/config.json"):
        hcd.export_wsinfer(bundle, tmp_path / "c")


@pytest.fixture(scope="module")
def another(bundle):
    """A bundle with a recipe and weights of its own."""
    model = copy.deepcopy(bundle.model)
    with torch.no_grad():
        model[1][-1].bias += 1000
    recipe = dataclasses.replace(bundle.recipe, std=(0.5, 0.5, 0.5))
    return dataclasses.replace(bundle, model=model, recipe=recipe)


def killed_at_its_rename(number, bundle, place):
    """Export in another process, which kills itself as it is about to rename for the time `number`
    from 0; return whether it came to that."""

    def replace(*args, count=iter(range(99)), right=os.replace):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        right(*args)

    def export():
        os.replace = replace
        hcd.export_wsinfer(bundle, place)

    process = multiprocessing.get_context("fork").Process(target=export)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


@pytest.mark.parametrize("older", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_kill_between_any_two_renames_leaves_what_the_next_call_finishes(
    bundle, another, tmp_path, older
):
    """Nor is there ever a model beside the config of another one, whose answers would be wrong."""
    for number in range(9):
        place = tmp_path / str(number)
        place.mkdir()
        if older:
            assert held(hcd.export_wsinfer(another, place)) == (True, True)
        killed = killed_at_its_rename(number, bundle, place)
        if (place / "torchscript_model.pt").exists() and (place / "config.json").exists():
            assert held(place) in [(True, True), (False, False)]
        assert held(hcd.export_wsinfer(bundle, place)) == (False, False)
        assert sorted(os.listdir(place)) == ["config.json", "torchscript_model.pt"]
        if not killed:
            break
    assert not killed and number >= 2


def held(folder):
    """Return which of `bundle` and `another` config and model of a folder are of."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(folder / "torchscript_model.pt")
    with torch.inference_mode():
        logit = model(torch.zeros(1, 3, 96, 96))[0, 1].item()
    return config["transform"][2]["arguments"]["std"][0] == 0.5, logit > 500


@pytest.mark.parametrize("older", [False, True])
def test_a_rename_that_fails_changes_nothing(bundle, another, tmp_path, refused, older):
    place, right = tmp_path / "folder", os.replace
    if older:
        hcd.export_wsinfer(another, place)
    for number in range(4 if older else 2):

        def replace(*args, count=iter(range(99)), number=number):
            if next(count) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            right(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with refused(OSError, f"{place} cannot be written (No space left", "free space"):
                hcd.export_wsinfer(bundle, place)
        if older:
            assert held(place) == (True, True)
        assert len(os.listdir(place)) == (2 if older else 0)
    assert held(hcd.export_wsinfer(bundle, place)) == (False, False)


def test_two_exports_into_one_folder_do_not_mix(bundle, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(wsinfer, "PATIENCE", 0.1)
    lock = take_lock(tmp_path, "")
    with refused(OSError, str(tmp_path), "another export", "name another folder"):
        hcd.export_wsinfer(bundle, tmp_path)
    lock.release()
    hcd.export_wsinfer(bundle, tmp_path)


def test_it_names_no_folder_of_this_machine(exported):
    content = (exported / "torchscript_model.pt").read_bytes()
    for text in (str(Path(hcd.__file__).parent), str(Path(torch.__file__).parent), "debug_pkl"):
        assert text.encode() not in content


def test_the_command(folder, tmp_path, capfd):
    assert main(["export", str(folder), "--wsinfer", str(tmp_path / "w")]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'w'}\n"
    assert (tmp_path / "w/torchscript_model.pt").is_file()
