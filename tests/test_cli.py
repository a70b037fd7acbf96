"""The command line: what it prints, writes and returns, and one line instead of a traceback for
wrong input."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import cv2
import nbformat
import numpy as np
import papermill
import pytest
import torch
from conftest import CHECKOUT
from nbclient.exceptions import DeadKernelError
from PIL import Image

from hcd import Recipe, load_bundle, predict_image, read_image, save_bundle, terminal
from hcd import run as run_module
from hcd.cli import main
from hcd.dataset import packer
from hcd.errors import Refused
from hcd.runs import events

METRICS = {
    "final_model": "resnet18_stage2",
    "data_fingerprint": "abc",
    "valid_accuracy": 0.91234,
    "valid_auc": 0.98765,
    "test_auc": 0.87654,
}


@pytest.fixture(scope="module")
def model(learner, tmp_path_factory):
    return save_bundle(learner, tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """Stand in for the notebook: record the call, leave metrics.json; set `.error` to fail
    instead."""

    class Notebook:
        error, calls = None, []

    Notebook.calls = []

    def run_notebook(output, parameters):
        Notebook.calls.append((output, parameters))
        cell = nbformat.v4.new_code_cell("...", metadata={"hcd": {"cell": 19}}, execution_count=7)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), output / "walkthrough.ipynb")
        if Notebook.error:
            raise Notebook.error
        (output / "metrics.json").write_text(json.dumps(METRICS))

    monkeypatch.setattr(run_module, "run_notebook", run_notebook)
    monkeypatch.chdir(tmp_path)
    return Notebook


def refused(capfd, arguments, *texts):
    """Require exit code 2 and one line that says what is wrong."""
    assert main(list(map(str, arguments))) == 2
    out, err = capfd.readouterr()
    assert err.startswith("hcd: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    for text in texts:
        assert text in err
    return out


def test_predict_prints_path_label_probability(model, sample, capfd):
    paths = sample.test_paths[:3]
    assert main(["predict", str(model), *paths]) == 0
    out, err = capfd.readouterr()
    expected = [predict_image(load_bundle(model), path) for path in paths]
    for line, p in zip(out.splitlines(), expected, strict=True):
        path, label, probability = line.split("\t")
        assert (path, label) == (p.path, p.label)
        assert float(probability) == pytest.approx(p.probability, abs=2e-6)  # of six digits
    assert err == ""


@pytest.mark.long  # in the quick suite the notebook's In 44 is such a process
def test_new_process_and_other_thread_count_give_the_same_probabilities(
    model, sample, learner, tmp_path
):
    """A copy of the folder alone, in another process on one thread, answers as the model in this
    process."""
    shutil.copytree(model, tmp_path / "elsewhere")
    names = [Path(path).name for path in sample.test_paths]
    for path in sample.test_paths:
        shutil.copy(path, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "hcd.cli", "predict", "elsewhere", *names, "--csv", "answers.csv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    here = {Path(path).name: predict_image(load_bundle(model), path) for path in sample.test_paths}
    lines = [line.split("\t") for line in answer.stdout.splitlines()]
    assert [line[0] for line in lines] == names
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "probability", "error"]
    assert [row[0] for row in rows[1:]] == names
    for (name, label, probability, _), line in zip(rows[1:], lines):
        assert float(probability) == pytest.approx(here[name].probability, abs=1e-6)
        assert label == line[1] == here[name].label
        assert line[2] == f"{float(probability):.6f}"


def test_process_exits_with_2_and_one_line(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "hcd.cli", "check", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("hcd: nowhere holds no part of a data set; name the folder")
    assert answer.stderr.count("\n") == 1


def test_model_that_is_no_model(model, sample, tmp_path, capfd):
    image = sample.test_paths[0]
    refused(capfd, ["predict", tmp_path / "nowhere", image], "nowhere/card.json is missing")
    refused(capfd, ["predict", tmp_path, image], "card.json is missing")
    (tmp_path / "model.txt").write_text("not a model")
    refused(capfd, ["predict", tmp_path / "model.txt", image], "model.txt/card.json is missing")
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_text("not weights")
    refused(capfd, ["predict", broken, image], "has 11 bytes where the card's model needs")
    (broken / "card.json").write_text("not\na card")
    refused(capfd, ["predict", broken, image], "card.json is no JSON")


def write_image(path, pixels):
    assert cv2.imwrite(str(path), pixels)
    return path


def test_images_that_are_no_patch(model, tmp_path, capfd, sample):
    good = sample.test_paths[0]
    (tmp_path / "text.tif").write_text("not an image")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "half.tif").write_bytes(Path(good).read_bytes()[:9000])
    # tags first, so that OpenCV begins to decode and prints why it ends
    Image.fromarray(read_image(good)).save(tmp_path / "loud.tif")
    os.truncate(tmp_path / "loud.tif", 9000)
    bad = {
        tmp_path / "nowhere.tif": "does not exist",
        tmp_path / "text.tif": "cannot be decoded",
        tmp_path / "empty.tif": "(0 bytes) cannot be decoded",
        tmp_path / "half.tif": "half.tif",
        tmp_path / "loud.tif": "(9000 bytes) cannot be decoded",
        write_image(tmp_path / "large.tif", np.zeros((100, 96, 3), np.uint8)): "is 96 x 100 px",
        write_image(
            tmp_path / "grey.tif", np.zeros((96, 96), np.uint8)
        ): "has 1 channel(s) of uint8",
        write_image(tmp_path / "deep.tif", np.zeros((96, 96, 3), np.uint16)): "of uint16",
        write_image(tmp_path / "alpha.png", np.zeros((96, 96, 4), np.uint8)): "has 4 channel(s)",
    }
    table = tmp_path / "answers.csv"
    for path, text in bad.items():  # loses no other answer
        assert main(list(map(str, ["predict", model, path, good, "--csv", table]))) == 1
        out, err = capfd.readouterr()
        assert err.startswith("hcd: ") and err.count("\n") == 1 and text in err and str(path) in err
        assert len(out.splitlines()) == 1 and out.startswith(str(good))
        with open(table, newline="") as file:
            _, of_bad, of_good = csv.reader(file)
        assert of_bad[:3] == [str(path), "", ""] and text in of_bad[3]
        assert of_good[0] == str(good) and of_good[3] == ""
        table.unlink()
        assert refused(capfd, ["predict", model, path, "--csv", table], text) == ""
        assert not table.exists()
    assert main(list(map(str, ["predict", model, *bad]))) == 2
    assert len(capfd.readouterr().err.splitlines()) == len(bad)


def test_folders_a_runs_folder_and_a_list_on_standard_input(
    model, sample, tmp_path, capfd, monkeypatch
):
    names = [Path(path).name for path in sorted(map(str, sample.test_paths))]
    (tmp_path / "run").mkdir()
    shutil.copytree(model, tmp_path / "run/model")
    assert main(["predict", str(tmp_path / "run"), str(sample.root / "test")]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [Path(row[0]).name for row in rows] == names
    listed = "".join(f"{path}\n" for path in sample.test_paths[:3]) + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
    assert main(["predict", str(model), "-"]) == 0
    again = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert again == [row for row in rows if row[0] in listed.split()]
    (tmp_path / "empty").mkdir()
    refused(capfd, ["predict", model, tmp_path / "empty"], "empty holds no files", "name a folder")


def test_csv_that_cannot_be_written(model, sample, tmp_path, capfd):
    refused(
        capfd,
        ["predict", model, sample.test_paths[0], "--csv", tmp_path / "no" / "answers.csv"],
        "cannot be written",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["predict"],
        ["predict", "model"],
        ["run", "--batch-size", "many"],
        ["run", "--mean", "1", "2"],
        ["run", "--no-such-flag"],
    ],
)
def test_wrong_usage(arguments, capfd):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: hcd" in capfd.readouterr().err


def test_run_passes_the_settings_on(notebook, sample, tmp_path, capfd):
    flags = [
        "--data",
        sample.root,
        "--output",
        "out",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--remove-outliers",
        "--back-to-stage1",
        "--arch",
        "resnet34",
        "--no-pretrained",
        "--batch-size",
        "16",
        "--head-max-lr",
        "0.01",
        "--finetune-max-lr",
        "1e-5",
        "1e-4",
        "--sweep-weight-decays",
        "0.1",
        "--rng-seed",
        "7",
        "--no-flips",
    ]
    assert main(["run", *map(str, flags)]) == 0
    ((output, parameters),) = notebook.calls
    assert output == tmp_path / "out"
    changes = {
        "arch": "resnet34",
        "pretrained": False,
        "batch_size": 16,
        "head_max_lr": 0.01,
        "finetune_max_lr": [1e-5, 1e-4],
        "sweep_weight_decays": [0.1],
        "rng_seed": 7,
        "flips": False,
    }
    assert parameters == {
        "data_folder": str(sample.root),
        "recipe_changes": changes,
        "num_workers": 0,
        "device": "cpu",
        "remove_outliers": True,
        "back_to_stage1": True,
        "slides_file": "",
    }
    json.dumps(parameters)  # papermill writes them into the notebook
    printed = capfd.readouterr().out
    for text in (
        "0.9123",
        "0.9877",
        "0.8765",
        str(tmp_path / "out" / "walkthrough.html"),
        str(tmp_path / "out" / "model"),
    ):
        assert text in printed


def test_run_alone_changes_nothing_and_makes_a_folder_of_its_own(notebook, tmp_path):
    assert main(["run"]) == main(["run"]) == 0
    (first, parameters), (second, _) = notebook.calls
    assert first != second and first.parent == second.parent == tmp_path / "outputs"
    assert parameters == {
        "data_folder": "",
        "recipe_changes": {},
        "num_workers": None,
        "device": None,
        "remove_outliers": False,
        "back_to_stage1": False,
        "slides_file": "",
    }


def test_every_value_of_the_recipe_has_a_flag(notebook):
    for field in fields(Recipe):
        value = getattr(Recipe.sample(), field.name)
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool) or field.name == "resident":
            given, wanted = [flag], True
        elif isinstance(value, tuple):
            given, wanted = [flag, *map(str, value)], list(value)
        else:
            given, wanted = [flag, str(value)], value
        if field.name != "pretrained":  # would download weights
            assert main(["run", *given]) == 0
            assert notebook.calls[-1][1]["recipe_changes"] == {field.name: wanted}


def test_robust_is_a_recipe_that_flags_may_change(notebook):
    robust = {"crop_size": 96, "max_shift": 0, "max_rotation": 0, "mean_weights": True}
    assert main(["run", "--robust"]) == 0
    assert notebook.calls[-1][1]["recipe_changes"] == robust
    assert main(["run", "--max-rotation", "2", "--robust", "--fast", "--crop-size", "94"]) == 0
    assert notebook.calls[-1][1]["recipe_changes"] == {
        **robust,
        "crop_size": 94,
        "max_rotation": 2,
        "fast": True,
    }


def test_wrong_settings_start_nothing(notebook, sample, tmp_path, capfd):
    refused(
        capfd,
        ["run", "--max-shift", "4"],
        "max_shift=4 px leaves the patch: crop_size=90 allows 0 to 3; lower one",
    )
    refused(capfd, ["run", "--batch-size", "0"], "batch_size=0 is too small")
    refused(capfd, ["run", "--head-dropout", "nan"], "head_dropout=nan")
    refused(
        capfd, ["run", "--arch", "densenet170"], "arch='densenet170' is no model", "densenet169"
    )
    refused(
        capfd, ["run", "--arch", "vit_b_16"], "arch='vit_b_16' cannot be made into body and head"
    )
    refused(capfd, ["run", "--device", "abacus"], "device='abacus' cannot be used here")
    refused(capfd, ["run", "--workers", "-1"], "--workers -1 is no count; give 0 to 256")
    (tmp_path / "file").touch()
    refused(capfd, ["run", "--output", "file"], "file is a file; name a folder")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "metrics.json").write_text("{}")
    refused(capfd, ["run", "--output", "earlier"], "earlier holds metrics.json, which a run writes")
    assert (earlier / "metrics.json").read_text() == "{}"
    assert notebook.calls == []
    # no folder for a run that never was
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "file"]


def test_no_weights_offline(notebook, tmp_path, capfd, monkeypatch):
    def offline(*_):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    refused(
        capfd, ["run", "--pretrained"], "no pretrained weights for resnet18", "use pretrained=False"
    )
    assert notebook.calls == []


def rewrite(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    "damage, text",
    [
        (
            lambda root: shutil.rmtree(root),
            "is no folder; name the folder that holds train/<id>.tif",
        ),
        (lambda root: [shutil.rmtree(root), root.mkdir()], "train_labels.csv is missing"),
        (
            lambda root: rewrite(
                root / "train_labels.csv", lambda text: text.replace("id,label", "id,class")
            ),
            "no 'label'",
        ),
        (
            lambda root: rewrite(
                root / "train_labels.csv", lambda text: text.replace(",1\n", ",2\n", 1)
            ),
            "label '2' of id",
        ),
        (
            lambda root: rewrite(
                root / "train_labels.csv", lambda text: text + text.splitlines()[1] + "\n"
            ),
            "is used twice",
        ),
        (
            lambda root: next((root / "train").iterdir()).unlink(),
            "is missing although train_labels.csv lists it",
        ),
        (
            lambda root: (root / "test" / "extra.tif").touch(),
            "extra.tif has no row in sample_submission.csv",
        ),
    ],
)
def test_wrong_data_starts_nothing(notebook, copy_of_sample, tmp_path, capfd, damage, text):
    damage(copy_of_sample)
    refused(
        capfd, ["run", "--data", copy_of_sample, "--no-pretrained", "--arch", "squeezenet1_1"], text
    )
    assert notebook.calls == []
    assert not (tmp_path / "outputs").exists()


def test_settings_that_the_notebook_turns_down(notebook, tmp_path, capfd):
    notebook.error = Refused("patch 7 is\nunreadable; restore it")
    refused(capfd, ["run"], "hcd: patch 7 is unreadable; restore it")
    assert list((tmp_path / "outputs").iterdir()) == []  # its folder holds nothing of worth
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    refused(capfd, ["run", "--output", "mine"], "unreadable")
    # a folder that was named is as it was
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_cell_that_fails_later(notebook, tmp_path, capfd):
    notebook.error = papermill.PapermillExecutionError(
        3, 7, "# In [19]\nlearner.fit()", "RuntimeError", "out of\nmemory", ["..."]
    )
    assert main(["run", "--output", "out"]) == 1
    err = capfd.readouterr().err
    assert (
        err.startswith("hcd: In 19 failed with RuntimeError: out of memory;")
        and str(tmp_path / "out") in err
    )
    assert err.count("\n") == 1
    assert "go on with: hcd run --resume out" in err


def test_a_training_that_diverged_is_not_offered_to_go_on(notebook, tmp_path, capfd, monkeypatch):
    def fail(output, parameters):
        events.append(output, "failed", mendable=True, final=True, text="stage1 diverged; stop")
        raise papermill.PapermillExecutionError(3, 7, "", "Diverged", "stage1 diverged", [])

    monkeypatch.setattr(run_module, "run_notebook", fail)
    assert main(["run", "--output", "out"]) == 1
    assert capfd.readouterr().err == "hcd: stage1 diverged; stop\n"


@pytest.mark.parametrize("flag", ["--data", "--output", "--resume"])
def test_an_empty_argument_is_no_wish_for_something_else(notebook, flag, capfd):
    refused(capfd, ["run", flag, ""], f'{flag} "" names nothing')
    assert not notebook.calls and not Path("outputs").exists()


def test_a_run_goes_neither_into_its_data_nor_into_its_template(notebook, copy_of_sample, capfd):
    options = ["run", "--no-pretrained", "--arch", "squeezenet1_1"]
    before = sorted(copy_of_sample.rglob("*"))
    refused(capfd, [*options, "--data", copy_of_sample, "--output", copy_of_sample], "the data")
    refused(capfd, [*options, "--output", CHECKOUT / "notebooks"], "the walkthrough itself")
    inside = copy_of_sample / "train/run"
    refused(capfd, [*options, "--data", copy_of_sample, "--output", inside], "the data")
    assert sorted(copy_of_sample.rglob("*")) == before and not notebook.calls


def test_a_run_started_in_the_folder_of_the_data_goes_beside_them(
    notebook, copy_of_sample, monkeypatch
):
    monkeypatch.chdir(copy_of_sample)
    assert main(["run", "--data", ".", "--no-pretrained", "--arch", "squeezenet1_1"]) == 0
    assert notebook.calls[0][0].parent == copy_of_sample / "outputs"


def test_a_bug_is_told_as_one(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("hcd.dataset.check.check_dataset", lambda data: None + 1)
    assert main(["check", str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err and "unsupported operand" in err
    assert err.splitlines()[-1].startswith("hcd: this is a fault of hcd 0") and "report" in err


LIGHT = """
import sys
from hcd.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "fastai", "papermill", "pandas", "cv2", "numpy"} & set(sys.modules)
print("heavy:", *sorted(heavy))
"""


@pytest.mark.parametrize(
    "arguments, allowed",
    [
        (["--help"], ""),
        (["--version"], ""),
        (["run", "--help"], ""),
        (["run", "--batch-size", "many"], ""),
        (["nothing"], ""),
        (["check", "nowhere"], "cv2 numpy pandas"),
    ],
)
def test_help_and_check_wait_for_no_library(arguments, allowed):
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].split()[1:] == allowed.split()


def test_help_says_what_each_field_means(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    meanings = Recipe.meanings()
    assert set(meanings) == {field.name for field in fields(Recipe)}
    for name, meaning in meanings.items():
        assert f"--{name.replace('_', '-')}" in page and meaning.rstrip(".") in page


def test_full_disk_says_how_to_go_on(notebook, capfd):
    notebook.error = OSError(
        28, "walkthrough.ipynb cannot be written (No space left on device); free space"
    )
    assert main(["run", "--output", "my run"]) == 1
    err = capfd.readouterr().err
    assert (
        "No space left on device" in err
        and err.endswith("go on with: hcd run --resume 'my run'\n")
        and err.count("\n") == 1
    )


def test_a_failed_run_has_its_warnings_and_fingerprint_on_record(notebook, sample, tmp_path):
    notebook.error = DeadKernelError("Kernel died")
    assert main(["run", "--data", str(sample.root), "--output", "out", "--no-pretrained"]) == 1
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (
        kept["data_fingerprint"] == sample.fingerprint
        and kept["warnings"] == []
        and not kept["finished"]
    )


def test_a_strangers_run_runs_nothing(notebook, tmp_path, capfd):
    """papermill would write a parameter's name into the notebook as it is."""
    notebook.error = KeyboardInterrupt()
    main(["run", "--output", "out"])
    capfd.readouterr()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["parameters"]["x = open('witness', 'w').close() #"] = 1
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    refused(capfd, ["run", "--resume", "out"], "run.json is no record of this hcd", "witness")
    assert len(notebook.calls) == 1


def test_killed_kernel_and_interrupt(notebook, capfd):
    notebook.error = DeadKernelError("Kernel died")
    assert main(["run", "--output", "out"]) == 1
    assert "the notebook's process was killed" in capfd.readouterr().err
    notebook.error = KeyboardInterrupt()
    assert main(["run", "--output", "out2"]) == 130
    assert capfd.readouterr().err == "hcd: stopped; go on with: hcd run --resume out2\n"


def test_resume_goes_on_with_the_same_settings(notebook, tmp_path, capfd):
    notebook.error = KeyboardInterrupt()
    assert (
        main(
            [
                "run",
                "--output",
                "out",
                "--arch",
                "squeezenet1_1",
                "--batch-size",
                "16",
                "--remove-outliers",
            ]
        )
        == 130
    )
    notebook.error = None
    assert main(["run", "--resume", "out", "--batch-size", "16", "--workers", "1"]) == 0
    (first, begun), (second, resumed) = notebook.calls
    assert first == second
    assert resumed == {**begun, "num_workers": 1, "resume": True}
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(kept["started"]) == 2 and kept["recipe"]["batch_size"] == 16 and kept["finished"]
    capfd.readouterr()
    refused(capfd, ["run", "--resume", "out"], "holds a run that was finished at")


def test_resume_of_another_recipe_another_folder_or_none(notebook, sample, tmp_path, capfd):
    refused(capfd, ["run", "--resume", "nowhere"], "nowhere is no folder")
    (tmp_path / "empty").mkdir()
    refused(capfd, ["run", "--resume", "empty"], "run.json is missing")
    notebook.error = KeyboardInterrupt()
    main(["run", "--output", "out", "--arch", "squeezenet1_1"])
    capfd.readouterr()
    refused(
        capfd,
        ["run", "--resume", "out", "--arch", "resnet18"],
        "arch='squeezenet1_1' and not 'resnet18'",
    )
    refused(capfd, ["run", "--resume", "out", "--robust"], "out was started without --robust")
    refused(
        capfd,
        ["run", "--resume", "out", "--output", "other"],
        "--output cannot be given with --resume",
    )
    refused(
        capfd,
        ["run", "--resume", "out", "--remove-outliers"],
        "--remove-outliers cannot be given with --resume",
    )
    assert len(notebook.calls) == 1
    (tmp_path / "out" / "checkpoints").mkdir()
    refused(
        capfd,
        ["run", "--output", "out"],
        "out holds walkthrough.ipynb, which a run writes",
        f"hcd run --resume {Path('out')}",
    )


def test_damaged_patch_stops_the_notebook_in_its_first_cell(
    copy_of_sample, tmp_path, capfd, monkeypatch
):
    """The one test here that starts a kernel; papermill would look for a parameter named as what
    stands in braces."""
    folder = tmp_path / "a {folder}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    patch = sorted((copy_of_sample / "train").iterdir())[5]
    patch.write_bytes(b"not an image")
    assert (
        main(
            [
                "run",
                "--data",
                str(copy_of_sample),
                "--no-pretrained",
                "--arch",
                "squeezenet1_1",
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("hcd: 1 of 72 patches cannot be used: ")
    assert str(patch) in last and "cannot be decoded" in last
    assert list((folder / "outputs").iterdir()) == []


def test_check_exits_by_what_it_finds_and_prints_json(copy_of_sample, tmp_path, capfd):
    assert main(["check", str(copy_of_sample)]) == 0
    assert capfd.readouterr().out.endswith("clean\n")
    patch = next((copy_of_sample / "train").iterdir())
    patch.write_bytes(patch.read_bytes()[:5000])
    assert main(["check", str(copy_of_sample)]) == 1
    out, _ = capfd.readouterr()
    assert f"train/{patch.name}" in out and out.endswith("1 finding(s)\n")
    assert main(["check", "--json", str(copy_of_sample)]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["clean"] is False and [
        name.split(":")[0] for name in report["findings"]["unreadable"]
    ] == [f"train/{patch.name}"]
    assert refused(capfd, ["check", tmp_path / "nowhere"], "holds no part of a data set") == ""


def test_check_reads_files_and_says_so_of_a_pack(copy_of_sample, capfd):
    assert main(["pack", str(copy_of_sample)]) == main(["check", str(copy_of_sample)]) == 0
    assert f"packed: `hcd pack {copy_of_sample}` proves its patches" in capfd.readouterr().out
    for folder in ("train", "test"):
        shutil.rmtree(copy_of_sample / folder)
    refused(capfd, ["check", copy_of_sample], "no files to check", f"hcd pack {copy_of_sample}")
    assert main(["pack", str(copy_of_sample)]) == 0


def test_pack_prints_where_how_large_and_how_long(copy_of_sample, capfd):
    assert main(["pack", str(copy_of_sample)]) == 0
    out, _ = capfd.readouterr()
    assert re.fullmatch(rf"{copy_of_sample}/packed: 72 patches, 0\.00 GB, packed in \d+ s\n", out)
    assert main(["pack", str(copy_of_sample)]) == 0
    assert (
        capfd.readouterr().out
        == f"{copy_of_sample}/packed: 72 patches, 0.00 GB, whole and of this data set; nothing to"
        " do\n"
    )
    os.truncate(copy_of_sample / "packed" / "sha1.npy", 200)
    assert main(["pack", str(copy_of_sample)]) == 0
    out, _ = capfd.readouterr()
    assert (
        "packed in" in out
        and "could not stay" in out
        and "sha1.npy has 200 bytes" in out
        and "packed.old" in out
    )
    assert main(["pack", str(copy_of_sample), "--into", str(copy_of_sample / "fast")]) == 0
    assert (copy_of_sample / "fast" / "packed" / "index.json").is_file()


def test_pack_of_wrong_input_and_ctrl_c(copy_of_sample, tmp_path, capfd, monkeypatch):
    refused(capfd, ["pack", tmp_path / "none"], "none is no folder")
    (next((copy_of_sample / "train").iterdir())).unlink()
    refused(capfd, ["pack", copy_of_sample], "is missing although train_labels.csv lists it")

    def interrupted(*_):
        raise KeyboardInterrupt("stopped; 5 of 72 patches are packed")

    monkeypatch.setattr(packer, "pack_dataset", interrupted)
    assert main(["pack", str(copy_of_sample)]) == 130
    assert capfd.readouterr().err == "hcd: stopped; 5 of 72 patches are packed\n"


def leave_complete_run(folder, **metrics):
    """A run that a stranger says is complete."""
    assert main(["run", "--output", str(folder)]) == 0
    (folder / "model").mkdir()
    (folder / "model/card.json").write_text("{}")
    (folder / "metrics.json").write_text(json.dumps({**METRICS, **metrics}))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": None}))


@pytest.mark.parametrize("up", ["../../victim", "{folder}/victim", "victim", "..", ""])
def test_a_strangers_run_names_no_file_to_be_removed(notebook, tmp_path, capfd, up):
    leave_complete_run(tmp_path / "out", final_model=up.format(folder=tmp_path))
    for place in (tmp_path, tmp_path / "out"):
        (place / "victim.pth").write_text("mine")
    capfd.readouterr()
    refused(capfd, ["run", "--resume", tmp_path / "out"], "metrics.json")
    assert (tmp_path / "victim.pth").read_text() == "mine"
    assert (tmp_path / "out/victim.pth").is_file() and (tmp_path / "out/model/card.json").is_file()


@pytest.mark.parametrize("name", ["final_model", "data_fingerprint", "valid_accuracy", "valid_auc"])
@pytest.mark.parametrize("value", [None, [], "DROP"])
def test_damaged_metrics_are_told_in_a_sentence(notebook, tmp_path, capfd, name, value):
    leave_complete_run(tmp_path / "out", **{name: value})
    if value == "DROP":
        metrics = {key: kept for key, kept in METRICS.items() if key != name}
        (tmp_path / "out/metrics.json").write_text(json.dumps(metrics))
    capfd.readouterr()
    refused(capfd, ["run", "--resume", tmp_path / "out"], "metrics.json", name)


@pytest.mark.parametrize("machine", [[], None, "x"])
def test_a_damaged_machine_in_the_record(notebook, tmp_path, capfd, machine):
    leave_complete_run(tmp_path / "out")
    record = json.loads((tmp_path / "out/run.json").read_text())
    before = json.dumps({**record, "machine": machine})
    (tmp_path / "out/run.json").write_text(before)
    capfd.readouterr()
    refused(capfd, ["run", "--resume", tmp_path / "out"], "run.json", "machine")
    assert (tmp_path / "out/run.json").read_text() == before


SMALLEST = ["--no-pretrained", "--arch", "squeezenet1_1"]


def other_labels(root):
    rewrite(root / "train_labels.csv", lambda text: text.replace(",1\n", ",0\n", 3))


def no_test_set(root):
    shutil.rmtree(root / "test")


@pytest.mark.parametrize("change", [other_labels, no_test_set])
def test_a_run_stopped_before_it_has_checkpoints_knows_its_data_too(
    notebook, copy_of_sample, tmp_path, capfd, change
):
    notebook.error = KeyboardInterrupt()
    main(["run", "--data", str(copy_of_sample), "--output", "out", *SMALLEST])
    capfd.readouterr()
    change(copy_of_sample)
    before = (tmp_path / "out/run.json").read_bytes()
    refused(capfd, ["run", "--resume", "out"], "began with other ids or labels", "restore the data")
    kept, was = json.loads((tmp_path / "out/run.json").read_bytes()), json.loads(before)
    assert kept["data_fingerprint"] == was["data_fingerprint"] and len(notebook.calls) == 1


def test_a_run_on_its_own_sample_takes_no_other_data(notebook, sample, tmp_path, capfd):
    notebook.error = KeyboardInterrupt()
    main(["run", "--output", "out"])
    capfd.readouterr()
    refused(capfd, ["run", "--resume", "out", "--data", sample.root], "sample that it drew itself")
    notebook.error = None
    assert main(["run", "--resume", "out"]) == 0


def test_a_run_goes_nowhere_that_a_link_leads_into_the_data(
    notebook, copy_of_sample, tmp_path, capfd
):
    shutil.move(copy_of_sample / "train", tmp_path / "elsewhere")
    (copy_of_sample / "train").symlink_to(tmp_path / "elsewhere")
    for place in ("train/run", "packed/run", "packed.part"):
        output = copy_of_sample / place
        refused(
            capfd,
            ["run", "--data", copy_of_sample, "--output", output, *SMALLEST],
            "holds the data",
        )
    assert not notebook.calls and not (tmp_path / "elsewhere/run").exists()


def test_a_finished_run_is_finished_whoever_reads_its_lines(notebook, tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    assert main(["run", "--output", "out"]) == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["finished"]


@contextmanager
def unread(at_once=False):
    """Make standard output a pipe whose reader has gone, as that of `| head -0` has; `at_once` as
    with PYTHONUNBUFFERED."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        pytest.MonkeyPatch.context() as patch,
        open(writing, "wb", 0 if at_once else -1) as raw,
        io.TextIOWrapper(raw, write_through=at_once) as out,
    ):
        patch.setattr(sys, "stdout", out)
        yield
        terminal.stop_printing()


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("command", ["predict", "check", "notebook", "export"])
def test_a_command_whose_lines_nobody_reads_ends_quietly(
    model, sample, tmp_path, capfd, command, at_once
):
    arguments = {
        "predict": [model, *sample.test_paths],
        "check": [sample.root],
        "notebook": [tmp_path / "mine.ipynb"],
        "export": [model, "--wsinfer", tmp_path / "exported"],
    }
    with unread(at_once):
        assert main([command, *map(str, arguments[command])]) == 141
    err = capfd.readouterr().err
    assert "hcd:" not in err and "pipe" not in err and "Traceback" not in err


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("flag", ["--csv", "--heatmap"])
def test_files_that_were_asked_for_get_whole_whoever_reads_the_lines(
    model, sample, tmp_path, capfd, flag, at_once
):
    """Half of a table would look like the whole one."""
    (tmp_path / "bad.tif").write_text("no image")
    names = [*map(str, sample.test_paths[:3]), str(tmp_path / "bad.tif"), *sample.test_paths[3:5]]
    place = tmp_path / "made"
    with unread(at_once):
        assert main(["predict", str(model), *names, "--batch-size", "2", flag, str(place)]) == 1
    assert capfd.readouterr().err.count("\n") == 1  # of the bad one
    if flag == "--csv":
        rows = [line.split(",") for line in place.read_text().splitlines()[1:]]
        assert [row[0] for row in rows] == names and sum(bool(row[1]) for row in rows) == 5
    else:
        assert len(list(place.iterdir())) == 5


def test_help_that_nobody_reads():
    with unread():
        assert main(["--help"]) == 141  # and not 120, with a complaint, at the end of Python


@pytest.mark.parametrize("at_once", [False, True])
def test_a_run_goes_on_whoever_reads_its_lines(notebook, tmp_path, at_once):
    with unread(at_once):
        assert main(["run", "--output", "out"]) == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["finished"]


def test_another_broken_pipe_and_a_full_disk_are_told(monkeypatch, tmp_path, capfd):
    def broken(*args):
        raise BrokenPipeError(32, "Broken pipe")

    with monkeypatch.context() as patch:  # of a process that has died, say
        patch.setattr("hcd.runs.template.copy_notebook", broken)
        assert main(["notebook", "a.ipynb"]) == 2
    assert "Broken pipe" in capfd.readouterr().err
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["notebook", str(tmp_path / "b.ipynb")]) == 2
    err = capfd.readouterr().err
    assert "cannot be written (No space left on device); free space" in err
    assert err.count("\n") == 1 and (tmp_path / "b.ipynb").is_file()


def test_a_patch_is_not_written_over_by_a_table(model, sample, tmp_path, capfd):
    patches = [shutil.copy(path, tmp_path) for path in sample.test_paths[:2]]
    before = Path(patches[0]).read_bytes()
    refused(capfd, ["predict", model, "--csv", *patches], "no table of predictions", "name another")
    assert Path(patches[0]).read_bytes() == before
    refused(capfd, ["predict", model, "--csv", tmp_path, patches[1]], "no table of predictions")
    table = tmp_path / "answers.csv"
    for _ in range(2):  # an earlier one is replaced
        assert main(["predict", str(model), "--csv", str(table), str(patches[1])]) == 0
        assert len(table.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["check", ""], "DIR"),
        (["pack", ""], "DIR"),
        (["pack", "x", "--into", ""], "--into"),
        (["predict", "", "a.tif"], "MODEL"),
        (["predict", "m", ""], "image"),
        (["predict", "m", "a.tif", "--csv", ""], "--csv"),
    ],
)
def test_an_unset_variable_of_the_shell_is_no_name(capfd, arguments, name):
    refused(capfd, arguments, f'{name} "" names nothing')


def test_a_name_that_is_no_utf8(notebook, model, sample, tmp_path, capfd):
    name = os.fsdecode(b"o\xff")
    refused(capfd, ["run", "--output", name], "is no UTF-8; give the folder another name")
    assert not notebook.calls and not os.path.exists(name)
    shutil.copy(sample.test_paths[0], tmp_path / f"{name}.tif")
    assert main(["predict", str(model), f"{name}.tif", "--csv", "answers.csv"]) == 0
    assert "o\\xff.tif" in (tmp_path / "answers.csv").read_text("utf-8")


def test_the_command_to_go_on_with_takes_any_name(notebook, tmp_path, capfd):
    notebook.error = KeyboardInterrupt()
    assert main(["run", "--output=-x"]) == 130
    assert capfd.readouterr().err.endswith("hcd run --resume=-x\n")


def test_slides_are_checked_before_a_run_begins(notebook, sample, cut_slides, tmp_path, capfd):
    """Neither a folder nor a kernel is started for a table that cannot be used."""
    dataset, _ = cut_slides(tmp_path / "data")
    table = dataset.root / "slides.csv"
    one = tmp_path / "one.csv"
    one.write_text("id,wsi\n" + "".join(f"{name},a\n" for name in sample.labels["id"]))
    output = ["--output", str(tmp_path / "run")]
    for flags, words in [
        (["--slides", str(table)], "give --data"),
        (["--split", "slides"], "give --data"),
        (["--split", "patients"], "split='patients'"),
        (["--data", str(sample.root), "--split", "slides"], "holds no slides.csv"),
        (["--data", str(sample.root), "--slides", str(table)], "is none of"),
        (["--data", str(sample.root), "--slides", str(tmp_path / "no.csv")], "no.csv is missing"),
        (["--data", str(sample.root), "--slides", ""], '--slides "" names nothing'),
        (["--data", str(sample.root), "--slides", str(one), "--split=slides"], "1 group(s) of 60"),
    ]:
        refused(capfd, ["run", *flags, *output], words)
        assert not (tmp_path / "run").exists()
