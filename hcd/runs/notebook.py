"""Execute the companion notebook."""

import logging
import re
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill

from ..disk.whole import whole_write
from ..errors import Refused
from . import events
from .kernel import own_environment, own_kernel
from .page import save_pictures
from .progress import shown_progress
from .template import find_notebook


class _WholeFiles(papermill.iorw.LocalHandler):
    """Writes the executed notebook, which papermill saves again and again, each time whole."""

    def write(self, buf, path):
        """Write a notebook's JSON."""
        with whole_write(path, "w") as file:
            file.write(buf)


def run_notebook(output, parameters: dict) -> None:
    """Execute the notebook with parameters and keep everything it shows.

    Args:
        output: folder that gets walkthrough.ipynb, walkthrough.html, figures/*.png, events.jsonl
            and what the notebook writes itself.
        parameters: values for the notebook's first cell.
    Raises:
        Refused: the settings or the data were turned down before the run had begun.
        papermill.PapermillExecutionError: a later cell failed; the executed notebook holds its
            traceback.
        OSError: the output cannot be written.
    """
    executed = Path(output) / "walkthrough.ipynb"
    # what fails comes as an exception; Ctrl-C stays quiet
    for name in ("asyncio", "papermill", "tornado", "traitlets"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    papermill.iorw.papermill_io.register(str(executed), _WholeFiles())
    # papermill would fill in what stands in braces in a path
    paths = [
        re.sub("[{}]", lambda brace: 2 * brace[0], str(path))
        for path in (find_notebook(), executed)
    ]
    try:
        with own_environment(output), shown_progress(output):
            papermill.execute_notebook(
                *paths,
                {**parameters, "output_folder": str(output)},
                kernel_name="python3",
                kernel_manager_class=own_kernel(),
                cwd=str(Path.cwd()),
                progress_bar=False,
            )
            save_pictures(executed)
    except BaseException as error:
        with suppress(Exception):  # what failed first is what counts
            if executed.is_file():
                save_pictures(executed)
        if isinstance(error, papermill.PapermillExecutionError):
            _raise_refusal(output, error)
        raise


def _raise_refusal(output, error) -> None:
    """Raise Refused where the notebook turned settings or data down before it had begun."""
    attempt = events.last_attempt(events.read(output))
    failed = [event for event in attempt if event["event"] == "failed"]
    begun = any(event["event"] == "begun" for event in attempt)
    if failed and failed[-1].get("mendable") and not begun:
        raise Refused(str(failed[-1].get("text"))) from error


def failed_cell(output, error) -> str:
    """Return "In 17" for the cell that a PapermillExecutionError speaks of."""
    for cell in nbformat.read(Path(output) / "walkthrough.ipynb", 4).cells:
        if cell.get("execution_count") == error.exec_count and "hcd" in cell.metadata:
            return f"In {cell.metadata.hcd.cell}"
    return "the notebook"
