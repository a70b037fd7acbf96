"""A data set is opened only when its tables and files agree, and each patch can be read before
training."""

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import tracemalloc
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from hcd import Recipe, check_dataset, open_dataset, pack_dataset, verify_patches
from hcd.dataset import listed
from hcd.dataset import opened as dataset_module
from hcd.dataset.opened import Dataset

TABLES = ("train_labels.csv", "sample_submission.csv")


def rows(table):
    """Return a table's text rows, the header first."""
    return table.read_text().splitlines()


def write(table, lines):
    table.write_text("\n".join(lines) + "\n")


# what it holds


def test_it_holds_the_tables_in_file_order_and_the_test_ids_sorted_too(sample):
    dataset = open_dataset(str(sample.root))
    table = [line.split(",") for line in rows(sample.root / "train_labels.csv")[1:]]
    assert dataset.root == sample.root and list(dataset.labels.columns) == ["id", "label"]
    assert dataset.labels["id"].tolist() == [patch_id for patch_id, _ in table]
    assert (
        dataset.labels["label"].tolist() == [int(label) for _, label in table]
        and dataset.labels["label"].dtype == np.int64
    )
    listed = [line.split(",")[0] for line in rows(sample.root / "sample_submission.csv")[1:]]
    assert list(dataset.sample_ids) == listed and list(dataset.test_ids) == sorted(listed)
    assert listed != sorted(listed)  # or the line above shows nothing


def test_the_order_of_rows_is_kept_whatever_it_is(copy_of_sample):
    header, *table = rows(copy_of_sample / "train_labels.csv")
    write(copy_of_sample / "train_labels.csv", [header, *table[::-1]])
    assert open_dataset(copy_of_sample).labels["id"].tolist() == [
        line.split(",")[0] for line in table[::-1]
    ]


def test_paths_are_those_of_the_files(sample):
    for paths, ids, folder in (
        (sample.train_paths, sample.labels["id"], "train"),
        (sample.test_paths, sample.test_ids, "test"),
    ):
        assert paths == [os.path.join(sample.root, folder, f"{patch_id}.tif") for patch_id in ids]
        assert sorted(os.listdir(sample.root / folder)) == sorted(map(os.path.basename, paths))
    assert str(sample.train_path(sample.labels["id"][7])) == sample.train_paths[7]
    assert str(sample.test_path(sample.test_ids[3])) == sample.test_paths[3]


def test_answers_are_read_when_they_are_there(sample, copy_of_sample):
    answers = pd.read_csv(sample.root / "test_labels.csv")
    assert dict(zip(sample.test_labels["id"], sample.test_labels["label"])) == dict(
        zip(answers["id"], answers["label"])
    )
    (copy_of_sample / "test_labels.csv").unlink()
    assert open_dataset(copy_of_sample).test_labels is None


def test_without_leaves_out_ids_and_numbers_the_rest_anew(sample):
    gone = sample.labels["id"][[0, 5, 59]]
    fewer = sample.without(gone)
    assert (
        len(fewer.labels) == 57
        and fewer.labels.index.tolist() == list(range(57))
        and len(sample.labels) == 60
    )
    assert fewer.labels["id"].tolist() == [
        patch_id for patch_id in sample.labels["id"] if patch_id not in set(gone)
    ]
    assert (fewer.root, fewer.test_ids, fewer.sample_ids) == (
        sample.root,
        sample.test_ids,
        sample.sample_ids,
    )
    assert sample.without([]).labels.equals(sample.labels)


def test_fingerprint_is_of_ids_and_labels_whatever_their_order(sample):
    labels = sample.labels
    expected = "\n".join(
        [
            *sorted(f"{a},{b}" for a, b in zip(labels["id"], labels["label"])),
            *sorted(sample.sample_ids),
        ]
    )
    assert sample.fingerprint == hashlib.sha256(expected.encode()).hexdigest()
    shuffled = labels.sample(frac=1, random_state=0).reset_index(drop=True)
    assert (
        Dataset(sample.root, shuffled, sample.test_ids, sample.sample_ids[::-1]).fingerprint
        == sample.fingerprint
    )
    flipped = labels.assign(label=[1 - labels["label"][0], *labels["label"][1:]])
    others = (
        Dataset(sample.root, flipped, sample.test_ids, sample.sample_ids),
        sample.without(labels["id"][:1]),
        Dataset(sample.root, labels, sample.test_ids[1:], sample.sample_ids),
    )
    assert len({sample.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_texts_as_labels_are_told_apart(sample):
    names = np.where(sample.labels["label"], "tumour", "normal")
    one, other = (
        dataclasses.replace(sample, labels=sample.labels.assign(label=labels)).fingerprint
        for labels in (names, names[::-1])
    )
    assert one != other != sample.fingerprint


def test_one_id_alone_is_left_out(sample):
    first = sample.labels["id"][0]
    assert first not in sample.without(first).labels["id"].tolist()
    assert len(sample.without(first).labels) == 59


def test_it_is_frozen(sample):
    with pytest.raises(FrozenInstanceError):
        sample.labels = None


def test_more_columns_another_order_a_byte_order_mark_and_windows_line_ends_are_fine(
    sample, copy_of_sample
):
    path = copy_of_sample / "train_labels.csv"
    lines = [
        ",".join([line.split(",")[1], f"note {n}", line.split(",")[0]])
        for n, line in enumerate(rows(path))
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["label,note,id", *lines[1:], ""]).encode())
    assert open_dataset(copy_of_sample).labels.equals(sample.labels)


def test_hidden_files_do_not_count(sample, copy_of_sample):
    for name in (".DS_Store", ".x.tif"):
        (copy_of_sample / "train" / name).touch()
    assert open_dataset(copy_of_sample).fingerprint == sample.fingerprint


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    ids = ["0012", "1e5", "NA", "null", "-1", "1"]
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        for patch_id in ids:
            (tmp_path / folder / f"{patch_id}.tif").touch()
    write(
        tmp_path / "train_labels.csv",
        ["id,label", *(f"{patch_id},{n % 2}" for n, patch_id in enumerate(ids))],
    )
    write(tmp_path / "sample_submission.csv", ["id,label", *(f"{patch_id},0" for patch_id in ids)])
    dataset = open_dataset(tmp_path)
    assert dataset.labels["id"].tolist() == ids and dataset.test_ids == tuple(sorted(ids))


# what is refused


def test_a_wrong_or_empty_folder(tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "file"):
        with refused(FileNotFoundError, path, "is no folder", "train_labels.csv"):
            open_dataset(path)
    with refused(
        FileNotFoundError, tmp_path / "empty" / "train_labels.csv", "sample_submission.csv"
    ):
        open_dataset(tmp_path / "empty")


@pytest.mark.parametrize("name", ["train_labels.csv", "train"])
def test_a_missing_table_or_folder(copy_of_sample, refused, name):
    path = copy_of_sample / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with refused(FileNotFoundError, path, "missing"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize("missing", [["sample_submission.csv"], ["test"], ["test", *TABLES[1:]]])
def test_without_a_test_set_it_serves_training_alone(copy_of_sample, sample, missing):
    for path in (copy_of_sample / name for name in missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    dataset = open_dataset(copy_of_sample)
    named = "sample_submission.csv" if "sample_submission.csv" in missing else "test"
    assert dataset.no_test == f"{copy_of_sample / named} is missing"
    assert dataset.test_ids == dataset.sample_ids == () and dataset.test_labels is None
    assert dataset.labels.equals(sample.labels) and sample.no_test == ""
    assert dataset.fingerprint != sample.fingerprint


def test_a_test_folder_that_is_there_must_be_whole(copy_of_sample, refused):
    shutil.rmtree(copy_of_sample / "test")
    (copy_of_sample / "test").mkdir()
    with refused(FileNotFoundError, "12 of 12 files are missing", "finish the download"):
        open_dataset(copy_of_sample)


def test_an_archive_of_the_test_set_is_no_reason_to_train_alone(copy_of_sample, refused):
    shutil.rmtree(copy_of_sample / "test")
    (copy_of_sample / "test.zip").touch()
    with refused(FileNotFoundError, "test.zip is there; unpack it"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("column", ["id", "label"])
def test_a_missing_column(copy_of_sample, refused, table, column):
    path = copy_of_sample / table
    path.write_text(path.read_text().replace(column, "name", 1))
    with refused(ValueError, path, repr(column), "'name'"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize("label", ["2", "-1", "", "yes", "nan", " 1", "0;"])
def test_a_label_other_than_0_or_1(copy_of_sample, refused, label):
    path = copy_of_sample / "train_labels.csv"
    lines = rows(path)
    patch_id = lines[9].split(",")[0]
    write(path, [*lines[:9], f"{patch_id},{label}", *lines[10:]])
    with refused(ValueError, path, repr(label), patch_id, "neither 0 nor 1", "1 such"):
        open_dataset(copy_of_sample)


def test_labels_of_one_kind_only(copy_of_sample, refused):
    path = copy_of_sample / "train_labels.csv"
    write(path, ["id,label", *(line[:-1] + "1" for line in rows(path)[1:])])
    with refused(ValueError, path, "only label 1"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize("table", TABLES)
def test_an_id_used_twice(copy_of_sample, refused, table):
    path = copy_of_sample / table
    lines = rows(path)
    write(path, [*lines, lines[3], lines[4]])
    with refused(ValueError, path, lines[3].split(",")[0], "is used twice", "2 such"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize("patch_id", ["", "../../etc/passwd", "a/b", "a b", "a.tif", "..", "a\\b"])
@pytest.mark.parametrize("table", TABLES)
def test_an_id_that_is_no_file_name(copy_of_sample, refused, table, patch_id):
    path = copy_of_sample / table
    write(path, [*rows(path), f"{patch_id},0"])
    with refused(ValueError, path, repr(patch_id), "is no file name"):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no CSV table"),
        (b"id,label\n", "no rows"),
        (b'id,label\na,0,1\nb,1\n"', "no CSV table"),
        (b"id,label\n\xff\xfe,0\n", "no CSV table"),
        (b"id,label\na,1\nb,0,0,0\n", "row 3 has 4 field(s)"),
        (b"id,label\na,1\nb\n", "row 3 has 1 field(s)"),
        (b"id,label\nx,a,1\nx,b,0\n", "row 2 has 3 field(s)"),
        (b"id,label,id\na,0,b\n", "more than one 'id'"),
        (b"\0\0\0\0", "NUL byte"),
        (b'id,label\n"a\nb",1\n', r"'a\nb'"),
        (b"id,label\n" + b"a" * 201 + b",1\n", "is no file name"),
        (b"," * 100_000 + b"\nid,label\n", "a line of 100001 characters"),
        (b"id,label\n" + b"\n" * (1 << 27), "bytes"),
    ],
    ids=[
        "empty",
        "header only",
        "open quote",
        "not utf-8",
        "ragged",
        "short row",
        "long rows",
        "id twice",
        "zeros",
        "line break in an id",
        "long id",
        "commas",
        "128 MiB",
    ],
)
@pytest.mark.parametrize("table", TABLES)
def test_what_is_no_table(copy_of_sample, refused, table, content, words):
    (copy_of_sample / table).write_bytes(content)
    with refused(ValueError, copy_of_sample / table, words):
        open_dataset(copy_of_sample)


@pytest.mark.parametrize(
    "folder, table", [("train", "train_labels.csv"), ("test", "sample_submission.csv")]
)
def test_an_id_without_its_file_and_a_file_without_an_id(copy_of_sample, refused, folder, table):
    first, second, *_ = sorted((copy_of_sample / folder).iterdir())
    stray = first.rename(copy_of_sample / folder / "stray.tif")
    second.unlink()
    with refused(FileNotFoundError, first, table, "2 of"):
        open_dataset(copy_of_sample)
    lines = [
        line
        for line in rows(copy_of_sample / table)
        if line.split(",")[0] not in (first.stem, second.stem)
    ]
    write(copy_of_sample / table, lines)
    (copy_of_sample / "test_labels.csv").unlink()
    for extra in (
        stray,
        copy_of_sample / folder / "notes.txt",
        copy_of_sample / folder / "UPPER.TIF",
    ):
        extra.touch()
        with refused(ValueError, extra, table, "1 such file"):
            open_dataset(copy_of_sample)
        extra.unlink()
    assert open_dataset(copy_of_sample)


def test_answers_that_answer_for_other_ids(copy_of_sample, refused):
    path = copy_of_sample / "test_labels.csv"
    lines = rows(path)
    for wrong in (lines[:-1], [*lines, "another,1"]):
        write(path, wrong)
        with refused(ValueError, path, "sample_submission.csv"):
            open_dataset(copy_of_sample)
    write(path, [*lines[:-1], lines[-1][:-1] + "7"])
    with refused(ValueError, path, "'7'"):
        open_dataset(copy_of_sample)


# every patch


def test_verify_patches_counts_what_it_read(sample):
    assert verify_patches(sample.train_paths, progress=False) == 60
    assert verify_patches(sample.test_paths, progress=False) == 12


def spoil(path, how):
    """Damage one file in a named way; return words that the error must hold."""
    rgb, content = cv2.imread(str(path)), path.read_bytes()
    images = {
        "grey": rgb[..., 0],
        "16-bit": rgb.astype(np.uint16),
        "alpha": rgb[..., [0, 1, 2, 0]],
        "size": rgb[:95],
    }
    if how in images:
        path.write_bytes(cv2.imencode(".tif", images[how])[1].tobytes())
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {"truncated": content[:20_000], "empty": b"", "text": b"not an image"}[how]
        )
    return {
        "grey": "1 channel",
        "16-bit": "uint16",
        "alpha": "4 channel",
        "size": "96 x 95 px",
        "folder": "is no file",
        "truncated": "20000 bytes",
        "empty": "0 bytes",
        "text": "12 bytes",
    }[how]


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "text", "grey", "16-bit", "alpha", "size", "folder"]
)
def test_a_damaged_patch_is_found_before_training(copy_of_sample, refused, how):
    dataset = open_dataset(copy_of_sample)
    path = dataset.train_path(dataset.labels["id"][41])
    words = spoil(path, how)
    # the tables alone do not show it
    assert open_dataset(copy_of_sample).fingerprint == dataset.fingerprint
    with refused(ValueError, path, words, "1 of 60 patches"):
        verify_patches(dataset.train_paths, progress=False)


def test_many_damaged_patches_name_three_and_count_all(copy_of_sample, refused):
    dataset = open_dataset(copy_of_sample)
    spoiled = [dataset.train_path(patch_id) for patch_id in dataset.labels["id"][[2, 30, 31, 59]]]
    for path, how in zip(spoiled, ("truncated", "grey", "size", "text")):
        spoil(path, how)
    with refused(ValueError, *spoiled[:3], "4 of 60 patches", "(and 1 more)") as caught:
        verify_patches(dataset.train_paths, progress=False)
    assert str(spoiled[3]) not in str(caught.value)


def test_verify_patches_goes_by_the_recipes_size(sample, refused):
    with refused(ValueError, "12 of 12", "64 x 64 px"):
        verify_patches(sample.test_paths, Recipe(original_size=64, crop_size=60), progress=False)


def test_the_samples_ids_are_the_sha1_of_their_pixels(sample):
    card = json.loads((sample.root / "sample.json").read_text())
    assert (card["train"], card["test"]) == (60, 12)
    for path, patch_id in zip(sample.test_paths, sample.test_ids):
        assert hashlib.sha1(cv2.imread(path)[..., ::-1].tobytes()).hexdigest() == patch_id


def test_a_longer_name_does_not_pass_for_its_beginning(copy_of_sample, refused):
    path = max((copy_of_sample / "test").iterdir())
    longer = path.rename(f"{path}f")
    with refused(FileNotFoundError, path, "1 of 12"):
        open_dataset(copy_of_sample)
    longer.rename(path)
    assert open_dataset(copy_of_sample)


class Listing:
    """Stand in for os.scandir, with the files that a table lists."""

    def __init__(self, folder):
        root, side = os.path.split(os.fsdecode(folder))
        table = os.path.join(
            root, {"train": "train_labels.csv", "test": "sample_submission.csv"}[side]
        )
        with open(table, "rb") as file:
            self.entries = [SimpleNamespace(name=line.split(b",")[0] + b".tif") for line in file][
                1:
            ]

    def __enter__(self):
        return iter(self.entries)

    def __exit__(self, *_):
        pass


def test_memory_grows_by_the_letters_of_a_row(tmp_path, monkeypatch):
    """2.2 million rows have to fit beside everything else into 1.2 GiB: a row's id and a quarter
    of a test id, each also sorted for a while, are 100 bytes; as Python's texts they would be
    500."""
    monkeypatch.setattr(dataset_module.os, "scandir", lambda folder: listings[os.fsdecode(folder)])
    monkeypatch.setattr(dataset_module, "NAMES", 1000)
    monkeypatch.setattr(listed, "CHUNK", 1000)
    most, kept, sizes = [], [], (10_000, 20_000)
    for rows_ in sizes:
        root = tmp_path / str(rows_)
        for side, table, count in (
            ("train", "train_labels.csv", rows_),
            ("test", "sample_submission.csv", rows_ // 4),
        ):
            (root / side).mkdir(parents=True)
            write(
                root / table,
                [
                    "id,label",
                    *(
                        f"{hashlib.sha1(f'{side}{n}'.encode()).hexdigest()},{n % 2}"
                        for n in range(count)
                    ),
                ],
            )
        listings = {str(root / side): Listing(root / side) for side in ("train", "test")}
        tracemalloc.start()
        try:
            dataset = open_dataset(root)
            kept.append(tracemalloc.get_traced_memory()[0])
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(dataset.labels) == rows_
    more = sizes[1] - sizes[0]
    assert kept[1] - kept[0] < 65 * more and most[1] - most[0] < 140 * more


@pytest.mark.parametrize("suffix", [".TIF", ".tiff", ".png"])
def test_files_with_another_suffix_are_named(copy_of_sample, refused, suffix):
    for file in (copy_of_sample / "train").iterdir():
        file.rename(file.with_suffix(suffix))
    with refused(FileNotFoundError, copy_of_sample / "train", suffix, "<id>.tif"):
        open_dataset(copy_of_sample)


def test_a_file_named_as_an_id_without_its_suffix_is_not_the_patch(copy_of_sample, refused):
    file = sorted((copy_of_sample / "train").iterdir())[7]
    file.rename(file.with_suffix(""))
    with refused(FileNotFoundError, file, "1 of 60"):
        open_dataset(copy_of_sample)


def test_a_name_that_begins_as_an_id_does_is_another_file(copy_of_sample, refused):
    file = sorted((copy_of_sample / "train").iterdir())[7]
    file.rename(file.with_name(f"{file.stem}0.tif"))
    with refused(FileNotFoundError, file, "1 of 60"):
        open_dataset(copy_of_sample)


def test_labels_as_a_spreadsheet_writes_them(copy_of_sample, sample):
    table = copy_of_sample / "train_labels.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0], *(f"{row}.0" for row in rows[1:])]) + "\n")
    assert open_dataset(copy_of_sample).labels.equals(sample.labels)


def test_answers_of_one_label_are_found_at_once(copy_of_sample, refused):
    table = copy_of_sample / "test_labels.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0], *(f"{row[:-1]}1" for row in rows[1:])]) + "\n")
    with refused(ValueError, table, "only label 1", "ROC curve", "move it away"):
        open_dataset(copy_of_sample)


# tables and folders as people have them


def compress(path):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def test_compressed_tables_are_read(sample, copy_of_sample, tmp_path):
    for name in (*TABLES, "test_labels.csv"):
        compress(copy_of_sample / name)
    dataset = open_dataset(copy_of_sample)
    assert dataset.fingerprint == sample.fingerprint and dataset.sample_ids == sample.sample_ids
    assert dataset.test_labels.equals(sample.test_labels)
    assert check_dataset(copy_of_sample, progress=False).clean
    pack_dataset(copy_of_sample, tmp_path / "fast", progress=False)
    assert open_dataset(tmp_path / "fast").fingerprint == sample.fingerprint
    assert not pack_dataset(copy_of_sample, tmp_path / "fast", progress=False).new


def test_a_table_that_is_there_plain_and_compressed_is_read_plain(sample, copy_of_sample):
    (copy_of_sample / "train_labels.csv.gz").write_bytes(b"not read")
    assert open_dataset(copy_of_sample).fingerprint == sample.fingerprint


@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped", "empty"])
def test_a_damaged_compressed_table(copy_of_sample, refused, damage):
    path = compress(copy_of_sample / "train_labels.csv")
    content = path.read_bytes()
    flipped = content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]
    path.write_bytes(
        {"cut": content[:-9], "no gzip": b"id,label", "flipped": flipped, "empty": b""}[damage]
    )
    with refused(ValueError, path, "restore it"):
        open_dataset(copy_of_sample)
    (finding,) = check_dataset(copy_of_sample, progress=False).findings["tables"]
    assert finding.startswith("train_labels.csv.gz: is no CSV table")


@pytest.mark.parametrize("letter", [b"0", b"0\n", b"0,1\n"])
def test_a_compressed_table_that_would_fill_the_memory(
    copy_of_sample, refused, monkeypatch, letter
):
    monkeypatch.setattr("hcd.dataset.tables.MOST_TABLE_BYTES", 1 << 20)
    path = copy_of_sample / "train_labels.csv.gz"
    (copy_of_sample / "train_labels.csv").unlink()
    with gzip.open(path, "wb") as file:
        file.write(b"id,label\n")
        for _ in range(64):
            file.write(letter * (1 << 20))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with refused(ValueError, path, "decompresses to more than"):
        open_dataset(copy_of_sample)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_data_set_that_lies_farther_in(copy_of_sample, refused):
    with refused(FileNotFoundError, copy_of_sample, "name that folder"):
        open_dataset(copy_of_sample.parent)


@pytest.mark.parametrize("archive", ["train.zip", "test.zip", "train.tar.gz"])
def test_an_archive_that_is_not_unpacked(copy_of_sample, refused, archive):
    side = archive.partition(".")[0]
    shutil.rmtree(copy_of_sample / side)
    (copy_of_sample / archive).write_bytes(b"PK")
    with refused(FileNotFoundError, copy_of_sample / side, archive, "unpack it to get"):
        open_dataset(copy_of_sample)


def test_the_competitions_archive_itself(tmp_path, refused):
    (tmp_path / "histopathologic-cancer-detection.zip").write_bytes(b"PK")
    with refused(FileNotFoundError, "histopathologic-cancer-detection.zip", "unpack it and name"):
        open_dataset(tmp_path)


def test_an_archive_beside_what_was_unpacked_is_nobodys_business(sample, copy_of_sample):
    for name in ("train.zip", "test.zip", "all.zip"):
        (copy_of_sample / name).write_bytes(b"PK")
    assert open_dataset(copy_of_sample).fingerprint == sample.fingerprint


@pytest.mark.parametrize(
    "header, row",
    [("ID,Label", None), (" id,label", None), ("id;label", None), ("id,id,label", "a,{0}")],
)
def test_a_header_of_other_columns_is_shown(copy_of_sample, refused, header, row):
    path = copy_of_sample / "train_labels.csv"
    table = path.read_text().splitlines()[1:]
    path.write_text("\n".join([header, *((row or "{0}").format(line) for line in table)]) + "\n")
    with refused(ValueError, path, "the header"):
        open_dataset(copy_of_sample)


def test_a_byte_order_mark_windows_lines_and_hidden_files_change_nothing(sample, copy_of_sample):
    path = copy_of_sample / "train_labels.csv"
    text = path.read_text().replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(",1\r", ",1.0\r").encode())
    (copy_of_sample / "train" / "._a.tif").touch()
    assert open_dataset(copy_of_sample).fingerprint == sample.fingerprint


def test_a_table_of_the_test_set_that_is_not_unpacked(copy_of_sample, refused):
    (copy_of_sample / "sample_submission.csv").rename(copy_of_sample / "sample_submission.csv.zip")
    with refused(FileNotFoundError, "sample_submission.csv.zip is there", "unpack it"):
        open_dataset(copy_of_sample)


def test_the_check_says_what_opening_says_of_an_archive(copy_of_sample):
    shutil.rmtree(copy_of_sample / "test")
    for name in ("sample_submission.csv", "test_labels.csv"):
        (copy_of_sample / name).unlink()
    (copy_of_sample / "test.zip").touch()
    report = check_dataset(copy_of_sample, progress=False)
    assert report.findings["tables"] == ["test.zip: is not unpacked, so there is no test set"]


def test_ids_in_other_letters_than_their_files(copy_of_sample, refused):
    path = copy_of_sample / "train_labels.csv"
    path.write_text("id,label\n" + path.read_text().removeprefix("id,label\n").upper())
    with refused(FileNotFoundError, "upper or lower case", "change the ids"):
        open_dataset(copy_of_sample)
