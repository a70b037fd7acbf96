"""The tables of a data set: ids and labels, read as text and judged row by row."""

import csv
import gzip
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError

# fifteen times the competition's, and no memory filled
MOST_TABLE_BYTES, MOST_ROWS, MOST_LINE = 1 << 27, 1 << 22, 1 << 16
LAYOUT = (
    "train/<id>.tif and train_labels.csv (id,label), and to predict a test set test/<id>.tif and"
    " sample_submission.csv (id,label)"
)
AS_WHOLE = {"0.0": "0", "1.0": "1"}  # as spreadsheets and pandas write them
ID_LETTER, LONGEST_ID = r"[\w\-]", 200  # an id is a file's name
LETTERS = re.compile(f"{ID_LETTER}*")
TABLES = ("train_labels.csv", "sample_submission.csv", "test_labels.csv")


def table_file(root: Path, name: str) -> Path:
    """Return the file of a table: <name>, or <name>.gz where that alone is there."""
    packed = root / f"{name}.gz"
    return packed if packed.is_file() and not (root / name).exists() else root / name


def read_table(path, value="label"):
    """Read a CSV's columns id and label, or id and another one, as text, whatever its rows hold;
    `row_faults` says what is wrong with them. One that ends in .gz is decompressed.

    pandas would fill short rows, shift long ones and rename a column that stands twice, all in
    silence.
    """
    ids, values = [], []
    for patch_id, text in id_rows(path, value):
        ids.append(patch_id)
        values.append(text)
    return pd.DataFrame({"id": ids, value: values})


def id_rows(path, value="label"):
    """Yield the id and the other text of each row, of at least one; see `read_table`."""
    if not path.is_file():
        remedy = f"the data folder must hold {LAYOUT}" if value == "label" else "name another file"
        fault = "is a folder" if path.is_dir() else "is missing"
        raise FileNotFoundError(f"{path} {fault}; {remedy}")
    if path.stat().st_size > MOST_TABLE_BYTES:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes; a table has at most {MOST_TABLE_BYTES},"
            " restore it from the data set"
        )
    empty = True
    try:
        with _opened(path) as file:
            rows = _table_rows(file)
            header = next(rows)
            if header.count("id") == header.count(value) == 1:
                id_at, value_at = header.index("id"), header.index(value)
                as_whole = AS_WHOLE if value == "label" else {}
                for row in rows:
                    empty = False
                    yield row[id_at], as_whole.get(row[value_at], row[value_at])
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is no CSV table with the header id,{value} ({error}); restore it from the"
            " data set"
        ) from error
    for column in ("id", value):
        if header.count(column) != 1:
            raise InputError(
                f"{path} has the columns {repr(header)[:100]} but"
                f" {'no' if column not in header else 'more than one'} {column!r}; the header must"
                f" be id,{value}"
            )
    if empty:
        raise InputError(f"{path} has a header but no rows; restore it from the data set")


def _opened(path):
    """Open a table as text; of a compressed one no more is decompressed than a table may have."""
    if path.suffix != ".gz":
        return open(path, encoding="utf-8-sig", newline="")
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_TABLE_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"it is no whole gzip file: {error}") from error
    if len(content) > MOST_TABLE_BYTES:
        raise InputError(f"it decompresses to more than {MOST_TABLE_BYTES} bytes")
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")


def _table_rows(file):
    """Yield a table's header and rows, none of them empty, longer or shorter than the header, or
    endless."""

    def lines():
        for line in file:
            if len(line) > MOST_LINE or "\0" in line:
                raise InputError(
                    f"it has a line of {len(line)} characters"
                    if len(line) > MOST_LINE
                    else "it holds a NUL byte"
                )
            yield line

    header = None
    for number, row in enumerate(filter(None, csv.reader(lines(), strict=True)), 1):
        header = header or row
        if len(row) != len(header) or number > MOST_ROWS:
            raise InputError(
                f"row {number} has {len(row)} field(s), the header {len(header)}"
                if len(row) != len(header)
                else f"it has more than {MOST_ROWS} rows"
            )
        yield row
    if not header:
        raise InputError("it is empty")


def row_faults(table, columns=("id", "label")):
    """Return what can be wrong with some columns of a table: {fault: (its column, mask of the rows
    that have it)}."""
    rules = {
        "is used twice": ("id", lambda ids: ids.duplicated()),
        "is no file name": ("id", lambda ids: ~ids.str.fullmatch(f"{ID_LETTER}{{1,{LONGEST_ID}}}")),
        "is neither 0 nor 1": ("label", lambda labels: ~labels.isin(["0", "1"])),
    }
    return {
        fault: (column, find(table[column]))
        for fault, (column, find) in rules.items()
        if column in columns
    }


def id_array(ids):
    """Return ids as an array of bytes: a third of the memory of Python's strings, sorted and
    compared at once."""
    # a Series is ten times slower to go through
    ids = ids if isinstance(ids, (list, tuple)) else ids.tolist()
    other = next((one for one in ids if not isinstance(one, str)), "")
    if other != "":
        raise InputError(
            f"an id is {other!r}, a {type(other).__name__}, and must be text; read the table with"
            " dtype={'id': str}, or take the rows without an id out of it"
        )
    width = max(map(len, map(str.encode, ids)), default=1)
    return np.fromiter(map(str.encode, ids), f"S{width}", len(ids))


def read_ids(path, value="label"):
    """Read a table whose ids are given, and given once; its other column may be anything."""
    table = read_table(path, value)
    if _are_sound(table["id"]):
        return table
    for fault, (_, rows) in row_faults(table, ["id"]).items():
        if rows.any():
            raise InputError(
                f"{path}: id {repr(table['id'][rows].iloc[0])[:100]} {fault} ({rows.sum()} such"
                " row(s)); every row needs an id of its own made of letters, digits, - and _"
            )
    return table


def _are_sound(ids):
    """Say whether `row_faults` would find nothing in millions of ids, without a Python object for
    each."""
    ids = ids.tolist()
    # all of them as one text would be as large as the array below
    if not all(are_names(ids[start : start + 10_000]) for start in range(0, len(ids), 10_000)):
        return False
    ids = id_array(ids)
    ids.sort()
    return bool((ids[1:] != ids[:-1]).all())


def are_names(ids):
    """Say whether some ids, at least one, can be names of files."""
    lengths = list(map(len, ids))
    return 0 < min(lengths) <= max(lengths) <= LONGEST_ID and bool(LETTERS.fullmatch("".join(ids)))


def read_labels(path):
    """Read a CSV of ids and labels, 0 or 1."""
    table = read_ids(path)
    ((_, wrong),) = row_faults(table, ["label"]).values()
    if wrong.any():
        row = table[wrong].iloc[0]
        raise InputError(
            f"{path}: label {repr(row['label'])[:100]} of id {row['id']} is neither 0 nor 1"
            f" ({wrong.sum()} such row(s)); correct the table"
        )
    return table.assign(label=table["label"].astype("int64"))
