"""The repository keeps the notebook as it was before anybody ran it."""

import runpy
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import CHECKOUT

NOTEBOOK = CHECKOUT / "notebooks/walkthrough.ipynb"
COMMAND = "python notebooks/clear.py"
CLEAR = runpy.run_path(str(CHECKOUT / "notebooks/clear.py"))


def cell(notebook, number):
    return next(c for c in notebook.cells if c.metadata.get("hcd", {}).get("cell") == number)


def complaint(path):
    """Return one sentence for a notebook that an editor has saved more into; "" for a clean one."""
    found = CLEAR["saved"](nbformat.read(path, 4))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    told = f"an editor has saved {', '.join(found[:3])}{more} into {path.name}"
    return f"{told}; clear it with: {COMMAND}" if found else ""


def test_nothing_that_an_editor_saves_is_in_the_repositorys_notebook():
    told = complaint(NOTEBOOK)
    if told:
        pytest.fail(told, pytrace=False)


OUTPUT = nbformat.v4.new_output("stream", text="0.99\n")
CHANGES = {
    "outputs in In 9": lambda notebook: cell(notebook, 9).outputs.append(OUTPUT),
    "an execution count in In 17": lambda notebook: cell(notebook, 17).update(execution_count=3),
    "metadata 'collapsed' in In 45": lambda n: cell(n, 45).metadata.update(collapsed=True),
    "metadata 'editable' in cell 3, counted from 0": lambda notebook: notebook.cells[
        3
    ].metadata.update(editable=True),
    "metadata of the whole notebook": lambda notebook: notebook.metadata.language_info.update(
        version="3.11.7"
    ),
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_was_saved_is_told_in_one_sentence_and_the_command_clears_it(told, tmp_path):
    path = shutil.copy(NOTEBOOK, tmp_path / "walkthrough.ipynb")
    notebook = nbformat.read(path, 4)
    CHANGES[told](notebook)
    nbformat.write(notebook, path)
    assert complaint(path) == (
        f"an editor has saved {told} into walkthrough.ipynb; clear it with: {COMMAND}"
    )
    _, script = COMMAND.split()
    subprocess.run([sys.executable, CHECKOUT / script, path], cwd=tmp_path, check=True)
    assert path.read_bytes() == NOTEBOOK.read_bytes()


def test_of_many_the_first_are_told():
    notebook = nbformat.read(NOTEBOOK, 4)
    for one in notebook.cells:
        one.metadata.trusted = True
    assert len(CLEAR["saved"](notebook)) == len(notebook.cells)
