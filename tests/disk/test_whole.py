"""A file is there in full or not at all, whatever stops its writing; no run is written over
another."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hcd import prepare_output, write_json
from hcd.disk import whole as files
from hcd.disk.whole import empty_folder, whole_write, writable_folder
from hcd.runs.folder import new_run_folder


def write(path, content):
    with whole_write(path) as file:
        file.write(content)


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"cannot mount a small disk here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# whole_write


def test_it_writes_bytes_and_text_and_leaves_nothing_beside(tmp_path):
    write(tmp_path / "a", b"\0\1")
    with whole_write(tmp_path / "b", "w", encoding="latin-1", newline="") as file:
        file.write("é\n")
    assert (tmp_path / "a").read_bytes() == b"\0\1" and (tmp_path / "b").read_bytes() == b"\xe9\n"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_link_is_replaced_and_a_pipe_or_device_is_refused(tmp_path):
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "link").symlink_to("victim")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "victim").read_bytes() == b"old" and (
        tmp_path / "link"
    ).read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(OSError, match=f"{name} is a device or a pipe; name a file"):
            write(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()


def test_the_older_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with whole_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_the_older_file_and_nothing_beside(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_write(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_kill_at_any_moment_leaves_the_older_file_or_the_new_one(tmp_path):
    path, size = tmp_path / "a", 300_000
    path.write_bytes(b"\0" * size)
    code = (
        "import importlib.util; spec = importlib.util.spec_from_file_location('files',"
        f" {files.__file__!r}); files = importlib.util.module_from_spec(spec);"
        " spec.loader.exec_module(files); number = 0\nwhile True:\n number += 1\n with"
        f" files.whole_write({str(path)!r}) as file:\n  for _ in range(10):"
        f" file.write(bytes([number % 256]) * {size // 10})\n  if number == 1: print(flush=True)"
    )
    seen = set()
    for attempt in range(6):
        with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(0.004 * attempt)
            writer.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == size and len(set(content)) == 1
        assert all(name.endswith(".part") for name in os.listdir(tmp_path) if name != "a")
        seen.add(content[0])
    assert len(seen) > 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch, refused, call):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))
    with refused(
        OSError, path, "cannot be written", "No space left on device", "nothing was changed"
    ) as caught:
        write(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_disk_that_is_really_full(tiny_disk, refused):
    path = tiny_disk / "a"
    path.write_bytes(b"old")
    with refused(OSError, path, "No space left on device", "free space"):
        write(path, bytes(100_000))
    assert path.read_bytes() == b"old" and os.listdir(tiny_disk) == ["a"]
    write(path, bytes(30_000))
    assert path.read_bytes() == bytes(30_000)


def test_a_model_on_a_disk_that_is_really_full(tiny_disk, refused, tmp_path):
    from hcd.engine.compat import Learner

    learner = Learner.__new__(Learner)
    learner.path, learner.model_dir, learner.model = tiny_disk, "models", nn_of(30_000)
    with refused(OSError, tiny_disk / "models" / "a.pth", "No space left on device", "free space"):
        learner.save("a")
    assert os.listdir(tiny_disk / "models") == []


def nn_of(count):
    import torch

    return torch.nn.Linear(count, 1)


def test_places_that_cannot_be_written(tmp_path, refused):
    (tmp_path / "file").write_bytes(b"kept")
    for path in (
        tmp_path / "file" / "a",
        tmp_path / "none" / "a",
        tmp_path / ("n" * 300),
        tmp_path,
    ):
        with refused(OSError, path, "cannot be written", "name another place"):
            write(path, b"x")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"kept"


def test_a_folder_without_permission(tmp_path, monkeypatch, refused):
    # the tests may run as root, whom permissions do not bind
    monkeypatch.setattr("builtins.open", fail_with(errno.EACCES))
    with refused(PermissionError, tmp_path / "a", "Permission denied"):
        write(tmp_path / "a", b"x")


# JSON


def test_json_comes_back_as_it_was(tmp_path):
    content = {"auc": 0.9941, "names": ["ä", None, True], "nested": {"1": [1e-6, -3]}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == content


@pytest.mark.parametrize("content", [{"auc": float("nan")}, [float("inf")], {"a": object()}])
def test_what_is_no_json_leaves_the_older_file(tmp_path, content):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == "1" and os.listdir(tmp_path) == ["a.json"]


# folders


def test_every_run_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(
            pool.map(lambda _: new_run_folder(tmp_path / "outputs", "sample"), range(40))
        )
    assert len(set(folders)) == 40 and all(
        folder.is_dir() and not os.listdir(folder) for folder in folders
    )
    assert all(
        time.strftime("%Y%m%d") in folder.name and "-sample" in folder.name for folder in folders
    )


def test_without_a_name_the_run_goes_under_outputs_beside_or_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_output().parent == Path("outputs") and (tmp_path / "outputs").is_dir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert prepare_output().resolve().parent == tmp_path / "outputs"
    assert len(os.listdir(tmp_path / "outputs")) == 2 and not os.listdir(tmp_path / "notebooks")


@pytest.mark.parametrize("name", ["metrics.json", "models", "model"])
def test_an_earlier_run_is_never_written_over(tmp_path, refused, name):
    (tmp_path / "notes.txt").touch()
    assert (
        prepare_output(tmp_path) == tmp_path and prepare_output(str(tmp_path / "a" / "b")).is_dir()
    )
    (tmp_path / name).mkdir()
    with refused(FileExistsError, tmp_path, name, "never written over"):
        prepare_output(tmp_path)


@pytest.mark.parametrize("make", [prepare_output, writable_folder, empty_folder])
def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch, refused, make):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "is a file"),
        (tmp_path / "file" / "deeper", "cannot be written"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with refused(OSError, path, words, "name a"):
            make(path)
    assert (tmp_path / "file").read_bytes() == b"kept"
    monkeypatch.setattr(Path, "touch", fail_with(errno.EROFS))
    with refused(OSError, tmp_path, "Read-only file system"):
        make(tmp_path / "new")


@pytest.mark.parametrize(
    "number", {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}, ids=os.strerror
)
def test_a_file_system_without_locks_takes_a_run(tmp_path, monkeypatch, number):
    monkeypatch.setattr(pytest.importorskip("fcntl"), "lockf", fail_with(number))
    monkeypatch.setattr(
        time, "sleep", lambda seconds: pytest.fail("waits for a lock that nobody holds")
    )
    assert prepare_output(tmp_path) == tmp_path


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_run_holds_is_waited_for(tmp_path, monkeypatch, refused, number):
    waited = []
    monkeypatch.setattr(pytest.importorskip("fcntl"), "lockf", fail_with(number))
    monkeypatch.setattr(time, "sleep", waited.append)
    with refused(BlockingIOError, tmp_path, "another run is still writing"):
        prepare_output(tmp_path)
    assert 4 < sum(waited) < 6


def test_a_parent_that_is_a_file(tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for parent in (tmp_path / "file", tmp_path / "link"):
        with refused(OSError, parent, "name a"):
            new_run_folder(parent)


def test_empty_folder_wants_nothing_in_it_and_leaves_nothing(tmp_path, refused):
    assert empty_folder(tmp_path / "a") == tmp_path / "a" and not os.listdir(tmp_path / "a")
    (tmp_path / "a" / ".hidden").touch()
    with refused(FileExistsError, tmp_path / "a", "is not empty"):
        empty_folder(tmp_path / "a")
    assert writable_folder(tmp_path / "a") == tmp_path / "a" and os.listdir(tmp_path / "a") == [
        ".hidden"
    ]
