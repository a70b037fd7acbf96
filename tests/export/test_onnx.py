"""An ONNX file answers as the model does, without torch, and is refused where it is not ours."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hcd
from hcd.cli import main
from hcd.export import graph, to_onnx
from hcd.export.onnx import FORMAT

onnx = pytest.importorskip("onnx", reason="needs pip install 'hcd[onnx]'")
pytest.importorskip("onnxruntime", reason="needs pip install 'hcd[onnx]'")


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory):
    place = tmp_path_factory.mktemp("onnx") / "model"
    return hcd.save_bundle(learner, place, {"valid_auc": 0.75}, temperature=2.5)


@pytest.fixture(scope="module")
def bundle(folder):
    return hcd.load_bundle(folder)


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    """An ONNX file to read only."""
    return hcd.export_onnx(bundle, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture
def changed(exported, tmp_path):
    """Function that writes a copy after `change` was done to its protobuf, and returns its path."""

    def write(change):
        model = onnx.load(exported)
        change(model)
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return write


def test_it_answers_as_the_model_does(bundle, exported, sample):
    expected = [hcd.predict_image(bundle, path) for path in sample.test_paths]
    for threads in (None, 1):
        model = hcd.load_onnx(exported, threads)
        for batch_size in (1, 5, 64):
            found = list(hcd.predict_images(model, sample.test_paths, batch_size))
            for one, other in zip(found, expected, strict=True):
                assert (one.path, one.label) == (other.path, other.label)
                assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_it_answers_noise_and_extremes_as_the_model_does(bundle, exported):
    rng = np.random.default_rng(3)
    patches = rng.integers(0, 256, (7, 96, 96, 3), np.uint8)
    patches[0], patches[1] = 0, 255
    found = hcd.load_onnx(exported).probabilities(patches)
    expected = [one.probability for one in hcd.predict_images(bundle, patches)]
    assert found.dtype == np.float64 and found == pytest.approx(expected, abs=1e-5)


def test_the_temperature_may_lie_within(bundle, sample, tmp_path, refused):
    model = hcd.load_onnx(hcd.export_onnx(bundle, tmp_path / "a.onnx", calibrated=True))
    assert model.temperature == 2.5
    for one in hcd.predict_images(model, sample.test_paths):
        other = hcd.predict_image(bundle, one.path, calibrated=True)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
    with refused(hcd.InputError, "no temperature"):
        card = {**bundle.card, "temperature": None}
        hcd.export_onnx(replace(bundle, card=card), tmp_path / "b.onnx", calibrated=True)


def test_the_file_says_what_it_is(bundle, exported):
    model = hcd.load_onnx(exported)
    assert (model.original_size, model.temperature) == (96, None)
    assert json.loads(model.metadata["classes"]) == ["negative", "tumour"]
    assert float(model.metadata["spacing_um_px"]) == 0.972
    assert model.metadata["weights_sha256"] == bundle.card["weights_sha256"]
    card = json.dumps(bundle.card, sort_keys=True).encode()
    assert model.metadata["card_sha256"] == hashlib.sha256(card).hexdigest()
    assert str(exported) in repr(model) and "session" not in repr(model)


def test_it_names_no_folder_of_this_machine(exported):
    content = exported.read_bytes()
    for text in (str(Path(hcd.__file__).parent), str(Path(torch.__file__).parent), ".py"):
        assert text.encode() not in content


def test_other_sizes_and_networks(tmp_path):
    torch.manual_seed(0)
    recipe = hcd.Recipe.sample(arch="resnet18", original_size=64, crop_size=60)
    model = hcd.learner.build_model(recipe)[0].eval()
    card = {"spacing_um_px": 0.5, "weights_sha256": "0" * 64, "limits": "none"}
    bundle = hcd.export.bundle.Bundle(model, recipe, card)
    found = hcd.load_onnx(hcd.export_onnx(bundle, tmp_path / "model.onnx"))
    patches = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    expected = [one.probability for one in hcd.predict_images(bundle, patches)]
    assert found.probabilities(patches) == pytest.approx(expected, abs=1e-5)


def test_what_answers_otherwise_gets_no_name(bundle, tmp_path, refused, monkeypatch):
    wrong = graph.TumourProbability.forward

    def forward(self, patches):
        return wrong(self, patches) + 1e-3

    monkeypatch.setattr(graph.TumourProbability, "forward", forward)
    with refused(hcd.InputError, "answers otherwise than the model", "0.001 apart"):
        hcd.export_onnx(bundle, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pt", "model"])
def test_a_name_that_predict_would_not_know(bundle, tmp_path, refused, name):
    with refused(hcd.InputError, "does not end with .onnx"):
        hcd.export_onnx(bundle, tmp_path / name)


def test_places_that_are_none(bundle, learner, exported, tmp_path, refused, monkeypatch):
    with refused(TypeError, "Learner"):
        hcd.export_onnx(learner, tmp_path / "a.onnx")
    with refused(FileNotFoundError, "no/a.onnx"):
        hcd.export_onnx(bundle, tmp_path / "no/a.onnx")
    (tmp_path / "own.onnx").write_text("somebody's")
    with refused(FileExistsError, "own.onnx", "name another"):
        hcd.export_onnx(bundle, tmp_path / "own.onnx")
    assert (tmp_path / "own.onnx").read_text() == "somebody's"
    (tmp_path / "link.onnx").symlink_to(tmp_path / "own.onnx")
    with refused(OSError, "link.onnx"):
        hcd.export_onnx(bundle, tmp_path / "link.onnx")
    shutil.copy(exported, tmp_path / "older.onnx")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_onnx, "_export", full)
    with refused(OSError, "older.onnx cannot be written (No space left on device)"):
        hcd.export_onnx(bundle, tmp_path / "older.onnx")
    assert (tmp_path / "older.onnx").read_bytes() == exported.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.onnx", "older.onnx", "own.onnx"]


def test_an_older_one_is_replaced(bundle, exported, tmp_path):
    older = shutil.copy(exported, tmp_path / "model.onnx")
    hcd.export_onnx(bundle, older, calibrated=True)
    assert hcd.load_onnx(older).temperature == 2.5


def outside(model):
    """Have a tensor lie in a file beside it."""
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location="weights.bin")
    tensor.ClearField("raw_data")


def metadata(**changes):
    def change(model):
        held = {prop.key: prop.value for prop in model.metadata_props}
        held = {name: value for name, value in {**held, **changes}.items() if value is not None}
        onnx.helper.set_model_props(model, held)

    return change


def wider(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 95


CHANGES = {
    "no metadata": (lambda model: model.ClearField("metadata_props"), "has format None"),
    "newer": (metadata(hcd_format="hcd-onnx-2"), f"'hcd-onnx-2' and this hcd reads '{FORMAT}'"),
    "no size": (metadata(patch_size=None), "does not state its patch size"),
    "size that is none": (metadata(patch_size="-1"), "does not state its patch size"),
    "size that is no number": (metadata(patch_size="["), "does not state its patch size"),
    "huge temperature": (metadata(temperature="1e9"), "does not state its patch size"),
    "other classes": (metadata(classes='["tumour", "negative"]'), "does not state"),
    "other size": (metadata(patch_size="64"), "takes and gives"),
    "other input": (wider, "changed.onnx"),
    "files beside it": (outside, "names files beside it"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_ones_file(changed, refused, kind):
    change, text = CHANGES[kind]
    with refused(hcd.InputError, "changed.onnx", text):
        hcd.load_onnx(changed(change))


@pytest.mark.parametrize("cut", [0, 1, 100, -100, "text"])
def test_a_damaged_file(exported, tmp_path, refused, cut):
    content = b"no model" if cut == "text" else exported.read_bytes()[:cut]
    (tmp_path / "damaged.onnx").write_bytes(content)
    with refused(hcd.InputError, "damaged.onnx"):
        hcd.load_onnx(tmp_path / "damaged.onnx")


def test_no_file_no_threads_and_no_library(exported, tmp_path, refused, monkeypatch, bundle):
    with refused(FileNotFoundError, "nowhere.onnx"):
        hcd.load_onnx(tmp_path / "nowhere.onnx")
    with refused(hcd.InputError, "threads=0"):
        hcd.load_onnx(exported, 0)
    for name in ("onnxscript", "onnx"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with refused(hcd.InputError, name, "pip install 'hcd[onnx]'"):
                hcd.export_onnx(bundle, tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused(hcd.InputError, "onnxruntime", "pip install 'hcd[onnx]'"):
        hcd.load_onnx(exported)


def test_the_commands(folder, bundle, sample, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder), "--onnx", "model.onnx"]) == 0
    assert capfd.readouterr() == ("model.onnx\n", "")
    paths = list(map(str, sample.test_paths[:3]))
    assert main(["predict", "model.onnx", *paths, "--threads", "1"]) == 0
    for line, path in zip(capfd.readouterr().out.splitlines(), paths, strict=True):
        expected = hcd.predict_image(bundle, path)
        assert line.split("\t")[:2] == [path, expected.label]
        assert float(line.split("\t")[2]) == pytest.approx(expected.probability, abs=2e-5)
    assert main(["predict", "model.onnx", *paths, "--device", "cpu"]) == 0
    capfd.readouterr()
    for flags, text in [
        (["--device", "cuda"], "device='cuda' cannot be had of an ONNX file"),
        (["--fast"], "fast=True cannot"),
        (["--calibrated"], "calibrated=True cannot"),
        (["--heatmap", "maps"], "an ONNX file has none"),
    ]:
        assert main(["predict", "model.onnx", *paths, *flags]) == 2
        assert text in capfd.readouterr().err
    assert main(["export", str(folder), "--wsinfer", "w", "--calibrated"]) == 2
    assert "--calibrated goes with --onnx" in capfd.readouterr().err
    assert main(["export", str(tmp_path), "--onnx", "b.onnx"]) == 2
    assert "card.json is missing" in capfd.readouterr().err


def test_one_patch_needs_neither_torch_nor_much_memory(exported, sample):
    """In a process of its own; 300 MB are the goal for a DenseNet-169, and this is a small one."""
    code = (
        "import re, sys; from hcd.cli import main; code = main(sys.argv[1:]);"
        " assert not {'torch', 'fastai', 'torchvision', 'matplotlib', 'pandas'} & set(sys.modules);"
        " print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]);"
        " sys.exit(code)"
    )
    arguments = ["predict", str(exported), str(sample.test_paths[0])]
    command = [sys.executable, "-c", code, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stderr) == (0, "")
    line, kilobytes = answer.stdout.splitlines()
    assert line.startswith(arguments[2]) and int(kilobytes) < 300e3
