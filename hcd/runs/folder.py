"""One folder a run: made, locked, and never taken from another run."""

import fnmatch
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..disk.locks import take_lock
from ..disk.whole import (
    StrPath,
    refuse_link,
    refuse_links,
    sweep_parts,
    unwritable,
    writable_folder,
)
from .events import RUN

# whatever a run writes; * stands for the model's name or the stage's
NAMES = (
    "walkthrough.ipynb",
    "walkthrough.html",
    "run.json",
    "events.jsonl",
    "metrics.json",
    "validation.csv",
    "report.html",
    "report.json",
    "README.md",
    "data",
    "figures",
    "models",
    "model",
    "slide",
    "checkpoints",
    "history_*.csv",
    "*_submission.csv",
)
# the command's lock, and that of the notebook's process, which may outlive a killed command
LOCKS = (".lock", ".lock-notebook")
_held: dict[Path, object] = {}  # locks of this process, by file; they end with it


def own_checkout() -> Path | None:
    """Return the checkout that hcd runs from; None where it was installed without one."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "notebooks/walkthrough.ipynb").is_file() else None


def outputs_folder() -> Path:
    """Return where runs go by default: outputs/ of hcd's own checkout for who works in it, else
    outputs/ beside the working folder; never a folder above that is somebody else's."""
    checkout, here = own_checkout(), Path.cwd().resolve()
    if checkout and here != checkout and checkout in here.parents:
        return checkout / "outputs"
    return Path("outputs")


def new_run_folder(parent, name: str = "run") -> Path:
    """Make a folder of its own for one run, named by local date and time; never an existing one.

    Returns:
        Path of the new empty folder `parent/<date>-<time>-<name>`.
    Raises:
        OSError: the parent cannot be written.
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for attempt in range(1000):
        folder = Path(parent) / (f"{stem}-{attempt}" if attempt else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not Path(parent).is_dir():
                raise NotADirectoryError(
                    f"{parent} is a file; name a folder to write the run into"
                ) from None
            continue
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder
    raise FileExistsError(
        f"{parent} holds 1000 runs of this very second; name another output folder"
    )


def prepare_output(folder: StrPath = "", resume: bool = False) -> Path:
    """Make the folder that one run writes into, and keep other runs out of it as long as this
    process lives.

    Args:
        folder: where to; "" makes a new one, see `outputs_folder`.
        resume: the folder holds an interrupted run, to go on with.
    Returns:
        Path of a writable folder, which without `resume` holds nothing that a run writes.
    Raises:
        FileExistsError: it holds something of the kind. BlockingIOError: a run that still lives
            writes there. FileNotFoundError: nothing to resume. OSError: it cannot be written, or
            holds links.
    """
    if resume:
        _require_run(folder)
    folder = Path(folder).expanduser() if str(folder) else new_run_folder(outputs_folder())
    if os.environ.get(RUN) == str(folder.resolve()):  # `hcd run` has checked, and locked, all but
        _hold(folder, LOCKS[1:])
        return folder
    if resume:
        _refuse_own_links(folder)
    else:
        refuse_taken(folder)
    _hold(writable_folder(folder), LOCKS)
    sweep_parts(folder)
    return folder


@contextmanager
def locked_output(folder, resume: bool = False) -> Iterator[Path]:
    """Hold a run's folder for a command while the notebook's process writes into it.

    Args, Raises: as `prepare_output`; "" is no folder here.
    Yields:
        the folder; nothing but the lock has been written. What is refused leaves it as it was.
    """
    if resume:
        _require_run(folder)
        _refuse_own_links(folder)
    folder = Path(folder)
    if not resume and not (folder / LOCKS[0]).exists():  # else who holds it is the better answer
        refuse_taken(folder)
    writable_folder(folder)
    locks = []
    try:
        for name in LOCKS:
            locks.append(take_lock(folder / name, _held_by(folder)))
        locks.pop().release()  # nobody's notebook is alive; from here on it is ours to take
        if not resume:
            refuse_taken(folder)
        sweep_parts(folder)
    except BaseException:
        for lock in locks:  # whatever lies there may be that of a run that lives
            lock.release()
        raise
    try:
        yield folder
    finally:
        locks[0].release()


def _refuse_own_links(folder) -> None:
    """Require no link among what a run writes; the user's own beside it may be what they like."""
    refuse_link(folder)
    for name in _names_in(folder, (*NAMES, *LOCKS)):
        refuse_links(Path(folder) / name)


def _names_in(folder, patterns) -> list[str]:
    """Return what a folder holds of the patterns; a glob passes over links that lead nowhere."""
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for pattern in patterns for name in fnmatch.filter(there, pattern)]


def refuse_taken(folder) -> None:
    """Require a folder to hold nothing that a run would write.

    Raises:
        FileExistsError: it does; names it.
    """
    for name in _names_in(folder, NAMES):
        raise FileExistsError(
            f"{folder} holds {name}, which a run writes and which is never written over; "
            "name an empty folder, or if an interrupted run lies there go on with it: "
            f"{resume_command(os.path.relpath(folder))}"
        )


def remove_run(folder, keep_folder: bool = False) -> None:
    """Remove what a refused run has written; `refuse_taken` made sure that nothing of it was there
    before."""
    for pattern in (*NAMES, *LOCKS):
        for found in Path(folder).glob(pattern):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink()
    if not keep_folder and not any(Path(folder).iterdir()):
        Path(folder).rmdir()


def resume_command(folder) -> str:
    """Return the command that goes on with a run, as a shell takes it."""
    # a name that begins like an option needs the sign
    sign = "=" if str(folder).startswith("-") else " "
    return f"hcd run --resume{sign}{shlex.quote(str(folder))}"


def _require_run(folder) -> None:
    if not str(folder):
        raise FileNotFoundError("resume needs the folder of the interrupted run; name it")
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder, so there is no run to resume; name the folder that the run"
            " wrote to"
        )


def _hold(folder: Path, names) -> None:
    """Lock a folder until this process ends; again is allowed, for cells are run again."""
    for name in names:
        path = folder.resolve() / name
        if path not in _held:
            _held[path] = take_lock(path, _held_by(folder))


def _held_by(folder) -> str:
    return f"another run is still writing into {folder}; stop it or name another folder"
