"""Whole writes: a file is there in full or not at all."""

import errno
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none, and there a run's folder is not locked
    fcntl = None

# of a file system that has none, as some network disks
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}


@contextmanager
def whole_write(path, mode="wb", **options):
    """Open a temporary file beside `path` for writing; rename it to `path` once it is complete and
    on disk.

    Args:
        path: the file to write; an older one stays untouched until the new one is complete. A link
            is replaced, not followed.
        mode, options: as for `open`.
    Yields:
        the open file.
    Raises:
        OSError: the file cannot be written (no permission, full disk, a device of that name);
            nothing that existed is lost.
    """
    path = Path(path)
    # renaming would take a device's place
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(f"{path} is a device or a pipe; name a file to write")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # unlink(missing_ok=True) would raise where the folder is a file, and hide why
        if os.path.exists(part):
            part.unlink()


def take_lock(file, kind):
    """Lock a file by fcntl's "flock" or "lockf"; where there are no locks, one run at a time is up
    to its user.

    Raises:
        OSError: another process holds the lock.
    """
    try:
        if fcntl:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def writable_folder(path):
    """Make `path` a folder that can be written, whatever it holds.

    Raises:
        NotADirectoryError: it is a file. OSError: it cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    except FileExistsError:
        raise NotADirectoryError(f"{path} is a file; name a folder to write into") from None
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def empty_folder(path):
    """Make `path` an empty folder that can be written.

    Raises:
        FileExistsError: it holds something. OSError: it cannot be written.
    """
    path = writable_folder(path)
    if any(path.iterdir()):
        raise FileExistsError(
            f"{path} is not empty; name an empty folder or one that does not exist yet"
        )
    return path


def write_json(path, content):
    """Write a JSON file, whole; NaN and infinity are no JSON and raise ValueError."""
    with whole_write(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)


def read_json(path, most_bytes):
    """Read a JSON file that anybody may have written; nothing in it is run.

    Raises:
        OSError: it cannot be read. InputError: too long, no JSON, numbers that are not finite, or a
            name that stands twice.
    """
    if path.stat().st_size > most_bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes; {path.name} has at most {most_bytes}, get the"
            " right file"
        )
    try:
        return json.loads(
            path.read_text("utf-8"),
            parse_constant=_finite,
            parse_float=_finite,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON ({str(error)[:100]}); restore it from where it was written"
        ) from error


def _once(pairs):
    """Make a JSON object of its names and values; of a name that stands twice, every reader would
    take another value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"an object of {len(pairs)} names has one of them twice")
    return found


def _finite(text):
    """Turn a number of a JSON file into a float; refuse NaN, Infinity and 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"{text[:20]} is no finite number")
    return number


def shorten(text, most=60):
    """Cut a text that may be endless, for an error message."""
    return text if len(text) <= most else text[:most] + "..."


def unwritable(path, error):
    reason = error.strerror or str(error)
    return type(error)(
        error.errno,
        f"{path} cannot be written ({reason}) and nothing was changed; free space or name "
        "another place",
    )
