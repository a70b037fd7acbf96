"""A run's folder: its own, where it should be, locked, and as it was when the run is refused."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import CHECKOUT

from hcd import prepare_output
from hcd.runs import folder as folder_module
from hcd.runs.events import RUN
from hcd.runs.folder import NAMES, locked_output, new_run_folder, outputs_folder, remove_run

HELD = """
import sys, time, hcd
hcd.prepare_output(sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def released():
    """Let go of the locks of each test."""
    yield
    while folder_module._held:
        folder_module._held.popitem()[1].release()


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def test_every_run_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path / "outputs", "a"), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() and not os.listdir(folder) for folder in folders)
    year = time.strftime("%Y")
    assert all(folder.name.startswith(year) and "-a" in folder.name for folder in folders)


def test_a_parent_that_is_a_file(tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for parent in (tmp_path / "file", tmp_path / "link"):
        with refused(OSError, parent, "name a"):
            new_run_folder(parent)


def test_runs_go_beside_the_working_folder_and_never_above_it(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert prepare_output().resolve().parent == tmp_path / "deeper/outputs"
    assert os.listdir(tmp_path / "outputs") == []


def test_in_a_folder_of_the_checkout_they_go_to_its_own_outputs(monkeypatch):
    monkeypatch.chdir(CHECKOUT / "notebooks")
    assert outputs_folder() == CHECKOUT / "outputs"
    monkeypatch.chdir(CHECKOUT)
    assert outputs_folder().resolve() == CHECKOUT / "outputs"


@pytest.mark.parametrize("name", [name.replace("*", "x") for name in NAMES])
def test_a_link_that_leads_nowhere_is_there_too(tmp_path, refused, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "nowhere")
    with refused(FileExistsError, tmp_path, name, "never written over"):
        prepare_output(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == [name] and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [name.replace("*", "x") for name in NAMES])
def test_nothing_that_a_run_writes_may_be_there(tmp_path, refused, name):
    (tmp_path / "notes.txt").touch()
    (tmp_path / name).write_bytes(b"mine")
    before = contents(tmp_path)
    with refused(FileExistsError, tmp_path, name, "never written over"):
        prepare_output(tmp_path)
    with refused(FileExistsError, name), locked_output(tmp_path):
        pytest.fail("was let in")
    assert {k: v for k, v in contents(tmp_path).items() if not k.name.startswith(".lock")} == before


def test_a_folder_that_a_run_may_write_into(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert prepare_output(tmp_path) == tmp_path == prepare_output(tmp_path)  # cells are run again
    assert prepare_output(str(tmp_path / "a/b")).is_dir()


def test_a_link_is_not_written_through(tmp_path, refused):
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with refused(OSError, tmp_path / "link", "is a link"):
        prepare_output(tmp_path / "link")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(tmp_path / "victim")
    for resume in (
        lambda: prepare_output(tmp_path / "run", resume=True),
        lambda: locked_output(tmp_path / "run", resume=True).__enter__(),
    ):
        with refused(OSError, tmp_path / "run/model", "is a link"):
            resume()
    assert os.listdir(tmp_path / "victim") == [] and os.listdir(tmp_path / "run") == ["model"]


def test_nobody_gets_in_while_a_process_holds_it(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(folder_module.take_lock, "__defaults__", (0,))
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HELD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as holder:
        holder.stdout.readline()
        before = contents(folder)
        with refused(BlockingIOError, folder, "another run is still writing"):
            prepare_output(folder)
        with refused(BlockingIOError, folder), locked_output(folder):
            pytest.fail("was let in")
        assert contents(folder) == before
        holder.kill()
    with locked_output(folder):
        pass


def test_the_commands_lock_is_handed_to_its_notebook_and_to_nobody_else(
    tmp_path, refused, monkeypatch
):
    monkeypatch.setattr(folder_module.take_lock, "__defaults__", (0,))
    with locked_output(tmp_path / "run") as folder:
        with refused(BlockingIOError, folder):
            prepare_output(folder)
        monkeypatch.setenv(RUN, str(folder.resolve()))
        assert prepare_output(folder) == folder
        monkeypatch.delenv(RUN)
    with refused(BlockingIOError, folder), locked_output(folder):  # the notebook lives on
        pytest.fail("was let in")


def test_a_refused_run_is_removed_and_what_was_there_stays(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    before = contents(tmp_path)
    with locked_output(tmp_path):
        (tmp_path / "run.json").touch()
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures/in01.png").touch()
        remove_run(tmp_path, keep_folder=True)
    assert contents(tmp_path) == before
    remove_run(tmp_path)
    assert tmp_path.is_dir()  # for it holds something
    (tmp_path / "mine").unlink()
    remove_run(tmp_path)
    assert not tmp_path.exists()


def test_nothing_to_resume(tmp_path, refused):
    with refused(FileNotFoundError, "resume needs the folder"):
        prepare_output(resume=True)
    with refused(FileNotFoundError, tmp_path / "none", "no run to resume"):
        prepare_output(tmp_path / "none", resume=True)
    assert not Path(tmp_path / "none").exists()


def test_a_run_that_took_the_folder_in_between_keeps_it(tmp_path, monkeypatch, refused):
    folder = tmp_path / "run"
    make = folder_module.writable_folder

    def taken_first(path):
        make(path)
        (folder / "run.json").write_text("the first one's")
        lock = folder_module.take_lock(folder / ".lock", "held")
        folder_module._held[folder / ".lock"] = lock
        return path

    monkeypatch.setattr(folder_module, "writable_folder", taken_first)
    monkeypatch.setattr(folder_module.take_lock, "__defaults__", (0,))
    with refused(BlockingIOError, folder), locked_output(folder):
        pytest.fail("was let in")
    assert (folder / "run.json").read_text() == "the first one's"


def test_a_link_of_the_users_beside_the_run_does_not_stop_its_resume(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "mine").symlink_to("/")
    with locked_output(tmp_path, resume=True) as output:
        assert output == tmp_path
