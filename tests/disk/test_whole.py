"""A file is there in full or not at all, whatever stops its writing; no run is written over
another."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import CHECKOUT

from hcd import write_json
from hcd.disk import whole
from hcd.disk.whole import empty_folder, whole_write, writable_folder


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
    with whole_write(tmp_path / "b", "w", newline="") as file:
        file.write("é\n")
    assert (tmp_path / "a").read_bytes() == b"\0\1" and (
        tmp_path / "b"
    ).read_bytes() == b"\xc3\xa9\n"
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
    from hcd.engine.saving import Learner

    learner = Learner.__new__(Learner)
    learner.path, learner.model_dir, learner.model = tiny_disk, "models", nn_of(30_000)
    with refused(OSError, tiny_disk / "models" / "a.pth", "No space left on device", "free space"):
        learner.save("a")
    assert os.listdir(tiny_disk / "models") == []


def nn_of(count):
    import torch

    return torch.nn.Linear(count, 1)


def test_places_that_cannot_be_written(tmp_path, refused, monkeypatch):
    (tmp_path / "file").write_bytes(b"kept")
    for path in (
        tmp_path / "file" / "a",
        tmp_path / "none" / "a",
        tmp_path / ("n" * 300),
        tmp_path,
    ):
        with refused(OSError, path, "cannot be written", "name another place"):
            write(path, b"x")
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES))  # root may write everywhere
    with refused(PermissionError, tmp_path / "a", "Permission denied"):
        write(tmp_path / "a", b"x")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"kept"


WRITER = """
import sys
from hcd.disk.whole import whole_write
number = 0
while True:
    number += 1
    with whole_write(sys.argv[1]) as file:
        for _ in range(10):
            file.write(bytes([number % 256]) * 30_000)
            print(number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 9, 10, 11, 25])
def test_a_kill_at_any_moment_leaves_the_older_file_or_the_new_one(tmp_path, lines):
    """Killed after so many tenths of files have been written, however long that takes."""
    path = tmp_path / "a"
    path.write_bytes(b"\0" * 300_000)
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as writer:
        told = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
    content = path.read_bytes()
    assert len(content) == 300_000 and len(set(content)) == 1
    assert content[0] >= told[-1] - 1  # what was whole by then stays
    whole.sweep_parts(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_what_the_body_raises_comes_out_as_it_is(tmp_path):
    mine = OSError(errno.ENOSPC, "another disk's")
    with pytest.raises(OSError) as caught, whole_write(tmp_path / "a", "w"):
        raise mine
    assert caught.value is mine and os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_in_the_body_is_told_of_this_file(tiny_disk, refused):
    reached = []
    with refused(OSError, tiny_disk / "a", "No space left"), whole_write(tiny_disk / "a") as file:
        for _ in range(20):
            file.write(bytes(10_000))
            reached.append(1)
    assert len(reached) < 20 and os.listdir(tiny_disk) == []


def test_writers_in_threads_and_processes_never_share_a_temporary_file(tmp_path):
    """Each file is of one writer alone, whole, at any time."""
    path = tmp_path / "shared"

    def write_many(number):
        for _ in range(40):
            write(path, bytes([number]) * 50_000)
            assert len(set(path.read_bytes())) == 1
            writable_folder(tmp_path / "folder")

    def process(number):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write_many, range(number, number + 4)))

    children = [
        multiprocessing.get_context("fork").Process(target=process, args=(n,)) for n in (0, 4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["folder", "shared"]
    assert os.listdir(tmp_path / "folder") == []


def test_names_up_to_the_file_systems_limit(tmp_path):
    write(tmp_path / ("n" * 255), b"x")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_an_older_files_permissions_stay_and_a_new_one_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a", b"old")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        (tmp_path / "a").chmod(0o604)
        write(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o604


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_in_a_folder_that_is_written_are_found(tmp_path, refused):
    (tmp_path / "victim").mkdir()
    (tmp_path / "mine/deep").mkdir(parents=True)
    whole.refuse_links(tmp_path / "mine")
    (tmp_path / "mine/deep/link").symlink_to(tmp_path / "victim")
    with refused(OSError, "mine/deep/link", "is a link to", "name the place itself"):
        whole.refuse_links(tmp_path / "mine")
    with refused(OSError, "mine/deep/link"):
        writable_folder(tmp_path / "mine/deep/link")
    assert os.listdir(tmp_path / "victim") == []


def test_sweeping_takes_only_what_is_ours(tmp_path):
    part = tmp_path / whole.PART.format("0123456789abcdef")
    for path in (part, tmp_path / ".hcd-mine.part", tmp_path / "a.part"):
        path.touch()
    whole.sweep_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hcd-mine.part", "a.part"]


@pytest.mark.parametrize("make", [writable_folder, empty_folder])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, refused, make):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "is a link"),
        (tmp_path / "file" / "deeper", "cannot be written"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with refused(OSError, path, words):
            make(path)
    assert (tmp_path / "file").read_bytes() == b"kept"
    monkeypatch.setattr(tempfile, "TemporaryFile", fail_with(errno.EROFS))
    with refused(OSError, tmp_path, "Read-only file system"):
        make(tmp_path / "new")


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


def test_empty_folder_wants_nothing_in_it_and_leaves_nothing(tmp_path, refused):
    assert empty_folder(tmp_path / "a") == tmp_path / "a" and not os.listdir(tmp_path / "a")
    (tmp_path / "a" / ".hidden").touch()
    with refused(FileExistsError, tmp_path / "a", "is not empty"):
        empty_folder(tmp_path / "a")
    assert writable_folder(tmp_path / "a") == tmp_path / "a" and os.listdir(tmp_path / "a") == [
        ".hidden"
    ]
