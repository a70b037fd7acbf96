"""Execute the companion notebook and lay out what it leaves."""

import base64
import logging
import re
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter

from ..disk.whole import whole_write, writable_folder
from ..errors import Refused
from . import events
from .kernel import own_environment, own_kernel
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


def save_pictures(executed: Path) -> None:
    """Write each figure as PNG, named by its cell, and the whole notebook, tidied, once more and as
    HTML."""
    notebook = nbformat.read(executed, 4)
    figures = writable_folder(executed.parent / "figures")
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        _save_figures(cell, figures)
        cell.outputs = _merge_streams(cell.outputs)
    with whole_write(executed, "w") as file:
        nbformat.write(notebook, file)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    with whole_write(executed.with_suffix(".html"), "w") as file:
        file.write(html)


def _save_figures(cell, figures: Path) -> None:
    images = [
        output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    for count, image in enumerate(images):
        name = f"in{cell.metadata.hcd.cell:02}{f'-{count + 1}' if count else ''}.png"
        with whole_write(figures / name) as file:
            file.write(base64.b64decode(image))


def _merge_streams(outputs):
    """Join what a cell printed in pieces, and keep of a progress bar what the screen shows last."""
    merged: list = []
    for output in outputs:
        if "text" in output and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if "text" in output:
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [output for output in merged if output.get("text", "shown").strip()]
