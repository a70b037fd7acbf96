"""`hcd notebook`: a copy of the walkthrough's notebook, that takes nobody's place."""

import importlib.util
import os
import sys

import nbclient
import nbformat
import pytest
from conftest import CHECKOUT

from hcd.cli import main
from hcd.errors import InputError
from hcd.runs import template
from hcd.runs.template import copy_notebook, find_notebook

NOTEBOOK = CHECKOUT / "notebooks/walkthrough.ipynb"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has_jupyterlab(monkeypatch, answer):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: answer if name == "jupyterlab" else find(name)
    )


def test_the_copy_is_the_file_that_hcd_run_executes(here, capsys, monkeypatch):
    has_jupyterlab(monkeypatch, object())
    assert main(["notebook"]) == 0
    assert (here / "walkthrough.ipynb").read_bytes() == NOTEBOOK.read_bytes()
    assert find_notebook() == NOTEBOOK
    assert [path.name for path in here.iterdir()] == ["walkthrough.ipynb"]
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "jupyter lab walkthrough.ipynb" and not err


def test_without_jupyterlab_the_hint_says_how_to_get_it(capsys, monkeypatch):
    has_jupyterlab(monkeypatch, None)
    assert main(["notebook", "mine.ipynb"]) == 0
    *_, command, remedy = capsys.readouterr().out.splitlines()
    assert command == "jupyter lab mine.ipynb"
    assert remedy.endswith("install it with pip install 'hcd[notebook]'")
    assert '"notebook": ["jupyterlab' in (CHECKOUT / "setup.py").read_text()


@pytest.mark.parametrize(
    "name, command",
    [("a b.ipynb", "jupyter lab 'a b.ipynb'"), ("-x.ipynb", "jupyter lab ./-x.ipynb")],
)
def test_the_command_is_as_a_shell_takes_it(here, capsys, name, command):
    assert main(["notebook", "--", name]) == 0
    assert command in capsys.readouterr().out.splitlines()
    assert (here / name).is_file()


def test_nothing_is_written_over(here, refused, capfd):
    (here / "mine.ipynb").write_text("mine")
    with refused(FileExistsError, "mine.ipynb is there already"):
        copy_notebook("mine.ipynb")
    assert (here / "mine.ipynb").read_text() == "mine"
    assert main(["notebook", "mine.ipynb"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_nothing_is_written_over_that_came_between_look_and_write(here, monkeypatch, refused):
    monkeypatch.setattr(template, "_refuse_place", lambda path: path.write_text("another's"))
    with refused(FileExistsError, "is not written over"):
        copy_notebook("mine.ipynb")
    assert (here / "mine.ipynb").read_text() == "another's"


@pytest.mark.parametrize("target", ["there.ipynb", "nowhere"])
def test_no_link_is_followed(here, refused, target):
    (here / "there.ipynb").write_text("mine")
    (here / "link.ipynb").symlink_to(target)
    with refused(OSError, "link.ipynb is a link"):
        copy_notebook("link.ipynb")
    assert (here / "there.ipynb").read_text() == "mine" and not (here / "nowhere").exists()


def test_no_folder_behind_a_link_is_written_into(here, refused):
    (here / "there").mkdir()
    (here / "link").symlink_to("there")
    with refused(OSError, "link is a link to there"):
        copy_notebook("link/mine.ipynb")
    assert not list((here / "there").iterdir())


def test_places_that_are_none(here, refused):
    (here / "there").mkdir()
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    with refused(InputError, "there is a folder", "there/walkthrough.ipynb"):
        copy_notebook("there")
    with refused(InputError, "mine does not end in .ipynb", "mine.ipynb"):
        copy_notebook("mine")
    for folder in ("new", "file"):
        with refused(FileNotFoundError, f"{folder} is no folder"):
            copy_notebook(f"{folder}/mine.ipynb")
    with refused(OSError, "cannot be written"):
        copy_notebook(f"{'n' * 300}.ipynb")
    assert main(["notebook", ""]) == 2
    assert sorted(here.rglob("*")) == before


def test_of_a_copy_that_fails_nothing_is_left(here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="mine.ipynb cannot be written"):
        copy_notebook("mine.ipynb")
    assert not list(here.iterdir())


@pytest.mark.long
def test_the_copy_runs_as_it_is_from_any_folder(here, run_recipe, monkeypatch):
    """But for a smaller recipe, which saves minutes; nbclient executes it as Jupyter does."""
    notebook = nbformat.read(copy_notebook("mine.ipynb"), 4)
    small = ("arch", "batch_size", "sweep_iterations", "head_epochs", "finetune_epochs")
    changes = {name: getattr(run_recipe, name) for name in (*small, "tta_passes")}
    code = [one for one in notebook.cells if one.cell_type == "code"]
    assert "recipe_changes = {}" in code[0].source
    code[0].source = code[0].source.replace("recipe_changes = {}", f"recipe_changes = {changes}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    ).execute()
    (folder,) = (here / "outputs").iterdir()
    assert (folder / "metrics.json").is_file() and (folder / "model/card.json").is_file()
    outputs = [output for one in code for output in one.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]  # red in Jupyter
    pages = [output.data.get("text/html", "") for output in outputs if "data" in output]
    assert pages and not [page for page in pages if "<progress" in page]  # no dead bars
