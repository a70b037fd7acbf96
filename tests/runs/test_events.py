"""Every event that was written whole is read once and in order, whatever lies around it."""

import json
import os
import resource
import subprocess
import sys

import pytest

from hcd.runs import events
from hcd.runs.events import NAME, RUN, Follower, append, last_attempt, read, tell

WRITER = """
import sys
from hcd.runs.events import append
folder, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.read()
for number in range(40):
    append(folder, "step", writer=name, number=number, text=name * 9000)
"""
ODD = ["two\nlines", "a\r\x0b\x0c\x1c\x85\u2028b", "grün 🔬", '"}\n{"event": "no"}', "", "\x00"]


def put(folder, content):
    with open(folder / NAME, "ab") as file:
        file.write(content)


def texts(found):
    return [event.get("text") for event in found]


def test_an_event_is_one_json_object_on_one_line(tmp_path):
    append(tmp_path, "step", text="one", count=3, more={"a": [1.5, None]})
    append(tmp_path, "step", text="two")
    content = (tmp_path / NAME).read_bytes()
    assert content.count(b"\n") == 2 and content.endswith(b"}\n")
    first, second = read(tmp_path)
    assert first.pop("time")[:2] == "20"
    assert first == {"event": "step", "text": "one", "count": 3, "more": {"a": [1.5, None]}}
    assert (second["event"], second["text"]) == ("step", "two")


def test_several_attempts_leave_no_line_that_is_no_json(tmp_path):
    for text in "one", "two":
        append(tmp_path, "attempt", text=text)
        append(tmp_path, "step", text=text)
    lines = (tmp_path / NAME).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "one", "two", "two"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back_from_one_line(tmp_path, text):
    append(tmp_path, "warning", text=text)
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 1
    assert texts(read(tmp_path)) == [text]


def test_what_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError):
        append(tmp_path, "step", text=object())
    assert not (tmp_path / NAME).exists()


def test_where_there_is_no_file_there_are_no_events(tmp_path):
    assert read(tmp_path) == [] and read(tmp_path / "nowhere") == []
    with pytest.raises(FileNotFoundError):
        append(tmp_path / "nowhere", "step")


def test_a_line_that_a_kill_has_torn_is_passed_over_at_every_length(tmp_path):
    append(tmp_path, "step", text="lost")
    line = (tmp_path / NAME).read_bytes()
    for length in range(len(line) - 1):
        (tmp_path / NAME).write_bytes(b"")
        append(tmp_path, "step", text="before")
        put(tmp_path, line[:length])
        assert texts(read(tmp_path)) == ["before"]
        append(tmp_path, "attempt", text="next")
        append(tmp_path, "step", text="after")
        assert texts(read(tmp_path)) == ["before", "next", "after"], length


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"   ",
        b"no json",
        b'{"event": "step"',
        b"[]",
        b'["event"]',
        b'"event"',
        b"3",
        b"null",
        b"{}",
        b'{"text": "no event"}',
        b'{"event": null}',
        b'{"event": 3}',
        b'{"event": ["step"]}',
        b'{"event": "\xff"}',
        b"\x00\x00\x00",
        b"[" * 100_000,
        b'{"event": "step", "n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda line: repr(line[:24]),
)
def test_a_line_that_is_no_event_is_passed_over(tmp_path, line):
    append(tmp_path, "step", text="before")
    put(tmp_path, line + b"\n")
    append(tmp_path, "step", text="after")
    assert texts(read(tmp_path)) == ["before", "after"]


def test_eight_processes_at_once_lose_and_mix_no_line(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "abcdefgh"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.close()
    for writer in writers:
        assert writer.wait(timeout=60) == 0
        writer.stdout.close()
    found = read(tmp_path)
    assert len(found) == 320 == (tmp_path / NAME).read_bytes().count(b"\n")
    for name in "abcdefgh":
        own = [event for event in found if event["writer"] == name]
        assert [event["number"] for event in own] == list(range(40))
        assert {event["text"] for event in own} == {name * 9000}


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs a system that can refuse links")
def test_a_link_in_the_files_place_is_not_written_through(tmp_path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("mine\n")
    for target in (victim, tmp_path / "nowhere"):
        (run / NAME).symlink_to(target)
        for kind in ("attempt", "step"):
            with pytest.raises(OSError):
                append(run, kind, text="through")
        (run / NAME).unlink()
    assert victim.read_text() == "mine\n" and not (tmp_path / "nowhere").exists()


def test_an_event_that_the_disk_does_not_take_whole_is_told(tmp_path):
    append(tmp_path, "step", text="before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as on a disk with 20 bytes left
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / NAME).stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError):
            append(tmp_path, "step", text="lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert texts(read(tmp_path)) == ["before"]


def test_a_follower_tells_each_event_once(tmp_path):
    follower = Follower(tmp_path)
    assert follower.new() == []
    append(tmp_path, "attempt", text="one")
    append(tmp_path, "step", text="two")
    assert texts(follower.new()) == ["one", "two"] and follower.new() == []
    append(tmp_path, "step", text="three")
    assert texts(follower.new()) == ["three"] and follower.new() == []


def test_a_follower_waits_for_the_end_of_a_line(tmp_path):
    append(tmp_path, "step", text="slow")
    line = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(b"")
    follower = Follower(tmp_path)
    for place in range(len(line) - 1):
        put(tmp_path, line[place : place + 1])
        assert follower.new() == []
    put(tmp_path, line[-1:])
    assert texts(follower.new()) == ["slow"]


@pytest.mark.parametrize("torn", [b"", b'{"event": "st'])
def test_a_follower_from_the_end_tells_only_what_comes_after(tmp_path, torn):
    append(tmp_path, "step", text="before")
    put(tmp_path, torn)
    follower = Follower(tmp_path, from_end=True)
    assert follower.new() == []
    append(tmp_path, "attempt", text="next")
    append(tmp_path, "step", text="after")
    assert texts(follower.new()) == ["next", "after"]


def test_a_follower_from_the_end_of_a_file_that_is_not_there_yet(tmp_path):
    follower = Follower(tmp_path, from_end=True)
    append(tmp_path, "attempt", text="first")
    assert texts(follower.new()) == ["first"]


def test_the_last_attempt_begins_with_its_own_event(tmp_path):
    assert last_attempt([]) == []
    append(tmp_path, "step", text="0")
    assert texts(last_attempt(read(tmp_path))) == ["0"]
    for text in "14":
        append(tmp_path, "attempt", text=text)
        append(tmp_path, "begun", text=text)
        append(tmp_path, "failed", text=text)
    found = last_attempt(read(tmp_path))
    assert [event["event"] for event in found] == ["attempt", "begun", "failed"]
    assert texts(found) == ["4", "4", "4"]


@pytest.mark.parametrize("folder", [None, ""])
def test_outside_a_run_nothing_is_told(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN, raising=False)
    if folder is not None:
        monkeypatch.setenv(RUN, folder)
    monkeypatch.setattr(events, "append", lambda *_, **__: pytest.fail("it was told"))
    tell("step", text="nobody asks")
    assert list(tmp_path.iterdir()) == []


def test_within_a_run_it_is_told_there(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN, str(tmp_path))
    tell("step", text="here")
    assert texts(read(tmp_path)) == ["here"]
