"""What is known of a slide so far, in a small file, for a call that goes on after an
interruption."""

import hashlib
import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np

from ..disk.whole import StrPath, parse_json, refuse_link, whole_write, writable_folder
from ..errors import InputError

SECONDS = 30  # between two writes
DAMAGE = ValueError, TypeError, KeyError, EOFError, RecursionError
PIECES, PIECE = 16, 1 << 16  # of a slide's file that are hashed; a whole one has gigabytes


def fingerprint(path: Path) -> str:
    """Return a digest of a file's length and of pieces all over it."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(PIECES + 1):
            file.seek(max(0, size - PIECE) * number // PIECES)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def kept_file(folder: StrPath, path: StrPath) -> Path:
    """Return the file of a slide in a folder."""
    return Path(folder).expanduser() / f"{Path(path).stem}.unfinished.npz"


class Kept:
    """The blocks of a slide that are finished, and their probabilities."""

    def __init__(self, file: Path | None, key: dict, shape: tuple, blocks: int) -> None:
        """Read the file of an interrupted call, or begin it.

        Args:
            file: None keeps nothing. key: what the numbers depend on, texts by name. shape: of the
                grid. blocks: their number.
        Raises:
            InputError: the file is of something else. OSError: it cannot be written.
        """
        self.file, self.key = file, key
        self.probabilities: np.ndarray = np.full(shape, np.nan, np.float32)
        self.done: np.ndarray = np.zeros(blocks, bool)
        self.written = time.monotonic()
        if file is None:
            return
        refuse_link(file)
        if file.exists():
            self._load(file)
        else:  # now, and not after hours, it shows whether it can be written
            writable_folder(file.parent)
            self.save()

    def _load(self, file):
        try:
            with file.open("rb") as content, np.load(content, allow_pickle=False) as held:
                key = dict(parse_json(str(held["key"])))
                probabilities, done = held["probabilities"], held["done"]
        except (*DAMAGE, zipfile.BadZipFile) as error:
            raise InputError(
                f"{file} is no file that an interrupted call has left, or a damaged one;"
                " remove it to begin anew"
            ) from error
        wrong = [name for name in self.key if key.get(name) != self.key[name]]
        if not wrong and (probabilities.shape, done.shape) != (
            self.probabilities.shape,
            self.done.shape,
        ):
            wrong = ["grid"]
        if wrong:
            raise InputError(
                f"{file} is of a call with another {' and '.join(wrong)}; give the same to go on,"
                " or remove it to begin anew"
            )
        self.probabilities[:], self.done[:] = probabilities, done

    def finish(self, block: int, place: tuple, values: np.ndarray) -> None:
        """Take the probabilities of a block, and write the file now and then."""
        self.probabilities[place] = values
        self.done[block] = True
        if time.monotonic() - self.written > SECONDS:
            self.save()

    def remove(self) -> None:
        """Remove the file, where nobody can go on from it."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file, whole."""
        if self.file is None:
            return
        content = io.BytesIO()
        key = np.array(json.dumps(self.key))
        np.savez_compressed(content, key=key, done=self.done, probabilities=self.probabilities)
        with whole_write(self.file) as file:
            file.write(content.getvalue())
        self.written = time.monotonic()
