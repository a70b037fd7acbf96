"""Whole writes: a file is there in full or not at all."""

import io
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import InputError

StrPath = str | os.PathLike
# a temporary file's name is of a length of its own, for the target's may be as long as names can be
PART = ".hcd-{}.part"
SCRATCH = ".model-"  # and eight letters, a folder in which several files are written
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
NEW |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class _Part(io.FileIO):
    """The temporary file; what it cannot take is told in the name of the file that it is for.

    Only here does a full disk show, so errors of the `with` body are never mistaken for one.
    """

    def __init__(self, descriptor: int, target: Path):
        super().__init__(descriptor, "wb")
        self.target = target

    def write(self, content):
        try:
            return super().write(content)
        except OSError as error:
            raise unwritable(self.target, error) from error


@contextmanager
def whole_write(path, mode: str = "wb", newline: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` for writing; rename it to `path` once it is complete and
    on disk.

    Args:
        path: the file to write; an older one stays untouched until the new one is complete, and
            hands on its permissions. A link is replaced, not followed.
        mode: "wb", or "w" for UTF-8 text. newline: as for `open`.
    Yields:
        the open file. What the body raises comes out as it is, and then nothing is written.
    Raises:
        OSError: the file cannot be written (no permission, full disk, a device of that name);
            nothing that existed is lost.
    """
    path = Path(path)
    if not path.name:
        raise OSError(f"{path} cannot be written, it is a folder; name a file")
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        # renaming would take a device's place
        raise OSError(f"{path} is a device or a pipe; name a file to write")
    part, raw = _new_part(path)
    try:
        file: Any = io.BufferedWriter(raw)
        if mode == "w":
            file = io.TextIOWrapper(file, "utf-8", newline=newline)
        try:
            yield file
            file.flush()
            _settle(raw, part, path)
        finally:
            with suppress(OSError):  # what is left in its buffer is of a file that is given up
                file.close()
    finally:
        with suppress(OSError):  # it has been renamed, or its folder has gone
            os.unlink(part)


def _new_part(path: Path) -> tuple[Path, _Part]:
    """Make a temporary file that no other thread, process or container has."""
    part = path.with_name(PART.format(secrets.token_hex(8)))
    try:
        older = os.lstat(path).st_mode
    except OSError:  # there is none, or what is wrong with its place shows below
        older = 0
    try:
        raw = _Part(os.open(part, NEW, 0o666), path)
    except OSError as error:
        raise unwritable(path, error) from error
    if stat.S_ISREG(older):
        with suppress(OSError):  # a file system without permissions
            os.chmod(part, stat.S_IMODE(older))
    return part, raw


def _settle(raw: _Part, part: Path, path: Path) -> None:
    """Bring a complete file to the disk and under its name."""
    try:
        os.fsync(raw.fileno())
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error


def sweep_parts(folder) -> None:
    """Remove the temporary files and folders that killed writers left in a folder; for who holds
    its lock."""
    for part in Path(folder).glob(PART.format("[0-9a-f]" * 16)):
        part.unlink()
    for scratch in Path(folder).glob(SCRATCH + "[a-z0-9_]" * 8):
        if not scratch.is_symlink():
            shutil.rmtree(scratch)


def writable_folder(path) -> Path:
    """Make `path` a folder that can be written, whatever it holds.

    Raises:
        NotADirectoryError: it is a file. OSError: it cannot be written, or is a link.
    """
    path = Path(path).expanduser()  # as pandas and the shell do
    refuse_link(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # nothing of a fixed name, which might be the user's
            pass
    except FileExistsError:
        raise NotADirectoryError(f"{path} is a file; name a folder to write into") from None
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def refuse_link(path) -> None:
    """Require a path to be no link: whoever set it would have us write somewhere else.

    Raises:
        OSError: it is one.
    """
    if os.path.islink(path):
        raise OSError(
            f"{path} is a link to {os.readlink(path)}, and nothing is written through links; name "
            "the place itself or remove the link"
        )


def refuse_links(folder) -> None:
    """Require a folder that is written into to be no link, and to hold none at any depth.

    Raises:
        OSError: there is one.
    """
    refuse_link(folder)
    for where, folders, files in os.walk(folder):
        for name in folders + files:
            refuse_link(os.path.join(where, name))


def empty_folder(path) -> Path:
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


def write_json(path: StrPath, content: Any) -> None:
    """Write a JSON file, whole; NaN and infinity are no JSON and raise ValueError."""
    with whole_write(path, "w") as file:
        json.dump(content, file, indent=1, allow_nan=False)


def read_json(path: Path, most_bytes: int) -> Any:
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
        return parse_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no JSON ({str(error)[:100]}); restore it from where it was written"
        ) from error


def parse_json(text: str) -> Any:
    """Parse JSON whose numbers are finite and whose names stand once.

    Raises:
        ValueError, RecursionError: it is something else.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)


def _once(pairs):
    """Make a JSON object of its names and values; of a name that stands twice, every reader would
    take another value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object of {len(pairs)} names has one of them twice")
    return found


def _finite(text):
    """Turn a number of a JSON file into a float; refuse NaN, Infinity and 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def shorten(text: str, most: int = 60) -> str:
    """Cut a text that may be endless, for an error message."""
    return text if len(text) <= most else text[:most] + "..."


def unwritable(path, error: OSError) -> OSError:
    """Return an error of the same kind that says in one sentence that `path` cannot be written."""
    reason = error.strerror or str(error)
    return type(error)(
        error.errno,
        f"{path} cannot be written ({reason}) and nothing was changed; free space or name "
        "another place",
    )
