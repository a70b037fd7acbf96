"""The record of a run, and what --resume makes of it."""

import json
import subprocess
import warnings

import pytest

from hcd import Recipe
from hcd.disk.whole import write_json
from hcd.runs import events, record

PARAMETERS = {
    "data_folder": "",
    "recipe_changes": {},
    "num_workers": None,
    "device": None,
    "remove_outliers": False,
    "back_to_stage1": False,
    "slides_file": "",
}


WRONG = [
    {"num_workers": "lots"},
    {"num_workers": -1},
    {"num_workers": 10**6},
    {"device": "cpu; rm"},
    {"num_workers": True},
    {"device": 3},
    {"data_folder": None},
    {"remove_outliers": 1},
    {"recipe_changes": {"batch_size": 16}},
    {"recipe_changes": {"x = 1 #": 1}},
    {"recipe_changes": []},
    {"resume": True},
    {"x = open('witness', 'w').close() #": 1},
]


def tell_warnings(folder, *texts):
    for text in texts:
        events.append(folder, "warning", text=text)


def test_record_says_what_it_takes_to_run_again(tmp_path):
    begun = record.start_record(tmp_path, Recipe.sample(), PARAMETERS, "abc")
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == json.loads(json.dumps(begun)) and kept["data_fingerprint"] == "abc"
    assert Recipe(**kept["recipe"]) == Recipe.sample() and kept["parameters"] == PARAMETERS
    assert {"python", "torch", "fastai", "opencv"} <= set(kept["versions"]) and kept["machine"][
        "cores"
    ] >= 1
    assert kept["finished"] is None and len(kept["started"]) == 1


def test_git_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@y.z", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    monkeypatch.setattr(record, "own_checkout", lambda: tmp_path)
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


def test_the_end_keeps_every_warning_and_nothing_else(tmp_path):
    begun = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    tell_warnings(tmp_path, "/a.py:3: UserWarning: odd", "x.py:1: DeprecationWarning: old")
    tell_warnings(tmp_path, "y.py:2: UserWarning: new", "/a.py:3: UserWarning: odd")
    events.append(tmp_path, "step", text="FakeWarning: no")
    record.note_end(
        tmp_path, begun, ["z.py:9: UserWarning: of the command"], {"data_fingerprint": "abc"}
    )
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["warnings"] == [
        "z.py:9: UserWarning: of the command",
        "/a.py:3: UserWarning: odd",
        "x.py:1: DeprecationWarning: old",
        "y.py:2: UserWarning: new",
    ]
    assert (
        kept["data_fingerprint"] == "abc"
        and kept["finished"]
        and kept["started"] == begun["started"]
    )


def test_warnings_of_failed_and_of_killed_attempts_are_kept_once(tmp_path):
    begun = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    tell_warnings(tmp_path, "a.py:1: UserWarning: first")
    record.note_end(tmp_path, begun, [])  # failed
    resumed = record.resume_record(tmp_path, {})
    assert resumed["warnings"] == ["a.py:1: UserWarning: first"] and not resumed["finished"]
    tell_warnings(tmp_path, "a.py:1: UserWarning: second")  # and killed
    assert record.resume_record(tmp_path, {})["warnings"] == [
        "a.py:1: UserWarning: first",
        "a.py:1: UserWarning: second",
    ]
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"event": "warn')  # torn by a kill
    events.append(tmp_path, "attempt")
    tell_warnings(tmp_path, "a.py:1: UserWarning: third")
    assert record.told_warnings(tmp_path)[-1] == "a.py:1: UserWarning: third"
    assert len(record.told_warnings(tmp_path)) == 3


def test_warnings_of_this_process_are_noted_and_shown():
    with pytest.warns(UserWarning, match="odd"), record.noted_warnings() as noted:
        warnings.warn("odd", stacklevel=1)
    assert len(noted) == 1 and noted[0].endswith(": UserWarning: odd")


def test_resume_notes_the_time_and_takes_equal_values(tmp_path):
    record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    again = record.resume_record(tmp_path, {"batch_size": 32, "finetune_max_lr": [1e-4, 1e-3]})
    assert len(again["started"]) == 2 and Recipe(**again["recipe"]) == Recipe.sample()
    assert json.loads((tmp_path / "run.json").read_text()) == again


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 8}, ["batch_size=32", "8"]),
        ({"fast": True}, ["fast=False", "True"]),
        ({"mean": [0.5, 0.5, 0.5]}, ["mean=", "(0.5, 0.5, 0.5)"]),
    ],
    ids=str,
)
def test_another_recipe_is_refused_and_nothing_is_noted(tmp_path, refused, changes, words):
    record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    with refused(ValueError, tmp_path, *words):
        record.resume_record(tmp_path, changes)
    assert len(json.loads((tmp_path / "run.json").read_text())["started"]) == 1


def test_no_record_and_damaged_ones(tmp_path, refused):
    with refused(FileNotFoundError, "run.json is missing"):
        record.resume_record(tmp_path, {})
    good = record.start_record(tmp_path, Recipe.sample(), PARAMETERS)
    recipe, missing = good["recipe"], dict(PARAMETERS)
    del missing["device"]
    changes = [
        {"format": "hcd-run-9"},
        {"recipe": {"bogus": 1}},
        {"recipe": 3},
        {"recipe": {**recipe, "batch_size": "many"}},
        {"recipe": {**recipe, "mean": [0.5] * 100_000}},
        {"recipe": {**recipe, "batch_size": 16}},
        {"parameters": None},
        {"parameters": []},
        {"parameters": missing},
        {"started": None},
        {"started": "then"},
        {"warnings": [3]},
        {"finished": 7},
        *({"parameters": {**PARAMETERS, **wrong}} for wrong in WRONG),
    ]
    for damaged in ([], {}, 3, *({**good, **change} for change in changes)):
        write_json(tmp_path / "run.json", damaged)
        with refused(ValueError, "run.json is no record") as caught:
            record.resume_record(tmp_path, {})
        assert len(str(caught.value)) < 600
    for text in ("{", "[" * 100_000, json.dumps(good).replace("0.5", "NaN")):
        (tmp_path / "run.json").write_text(text)
        with refused(ValueError, "run.json is no JSON"):
            record.resume_record(tmp_path, {})
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(record.MOST_BYTES + 1)
    with refused(ValueError, "run.json has at most"):
        record.resume_record(tmp_path, {})
