"""What people see while they wait, and how a loss is written."""

import sys

from tqdm import tqdm


def progress_bar(total: int | None, title: str, shown: bool = True, **options) -> tqdm:
    """Open a progress bar; a context that closes it.

    Where a notebook shows it, it is text on standard output and goes when it is done: Jupyter draws
    standard error in red, and bars that stay pile up. A widget would need ipywidgets, and leave
    nothing that a page of the notebook can show. In a terminal it is tqdm's own.

    Args:
        total: of what is counted; None where nobody knows. title: stands before it. shown: False
            shows nothing. options: more of tqdm's.
    """
    here = {"file": sys.stdout, "leave": False} if in_notebook() else {}
    return tqdm(total=total, desc=title, disable=not shown, **here, **options)


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def loss_text(loss: float, digits: int = 2) -> str:
    """Write a loss with some digits; what rounds to nothing has no sign, though a sure model's loss
    is -0.0."""
    return f"{round(float(loss), digits) + 0.0:.{digits}f}"
