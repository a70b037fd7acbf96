"""Averaged passes against reading and predicting patch by patch, and the submission's every
rule."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hcd import (
    get_learner,
    make_databunch,
    predict,
    predict_tta,
    read_cropped_image,
    set_rng_seed,
    write_submission,
    write_validation,
)


@pytest.fixture
def answers():
    """Made-up probabilities of 12 test patches."""
    tumour = np.random.default_rng(0).uniform(size=12)
    return np.stack([1 - tumour, tumour], axis=1)


def predict_one_by_one(learner, paths):
    recipe, model = learner.data.train_ds.x.recipe, learner.model.eval()
    mean, std = np.float32(recipe.mean), np.float32(recipe.std)
    rows = []
    for path in paths:
        crop = (read_cropped_image(path, recipe=recipe) - mean) / std
        random.random()  # fastai's resizing, which has nothing to do here, draws a number too
        with torch.no_grad():
            logits = (
                model(torch.from_numpy(crop.transpose(2, 0, 1).copy())[None])[0].double().numpy()
            )
        rows.append(np.exp(logits) / np.exp(logits).sum())
    return np.array(rows)


def test_equals_the_mean_of_single_draws_in_order_of_the_test_set(learner, sample):
    random.seed(1)
    averaged = predict_tta(learner, 3, progress=False)
    random.seed(1)
    passes = [
        predict_one_by_one(
            learner, [sample.test_path(patch_id) for patch_id in sorted(sample.sample_ids)]
        )
        for _ in range(3)
    ]
    np.testing.assert_allclose(averaged, np.mean(passes, axis=0), atol=1e-5)
    assert averaged.shape == (12, 2) and averaged.dtype == np.float64
    # the comparison above would notice another order, or one draw used thrice
    assert np.abs(np.diff(averaged[:, 1])).max() > 1e-2
    assert np.abs(passes[0] - passes[1]).max() > 1e-2


def test_draws_anew_each_time(learner):
    one, two = predict_tta(learner, 1, progress=False), predict_tta(learner, 1, progress=False)
    assert np.abs(one - two).max() > 1e-3


def test_each_patch_is_read_once_for_all_passes(learner, monkeypatch):
    read, plain_read = [], predict.read_patch
    monkeypatch.setattr(
        predict,
        "read_patch",
        lambda path, recipe, proven: (read.append(path), plain_read(path, recipe, proven))[1],
    )
    predict_tta(learner, 5, progress=False)
    assert read == learner.data.test_ds.x.source.test_paths


def test_the_number_of_workers_changes_no_answer(sample, small_recipe, split, tmp_path):
    answers = []
    for workers in (0, 2):
        set_rng_seed(0)
        learner = get_learner(
            make_databunch(sample, small_recipe, split[1], num_workers=workers, device="cpu"),
            small_recipe,
            tmp_path,
        )
        random.seed(1)
        answers.append(predict_tta(learner, 3, progress=False))
    assert np.array_equal(*answers)


def test_without_augmentation_all_passes_agree(sample, small_recipe, split, learner, tmp_path):
    recipe = small_recipe.plain()
    data = make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    plain = get_learner(data, recipe, tmp_path)
    np.testing.assert_allclose(
        predict_tta(plain, 2, progress=False), predict_tta(plain, 1, progress=False), rtol=1e-6
    )


def test_leaves_the_learner_as_it_was(learner):
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    predict_tta(learner, 1, progress=False)
    assert all(
        torch.equal(value, before[name]) for name, value in learner.model.state_dict().items()
    )


def test_shows_passes_as_they_go(learner, capfd):
    predict_tta(learner, 2)
    assert "averaged passes" in capfd.readouterr().err
    predict_tta(learner, 2, progress=False)
    assert "averaged passes" not in capfd.readouterr().err


@pytest.mark.parametrize("passes", [0, -3])
def test_no_pass(learner, passes):
    with pytest.raises(ValueError, match=f"passes={passes} averages nothing"):
        predict_tta(learner, passes)


def test_no_test_set(learner, monkeypatch):
    monkeypatch.setattr(learner.data, "test_dl", None)
    with pytest.raises(ValueError, match="no test set"):
        predict_tta(learner, 1)


def test_submission_keeps_the_samples_order_and_every_digit(tmp_path, sample, learner, answers):
    table = write_submission(tmp_path / "submission.csv", sample, learner, answers)
    # the test set is sorted, sample_submission.csv is not
    of_patch = dict(zip(sorted(sample.sample_ids), answers[:, 1]))
    assert list(sample.sample_ids) != sorted(sample.sample_ids)
    header, *lines, end = (tmp_path / "submission.csv").read_text().split("\n")
    assert (header, end) == ("id,label", "")
    written = [(patch_id, float(label)) for patch_id, label in (line.split(",") for line in lines)]
    assert written == [(patch_id, of_patch[patch_id]) for patch_id in sample.sample_ids]
    given = pd.read_csv(sample.root / "sample_submission.csv")
    assert list(table["id"]) == list(given["id"]) and list(table.columns) == list(given.columns)


def wrong(answers, row, value):
    answers = answers.copy()
    answers[row] = value
    return answers


@pytest.mark.parametrize(
    "break_it, text",
    [
        (lambda answers: wrong(answers, (3, 1), np.nan), "not a number"),
        (lambda answers: wrong(answers, (3, 1), np.inf), "outside"),
        (lambda answers: wrong(answers, (3, 1), 1.0001), "outside"),
        (lambda answers: wrong(answers, (3, 1), -1e-9), "outside"),
        (lambda answers: answers[:, 1], r"shape \(12,\) for 12 test patches; give \(12, 2\)"),
        (lambda answers: answers[:11], r"shape \(11, 2\)"),
        (lambda answers: np.hstack([answers, answers]), r"shape \(12, 4\)"),
    ],
)
def test_bad_probabilities_write_nothing(tmp_path, sample, learner, answers, break_it, text):
    assert_refused(tmp_path, sample, learner, break_it(answers), text)


@pytest.mark.parametrize(
    "break_ids",
    [
        lambda ids: ids[:-1],
        lambda ids: (*ids[:-1], "another"),
        lambda ids: (*ids, ids[0]),
        lambda ids: (*ids, "another"),
    ],
)
def test_other_ids_write_nothing(tmp_path, sample, learner, answers, break_ids):
    other = replace(sample, sample_ids=break_ids(sample.sample_ids))
    assert_refused(tmp_path, other, learner, answers, "are not the 1[123] of sample_submission.csv")


def test_repeated_test_patch_writes_nothing(tmp_path, sample, learner, answers, monkeypatch):
    items = learner.data.test_ds.x.items
    monkeypatch.setattr(learner.data.test_ds.x, "items", np.append(items[:-1], items[0]))
    assert_refused(tmp_path, sample, learner, answers, "the 11 predicted ids are not the 12")
    (tmp_path / "old.csv").unlink()
    twice_too = replace(
        sample, sample_ids=tuple(Path(item).stem for item in learner.data.test_ds.x.items)
    )
    assert_refused(tmp_path, twice_too, learner, answers, "the 11 predicted ids are not the 12")


def assert_refused(folder, dataset, learner, probabilities, text):
    """Require a refusal that leaves no file where there was none, and an older one as it was."""
    with pytest.raises(ValueError, match=text):
        write_submission(folder / "new.csv", dataset, learner, probabilities)
    (folder / "old.csv").write_text("older submission")
    with pytest.raises(ValueError, match=text):
        write_submission(folder / "old.csv", dataset, learner, probabilities)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        ("old.csv", "older submission")
    ]


def test_folder_that_cannot_be_written(tmp_path, sample, learner, answers):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        write_submission(tmp_path / "file" / "submission.csv", sample, learner, answers)


def test_c30_validation_predictions_are_kept(learner, sample, split, tmp_path, refused):
    random.seed(0)
    probabilities, targets, losses = learner.get_preds(with_loss=True)
    written = write_validation(tmp_path / "validation.csv", learner, probabilities, losses)
    table = pd.read_csv(tmp_path / "validation.csv")
    rows = sample.labels.iloc[split[1]]
    assert table["id"].tolist() == rows["id"].tolist()
    assert table["label"].tolist() == rows["label"].tolist() == targets.tolist()
    assert table["probability"].tolist() == written["probability"].tolist()
    np.testing.assert_array_equal(table["probability"].astype("float32"), probabilities[:, 1])
    np.testing.assert_array_equal(table["loss"].astype("float32"), losses)
    sure = write_validation(tmp_path / "sure.csv", learner, probabilities, -0.0 * losses)
    assert (sure["loss"] == 0).all() and "-0.0" not in (tmp_path / "sure.csv").read_text()
    with refused(ValueError, "(14, 2)", "15 validation patches"):
        write_validation(tmp_path / "other.csv", learner, probabilities[:-1], losses)
    assert not (tmp_path / "other.csv").exists()
