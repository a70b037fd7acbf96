"""hcd.dataset.check: what is planted is found, all of it and nothing else."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hcd.dataset import check as check_module
from hcd.dataset.check import FINDINGS, REMARKS, check_dataset
from hcd.dataset.opened import open_dataset, verify_patches
from hcd.recipe import Recipe

TRAINING_ALONE = "sample_submission.csv and test/ are missing; it serves training alone"


def write_image(path, image):
    """Write an image as an uncompressed TIFF; returns the SHA-1 of its bytes as (H, W, 3) RGB."""
    path.write_bytes(
        cv2.imencode(
            ".tif",
            image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image,
            [cv2.IMWRITE_TIFF_COMPRESSION, 1],
        )[1].tobytes()
    )
    return hashlib.sha1(np.ascontiguousarray(image).tobytes()).hexdigest()


def noise(rng, *shape, low=0, high=256, dtype=np.uint8):
    return rng.integers(low, high, shape, dtype=dtype)


def add(root, folder, image, label=None, patch_id=None):
    """Add one patch under its honest id, or another, with its row; returns the file's name within
    root."""
    honest = write_image(root / "new.tif", image)
    patch_id = patch_id or honest
    os.replace(root / "new.tif", root / folder / f"{patch_id}.tif")
    for table in (
        ("train_labels.csv",) if folder == "train" else ("sample_submission.csv", "test_labels.csv")
    ):
        with open(root / table, "a", newline="") as file:
            file.write(f"{patch_id},{0 if label is None else label}\n")
    return f"{folder}/{patch_id}.tif"


def rows(root, table):
    return pd.read_csv(root / table, dtype=str)


def findings(root):
    """Return what is found, kinds without findings left out."""
    return {kind: entries for kind, entries in check(root).findings.items() if entries}


def check(root):
    return check_dataset(root, progress=False)


def files(entries):
    """Return the file that each entry begins with."""
    return [entry.split(":")[0] for entry in entries]


def test_a_clean_sample_is_clean_and_its_outliers_are_remarks(sample):
    report = check(sample.root)
    assert report.clean
    assert report.findings == {kind: [] for kind in FINDINGS}
    assert report.counts == {"label_0": 36, "label_1": 24, "test": 12, "files_read": 72}
    outliers = [
        (name, cv2.imread(str(sample.root / name)).mean())
        for kind in REMARKS
        for name in report.remarks[kind]
    ]
    assert [mean < 10 for _, mean in outliers] == [True, False, False]
    assert report.text().endswith("\nclean")


def test_missing_and_extra_files(copy_of_sample):
    missing = [
        f"train/{patch_id}.tif" for patch_id in rows(copy_of_sample, "train_labels.csv")["id"][:2]
    ]
    missing += [f"test/{rows(copy_of_sample, 'sample_submission.csv')['id'][0]}.tif"]
    for name in missing:
        (copy_of_sample / name).unlink()
    (copy_of_sample / "train/Thumbs.db").write_text("x")
    (copy_of_sample / "train/.hidden").write_text("x")
    (copy_of_sample / "train/folder").mkdir()
    (copy_of_sample / "test/new.tif").write_text("x")
    assert findings(copy_of_sample) == {
        "missing": sorted(missing[:2]) + missing[2:],
        "extra": ["train/Thumbs.db", "train/folder", "test/new.tif"],
    }
    assert check(copy_of_sample).counts == {
        "label_0": 36,
        "label_1": 24,
        "test": 12,
        "files_read": 69,
    }


def test_a_missing_folder_is_all_its_files_missing(copy_of_sample):
    names = [f"test/{path.name}" for path in (copy_of_sample / "test").iterdir()]
    (copy_of_sample / "test").rename(copy_of_sample / "elsewhere")
    assert findings(copy_of_sample) == {"missing": sorted(names)}


def test_unreadable_files(copy_of_sample):
    paths = (
        sorted((copy_of_sample / "train").iterdir())[:3]
        + sorted((copy_of_sample / "test").iterdir())[:3]
    )
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-1])  # the last byte of a download is missing
    paths[1].write_bytes(b"")
    paths[2].write_text("<html>404 Not Found</html>")
    paths[3].unlink()
    paths[3].symlink_to("nowhere")
    paths[4].unlink()
    paths[4].mkdir()
    paths[5].write_bytes(oversized(whole))
    found = findings(copy_of_sample)
    assert list(found) == ["unreadable"]
    assert files(found["unreadable"]) == [
        path.relative_to(copy_of_sample).as_posix() for path in paths
    ]
    assert (
        found["unreadable"][1] == f"train/{paths[1].name}: (0 bytes) cannot be decoded as an image"
    )


def oversized(tiff):
    """Return the TIFF with a header that claims 2,097,152 x 96 px, at which OpenCV raises an error
    of its own."""
    width = (
        np.array([256, 4, 1, 0, 96, 0], "<u2").tobytes(),
        np.array([256, 3, 1, 0, 96, 0], "<u2").tobytes(),
    )
    (entry,) = [entry for entry in width if entry in tiff]
    claim = np.array([256, 4, 1, 0, 0, 32], "<u2").tobytes()
    return tiff.replace(entry, claim)


def test_wrong_shape_or_type(copy_of_sample):
    rng = np.random.default_rng(0)
    images = [
        noise(rng, 96, 96),
        noise(rng, 96, 96, 4),
        noise(rng, 96, 96, 3, dtype=np.uint16, high=65536),
        noise(rng, 95, 96, 3),
        noise(rng, 96, 97, 3),
        noise(rng, 192, 192, 3),
    ]
    paths = (
        sorted((copy_of_sample / "train").iterdir())[:3]
        + sorted((copy_of_sample / "test").iterdir())[:3]
    )
    for path, image in zip(paths, images):
        write_image(path, image)
    found = findings(copy_of_sample)
    assert list(found) == ["not_a_patch"]
    names = [path.relative_to(copy_of_sample).as_posix() for path in paths]
    faults = [
        "has 1 channel(s) of uint8 (grey)",
        "has 4 channel(s) of uint8 (RGB with alpha)",
        "has 3 channel(s) of uint16 (RGB)",
        "is 96 x 95 px",
        "is 97 x 96 px",
        "is 192 x 192 px",
    ]
    assert found["not_a_patch"] == [f"{name}: {fault}" for name, fault in zip(names, faults)]
    others = check_dataset(copy_of_sample, Recipe(original_size=192, crop_size=180), progress=False)
    assert len(others.findings["not_a_patch"]) == 71  # all but the one of 192 px


def test_altered_patches_and_wrong_ids(copy_of_sample):
    train, test = (
        sorted((copy_of_sample / "train").iterdir()),
        sorted((copy_of_sample / "test").iterdir()),
    )
    altered = cv2.imread(str(train[0]))[..., ::-1].copy()
    altered[50, 50, 1] ^= 1  # one bit
    swapped = cv2.imread(str(train[1]))  # red and blue exchanged
    actual = [write_image(train[0], altered), write_image(train[1], swapped)]
    contents = test[0].read_bytes(), test[1].read_bytes()
    test[0].write_bytes(contents[1])
    test[1].write_bytes(contents[0])
    upper = add(copy_of_sample, "train", noise(np.random.default_rng(1), 96, 96, 3), patch_id="ABC")
    assert findings(copy_of_sample)["wrong_id"] == sorted(
        [
            f"train/{train[0].name}: its pixels give {actual[0]}",
            f"train/{train[1].name}: its pixels give {actual[1]}",
            (
                f"{upper}: its pixels give"
                f" {hashlib.sha1(noise(np.random.default_rng(1), 96, 96, 3)).hexdigest()}"
            ),
        ]
    ) + [
        f"test/{test[0].name}: its pixels give {test[1].stem}",
        f"test/{test[1].name}: its pixels give {test[0].stem}",
    ]
    assert list(findings(copy_of_sample)) == ["wrong_id"]


def test_too_dark_and_too_bright_are_remarks(copy_of_sample):
    rng, before = np.random.default_rng(2), check(copy_of_sample).remarks
    dark = [
        add(copy_of_sample, folder, noise(rng, 96, 96, 3, high=10))
        for folder in ("train", "train", "test")
    ]
    bright = [
        add(copy_of_sample, folder, noise(rng, 96, 96, 3, low=246))
        for folder in ("train", "train", "test")
    ]
    for levels in ({"high": 11}, {"low": 245}):  # one level short of an outlier
        add(copy_of_sample, "train", noise(rng, 96, 96, 3, **levels))
    report = check(copy_of_sample)
    assert report.clean
    assert {*report.remarks["too_dark"]} - {*before["too_dark"]} == {*dark}
    assert {*report.remarks["too_bright"]} - {*before["too_bright"]} == {*bright}


def test_duplicates_and_conflicting_labels(copy_of_sample):
    rng = np.random.default_rng(3)
    within, across, conflicts = {"train": [], "test": []}, [], []
    for folder in ("train", "test"):
        for k in range(3):
            image = noise(rng, 96, 96, 3)
            names = sorted(
                [
                    add(copy_of_sample, folder, image, 1),
                    add(copy_of_sample, folder, image, 1, f"twin{k}"),
                ]
            )
            within[folder].append(names)
    for k in range(6):  # the last three with other labels in train than in test
        image = noise(rng, 96, 96, 3)
        names = [add(copy_of_sample, "test", image, 0), add(copy_of_sample, "train", image, k // 3)]
        across.append(names[::-1])
        conflicts += [f"{names[1]} (1) = {names[0]} (0)"] * (k // 3)
    image = noise(rng, 96, 96, 3)
    names = [add(copy_of_sample, "train", image, k % 2, f"triple{k}") for k in range(3)]
    within["train"].append(names)
    conflicts.append("train/triple0.tif (0) = train/triple1.tif (1) = train/triple2.tif (0)")
    found = findings(copy_of_sample)
    assert {*found} == {
        "duplicates_in_train",
        "duplicates_in_test",
        "duplicates_across",
        "conflicting_labels",
        "wrong_id",
    }
    for folder, groups in within.items():
        assert found[f"duplicates_in_{folder}"] == sorted(" = ".join(group) for group in groups)
    assert found["duplicates_across"] == sorted(" = ".join(group) for group in across)
    assert found["conflicting_labels"] == sorted(conflicts)
    assert {*files(found["wrong_id"])} == {
        f"{folder}/twin{k}.tif" for folder in within for k in range(3)
    } | {*names}


def test_one_patch_twice_in_train_and_once_in_test_is_both_kinds(copy_of_sample):
    image = noise(np.random.default_rng(4), 96, 96, 3)
    train = sorted(
        [add(copy_of_sample, "train", image), add(copy_of_sample, "train", image, patch_id="twin")]
    )
    test = add(copy_of_sample, "test", image)
    found = findings(copy_of_sample)
    assert found["duplicates_in_train"] == [" = ".join(train)]
    assert found["duplicates_across"] == [" = ".join([*train, test])]
    assert "duplicates_in_test" not in found


def test_faults_of_rows_are_named_with_their_row(copy_of_sample):
    table = rows(copy_of_sample, "train_labels.csv")
    table["label"] = table["label"].mask(
        table.index.isin([3, 5, 7]), pd.Series({3: "2", 5: "", 7: "tumour"})
    )
    ids = table["id"].tolist()
    added = pd.DataFrame({"id": [ids[0], ids[1], ids[1], "../up", "", "a b"], "label": ["0"] * 6})
    added.loc[0, "label"] = {"0": "1", "1": "0"}[table["label"][0]]
    added.loc[[1, 2], "label"] = table["label"][1]
    pd.concat([table, added]).to_csv(copy_of_sample / "train_labels.csv", index=False)
    with open(copy_of_sample / "sample_submission.csv", "a") as file:
        file.write("stranger,0\n")
    answers = rows(copy_of_sample, "test_labels.csv")
    outsider = pd.DataFrame({"id": ["outsider"], "label": ["3"]})
    pd.concat([answers[1:], outsider]).to_csv(copy_of_sample / "test_labels.csv", index=False)
    found = findings(copy_of_sample)
    assert found.pop("conflicting_labels") == [f"train_labels.csv: id {ids[0]!r} has both"]
    assert found.pop("missing") == ["test/stranger.tif"]
    last = len(ids) + 2  # row of the first one added
    labels = {3: "2", 5: "", 7: "tumour"}
    assert found.pop("tables") == [
        *(
            f"train_labels.csv: row {last + k}, id {added['id'][k]!r} is used twice"
            for k in range(3)
        ),
        *(
            f"train_labels.csv: row {last + k}, id {added['id'][k]!r} is no file name"
            for k in (3, 4, 5)
        ),
        *(
            f"train_labels.csv: row {row + 2}, label {label!r} is neither 0 nor 1"
            for row, label in labels.items()
        ),
        "test_labels.csv: row 13, label '3' is neither 0 nor 1",
        f"test_labels.csv: has no row of the test id {answers['id'][0]!r}",
        "sample_submission.csv: has no row of the test id 'outsider'",
        "test_labels.csv: has no row of the test id 'stranger'",
    ]
    assert not found
    counts = check(copy_of_sample).counts
    assert counts["label_0"] + counts["label_1"] == 57


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "is missing"),
        (b"", "is no CSV table with the header id,label (it is empty)"),
        (b"id,label\n", "has a header but no rows"),
        (b"name,label\na,0\n", "has the columns ['name', 'label'] but no 'id'"),
        (
            b"id,label\na,0\nb,1,2,3\n",
            "is no CSV table with the header id,label (row 3 has 4 field(s), the header 2)",
        ),
    ],
)
@pytest.mark.parametrize("table", ["train_labels.csv", "sample_submission.csv"])
def test_a_table_that_cannot_be_read_is_a_finding_and_its_files_are_read(
    copy_of_sample, table, content, text
):
    folder = "train" if table == "train_labels.csv" else "test"
    (copy_of_sample / table).unlink()
    if content is not None:
        (copy_of_sample / table).write_bytes(content)
    damaged = min((copy_of_sample / folder).iterdir())
    damaged.write_bytes(b"")
    (copy_of_sample / folder / "readme.txt").write_text("x")
    report = check(copy_of_sample)
    assert report.findings["tables"] == [f"{table}: {text}"]
    assert files(report.findings["unreadable"]) == [f"{folder}/{damaged.name}"]
    assert report.findings["extra"] == [f"{folder}/readme.txt"]
    assert sum(map(len, report.findings.values())) == 3
    assert report.counts["files_read"] == 72


def test_labels_of_one_class_only(copy_of_sample):
    rows(copy_of_sample, "train_labels.csv").assign(label="1").to_csv(
        copy_of_sample / "train_labels.csv", index=False
    )
    assert findings(copy_of_sample) == {"tables": ["train_labels.csv: holds only label 1"]}


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError,
            match="holds no part of a data set; name the folder that holds train/",
        ):
            check(folder)
    (tmp_path / "train").mkdir()  # a beginning
    assert findings(tmp_path) == {"tables": ["train_labels.csv: is missing"]}
    assert check(tmp_path).remarks["no_test"] == [TRAINING_ALONE]


def test_training_alone_is_a_remark_and_half_a_test_set_a_finding(copy_of_sample):
    shutil.rmtree(copy_of_sample / "test")
    assert len(findings(copy_of_sample)["missing"]) == 12
    (copy_of_sample / "sample_submission.csv").unlink()
    (copy_of_sample / "test_labels.csv").unlink()
    report = check(copy_of_sample)
    assert report.clean and report.remarks["no_test"] == [TRAINING_ALONE]
    (copy_of_sample / "test").mkdir()
    assert findings(copy_of_sample) == {"tables": ["sample_submission.csv: is missing"]}


def test_order_of_files_and_rows_does_not_matter(copy_of_sample, monkeypatch):
    rng = np.random.default_rng(5)
    image = noise(rng, 96, 96, 3)
    for k, label in enumerate((1, 0, 1)):
        add(copy_of_sample, "train", image, label, f"twin{k}")
        add(copy_of_sample, "test", image, label, f"twin{k}")
        add(copy_of_sample, "test", noise(rng, 96, 96, 3, high=9))
        (copy_of_sample / f"train/extra{k}").write_text("x")
        (copy_of_sample / f"test/extra{k}").write_text("x")
    for folder in ("train", "test"):
        paths = sorted((copy_of_sample / folder).glob("*f.tif")) + sorted(
            (copy_of_sample / folder).glob("*3.tif")
        )
        paths[0].unlink()
        paths[-1].write_bytes(b"")
    before = check(copy_of_sample)
    assert all(
        len(before.findings[kind]) for kind in FINDINGS if kind not in ("tables", "not_a_patch")
    )
    for table in ("train_labels.csv", "sample_submission.csv", "test_labels.csv"):
        rows(copy_of_sample, table).sample(frac=1, random_state=0).to_csv(
            copy_of_sample / table, index=False
        )
    listed = os.scandir
    monkeypatch.setattr(
        os,
        "scandir",
        lambda folder: sorted(listed(folder), key=lambda entry: entry.name, reverse=True),
    )
    assert check(copy_of_sample) == before


def test_report_as_json_and_as_text(copy_of_sample):
    for k in range(5):
        (copy_of_sample / f"train/odd{k}\n\x1b[31m\udcff.tif").write_text("x")
    report = check(copy_of_sample)
    restored = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert restored == report.as_dict()
    assert restored["clean"] is False
    assert restored["root"] == str(copy_of_sample)
    assert len(restored["findings"]["extra"]) == 5
    assert {*restored} == {"clean", "root", "counts", "findings", "remarks"}
    lines = report.text().encode("ascii").decode().split("\n")
    assert len(lines) == 1 + len(FINDINGS) + len(REMARKS) + 1
    assert lines[0] == f"{copy_of_sample}: label 0 36, label 1 24, test 12, files read 72"
    assert [int(line[:9]) for line in lines[1:-1]] == [0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]
    assert "odd2" in lines[3] and "odd3" not in lines[3] and lines[3].endswith("and 2 more")
    assert lines[-1] == "5 finding(s)"


def test_what_the_notebook_would_refuse_is_found(copy_of_sample):
    """A data set that passes the check opens, and one that does not open does not pass."""
    assert check(copy_of_sample).clean
    dataset = open_dataset(copy_of_sample)
    assert (
        verify_patches(dataset.train_paths + dataset.test_paths, progress=False)
        == check(copy_of_sample).counts["files_read"]
    )
    Path(dataset.test_paths[0]).unlink()
    with pytest.raises(FileNotFoundError):
        open_dataset(copy_of_sample)
    assert not check(copy_of_sample).clean


def test_every_listed_file_is_read_once(sample, monkeypatch):
    read, seen = check_module.read_patch, []
    monkeypatch.setattr(
        check_module, "read_patch", lambda path, recipe: seen.append(path) or read(path, recipe)
    )
    check(sample.root)
    assert sorted(seen) == sorted(sample.train_paths + sample.test_paths)


def test_a_full_bar_at_the_end(sample, capfd):
    check_dataset(sample.root)
    assert "72/72" in capfd.readouterr().err.split("\r")[-1]
