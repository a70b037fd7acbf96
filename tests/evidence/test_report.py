"""A report holds what its parts compute of a run, and opens as one page without a network."""

import base64
import json
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from pages import Page
from sklearn.metrics import auc as area_below
from sklearn.metrics import roc_auc_score

import hcd
from hcd import InputError, draw_losses, load_bundle, write_report
from hcd.cli import main
from hcd.evidence.report import read_predictions


@pytest.fixture(scope="module")
def reported(run_folder, tmp_path_factory):
    """A copy of the shared run, with its report, and the report's numbers."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("report") / "a <run> & more")
    return folder, write_report(folder, progress=False)


def test_numbers_are_those_of_the_parts(reported, sample):
    folder, numbers = reported
    assert json.loads((folder / "report.json").read_text()) == numbers
    valid = pd.read_csv(folder / "validation.csv")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert numbers["validation"]["auc"] == pytest.approx(metrics["valid_auc"], abs=1e-9)
    assert numbers["test"]["auc"] == pytest.approx(metrics["test_auc"], abs=1e-9)
    assert numbers["patches"] == {"training": 45, "validation": 15}
    judged = hcd.judge_predictions(
        valid["probability"], valid["label"], np.arange(15), "island of tissue"
    )
    assert numbers["validation"]["interval_over_groups"] == list(judged.auc.interval)
    assert numbers["leak"]["share"] == 0 and numbers["leak"]["islands"] == 60
    for side in ("validation", "test"):
        roc = numbers[side]["roc"]
        area = area_below(roc["false_positive_rate"], roc["true_positive_rate"])
        assert area == pytest.approx(numbers[side]["auc"]) and roc["threshold"][0] > 1
    train = sample.labels[~sample.labels["id"].isin(valid["id"])]
    colour = hcd.colour_baseline(
        [sample.train_path(name) for name in train["id"]],
        train["label"],
        [sample.train_path(name) for name in valid["id"]],
        progress=False,
    )
    found = roc_auc_score(valid["label"], colour)
    assert numbers["validation"]["colour_auc"] == pytest.approx(found)


def test_the_largest_losses_are_told_over_many_draws(reported, sample):
    folder, numbers = reported
    valid = pd.read_csv(folder / "validation.csv").sort_values("loss", ascending=False)
    rows = numbers["largest_losses"]["patches"]
    assert [row["id"] for row in rows] == valid["id"][:8].tolist()
    assert rows[0]["share_of_mean"] == pytest.approx(valid["loss"].max() / valid["loss"].sum())
    bundle = load_bundle(folder / "model")
    drawn = draw_losses(bundle, sample.train_path(rows[0]["id"]), rows[0]["label"])
    assert len(drawn) == 100 and rows[0]["median"] == pytest.approx(np.median(drawn))
    assert rows[0]["largest"] == drawn.max() > drawn.min()


def test_a_draws_loss_is_the_cross_entropy_of_what_the_reader_draws(reported, sample):
    import random

    import torch

    folder, _ = reported
    bundle, path = load_bundle(folder / "model"), sample.train_paths[0]
    rng = random.Random(0)
    for found in draw_losses(bundle, path, 1, draws=3):
        crop = hcd.read_cropped_image(path, recipe=bundle.recipe, rng=rng)
        values = (crop - np.float32(bundle.recipe.mean)) / np.float32(bundle.recipe.std)
        with torch.inference_mode():
            logits = bundle.model(torch.from_numpy(values.transpose(2, 0, 1)[None].copy()))
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
        assert found == pytest.approx(float(wanted), rel=1e-4)


def test_a_sure_draws_loss_is_not_minus_nothing(reported, sample):
    import torch

    bundle = load_bundle(reported[0] / "model")
    with torch.no_grad():
        bundle.model[-1][-1].bias += torch.tensor([-1e4, 1e4])
    losses = draw_losses(bundle, sample.train_paths[0], 1, draws=3)
    assert (losses == 0).all() and not np.signbit(losses).any()


def test_the_page_is_whole_and_asks_for_nothing(reported):
    folder, numbers = reported
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not page.open and page.links
    for link in page.links:
        kind, _, content = link.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content).startswith(b"\x89PNG")
    assert "http" not in text and "<script" not in text
    assert "a <run> & more" in page.text  # escaped
    assert f"{numbers['validation']['auc']:.4f}" in page.text
    shown = re.sub(r"\s+", " ", page.text)
    assert "15 islands of tissue" in shown and "random split" in shown
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


def test_tissue_on_both_sides_is_counted(run_folder, cut_slides, tmp_path):
    """Of a split that parts overlapping patches; one slide of six is set aside as a whole."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    dataset, slides = cut_slides(tmp_path / "data")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["data_fingerprint"] = dataset.fingerprint
    (folder / "metrics.json").write_text(json.dumps(metrics))
    names = dataset.labels["id"].map(slides)
    aside = set(np.flatnonzero((names == "slide_0") | (np.arange(len(names)) % 3 == 0)).tolist())
    valid = dataset.labels.iloc[sorted(aside)].reset_index(drop=True)
    valid["probability"] = np.random.default_rng(0).random(len(valid)).round(3)
    valid.assign(loss=0.5).to_csv(folder / "validation.csv", index=False)
    pairs = hcd.find_overlaps(dataset.train_paths, progress=False).pairs.tolist()
    leaking = {a for pair in pairs for a, b in (pair, pair[::-1]) if a in aside and b not in aside}
    numbers = write_report(folder, dataset.root, progress=False)
    leak, judged = numbers["leak"], numbers["validation"]
    assert 0 < len(leaking) < len(aside) and leak["share"] == len(leaking) / len(aside)
    shared = np.array([row in leaking for row in sorted(aside)])
    for name, rows in (("auc_shared", valid[shared]), ("auc_not_shared", valid[~shared])):
        assert leak[name] == pytest.approx(roc_auc_score(rows["label"], rows["probability"]))
    of_0 = valid[valid["id"].map(slides) == "slide_0"]
    assert leak["slide_share"] == 1 - len(of_0) / len(valid)
    (group,) = judged["group_aucs"]
    assert (group["group"], group["patches"]) == ("slide_0", len(of_0))
    assert group["auc"] == pytest.approx(roc_auc_score(of_0["label"], of_0["probability"]))
    text = Page((folder / "report.html").read_text()).text
    assert f"{leak['share']:.1%}".replace("%", " %") in text and "also in training" in text


def test_slides_are_the_groups_where_they_are_known(run_folder, sample, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    ids = [*sample.labels["id"], *sample.test_ids]
    rows = [f"{name},slide_{number % 7}" for number, name in enumerate(ids)]
    table = tmp_path / "map.csv"
    table.write_text("\n".join(["id,wsi", *rows, ""]))
    numbers = write_report(folder, slides=table, progress=False)
    assert numbers["validation"]["groups_are"] == numbers["test"]["groups_are"] == "slide"
    assert numbers["leak"]["slide_share"] == 1
    assert "Fewer than 50 groups" in (folder / "report.html").read_text()


def test_masks_are_used_where_they_are_and_no_record_is_needed(
    run_folder, copy_of_sample, tmp_path, refused
):
    """As `hcd.run_walkthrough` leaves a run, on data that `hcd import pcam` has written."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "run.json").unlink()
    with refused(FileNotFoundError, folder / "data", "--data DIR"):
        write_report(folder)
    (copy_of_sample / "masks").mkdir()
    valid = pd.read_csv(folder / "validation.csv")
    mask = np.zeros((96, 96), np.uint8)
    mask[40:70, 40:70] = 255
    for name in valid["id"][valid["label"] == 1]:
        cv2.imwrite(str(copy_of_sample / "masks" / f"{name}.png"), mask)
    numbers = write_report(folder, copy_of_sample, progress=False)
    rows = [row for row in numbers["heatmaps"] if row["masked_maps"]]
    assert rows and rows[0]["mask_chance"] == pytest.approx(900 / 90**2)
    assert "tumour's mask" in (folder / "report.html").read_text()
    cv2.imwrite(str(copy_of_sample / "masks" / f"{name}.png"), mask[:50])
    with refused(InputError, f"{name}.png", "96 x 50 px"):
        write_report(folder, copy_of_sample, progress=False)


def test_the_command_line(run_folder, sample, tmp_path, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    assert load_bundle(folder / "model").card["temperature"] is None
    table = pd.read_csv(folder / "validation.csv")  # of a model that tells something, at times
    table["probability"] = np.where(np.arange(15) % 5, 0.2 + 0.5 * table["label"], 0.4)
    table.to_csv(folder / "validation.csv", index=False)
    assert main(["report", str(folder), "--calibrate"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("validation AUC ") and out[-1] == str(folder / "report.html")
    numbers = json.loads((folder / "report.json").read_text())
    temperature = numbers["validation"]["temperature"]
    assert load_bundle(folder / "model").card["temperature"] == temperature
    assert f"{temperature:.4g}" in (folder / "model/README.md").read_text()
    patch = sample.test_paths[0]
    assert main(["predict", str(folder), str(patch), "--calibrated"]) == 0
    found = float(capsys.readouterr().out.split("\t")[2])
    plain = hcd.predict_image(load_bundle(folder / "model"), patch).probability
    assert found == pytest.approx(hcd.with_temperature([plain], temperature)[0], abs=1e-6)


def test_without_a_temperature_the_report_is_told_before_the_refusal(
    run_folder, sample, tmp_path, capsys
):
    """All patches are of one slide, which has no halves."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    rows = [f"{name},one" for name in [*sample.labels["id"], *sample.test_ids]]
    (tmp_path / "map.csv").write_text("\n".join(["id,wsi", *rows, ""]))
    assert main(["report", str(folder), "--slides", str(tmp_path / "map.csv"), "--calibrate"]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("validation AUC ")
    assert told.out.splitlines()[-1] == str(folder / "report.html")
    assert told.err.splitlines()[-1].startswith("hcd: no temperature could be fitted")
    assert load_bundle(folder / "model").card["temperature"] is None


def test_a_pack_alone_gives_the_same_report(reported, run_folder, packed_root, tmp_path):
    """The files that it was packed from are gone."""
    root = shutil.copytree(packed_root, tmp_path / "data")
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")
    folder = shutil.copytree(run_folder, tmp_path / reported[0].name)
    assert write_report(folder, root, progress=False) == reported[1]


def test_what_cannot_be_reported(run_folder, sample, cut_slides, tmp_path, refused):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    other, _ = cut_slides(tmp_path / "other")
    with refused(InputError, "other ids or labels than the run was made on", "--data"):
        write_report(folder, other.root)
    with refused(FileNotFoundError, "nowhere", "--data DIR"):
        write_report(folder, tmp_path / "nowhere")
    valid = (folder / "validation.csv").read_text()
    ids, rows = valid.splitlines()[0], valid.splitlines()[1:]
    faults = [
        "id,label\na,0\n",
        valid.replace("0.", "x."),
        "",
        "\0\0",
        "\n".join([ids, *rows, rows[0]]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",0,1.5,0.1"]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",2,0.5,0.1"]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",0,nan,0.1"]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",0,0.5,inf"]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",0,0.5,-1"]),
        "\n".join([ids, *rows[1:], rows[0].split(",")[0] + ",0.5,0.5,1"]),
    ]
    told = {4: f"id {rows[0].split(',')[0]} stands twice", 7: "row 16 is not finite"}
    for number, content in enumerate(faults):
        (folder / "validation.csv").write_text(content)
        with refused(InputError, "validation.csv", told.get(number, "")):
            write_report(folder)
    (folder / "validation.csv").unlink()
    with refused(FileNotFoundError, "validation.csv is missing", "run it again"):
        write_report(folder)
    assert not list(folder.glob("report.*"))
    with refused(FileNotFoundError, "metrics.json is missing"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", ["[]", "7", '{"parameters": 3}', '{"parameters": {"x": []}}'])
def test_a_strangers_record_is_not_believed(run_folder, sample, tmp_path, content, refused):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "run.json").write_text(content)
    with refused(FileNotFoundError, "give --data DIR"):
        write_report(folder)
    for split in (["random"], "by hand", None):
        metrics = json.loads((run_folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({**metrics, "split": split}))
        with refused(InputError, "metrics.json names the split", "random, islands, slides"):
            write_report(folder, sample.root)
    (folder / "metrics.json").write_text(content)
    (folder / "report.html").symlink_to(tmp_path / "victim")
    with refused(OSError, "report.html"):
        write_report(folder, sample.root)


@pytest.mark.long
def test_outliers_that_were_left_out_are_left_out(sample, run_recipe, tmp_path):
    """The sample holds three; they are neither training nor validation patches."""
    recipe, options = run_recipe, {"num_workers": 0, "device": "cpu"}
    hcd.run_walkthrough(sample.root, recipe, tmp_path / "run", remove_outliers=True, **options)
    numbers = write_report(tmp_path / "run", sample.root, progress=False)
    assert sum(numbers["patches"].values()) == len(sample.labels) - 3


def test_one_patch_more_is_another_data_set(run_folder, copy_of_sample, tmp_path, refused):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copyfile(next((copy_of_sample / "train").iterdir()), copy_of_sample / "train/NA.tif")
    with (copy_of_sample / "train_labels.csv").open("a") as file:
        file.write("NA,0\n")
    with refused(InputError, copy_of_sample, "other ids or labels"):
        write_report(folder, copy_of_sample)


def test_an_id_may_be_na(tmp_path):
    (tmp_path / "validation.csv").write_text("id,label,probability,loss\nNA,0,0.5,0.7\n")
    table = read_predictions(tmp_path / "validation.csv", "probability", ("loss",))
    assert table["id"].tolist() == ["NA"] and table["label"].dtype == "int64"


def test_nothing_is_written_where_a_page_cannot_be(run_folder, tmp_path, refused):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "report.html").mkdir()
    with refused(IsADirectoryError, "report.html is a folder"):
        write_report(folder)
    assert not (folder / "report.json").exists()


def test_a_damaged_submission_is_named(run_folder, tmp_path, refused):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (submission,) = folder.glob("*_submission.csv")
    submission.write_text("id,label\nx,7\n")
    with refused(InputError, submission, "outside [0, 1]"):
        write_report(folder, progress=False)
    submission.write_text("id,label\nx,0.7\n")
    with refused(InputError, submission, "does not answer"):
        write_report(folder, progress=False)
