"""Take what an editor has saved into the notebook out of it again: outputs, counts, metadata.

    python notebooks/clear.py

The repository keeps the notebook as it was before anybody ran it.
"""

import sys
from pathlib import Path

import nbformat
from hcd.disk.whole import whole_write

# of a cell's metadata: that it is the parameters', and the walkthrough's number
KEPT = ("tags", "hcd")
PYTHON = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def saved(notebook) -> list[str]:
    """Name what an editor has saved into a notebook, such as "outputs in In 9"; none when it is
    clean."""
    found = []
    for place, cell in enumerate(notebook.cells):
        number = cell.metadata.get("hcd", {}).get("cell")
        name = f"cell {place}, counted from 0" if number is None else f"In {number}"
        if cell.get("outputs"):
            found.append(f"outputs in {name}")
        if cell.get("execution_count") is not None:
            found.append(f"an execution count in {name}")
        found += [f"metadata {key!r} in {name}" for key in cell.metadata if key not in KEPT]
    if notebook.metadata != PYTHON:
        found.append("metadata of the whole notebook")
    return found


def clear(notebook) -> None:
    """Take all that `saved` names out of a notebook."""
    notebook.metadata = nbformat.from_dict(PYTHON)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


if __name__ == "__main__":
    path = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("walkthrough.ipynb")
    opened = nbformat.read(path, 4)
    clear(opened)
    with whole_write(path, "w") as file:
        file.write(nbformat.writes(opened) + "\n")
