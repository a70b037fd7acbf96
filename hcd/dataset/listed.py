"""The ids and labels that a table lists, in the memory of their letters; the tables and tuples of
Python's texts, which take three times as much, are made when somebody asks for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from .tables import are_names, id_array, id_rows, read_ids, read_labels

CHUNK, USUAL_ID = 10_000, 40  # rows that are texts at a time; letters of a SHA-1
ONE = Lock()


@dataclass(frozen=True, eq=False)
class Listed:
    """What a table lists.

    Attributes:
        ids: (N,) bytes. labels: (N,) int8, 0 or 1; None where they do not count. Both read-only,
            for several data sets and lists of files share them.
    """

    ids: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self):
        for array in (self.ids, self.labels):
            if array is not None:
                array.flags.writeable = False

    def made(self) -> Any:
        """Return a DataFrame, columns id (str) and label (int64), or without labels a tuple of
        str."""
        if self.labels is None:
            return tuple(texts(self.ids))
        return pd.DataFrame({"id": list(texts(self.ids)), "label": self.labels.astype("int64")})


class _WhenAsked:
    """A dataclass's field that may be given as `Listed`, and is made of it when it is first asked
    for; what is made takes its place, so that there is one truth."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        if instance is None:  # dataclass looks for a default, and there is none
            raise AttributeError(self.name)
        kept = vars(instance)
        with ONE:  # of two threads that ask at once, both are to have the same table
            if isinstance(kept[self.name], Listed):
                kept[self.name] = kept[self.name].made()
            return kept[self.name]

    def __set__(self, instance, value):
        vars(instance)[self.name] = value


def when_asked() -> Any:
    """Return the field of a dataclass that is made when it is asked for, see `listed_in`."""
    return _WhenAsked()


def listed_in(instance: Any, field: str) -> Listed | None:
    """Return what a field will be made of; None once it is made."""
    kept = vars(instance)[field]
    return kept if isinstance(kept, Listed) else None


def texts(ids: np.ndarray) -> Iterator[str]:
    """Yield the str of each id; a few at a time, for as bytes of Python's they would take twice the
    room."""
    for start in range(0, len(ids), CHUNK):
        yield from map(bytes.decode, ids[start : start + CHUNK].tolist())


def read_listed(path: Path, labelled: bool = True) -> tuple[Any, np.ndarray]:
    """Read a table of ids, each given once, and of labels 0 or 1.

    Args:
        path: of the table. labelled: False takes any label, and keeps none.
    Returns:
        what is listed, a `Listed`, and its ids sorted.
    Raises:
        FileNotFoundError, InputError: as `read_labels`, or without labels `read_ids`.
    """
    found = _read_sound(path, labelled)
    if found is None:
        # they say which row breaks which rule
        table = read_labels(path) if labelled else read_ids(path)
        labels = table["label"].to_numpy("int8") if labelled else None
        listed = Listed(id_array(table["id"]), labels)
        found = listed, np.sort(listed.ids)
    return found


class _Fault(Exception):
    """A row breaks a rule."""


def _read_sound(path, labelled):
    """Return the same of a table without a fault, no row of which stays a Python object; else
    None."""
    width = USUAL_ID
    try:
        ids, labels, longest = _read_rows(path, labelled, width)
        if longest != width:  # of other names than a SHA-1
            ids, labels, longest = _read_rows(path, labelled, longest)
    except _Fault:
        return None
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        return None
    return Listed(ids, labels), ordered


def _read_rows(path, labelled, width):
    """Return the ids cut to a width, the labels or None, and the length of the longest id.

    Raises:
        _Fault: an id or a label that is none.
    """
    labels, longest = bytearray(), 0

    def ids():
        nonlocal longest
        rows = id_rows(path)
        while part := list(islice(rows, CHUNK)):
            names, values = zip(*part)
            if not are_names(names) or (labelled and not {"0", "1"}.issuperset(values)):
                raise _Fault
            encoded = list(map(str.encode, names))
            longest = max(longest, *map(len, encoded))
            if labelled:
                labels.extend("".join(values).encode())
            yield from encoded

    # grows as it is filled, so that no list of millions of texts is there beside it
    found = np.fromiter(ids(), f"S{width}")
    return found, np.frombuffer(labels, np.int8) - ord("0") if labelled else None, longest
