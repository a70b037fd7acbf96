"""One folder a run: made, locked, and never taken from another run."""

import os
import shlex
import time
from pathlib import Path

from ..disk.whole import fcntl, take_lock, unwritable, writable_folder


def new_run_folder(parent, name="run"):
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


def prepare_output(folder="", parent="outputs", resume=False, lock=True):
    """Make the folder that one run writes into, and keep other runs out of it as long as this
    process lives.

    Args:
        folder: where to; "" makes a new one under `parent`. parent: used beside or above the
            working folder, whichever is there.
        resume: the folder holds an interrupted run, to go on with. lock: False only looks whether
            another run is in it.
    Returns:
        Path of a writable folder, which without `resume` holds no earlier run.
    Raises:
        FileExistsError: an earlier run's results lie there. BlockingIOError: a run that still lives
            writes there.
        FileNotFoundError: nothing to resume. OSError: it cannot be written.
    """
    if resume and not folder:
        raise FileNotFoundError("resume needs the folder of the interrupted run; name it")
    if resume and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder, so there is no run to resume; name the folder that the run"
            " wrote to"
        )
    outputs = Path("..", parent) if Path("..", parent).is_dir() else Path(parent)
    folder = writable_folder(folder) if folder else new_run_folder(outputs)
    for name in () if resume else ("metrics.json", "models", "model", "checkpoints"):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} holds an earlier run ({name}), which is never written over; name another"
                f" folder, or go on with it if it was interrupted: {resume_command(folder)}"
            )
    _lock(folder, lock)
    return folder


def resume_command(folder):
    """Return the command that goes on with a run, as a shell takes it."""
    return f"hcd run --resume {shlex.quote(str(folder))}"


def _lock(folder, hold):
    """Lock a folder for as long as this process lives; a process that is just being stopped gets a
    moment to end."""
    if fcntl is None:
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    for attempt in range(50):
        try:
            take_lock(descriptor, "lockf")
            break
        except OSError as error:
            if attempt == 49:
                os.close(descriptor)
                raise BlockingIOError(
                    f"another run is still writing into {folder}; stop it or name another folder"
                ) from error
            time.sleep(0.1)
    if not hold:
        os.close(descriptor)  # which unlocks
