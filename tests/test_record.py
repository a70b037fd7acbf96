"""The record of a run, and what --resume makes of it."""
import json
import subprocess
from types import SimpleNamespace

import pytest

from hcd import Recipe, record
from hcd.files import write_json

PARAMETERS = {"data_folder": "", "recipe_changes": {}, "num_workers": None, "device": None, "remove_outliers": False,
              "back_to_stage1": False}


def notebook(*texts):
    outputs = [{"name": name, "text": text} for name, text in texts]
    return SimpleNamespace(cells=[SimpleNamespace(cell_type="markdown"), SimpleNamespace(cell_type="code", outputs=outputs)])


def test_record_says_what_it_takes_to_run_again(tmp_path):
    begun = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == json.loads(json.dumps(begun))
    assert Recipe(**kept["recipe"]) == Recipe.sample() and kept["parameters"] == PARAMETERS
    assert {"python", "torch", "fastai", "opencv"} <= set(kept["versions"]) and kept["machine"]["cores"] >= 1
    assert kept["finished"] is None and len(kept["started"]) == 1


def test_git_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y.z", *words], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(record, "__file__", str(tmp_path / "hcd" / "record.py"))
    assert record._git_commit() is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file"), git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert record._git_commit() == commit
    (tmp_path / "file").write_text("two")
    assert record._git_commit() == f"{commit} with local changes"
    monkeypatch.setenv("PATH", "")
    assert record._git_commit() is None


def test_close_keeps_every_warning_and_nothing_else(tmp_path):
    begun = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    shown = notebook(("stderr", "progress\n/a.py:3: UserWarning: odd\n  source line\n"), ("stdout", "FakeWarning: no"),
                     ("stderr", "x.py:1: DeprecationWarning: old\n"))
    record.close_record(tmp_path, begun, {"data_fingerprint": "abc"}, shown)
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["warnings"] == ["/a.py:3: UserWarning: odd", "x.py:1: DeprecationWarning: old"]
    assert kept["data_fingerprint"] == "abc" and kept["finished"] and kept["started"] == begun["started"]


def test_resume_notes_the_time_and_takes_equal_values(tmp_path):
    record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    again = record.resume_record(tmp_path, {"batch_size": 32, "finetune_max_lr": [1e-4, 1e-3]})
    assert len(again["started"]) == 2 and Recipe(**again["recipe"]) == Recipe.sample()
    assert json.loads((tmp_path / "run.json").read_text()) == again


@pytest.mark.parametrize("changes, words", [({"batch_size": 8}, ["batch_size=32", "8"]), ({"fast": True}, ["fast=False", "True"]),
                                            ({"mean": [0.5, 0.5, 0.5]}, ["mean=", "(0.5, 0.5, 0.5)"])], ids=str)
def test_another_recipe_is_refused_and_nothing_is_noted(tmp_path, refused, changes, words):
    record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    with refused(ValueError, tmp_path, *words):
        record.resume_record(tmp_path, changes)
    assert len(json.loads((tmp_path / "run.json").read_text())["started"]) == 1


def test_no_record_and_damaged_ones(tmp_path, refused):
    with refused(FileNotFoundError, "run.json is missing"):
        record.resume_record(tmp_path, {})
    good = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    for damaged in ({**good, "format": "hcd-run-9"}, {**good, "recipe": {"bogus": 1}}, {**good, "recipe": 3}, [], {},
                    {**good, "recipe": {**good["recipe"], "batch_size": "many"}}, {**good, "parameters": None},
                    {**good, "started": None}):
        write_json(tmp_path / "run.json", damaged)
        with refused(ValueError, "run.json is no record"):
            record.resume_record(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with refused(ValueError, "run.json is no record"):
        record.resume_record(tmp_path, {})
