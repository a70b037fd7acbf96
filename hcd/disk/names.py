"""The names of millions of files in the memory of a number each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import InputError

CHUNK = 10_000  # names that are texts at a time
# by which an array is written into
WRITING = ("sort", "partition", "fill", "put", "resize", "setfield", "setflags", "data", "flat")


class Names(Sequence):
    """The names <folder>/<id>.tif of some ids, in the place of an array of texts: each is made when
    it is read, and NumPy and pandas are given text.

    NumPy's own text takes four bytes a letter. Python's has reference counts, so that forked
    workers would copy the pages that they read.

    Args:
        folder: before each id. ids: (N,) bytes, which several Names may share. rows: (n,) which of
            them, in that order; None for all.
    """

    def __init__(self, folder: str, ids: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.folder, self.ids = folder, ids
        given = np.arange(len(ids)) if rows is None else rows
        # a part shares them, as a part of an array does
        self.rows: np.ndarray = given.astype(np.int32, copy=False)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        rows = self.rows[key]
        if isinstance(rows, np.ndarray):
            if rows.ndim != 1:
                return np.asarray(self)[key]
            return Names(self.folder, self.ids, rows)
        return f"{self.folder}/{self.ids[rows].decode()}.tif"

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Names) and value.ids is self.ids and value.folder == self.folder:
            self.rows[key] = value.rows
        elif isinstance(value, str):
            found = np.flatnonzero(self.ids == _id_of(value))
            self.rows[key] = self._row(value, found[0] if len(found) else None)
        else:
            # to go through millions of ids for each of millions of names would take hours
            rows = dict(zip(self.ids.tolist(), range(len(self.ids))))
            self.rows[key] = [self._row(name, rows.get(_id_of(name))) for name in value]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            for patch_id in self.ids[self.rows[start : start + CHUNK]].tolist():
                yield f"{self.folder}/{patch_id.decode()}.tif"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self), dtype or str)

    def __eq__(self, other: Any) -> Any:
        return np.asarray(self) == np.asarray(other)

    def __ne__(self, other: Any) -> Any:
        return np.asarray(self) != np.asarray(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self):
        return f"Names({np.asarray(self[:3]).tolist()}{', ...' * (len(self) > 3)}; {len(self)})"

    @property
    def shape(self) -> tuple[int]:
        """Return that of the array of texts."""
        return (len(self),)

    @property
    def dtype(self) -> np.dtype:
        """Return one that holds any of the texts."""
        return np.dtype(f"U{len(f'{self.folder}/.tif') + self.ids.dtype.itemsize}")

    def copy(self) -> "Names":
        """Return the same names, to be written over."""
        return Names(self.folder, self.ids, self.rows.copy())

    __copy__ = copy

    def __getattr__(self, name: str) -> Any:
        """Return what else the array of texts has, such as astype and size; but not what would
        write into it, for it is made anew each time."""
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"Names has no {name!r}; numpy.array(items) is an array of them")
        if name in WRITING:
            raise AttributeError(
                f"Names cannot {name}() in place; write items[:] = sorted(items), or give the list"
                " an array of its own, items = numpy.array(items)"
            )
        return getattr(np.asarray(self), name)

    def tolist(self) -> list[str]:
        """Return the names as a list of str."""
        return list(self)

    def _row(self, name, row):
        """Return the row of a name's id, if it was found and all of the name is right."""
        if row is not None and str(name) == f"{self.folder}/{self.ids[row].decode()}.tif":
            return row
        raise InputError(
            f"{name} is none of the data set's {self.folder}/<id>.tif, and this list can name no"
            " other file; give it an array of its own, items = numpy.array([...])"
        )


def _id_of(name):
    return str(name).rpartition("/")[2].removesuffix(".tif").encode()
