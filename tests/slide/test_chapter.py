"""In 46 of the notebook, by itself: whatever hinders it, a run that has trained for hours ends."""

import dataclasses
import json
import re
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest

import hcd

NOTEBOOK = Path(__file__).parents[2] / "notebooks/walkthrough.ipynb"
CELL = "".join(json.loads(NOTEBOOK.read_text("utf-8"))["cells"][-1]["source"])


@pytest.fixture
def chapter(darkness, tmp_path, monkeypatch, capsys):
    """Function (data_folder="") that executes the cell and returns what it prints."""
    monkeypatch.setattr("IPython.display.display", lambda picture: None)
    monkeypatch.setattr(hcd, "load_bundle", lambda folder: darkness)

    def execute(data_folder=""):
        names = {"hcd": hcd, "pd": pd, "Path": Path, "tempfile": tempfile, "device": None}
        names |= {"bundle_folder": "", "output": tmp_path, "data_folder": data_folder}
        exec(CELL, names)
        return capsys.readouterr().out

    return execute


@pytest.mark.long
def test_it_says_where_the_model_was_right_and_that_the_slide_is_a_drawing(chapter, tmp_path):
    printed, table = chapter(), tmp_path / "slide/cells.csv"
    count, inside, outside = re.fullmatch(
        r"(\d+) cells; mean probability ([\d.]+) in the two places of tumour, ([\d.]+) elsewhere\n",
        printed,
    ).groups()
    assert int(count) == len(pd.read_csv(table)) and float(inside) > float(outside)
    assert json.loads((tmp_path / "slide/summary.json").read_text())["path"] == "drawn.tif"
    before = table.read_bytes()
    again = chapter("competition")  # as a run that is resumed, and on real patches
    assert again.startswith(printed) and "is a drawing" in again[len(printed) :]
    assert table.read_bytes() == before


@pytest.mark.parametrize("library", ["openslide", "tiffslide", "tifffile"])
def test_without_the_extra_it_is_left_out(chapter, monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    printed = chapter()
    assert printed.startswith("left out: ") and "pip install 'hcd[slide]'" in printed
    assert not list(tmp_path.iterdir())


def test_a_model_whose_patches_have_no_centre_leaves_it_out(
    chapter, monkeypatch, learner, tmp_path
):
    bundle = hcd.export.bundle.load_bundle(hcd.save_bundle(learner, tmp_path / "model"))
    recipe = dataclasses.replace(bundle.recipe, original_size=97)
    odd = dataclasses.replace(bundle, recipe=recipe)
    monkeypatch.setattr(hcd, "load_bundle", lambda folder: odd)
    assert chapter().startswith("left out: the model reads patches of 97 px")


def test_a_folder_of_somebody_elses_or_a_full_disk_leaves_it_out(chapter, monkeypatch, tmp_path):
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide/cells.csv").write_text("mine")
    assert "cells.csv is no answer for drawn.tif" in chapter()
    assert (tmp_path / "slide/cells.csv").read_text() == "mine"

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hcd, "make_slide_sample", full)
    assert "left out: [Errno 28] No space left" in chapter()
