"""A table is read as the text it holds, and what is wrong with its rows is found the same way,
whichever function looks."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hcd import InputError
from hcd.dataset import tables
from hcd.dataset.tables import (
    LONGEST_ID,
    _are_sound,
    id_array,
    read_ids,
    read_labels,
    read_table,
    row_faults,
    table_file,
)

LETTERS = "abAB09_-üß٣字"
STRANGE = " .,/\\\n\r\t\0'\"é\u0301\u200d\xa0²"
IDS = st.lists(
    st.one_of(
        st.text(LETTERS, min_size=1, max_size=4),
        st.text(LETTERS + STRANGE, max_size=4),
        st.text(max_size=5),
    ),
    min_size=1,
    max_size=6,
)


def table(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found(path):
    """Return a table's columns as lists."""
    frame = read_table(path)
    assert list(frame.columns) == ["id", "label"]
    return frame["id"].tolist(), frame["label"].tolist()


# which file


@pytest.mark.parametrize(
    "there, wanted",
    [
        ([], "a.csv"),
        (["a.csv"], "a.csv"),
        (["a.csv.gz"], "a.csv.gz"),
        (["a.csv", "a.csv.gz"], "a.csv"),
        (["b.csv.gz"], "a.csv"),
    ],
)
def test_the_compressed_file_is_taken_where_it_alone_is_there(tmp_path, there, wanted):
    for name in there:
        (tmp_path / name).touch()
    assert table_file(tmp_path, "a.csv") == tmp_path / wanted


def test_a_folder_is_no_compressed_table(tmp_path):
    (tmp_path / "a.csv.gz").mkdir()
    assert table_file(tmp_path, "a.csv") == tmp_path / "a.csv"


# what is read


@pytest.mark.parametrize(
    "content, ids, labels",
    [
        ("id,label\nb,1\na,0\n", ["b", "a"], ["1", "0"]),
        ("id,label\nb,1\na,0", ["b", "a"], ["1", "0"]),
        ("\n\nid,label\n\nb,1\r\n\r\na,0\n\n\n", ["b", "a"], ["1", "0"]),
        ("id,label\rb,1\ra,0\r", ["b", "a"], ["1", "0"]),
        ("label,x,id\n1,y,b\n0,,a\n", ["b", "a"], ["1", "0"]),
        ("x,id,x,label\n1,b,2,1\n", ["b"], ["1"]),
        ('"id","label"\n"b","1"\n', ["b"], ["1"]),
        ('id,label\n"a,""b""",1\n', ['a,"b"'], ["1"]),
        ('id,label\n"a\r\nb",1\n', ["a\r\nb"], ["1"]),
        ("\ufeffid,label\nb,1\n", ["b"], ["1"]),
        ("id,label\ngrün,1\n", ["grün"], ["1"]),
        ("id,label\n0012,1\n1e5,0\nNA,1\n,0\n", ["0012", "1e5", "NA", ""], ["1", "0", "1", "0"]),
        ("id,label\n a ,1 \n", [" a "], ["1 "]),
    ],
)
def test_ids_and_labels_are_the_text_of_the_file(tmp_path, content, ids, labels):
    assert found(table(tmp_path, content)) == (ids, labels)
    packed = table(tmp_path, gzip.compress(content.encode()), "table.csv.gz")
    assert found(packed) == (ids, labels)


def test_labels_alone_are_read_as_spreadsheets_write_them(tmp_path):
    labels = ["0.0", "1.0", "0", "1", "00.0", "1.00", "1,0", "2.0", "-0.0", ""]
    rows = "".join(f'{label.replace(",", ";")}{n},"{label}"\n' for n, label in enumerate(labels))
    ids, read = found(table(tmp_path, f"id,label\n0.0,0\n{rows}"))
    assert read == ["0", "0", "1", "0", "1", "00.0", "1.00", "1,0", "2.0", "-0.0", ""]
    assert ids[:3] == ["0.0", "0.00", "1.01"]


def test_whatever_rows_hold_is_read_and_left_to_row_faults(tmp_path):
    ids, labels = found(table(tmp_path, "id,label\n../a,yes\n../a,nan\n,\n"))
    assert ids == ["../a", "../a", ""] and labels == ["yes", "nan", ""]


# what is refused


@pytest.mark.parametrize("content", ["\n\n\r\n", "\ufeff", "\ufeff\n"])
def test_blank_lines_alone_are_no_table(tmp_path, refused, content):
    path = table(tmp_path, content)
    with refused(InputError, path, "it is empty"):
        read_table(path)


@pytest.mark.parametrize("content", ["id,label\n \n", 'id,label\n""\n'])
def test_a_row_of_one_empty_field_is_short(tmp_path, refused, content):
    path = table(tmp_path, content)
    with refused(InputError, path, "row 2 has 1 field(s), the header 2"):
        read_table(path)


@pytest.mark.parametrize("content", ['id,label\n"a"b,1\n', 'id,label\n"a,1\n'])
def test_quotes_that_do_not_fit_are_refused(tmp_path, refused, content):
    path = table(tmp_path, content)
    with refused(InputError, path, "no CSV table"):
        read_table(path)


def test_a_quoted_field_over_many_lines_is_not_endless(tmp_path, refused):
    path = table(tmp_path, 'id,label\n"' + ("a" * 60_000 + "\n") * 3 + '",1\n')
    with refused(InputError, path, "no CSV table", "field limit"):
        read_table(path)


def test_a_missing_table_or_a_folder_in_its_place(tmp_path, refused):
    for path, fault in ((tmp_path / "a.csv", "is missing"), (tmp_path, "is a folder")):
        with refused(FileNotFoundError, path, fault, "train_labels.csv"):
            read_table(path)


def test_the_most_rows_are_read_and_no_more(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 3)  # the header is one of them
    path = table(tmp_path, "id,label\na,0\n\nb,1\n")
    assert found(path)[0] == ["a", "b"]
    table(tmp_path, "id,label\na,0\n\nb,1\nc,1\n")
    with refused(InputError, path, "more than 3 rows"):
        read_table(path)


def test_the_longest_line_is_read_and_no_longer_one(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(tables, "MOST_LINE", 20)
    path = table(tmp_path, f"id,label\n{'a' * 17},1\n")
    assert found(path)[0] == ["a" * 17]
    table(tmp_path, f"id,label\n{'a' * 18},1\n")
    with refused(InputError, path, "a line of 21 characters"):
        read_table(path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_the_most_bytes_are_read_and_no_more(tmp_path, refused, monkeypatch, packed):
    content = b"id,label\n" + b"a,0\n" * 1000  # smaller when compressed
    written = gzip.compress(content) if packed else content
    path = table(tmp_path, written, "table.csv.gz" if packed else "table.csv")
    monkeypatch.setattr(tables, "MOST_TABLE_BYTES", len(content))
    assert len(found(path)[0]) == 1000
    monkeypatch.setattr(tables, "MOST_TABLE_BYTES", len(content) - 1)
    with refused(InputError, path, str(len(content) - 1)):
        read_table(path)


def test_a_plain_table_by_a_compressed_ones_name(tmp_path, refused):
    path = table(tmp_path, "id,label\na,0\n", "table.csv.gz")
    with refused(InputError, path, "no whole gzip file"):
        read_table(path)


# what is wrong with its rows


def test_each_fault_marks_its_rows(tmp_path):
    ids = ["a", "b", "a", "", "a b", "b", "ü", "x" * LONGEST_ID, "x" * (LONGEST_ID + 1), "c\n"]
    labels = ["0", "1", "0.0", "", "2", " 1", "01", "1", "0", "1\n"]
    faults = row_faults(pd.DataFrame({"id": ids, "label": labels}))
    assert {fault: column for fault, (column, _) in faults.items()} == {
        "is used twice": "id",
        "is no file name": "id",
        "is neither 0 nor 1": "label",
    }
    marked = {fault: np.flatnonzero(rows).tolist() for fault, (_, rows) in faults.items()}
    assert marked == {
        "is used twice": [2, 5],  # the first of them may stay
        "is no file name": [3, 4, 8, 9],
        "is neither 0 nor 1": [2, 3, 4, 5, 6, 9],
    }


@pytest.mark.parametrize(
    "columns, faults",
    [
        (["id"], ["is used twice", "is no file name"]),
        (["label"], ["is neither 0 nor 1"]),
        ([], []),
    ],
)
def test_only_the_columns_asked_for_are_looked_at(columns, faults):
    one = pd.DataFrame({name: ["1"] for name in columns})  # the others are not even there
    assert list(row_faults(one, columns)) == faults


@settings(deadline=None, max_examples=100)
@given(ids=IDS)
@example(ids=["a", "a"])
@example(ids=["a\0", "a"])
@example(ids=["abc", "abcd"])
@example(ids=["ü", "u\u0308"])
@example(ids=["", ""])
def test_the_fast_look_at_ids_agrees_with_row_faults(ids):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tables, "LONGEST_ID", 3)  # or random ids would never be too long
        frame = pd.DataFrame({"id": ids})
        slow = not any(rows.any() for _, rows in row_faults(frame, ["id"]).values())
        assert _are_sound(frame["id"]) is slow


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(st.text(LETTERS, min_size=1, max_size=3), min_size=1, max_size=8, unique=True))
def test_ids_that_are_sound_are_found_so_and_one_twice_is_not(ids):
    assert _are_sound(pd.Series(ids))
    assert not _are_sound(pd.Series([*ids, ids[0]]))


def test_read_ids_leaves_labels_alone_and_read_labels_does_not(tmp_path, refused):
    path = table(tmp_path, "id,label\nb,yes\na,0\n")
    assert read_ids(path)["label"].tolist() == ["yes", "0"]
    with refused(InputError, path, "'yes'", "of id b", "1 such"):
        read_labels(path)
    table(tmp_path, "id,label\nb,1.0\na,0\n")
    labels = read_labels(path)
    assert labels["label"].tolist() == [1, 0] and labels["label"].dtype == np.int64


# ids as bytes


@pytest.mark.parametrize("kind", [list, tuple, pd.Series, np.array])
def test_ids_as_bytes_keep_their_order_and_their_text(kind):
    ids = ["b", "abc", "", "grün", "b"]
    array = id_array(kind(ids))
    assert array.dtype == "S5" and array.shape == (5,)  # ü is two bytes
    assert [value.decode() for value in array.tolist()] == ids


def test_no_ids_are_an_empty_array():
    for ids in ([], (), pd.Series([], dtype=str)):
        assert id_array(ids).shape == (0,)


def test_ids_as_bytes_sort_as_their_text_does():
    ids = ["10", "1", "a", "_", "-", "B", "é", "字", "z"]
    assert [value.decode() for value in np.sort(id_array(ids))] == sorted(ids)
