"""Folder -> validated table of ids and labels, in the competition's layout."""
import csv
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .pack import FOLDER, PackedFolder, PackedPatch
from .reader import map_patches, read_patch
from .recipe import Recipe

MOST_TABLE_BYTES, MOST_ROWS, MOST_LINE = 1 << 27, 1 << 22, 1 << 16  # fifteen times the competition's, and no memory filled
LAYOUT = "train/<id>.tif, train_labels.csv (id,label), test/<id>.tif and sample_submission.csv (id,label)"
ID_LETTER, LONGEST_ID = r"[\w\-]", 200  # an id is a file's name
TABLES = ("train_labels.csv", "sample_submission.csv", "test_labels.csv")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set in the competition's layout, as `open_dataset` found it.

    Attributes:
        root: its folder. labels: DataFrame, columns id (str) and label (int64, 0 or 1), in file order.
        test_ids: ids of the test patches, sorted. sample_ids: the same ids in the order of sample_submission.csv.
        test_labels: DataFrame like labels from test_labels.csv, the answers, which the competition does not ship; else None.
        packed: PackedFolder that the patches are read from, see `pack_dataset`; None where they are read from their files.
    """

    root: Path
    labels: pd.DataFrame
    test_ids: tuple
    sample_ids: tuple
    test_labels: pd.DataFrame = None
    packed: PackedFolder = None

    def without(self, ids):
        """Return the same data set without some of its labelled patches."""
        return replace(self, labels=self.labels[~self.labels["id"].isin(ids)].reset_index(drop=True))

    def locate(self, folder, patch_id):
        """Return the file of a patch of "train" or "test", or its `PackedPatch`; cheap, for it is called at every read."""
        if self.packed is not None:
            return self.packed.locate(folder, patch_id)
        return f"{self.root}{os.sep}{folder}{os.sep}{patch_id}.tif"

    def train_path(self, patch_id):
        """Return the file of a labelled patch, a Path, or its `PackedPatch`, which takes a file's place in the readers."""
        return self._path("train", patch_id)

    def test_path(self, patch_id):
        """Return the file of a test patch, a Path, or its `PackedPatch`."""
        return self._path("test", patch_id)

    def _path(self, folder, patch_id):
        where = self.locate(folder, patch_id)
        return Path(where) if self.packed is None else where

    @property
    def train_paths(self):
        """Files or packed patches of all labelled patches, in the order of `labels`."""
        return [self.locate("train", patch_id) for patch_id in self.labels["id"].tolist()]

    @property
    def test_paths(self):
        """Files or packed patches of all test patches, in the order of `test_ids`."""
        return [self.locate("test", patch_id) for patch_id in self.test_ids]

    @property
    def fingerprint(self):
        """SHA-256 over the sorted ids and labels; ids name their patches' content, so it stands for the pixels too."""
        rows = np.char.add(id_array(self.labels["id"]), np.where(self.labels["label"], b",1", b",0"))
        rows.sort()
        digest = hashlib.sha256()
        for start in range(0, len(rows), 10_000):  # millions of rows as one text would need half a GiB
            digest.update(b"".join(row + b"\n" for row in rows[start:start + 10_000].tolist()))
        digest.update("\n".join(self.test_ids).encode())
        return digest.hexdigest()


def open_dataset(root, packed=None):
    """Open a data set and check its tables against its files; not every patch is read yet, see `verify_patches`.

    Args:
        root: folder with train/<id>.tif, train_labels.csv (id,label), test/<id>.tif and sample_submission.csv. Where it holds
            packed/, the patches are read from there; train/ and test/ may then be absent, see `pack_dataset`.
        packed: False reads the files although there is a pack; True requires one.
    Returns:
        Dataset.
    Raises:
        FileNotFoundError: a folder, table or file is missing. ValueError: a table breaks its rule, a file has no id, or the pack is
            not of this data set.

    CHANGED C1: the walkthrough trusts its folder; here tables and files must agree before anything is trained.

    Source: In 1, In 12, In 41.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name the folder that holds {LAYOUT}")
    labels = _read_labels(root / "train_labels.csv")
    if labels["label"].nunique() < 2:
        raise ValueError(f"{root / 'train_labels.csv'} holds only label {labels['label'].iloc[0]}; training needs patches of both")
    sample_ids = tuple(_read_ids(root / "sample_submission.csv")["id"])
    sides = (("train", id_array(labels["id"]), "train_labels.csv"), ("test", id_array(sample_ids), "sample_submission.csv"))
    pack = None
    if packed or packed is None and os.path.lexists(root / FOLDER):  # a link into nowhere is no reason to read files in silence
        pack = PackedFolder(root)
    for folder, ids, table in sides:
        ids.sort()
        if pack:
            pack.check_ids(folder, ids, table)
        else:
            _match_files(root / folder, ids, table)
    if pack:
        pack.spot_check()
    answers = root / "test_labels.csv"
    test_labels = _read_labels(answers) if answers.is_file() else None
    if test_labels is not None and not np.array_equal(np.sort(id_array(test_labels["id"])), sides[1][1]):
        raise ValueError(f"{answers} does not answer for the ids of sample_submission.csv; correct it or move it away")
    return Dataset(root, labels, tuple(sorted(sample_ids)), sample_ids, test_labels, pack)


def verify_patches(paths, recipe=Recipe(), progress=True):
    """Read every patch once and require 8-bit RGB of the recipe's size, and of a packed one the very pixels that were packed.

    Args:
        paths: files of patches, or packed patches. progress: show a bar.
    Returns:
        number of patches read.
    Raises:
        ValueError: at least one cannot be used; names the first three and counts all.
    """
    def fault(path):
        try:
            read_patch(path, recipe)
            if isinstance(path, PackedPatch):
                path.prove()
        except (ValueError, OSError) as error:  # collected, and raised together below
            return str(error)
        return None

    faults = [text for text in map_patches(fault, paths, "verifying patches", progress) if text]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ValueError(f"{len(faults)} of {len(paths)} patches cannot be used: {'; '.join(faults[:3])}{more}")
    return len(paths)


def read_table(path):
    """Read a CSV's columns id and label as text, whatever its rows hold; `row_faults` says what is wrong with them.

    pandas would fill short rows, shift long ones and rename a column that stands twice, all in silence.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the data folder must hold {LAYOUT}")
    if path.stat().st_size > MOST_TABLE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a table has at most {MOST_TABLE_BYTES}, restore it from the data set")
    ids, labels = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = _table_rows(file)
            header = next(rows)
            if header.count("id") == header.count("label") == 1:
                id_at, label_at = header.index("id"), header.index("label")
                for row in rows:
                    ids.append(row[id_at])
                    labels.append(row[label_at])
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV table with the header id,label ({error}); restore it from the data set") from error
    for column in ("id", "label"):
        if header.count(column) != 1:
            raise ValueError(f"{path} has the columns {repr(header)[:100]} but {'no' if column not in header else 'more than one'} "
                             f"{column!r}; the header must be id,label")
    if not ids:
        raise ValueError(f"{path} has a header but no rows; restore it from the data set")
    return pd.DataFrame({"id": ids, "label": labels})


def _table_rows(file):
    """Yield a table's header and rows, none of them empty, longer or shorter than the header, or endless."""
    def lines():
        for line in file:
            if len(line) > MOST_LINE or "\0" in line:
                raise ValueError(f"it has a line of {len(line)} characters" if len(line) > MOST_LINE else "it holds a NUL byte")
            yield line

    header = None
    for number, row in enumerate(filter(None, csv.reader(lines(), strict=True)), 1):
        header = header or row
        if len(row) != len(header) or number > MOST_ROWS:
            raise ValueError(f"row {number} has {len(row)} field(s), the header {len(header)}" if len(row) != len(header)
                             else f"it has more than {MOST_ROWS} rows")
        yield row
    if not header:
        raise ValueError("it is empty")


def row_faults(table, columns=("id", "label")):
    """Return what can be wrong with some columns of a table: {fault: (its column, mask of the rows that have it)}."""
    rules = {"is used twice": ("id", lambda ids: ids.duplicated()),
             "is no file name": ("id", lambda ids: ~ids.str.fullmatch(f"{ID_LETTER}{{1,{LONGEST_ID}}}")),
             "is neither 0 nor 1": ("label", lambda labels: ~labels.isin(["0", "1"]))}
    return {fault: (column, find(table[column])) for fault, (column, find) in rules.items() if column in columns}


def visible_files(folder):
    """Return the names of everything in a folder but hidden files."""
    return {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}


def id_array(ids):
    """Return ids as an array of bytes: a third of the memory of Python's strings, sorted and compared at once."""
    ids = ids if isinstance(ids, (list, tuple)) else ids.tolist()  # a Series is ten times slower to go through
    width = max(map(len, map(str.encode, ids)), default=1)
    return np.fromiter(map(str.encode, ids), f"S{width}", len(ids))


def _read_ids(path):
    """Read a table whose ids are given, and given once; its labels may be anything."""
    table = read_table(path)
    if _are_sound(table["id"]):
        return table
    for fault, (_, rows) in row_faults(table, ["id"]).items():
        if rows.any():
            raise ValueError(f"{path}: id {repr(table['id'][rows].iloc[0])[:100]} {fault} ({rows.sum()} such row(s)); every row needs an "
                             "id of its own made of letters, digits, - and _")
    return table


def _are_sound(ids):
    """Say whether `row_faults` would find nothing in millions of ids, without a Python object for each."""
    ids = ids.tolist()
    if not 0 < min(map(len, ids)) <= max(map(len, ids)) <= LONGEST_ID or not re.fullmatch(f"{ID_LETTER}*", "".join(ids)):
        return False
    ids = np.sort(id_array(ids))
    return bool((ids[1:] != ids[:-1]).all())


def _read_labels(path):
    """Read a CSV of ids and labels, 0 or 1."""
    table = _read_ids(path)
    (_, wrong), = row_faults(table, ["label"]).values()
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(f"{path}: label {repr(row['label'])[:100]} of id {row['id']} is neither 0 nor 1 ({wrong.sum()} such row(s)); "
                         "correct the table")
    return table.assign(label=table["label"].astype("int64"))


def _match_files(folder, ids, table):
    """Require one <id>.tif for each id and no file besides; hidden files do not count."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; the data folder must hold {LAYOUT}")
    wanted = np.char.add(ids, b".tif")
    with os.scandir(os.fsencode(folder)) as entries:
        names = (entry.name for entry in entries)  # one byte more below, so that a longer name does not pass for its beginning
        found = np.fromiter((name for name in names if name[:1] != b"."), f"S{wanted.itemsize + 1}")
    wanted.sort()
    found.sort()
    if np.array_equal(found, wanted):
        return
    found, wanted = visible_files(folder), {name.decode() for name in wanted.tolist()}
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]} is missing although {table} lists it ({len(missing)} of {len(wanted)} "
                                "files are missing); finish the download")
    if extra:
        raise ValueError(f"{folder / extra[0]} has no row in {table} ({len(extra)} such file(s)); add its row or move it away")
