"""The notebook's process is this very Python, and finds of the user's settings only what it
should."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from hcd import InputError
from hcd.errors import Diverged
from hcd.runs import events
from hcd.runs.events import RUN
from hcd.runs.kernel import LAUNCH, load_ipython_extension, own_environment, own_kernel

FIND = "import importlib.util; print(importlib.util.find_spec('ipykernel').origin)"
USERS = {"JUPYTER_PATH": "/users", "IPYTHONDIR": "/profiles", "MPLBACKEND": "tkagg", RUN: "/other"}


# the environment


def test_processes_find_the_run_and_nothing_of_the_users(tmp_path, monkeypatch):
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USERS_OWN", "stays")
    monkeypatch.chdir(tmp_path)
    with own_environment("run"):
        assert os.environ[RUN] == str(tmp_path.resolve() / "run")
        assert "JUPYTER_PATH" not in os.environ
        assert os.environ["JUPYTER_PREFER_ENV_PATH"] == "1"
        assert os.environ["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
        assert list(Path(os.environ["IPYTHONDIR"]).iterdir()) == []
        assert os.environ["USERS_OWN"] == "stays"


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_the_environment_comes_back_as_it_was(tmp_path, monkeypatch, error):
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
    for name in ("OMP_WAIT_POLICY", "JUPYTER_PREFER_ENV_PATH", "NEW"):
        monkeypatch.delenv(name, raising=False)
    before, raised = dict(os.environ), None
    try:
        with own_environment(tmp_path):
            empty = Path(os.environ["IPYTHONDIR"])
            (empty / "profile_default").mkdir()  # as IPython does
            os.environ["NEW"] = "from within"
            assert dict(os.environ) != before
            if error:
                raise error
    except (KeyError, KeyboardInterrupt) as caught:
        raised = type(caught)
    assert raised is error
    assert dict(os.environ) == before
    assert not empty.exists()


@pytest.mark.parametrize(
    "users, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE"), ("PASSIVE", "PASSIVE"), ("", "")]
)
def test_a_wait_policy_of_the_users_own_stays(tmp_path, monkeypatch, users, found):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if users is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", users)
    with own_environment(tmp_path):
        assert os.environ["OMP_WAIT_POLICY"] == found
    assert os.environ.get("OMP_WAIT_POLICY") == users


# how it is started


@pytest.mark.parametrize("name", ["python3", "nobody has this one"])
def test_it_is_this_python_whatever_kernels_the_user_has(tmp_path, monkeypatch, name):
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "y"}
    (tmp_path / "kernels/python3").mkdir(parents=True)
    (tmp_path / "kernels/python3/kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    # or the rest shows nothing
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/bin/false"
    argv = own_kernel()(kernel_name=name).kernel_spec.argv
    assert argv[:5] == [sys.executable, "-c", LAUNCH, "-f", "{connection_file}"]
    assert "/bin/false" not in argv


def test_nothing_is_imported_from_the_folder_that_the_user_is_in(tmp_path):
    (tmp_path / "ipykernel.py").write_text("print('planted')")
    head, between, rest = LAUNCH.partition("from ipykernel")
    assert between and "ipykernel" not in head
    names = ("PYTHONPATH", "PYTHONSAFEPATH")  # the user's say in it is another matter
    environment = {name: value for name, value in os.environ.items() if name not in names}

    def found(program):
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    planted = str(tmp_path / "ipykernel.py")
    assert found(FIND) == planted  # or the rest shows nothing
    assert Path(found(head + FIND)).name == "__init__.py"
    assert found(head + "print('' in sys.path)") == "False"


# what it tells


@pytest.fixture
def after_cell(tmp_path, monkeypatch):
    """What the extension has called after each cell of a notebook of the run in tmp_path."""
    monkeypatch.setenv(RUN, str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", lambda *_: None)
    called = {}
    load_ipython_extension(SimpleNamespace(events=SimpleNamespace(register=called.__setitem__)))
    assert list(called) == ["post_run_cell"]
    return called["post_run_cell"]


def result(before=None, within=None):
    return SimpleNamespace(error_before_exec=before, error_in_exec=within)


def test_it_tells_that_an_attempt_begins_and_cells_that_succeed_add_nothing(tmp_path, after_cell):
    after_cell(result())
    (attempt,) = events.read(tmp_path)
    assert (attempt["event"], attempt["process"]) == ("attempt", os.getpid())


@pytest.mark.parametrize(
    "error, mendable, final",
    [
        (InputError("mend it"), True, False),
        (OSError("disk"), True, False),
        (Diverged("no number"), True, True),
        (KeyError("bug"), False, False),
        (ValueError("bug"), False, False),
    ],
)
@pytest.mark.parametrize("place", ["before", "within"])
def test_it_tells_a_failure_and_whether_it_can_be_mended(
    tmp_path, after_cell, error, mendable, final, place
):
    after_cell(result(**{place: error}))
    _, failed = events.read(tmp_path)
    assert failed["event"] == "failed" and failed["text"] == str(error)
    assert (failed["mendable"], failed["final"]) == (mendable, final)


def test_it_tells_a_warning_and_shows_it_as_before(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setenv(RUN, str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", lambda *arguments: shown.append(arguments))
    load_ipython_extension(SimpleNamespace(events=SimpleNamespace(register=lambda *_: None)))
    message = UserWarning("odd")
    warnings.showwarning(message, UserWarning, "/a.py", 3)
    assert events.read(tmp_path)[-1]["text"] == "/a.py:3: UserWarning: odd"
    assert shown == [(message, UserWarning, "/a.py", 3)]
