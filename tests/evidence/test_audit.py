"""The audit counts what the test has cut out of made-up slides."""

import itertools
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

import hcd
from hcd import audit_dataset, read_image
from hcd.cli import main


@pytest.fixture(scope="module")
def cut(cut_slides, tmp_path_factory):
    return cut_slides(tmp_path_factory.mktemp("audit") / "data", slides=4)


def shared(first, second):
    """Say whether two patches overlap on the grid, by sliding one over the other."""
    for down, right in itertools.product(range(-80, 81, 16), repeat=2):
        a = first[max(down, 0) : 96 + min(down, 0), max(right, 0) : 96 + min(right, 0)]
        b = second[max(-down, 0) : 96 + min(-down, 0), max(-right, 0) : 96 + min(-right, 0)]
        if np.array_equal(a, b):
            return True
    return False


def count_pairs(paths):
    patches = [read_image(path) for path in paths]
    return {
        (i, j) for (i, a), (j, b) in itertools.combinations(enumerate(patches), 2) if shared(a, b)
    }


def test_counts_are_those_of_sliding_every_patch_over_every_other(cut):
    dataset, slides = cut
    labels, n_train = dataset.labels["label"], len(dataset.labels)
    pairs = count_pairs(dataset.train_paths + dataset.test_paths)
    train = {pair for pair in pairs if pair[1] < n_train}
    report = audit_dataset(dataset.root, progress=False)
    assert report.patches == {"labelled": n_train, "test": len(dataset.test_ids)}
    assert report.pairs == {
        "labelled": len(train),
        "test": sum(pair[0] >= n_train for pair in pairs),
        "across": 0,
        "different_labels": sum(labels[a] != labels[b] for a, b in train),
    }
    assert report.pairs["different_labels"] and report.pairs["test"]
    assert not any(report.copies.values()) and not report.clean
    assert 0.2 < report.leaked_share < 1
    assert report.slides == {
        "labelled": 4,
        "test": 2,
        "both": 0,
        "smallest": 12,
        "largest": 12,
        "pairs_on_two": 0,
        "leaked_share": report.slides["leaked_share"],
    }
    assert report.slides["leaked_share"] > 0.99
    assert len(report.examples["labelled"]) == 3
    assert "px down" in report.examples["labelled"][0]


def test_tissue_on_both_sides_of_train_and_test_is_the_verdict(cut_slides, tmp_path):
    dataset, _ = cut_slides(tmp_path / "data", across=True)
    report = audit_dataset(dataset.root, progress=False)
    assert report.pairs["across"] > 0
    assert report.text().splitlines()[-1].startswith("training and test share tissue")


def test_slides_on_both_sides_of_train_and_test_are_found_and_said(sample, tmp_path, capsys):
    ids = [*sample.labels["id"], *sample.test_ids]  # 60 and 12 without an overlap
    for shared, clean in ((2, 1), (0, 0)):
        names = [f"slide_{n % 6 if n < 60 else 6 - shared + n % 3}" for n in range(len(ids))]
        table = tmp_path / "map.csv"
        rows = [f"{name},{slide}" for name, slide in zip(ids, names)]
        table.write_text("\n".join(["id,wsi", *rows, ""]))
        assert main(["audit", str(sample.root), "--slides", str(table), "--json"]) == clean
        report = json.loads(capsys.readouterr().out)
        assert report["slides"]["both"] == shared and report["clean"] is not bool(shared)
        assert main(["audit", str(sample.root), "--slides", str(table)]) == clean
        verdict = capsys.readouterr().out.splitlines()[-1]
        assert verdict == (
            "training and test share 2 slide(s), so an AUC on this test set says nothing of slides"
            " never seen"
            if shared
            else "no patch shares tissue with another one on a grid of 16 px"
        )


def test_a_pack_gives_the_same(cut, tmp_path):
    root = shutil.copytree(cut[0].root, tmp_path / "data")
    hcd.pack_dataset(root, progress=False)
    packed, files = (audit_dataset(folder, progress=False) for folder in (root, cut[0].root))
    assert {**packed.as_dict(), "root": ""} == {**files.as_dict(), "root": ""}


def test_the_command_line(cut, sample, capsys):
    assert main(["audit", str(cut[0].root)]) == 1
    text = capsys.readouterr().out
    assert "overlapping pairs of labelled patches" in text and "slides of labelled" in text
    assert text.splitlines()[-1].startswith("a random split flatters the validation AUC")
    assert main(["audit", str(cut[0].root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["clean"] and report["slides"]["labelled"] == 4
    assert main(["audit", str(sample.root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no patch shares tissue")
    assert main(["audit", str(sample.root), "--slides", str(cut[0].root / "slides.csv")]) == 2
    assert "is none of" in capsys.readouterr().err
    assert main(["audit", str(sample.root / "nowhere")]) == 2


@pytest.mark.filterwarnings("default:slides are not told apart")
def test_an_own_table_that_does_not_fit_is_told_on_one_line(copy_of_sample, capsys):
    (copy_of_sample / "slides.csv").write_text("id,wsi\nother,slide_1\n")
    assert main(["audit", str(copy_of_sample)]) == 0
    told = [line for line in capsys.readouterr().err.split("\n") if "slide" in line]
    place = copy_of_sample / "slides.csv"
    assert len(told) == 1 and told[0].startswith(
        f"hcd: slides are not told apart: {place}: id other"
    )
    assert warnings.showwarning.__module__ == "warnings"  # a library's are shown as before


def test_equal_patches_are_counted_apart(copy_of_sample):
    first, second = sorted((copy_of_sample / "train").iterdir())[:2]
    shutil.copyfile(first, second)
    report = audit_dataset(copy_of_sample, progress=False)
    assert report.copies["labelled"] == 1 and not report.clean
    assert report.islands["largest"] == 2 and not report.pairs["labelled"]


@pytest.mark.long
def test_the_real_patches(shared, tmp_path):
    """The figures that the closing notes and the design name."""
    command = [sys.executable, shared / "tools/unpack_patches.py", tmp_path / "data"]
    subprocess.run(command, check=True, capture_output=True)
    report = audit_dataset(tmp_path / "data", progress=False)
    assert report.pairs == {
        "labelled": 27_183,
        "test": 3_878,
        "across": 0,
        "different_labels": 50,
    }
    assert report.islands == {"count": 14_119, "largest": 218, "alone": report.islands["alone"]}
    assert round(report.leaked_share, 3) == 0.309
