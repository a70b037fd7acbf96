"""`hcd predict`: images by name, one line an answer."""

import csv
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..disk.whole import empty_folder, whole_write
from ..engine.ranks import in_rounds, launched
from ..errors import InputError
from ..terminal import is_unread, printable, stop_printing, tell, tell_launcher
from .prediction import Prediction, answering, answers_by_itself, predict_images

COLUMNS = ("path", "label", "probability", "error")
HEAD = ",".join(COLUMNS[:3]).encode()
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs what begins with one


def predict(options) -> int:
    """Print one line per image as it is answered: path, class, tumour probability. One that cannot
    be has its sentence in that place; exit code 1 then, or 2 where none could be answered.

    Started by torchrun, each process answers its share and the first one prints.
    """
    if options.csv:
        _refuse_no_table(Path(options.csv))
    ranks = launched()
    names = listed(options.images, whole=ranks.world > 1, table=options.csv)
    opened = open_model(options.model, options.threads)
    heatmaps = None
    if options.heatmap:
        # of several processes each has a folder of its own, so that none writes over another's
        own = f"rank-{ranks.rank}" if ranks.world > 1 else ""
        heatmaps = Heatmaps(opened, Path(options.heatmap, own))
    device, threads = options.device or ranks.device, options.threads
    if answers_by_itself(opened):  # it was given the threads when it was opened
        device, threads = options.device, None
    model = answering(opened, device, threads, options.fast, options.calibrated)

    def answer(images):
        for found in predict_images(model, images, options.batch_size, on_error="report"):
            yield heatmaps.drawn(found) if heatmaps else found

    answers = answer(names)
    if ranks.world > 1:
        answers = in_rounds(ranks, answer, list(names), options.batch_size)
    show = _show_if_read if options.csv or options.heatmap else _show
    return _print(answers, options.csv if ranks.rank == 0 else None, show)


def open_model(name: str, threads: int | None = None) -> Any:
    """Open a folder that `save_bundle` wrote, a run's folder, or a file of `export_onnx`.

    Raises:
        FileNotFoundError, InputError: there is no such model.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        from .onnx import load_onnx

        return load_onnx(path, threads)
    from .bundle import load_bundle

    return load_bundle(model_folder(path))


def model_folder(path: Path) -> Path:
    """Return the folder of a model, where a run's folder was given too."""
    if path.is_file() and path.suffix == ".onnx":
        raise InputError(
            f"{path} is an ONNX file, which `hcd predict` alone takes; give the model's folder"
        )
    of_a_run = not (path / "card.json").exists() and (path / "model/card.json").is_file()
    return path / "model" if of_a_run else path


def listed(names: list[str], whole: bool = False, table: str | None = None) -> Iterator[str]:
    """Return the images that the command line names: files, those of a folder or that match a
    pattern, sorted, or with - those of the lines on standard input. Tables that this command has
    written among the patches are none.

    Args:
        names: as given. whole: the list must be complete at once, which standard input is not.
        table: that this call writes.
    Raises:
        InputError: a folder or a pattern without files; at once.
    """
    parts: list = []
    for name in names:
        if name == "-":
            if whole:
                raise InputError(
                    "- is a list on standard input, which torchrun does not hand on; name files or"
                    " a folder"
                )
            if hasattr(sys.stdin, "reconfigure"):  # names may be no UTF-8
                sys.stdin.reconfigure(errors="surrogateescape")
            parts.append(filter(None, (line.rstrip("\r\n") for line in sys.stdin)))
        elif os.path.isdir(name):
            parts.append(_inside(name))
        elif glob.has_magic(name) and not os.path.lexists(name):
            parts.append(_matching(name))
        elif len(names) > 1 and table and os.path.realpath(name) == os.path.realpath(table):
            continue  # a shell names it at the second call of `hcd predict MODEL DIR/* --csv ...`
        else:
            parts.append([name])
    return (f"./{name}" if name.startswith(FORMULA) else name for part in parts for name in part)


def _inside(folder):
    """Return the files of a folder, but for hidden ones."""
    found = [e.path for e in os.scandir(folder) if not e.name.startswith(".") and not e.is_dir()]
    found = [name for name in found if not _is_table(name)]
    if not found:
        raise InputError(f"{folder} holds no files to predict; name a folder of patches")
    return sorted(found)


def _matching(pattern):
    found = [name for name in glob.iglob(pattern, recursive=True) if not os.path.isdir(name)]
    found = [name for name in found if not _is_table(name)]
    if not found:
        raise InputError(f"{pattern} matches no file to predict; check the folder and the pattern")
    return sorted(found)


def _is_table(name):
    """Say whether a file is a table that this command has written; of images the name is enough."""
    if name.lower().endswith(SUFFIXES) or not os.path.isfile(name):
        return False
    try:
        with open(name, "rb") as file:
            return file.read(len(HEAD)) == HEAD
    except OSError:  # it is told in its place
        return False


def _refuse_no_table(path):
    """Require the place of a new table, or of an earlier one, such as --csv *.tif is not."""
    head = HEAD
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(len(HEAD))
    other = os.path.lexists(path) and not path.is_file()
    if other or head not in (HEAD, b""):
        raise InputError(
            f"--csv {path} is no table of predictions and would be written over; name another file"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"--csv {path} cannot be written, its folder does not exist; make it first"
        )


class Heatmaps:
    """A new folder that gets a picture of where the model looks for each image."""

    def __init__(self, model: Any, folder: Path) -> None:
        if answers_by_itself(model):
            raise InputError(
                "--heatmap needs the gradients of a model folder, and an ONNX file has none; give"
                " the folder that it was exported from"
            )
        self.model, self.folder = model, empty_folder(folder)
        self.names: set = set()

    def drawn(self, found: Prediction) -> Prediction:
        """Draw the heatmap of an image that was answered; returns the answer."""
        if found.error:
            return found
        from .explain import explain_image

        stem = Path(found.path).stem
        name, count = f"{stem}.png", 1
        while name in self.names:  # of another folder
            count += 1
            name = f"{stem}-{count}.png"
        self.names.add(name)
        with whole_write(self.folder / name) as file:
            file.write(explain_image(self.model, found.path).png())
        return found


def _show(line):
    print(line, flush=True)


def _show_if_read(line):
    """Print a line, or no more where nobody reads them: the files that were asked for get whole."""
    try:
        _show(line)
    except BrokenPipeError:
        if not is_unread():
            raise
        stop_printing()


def _print(answers, table, show):
    """Print answers as they come, write the table, and return the exit code."""
    rows, answered, bad = [COLUMNS], 0, 0
    try:
        for found in answers:
            name = printable(found.path)
            if found.error:
                tell(found.error)
                bad += 1
            else:
                show(f"{name}\t{found.label}\t{found.probability:.6f}")
                answered += 1
            probability = "" if found.error else str(found.probability)
            rows.append((name, found.label, probability, printable(found.error)))
    finally:  # Ctrl-C loses no answer that was there
        if table and answered:
            with whole_write(table, "w", newline="") as file:
                csv.writer(file).writerows(rows)
    if not bad:
        return 0
    tell_launcher(f"{bad} of {bad + answered} images could not be answered; each is told above")
    return 1 if answered else 2
