"""Locks hold as long as their process, whatever else it does with the file, and no longer."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from conftest import CHECKOUT

from hcd.disk.locks import NO_LOCKS, take_lock

fcntl = pytest.importorskip("fcntl")
HOLDER = """
import sys, time
from hcd.disk.locks import take_lock
lock = take_lock(sys.argv[1], "held")
print("ready", flush=True)
time.sleep(600)
"""


def fails(path):
    with pytest.raises(BlockingIOError, match="^held$"):
        take_lock(path, "held", patience=0)


def test_it_holds_when_the_process_opens_and_closes_the_file(tmp_path):
    lock = take_lock(tmp_path / "lock", "held")
    (tmp_path / "lock").read_bytes()
    (tmp_path / "lock").open("r+b").close()
    fails(tmp_path / "lock")
    lock.release()
    lock.release()  # again does nothing
    take_lock(tmp_path / "lock", "held", patience=0).release()


def test_another_process_holds_it_to_its_end(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as holder:
        holder.stdout.readline()
        fails(tmp_path / "lock")
        holder.kill()
    take_lock(tmp_path / "lock", "held").release()


def test_a_forked_worker_has_no_share_in_it(tmp_path):
    lock = take_lock(tmp_path / "lock", "held")
    fork = multiprocessing.get_context("fork")
    ready, end = fork.Event(), fork.Event()

    def work():
        ready.set()
        end.wait(60)

    worker = fork.Process(target=work)
    worker.start()
    assert ready.wait(60)
    fails(tmp_path / "lock")
    lock.release()
    take_lock(tmp_path / "lock", "held", patience=0).release()  # although the worker lives
    end.set()
    worker.join()


def test_a_lock_that_is_held_is_waited_for(tmp_path, monkeypatch):
    clock, lock = [0.0], take_lock(tmp_path / "lock", "held")
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(BlockingIOError):
        take_lock(tmp_path / "lock", "held", patience=5)
    assert 4.9 < clock[0] < 5.3
    lock.release()


@pytest.mark.parametrize("number", sorted(NO_LOCKS), ids=os.strerror)
def test_a_file_system_without_locks_takes_it(tmp_path, monkeypatch, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits for what nobody holds"))
    take_lock(tmp_path / "lock", "held").release()


def test_a_link_is_not_locked_through(tmp_path, refused):
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with refused(OSError, tmp_path / "lock", "is a link"):
        take_lock(tmp_path / "lock", "held")
    assert not (tmp_path / "victim").exists()


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(OSError) as caught:
        take_lock(tmp_path / "none" / "lock", "held")
    assert caught.value.errno == errno.ENOENT
