"""The walkthrough's notebook as it was installed: found, and copied for who steps through it."""

import os
from pathlib import Path

from ..disk.whole import NEW, StrPath, refuse_link, unwritable, whole_write
from ..errors import InputError

NAME = "walkthrough.ipynb"


def find_notebook() -> Path:
    """Return the path of walkthrough.ipynb, in the checkout or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "notebooks", package / "notebooks"):
        if (folder / NAME).is_file():
            return folder / NAME
    raise FileNotFoundError(f"{NAME} was not installed with hcd; install hcd again")


def copy_notebook(path: StrPath = NAME) -> Path:
    """Copy the walkthrough's notebook, to step through it and to change it.

    Args:
        path: the new file, in a folder that is there; it runs from any.
    Returns:
        Path of the copy, byte for byte what `hcd run` executes.
    Raises:
        InputError: no name of a notebook. FileExistsError: there is something of that name.
            FileNotFoundError: no such folder. OSError: a link on the way, or it cannot be written.
    """
    path = Path(path).expanduser()
    content = find_notebook().read_bytes()
    _refuse_place(path)
    _reserve(path)
    try:
        with whole_write(path) as file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)  # the empty file of its name
        raise
    return path


def _refuse_place(path: Path) -> None:
    """Turn down what could be no copy's place, before anything is written."""
    refuse_link(path)
    refuse_link(path.parent)
    if os.path.isdir(path):  # False for a name that is too long
        raise InputError(f"{path} is a folder; give the name of a file, such as {path / NAME}")
    if path.suffix != ".ipynb":
        raise InputError(
            f"{path} does not end in .ipynb, and Jupyter would not open it as a notebook; name it"
            f" {path.name}.ipynb"
        )
    if not os.path.isdir(path.parent):
        raise FileNotFoundError(
            f"{path.parent} is no folder, and none is made for the notebook; make it first, or name"
            " a folder that is there"
        )


def _reserve(path: Path) -> None:
    """Take a name that nobody has, so that no other process can lose a file by it."""
    try:
        os.close(os.open(path, NEW, 0o666))
    except FileExistsError:
        raise FileExistsError(
            f"{path} is there already, and is not written over; remove it, or give another name"
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
