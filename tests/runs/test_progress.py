"""A run shows each epoch and step on a line of its own, and nothing else that its events hold."""

import sys
import threading

import pytest

from hcd.runs import progress
from hcd.runs.events import NAME, append
from hcd.runs.progress import describe, shown_progress

EPOCH = {
    "event": "epoch",
    "time": "2024-01-01T00:00:00+0000",
    "name": "stage1",
    "epoch": 1,
    "epochs": 8,
    "train": 1.34,
    "valid": 18.5,
    "metrics": {"accuracy": 0.6},
    "seconds": 83.2,
}
LINE = "stage 1, epoch 1 of 8: train 1.34, validation 18.50, accuracy 0.600, 1:23"
CLEAR = "\r\033[K"


def tell_epoch(folder, **changes):
    fields = {name: value for name, value in EPOCH.items() if name not in ("event", "time")}
    append(folder, "epoch", **{**fields, **changes})


def shown(folder, capsys, *tellers):
    """Return what a run shows that tells events while it lives."""
    with shown_progress(folder):
        for teller in tellers:
            teller()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, line",
    [
        ({}, LINE),
        (
            {"name": "stage2", "epoch": 12, "epochs": 12, "train": 0.004, "valid": 0.996},
            "stage 2, epoch 12 of 12: train 0.00, validation 1.00, accuracy 0.600, 1:23",
        ),
        (
            {"name": "stage3"},
            "stage3, epoch 1 of 8: train 1.34, validation 18.50, accuracy 0.600, 1:23",
        ),
        ({"metrics": {}}, "stage 1, epoch 1 of 8: train 1.34, validation 18.50, 1:23"),
        (
            {"metrics": {"accuracy": 1, "auc": 0.12345}},
            (
                "stage 1, epoch 1 of 8: train 1.34, validation 18.50, accuracy 1.000, auc 0.123,"
                " 1:23"
            ),
        ),
        ({"seconds": 0.4}, LINE.replace("1:23", "0:00")),
        ({"seconds": 9}, LINE.replace("1:23", "0:09")),
        ({"seconds": 59.7}, LINE.replace("1:23", "1:00")),
        ({"seconds": 4000}, LINE.replace("1:23", "66:40")),
        ({"field of a later hcd": 3}, LINE),
    ],
)
def test_the_line_of_an_epoch(changes, line):
    assert describe({**EPOCH, **changes}) == line


def test_the_line_of_a_step_is_its_text():
    step = {"event": "step", "text": "12 test patches predicted 4 times", "time": "now"}
    assert describe(step) == "12 test patches predicted 4 times"


@pytest.mark.parametrize("kind", ["attempt", "begun", "warning", "failed", "complete", "Epoch", ""])
def test_other_events_show_nothing(kind):
    assert describe({**EPOCH, "event": kind, "text": "a text"}) == ""


@pytest.mark.parametrize("field", [name for name in EPOCH if name not in ("event", "time")])
def test_an_epoch_without_one_of_its_fields_shows_nothing(field):
    assert describe({name: value for name, value in EPOCH.items() if name != field}) == ""


DAMAGED = [
    ("train", None),
    ("train", "low"),
    ("train", 10**400),
    ("valid", []),
    ("metrics", None),
    ("metrics", ["accuracy"]),
    ("metrics", 0.6),
    ("metrics", {"accuracy": "high"}),
    ("metrics", {"accuracy": None}),
    ("metrics", {"accuracy": 10**400}),
    ("seconds", None),
    ("seconds", "83"),
    ("seconds", float("nan")),
    ("seconds", float("inf")),
    ("name", ["stage1"]),
]


@pytest.mark.parametrize("field, value", DAMAGED, ids=lambda value: repr(value)[:24])
def test_a_damaged_epoch_shows_nothing(field, value):
    assert describe({**EPOCH, field: value}) == ""


def test_a_step_without_a_text_shows_nothing():
    assert describe({"event": "step"}) == ""


def test_in_a_log_each_line_ends(tmp_path, capsys):
    told = shown(
        tmp_path,
        capsys,
        lambda: append(tmp_path, "attempt", process=1),
        lambda: append(tmp_path, "step", text="range test 1 of 3"),
        lambda: tell_epoch(tmp_path),
        lambda: append(tmp_path, "warning", text="odd"),
        lambda: tell_epoch(tmp_path, epoch=2),
    )
    assert told == f"range test 1 of 3\n{LINE}\n{LINE.replace('epoch 1', 'epoch 2')}\n"


def test_on_a_terminal_there_is_one_live_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    told = shown(
        tmp_path,
        capsys,
        lambda: append(tmp_path, "attempt", process=1),
        lambda: append(tmp_path, "step", text="range test 1 of 3"),
        lambda: tell_epoch(tmp_path),
    )
    assert told == f"{CLEAR}range test 1 of 3{CLEAR}{LINE}\n"


def test_a_run_that_tells_nothing_shows_nothing_in_a_log(tmp_path, capsys):
    assert shown(tmp_path, capsys) == ""


def test_after_a_resume_earlier_attempts_are_not_shown_again(tmp_path, capsys):
    append(tmp_path, "attempt", process=1)
    tell_epoch(tmp_path)
    append(tmp_path, "step", text="old")
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'{"event": "step", "text": "torn')
    told = shown(
        tmp_path,
        capsys,
        lambda: append(tmp_path, "attempt", process=2),
        lambda: append(tmp_path, "step", text="new"),
    )
    assert told == "new\n"
    assert shown(tmp_path, capsys) == ""


def test_lines_come_while_the_run_lives(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.001)
    seen, write = threading.Event(), sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: (write(text), seen.set())[0])
    with shown_progress(tmp_path):
        append(tmp_path, "step", text="at once")
        assert seen.wait(timeout=60)
    assert capsys.readouterr().out == "at once\n"


def test_a_run_that_fails_shows_what_it_told_and_fails_as_it_did(tmp_path, capsys):
    def fail():
        append(tmp_path, "step", text="the last")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        shown(tmp_path, capsys, fail)
    assert capsys.readouterr().out == "the last\n"


def test_a_damaged_event_does_not_stop_a_run_or_hide_what_follows(tmp_path, capsys):
    told = shown(
        tmp_path,
        capsys,
        lambda: tell_epoch(tmp_path, metrics=["accuracy"]),
        lambda: append(tmp_path, "step", text="goes on"),
    )
    assert told == "goes on\n"


def test_nobody_who_reads_stops_no_run(tmp_path, monkeypatch):
    class Broken:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stdout", Broken())
    with shown_progress(tmp_path):
        append(tmp_path, "step", text="done")
