"""Execute the companion notebook and lay out what it leaves."""

import base64
import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from tqdm import tqdm

from ..disk.whole import whole_write
from ..errors import InputError

INPUT_ERRORS = (
    "ValueError",
    "TypeError",
    "OSError",
    "FileNotFoundError",
    "FileExistsError",
    "NotADirectoryError",
    "IsADirectoryError",
    "PermissionError",
)


class _WholeFiles(papermill.iorw.LocalHandler):
    """Writes the executed notebook, which papermill saves again and again, each time whole."""

    def write(self, buf, path):
        """Write a notebook's JSON."""
        with whole_write(path, "w", encoding="utf-8") as file:
            file.write(buf)


def find_notebook():
    """Return the path of walkthrough.ipynb, in the checkout or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "notebooks", package / "notebooks"):
        if (folder / "walkthrough.ipynb").is_file():
            return folder / "walkthrough.ipynb"
    raise FileNotFoundError(
        "walkthrough.ipynb was not installed with hcd; install hcd again from its checkout"
    )


def run_notebook(output, parameters):
    """Execute the notebook with parameters and keep everything it shows.

    Args:
        output: folder that gets walkthrough.ipynb, walkthrough.html, figures/*.png and what the
            notebook writes itself.
        parameters: values for the notebook's first cell.
    Raises:
        InputError: In 0 or In 1 turned the settings or the data down.
        papermill.PapermillExecutionError: a later cell failed; the executed notebook holds its
        traceback.
        OSError: the output cannot be written.
    """
    executed = Path(output) / "walkthrough.ipynb"
    # the kernel of this very environment, not a user-wide one
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # what fails comes as an exception; Ctrl-C stays quiet
    for name in ("asyncio", "papermill", "tornado", "traitlets"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    papermill.iorw.papermill_io.register(str(executed), _WholeFiles())
    # papermill would fill in what stands in braces in a path
    paths = [
        re.sub("[{}]", lambda brace: 2 * brace[0], str(path))
        for path in (find_notebook(), executed)
    ]
    with _epochs_printed(output):
        try:
            papermill.execute_notebook(
                *paths,
                {**parameters, "output_folder": str(output)},
                kernel_name="python3",
                cwd=str(Path.cwd()),
                progress_bar={"desc": "walkthrough"},
                extra_arguments=["--log-level=CRITICAL"],
            )
        except BaseException as error:
            with suppress(Exception):  # what failed first is what counts
                if executed.is_file():
                    _save_pictures(executed)
            failed = isinstance(error, papermill.PapermillExecutionError)
            if failed and error.ename in INPUT_ERRORS and re.match(r"# In \[[01]\]", error.source):
                raise InputError(error.evalue) from error
            raise
    _save_pictures(executed)


def _save_pictures(executed):
    """Write each figure as PNG, named by its cell, and the whole notebook, tidied, once more and as
    HTML."""
    notebook = nbformat.read(executed, 4)
    (executed.parent / "figures").mkdir(exist_ok=True)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        number = re.match(r"# In \[(\d+)\]", cell.source)
        images = [
            output.data["image/png"]
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        for count, image in enumerate(images):
            name = f"in{int(number[1]):02}{f'-{count + 1}' if count else ''}.png"
            with whole_write(executed.parent / "figures" / name) as file:
                file.write(base64.b64decode(image))
        cell.outputs = _merge_streams(cell.outputs)
    with whole_write(executed, "w", encoding="utf-8") as file:
        nbformat.write(notebook, file)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    with whole_write(executed.with_suffix(".html"), "w", encoding="utf-8") as file:
        file.write(html)


def _merge_streams(outputs):
    """Join what a cell printed in pieces, and keep of a progress bar what the screen shows last."""
    merged = []
    for output in outputs:
        if "text" in output and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if "text" in output:
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [output for output in merged if output.get("text", "shown").strip()]


class _epochs_printed(threading.Thread):
    """Print each epoch's row while it trains, from the CSV files that `Checkpoints` writes."""

    def __init__(self, output):
        super().__init__(daemon=True)
        self.output, self.done, self.seen = Path(output), threading.Event(), {}

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()

    def run(self):
        while not self.done.wait(2):
            for file in sorted(self.output.glob("history_*.csv")):
                rows = file.read_text().splitlines()
                for row in rows[self.seen.get(file, 0) :]:
                    tqdm.write(f"{time.strftime('%H:%M:%S')} {file.stem[8:]}: {row}")
                self.seen[file] = len(rows)
