"""run_walkthrough is the notebook's twin: the same metrics and the same submission, to the bit."""

import dataclasses
import json
import shutil

import nbformat
import pandas as pd
import pytest

import hcd
from hcd.engine.compat import load_tensors


@pytest.fixture(scope="module")
def twin_folder(sample, run_recipe, tmp_path_factory):
    """What the twin leaves of the same call as the notebook in `run_folder`."""
    folder = tmp_path_factory.mktemp("run") / "twin"
    metrics = hcd.run_walkthrough(sample.root, run_recipe, folder, num_workers=0, device="cpu")
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    return folder


def assert_one_result(notebook, twin, *more):
    for name in ("metrics.json", "validation.csv", "model/model.safetensors", *more):
        assert (twin / name).read_bytes() == (notebook / name).read_bytes(), name


def test_notebook_and_twin_come_to_one_result(run_folder, twin_folder):
    assert_one_result(run_folder, twin_folder, "squeezenet1_1_submission.csv")


@pytest.mark.long
def test_without_outliers_and_back_at_stage_1_they_come_to_one_result(
    sample, run_recipe, run_notebook, tmp_path
):
    notebook, twin = tmp_path / "notebook", tmp_path / "twin"
    run_notebook(sample.root, run_recipe, notebook, "--remove-outliers", "--back-to-stage1")
    options = {"remove_outliers": True, "back_to_stage1": True}
    hcd.run_walkthrough(sample.root, run_recipe, twin, num_workers=0, device="cpu", **options)
    assert_one_result(notebook, twin, "squeezenet1_1_submission.csv")


@pytest.mark.long
@pytest.mark.parametrize("split", ["islands", "slides"])
def test_a_grouped_split_comes_to_one_result_and_stands_on_the_card(
    split, cut_slides, run_recipe, run_notebook, tmp_path
):
    dataset, slides = cut_slides(tmp_path / "data", slides=8)
    table = shutil.move(dataset.root / "slides.csv", tmp_path / "map.csv")
    recipe = dataclasses.replace(run_recipe, split=split, valid_fraction=0.25)
    notebook, twin = tmp_path / "notebook", tmp_path / "twin"
    more = ["--slides", str(table)] if split == "slides" else []
    run_notebook(dataset.root, recipe, notebook, *more)
    options = {"num_workers": 0, "device": "cpu", "slides_file": more[1] if more else ""}
    metrics = hcd.run_walkthrough(dataset.root, recipe, twin, **options)
    assert_one_result(notebook, twin)
    assert metrics["split"] == split
    card = hcd.load_bundle(notebook / "model").card
    assert set(card["splits"].values()) == {split} and "same slides" not in card["limits"]
    valid = pd.read_csv(notebook / "validation.csv")["id"]
    train = dataset.labels["id"][~dataset.labels["id"].isin(valid)]
    groups = slides if split == "slides" else _islands(dataset)
    assert not {groups[name] for name in valid} & {groups[name] for name in train}
    assert json.loads((notebook / "run.json").read_text())["parameters"]["slides_file"] == (
        str(table) if more else ""
    )


def _islands(dataset):
    overlaps = hcd.find_overlaps(dataset.train_paths, progress=False)
    return dict(zip(overlaps.ids, overlaps.islands.tolist()))


@pytest.fixture
def training_alone(copy_of_sample):
    """A data folder without a test set."""
    shutil.rmtree(copy_of_sample / "test")
    return copy_of_sample


def test_training_alone_leaves_out_the_test_set_and_nothing_else(
    training_alone, run_recipe, twin_folder, tmp_path, capsys
):
    twin = tmp_path / "twin"
    hcd.run_walkthrough(training_alone, run_recipe, twin, num_workers=0, device="cpu")
    said = f"In 39 to 41 are left out: {training_alone / 'test'} is missing"
    assert said in capsys.readouterr().out
    whole, metrics = (
        json.loads((folder / "metrics.json").read_text()) for folder in (twin_folder, twin)
    )
    differing = {"data_fingerprint", "tta_passes", "test_auc"}
    assert {name for name in whole if whole[name] != metrics.get(name)} == differing
    assert metrics["tta_passes"] == 0 and not list(twin.glob("*_submission.csv"))
    assert hcd.load_bundle(twin / "model")


@pytest.mark.long
def test_training_alone_the_notebook_says_which_cells_are_left_out(
    training_alone, run_recipe, run_notebook, tmp_path, capfd
):
    notebook, twin = tmp_path / "notebook", tmp_path / "twin"
    run_notebook(training_alone, run_recipe, notebook)
    assert "predicts no test set" in capfd.readouterr().out
    hcd.run_walkthrough(training_alone, run_recipe, twin, num_workers=0, device="cpu")
    assert_one_result(notebook, twin)
    printed = {
        cell.metadata.hcd.cell: "".join(output.get("text", "") for output in cell.outputs)
        for cell in nbformat.read(notebook / "walkthrough.ipynb", 4).cells
        if "hcd" in cell.metadata
    }
    assert "In 39 to 41 are left out" in printed[1]
    assert all("left out: " in printed[number] for number in (39, 40, 41))
    assert "tumour" in printed[44] or "negative" in printed[44]


def test_a_finished_run_keeps_each_set_of_weights_once(twin_folder):
    left = {path.name for path in twin_folder.rglob("*") if path.is_file()}
    models = {name for name in left if name.endswith((".pth", ".safetensors"))}
    assert models == {"squeezenet1_1_stage1.pth", "model.safetensors"}
    assert not [name for name in left if name.endswith(".part")]
    assert "| data | " in (twin_folder / "README.md").read_text("utf-8")
    assert "opt" not in load_tensors(twin_folder / "models/squeezenet1_1_stage1.pth")
