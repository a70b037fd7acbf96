"""Today's hcd against the record of the period stack: the notebook's own cells, in float64, entry
by entry.

`period/record.json` was written on torch 1.4 by `period/record.py`, plain fastai calls that know
nothing of hcd. Here the same made-up patches, weights and draws go through hcd's functions and the
cells of the notebook.
"""

import copy
import io
import json
import random
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.metrics import accuracy
from fastai.train import ClassificationInterpretation
from period import record as period

import hcd
import hcd.sweep

HERE = Path(__file__).resolve().parent
RECORD = json.loads((HERE / "period/record.json").read_text())
NOTEBOOK = json.loads((HERE.parent / "notebooks/walkthrough.ipynb").read_text("utf-8"))


def run_cell(number, names, step=None):
    """Run one cell of the notebook in `names`, Python's generator set as the record had it before
    this step."""
    source = next(
        "".join(c["source"])
        for c in NOTEBOOK["cells"]
        if "".join(c["source"]).startswith(f"# In [{number}]\n")
    )
    if step:
        random.seed(period.RNG_SEEDS[step])
    exec(compile(source, f"In [{number}]", "exec"), names)
    plt.close("all")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What the walkthrough records for the small architecture."""
    return played("small", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def densenet169(tmp_path_factory):
    """What the walkthrough records for DenseNet-169."""
    return played("densenet169", tmp_path_factory.mktemp("densenet169"))


def played(name, folder):
    """Play the walkthrough on one thread, quietly, in float64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum must not hang on the number of cores
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), period.float64_throughout():
            warnings.filterwarnings("ignore", ".*libsixel")  # fastai, in a terminal
            return play_walkthrough(name, folder)
    finally:
        torch.set_num_threads(threads)


def play_walkthrough(name, folder):
    """Play In 1 to In 45 for one architecture and return {entry: value} as period/record.py names
    them."""
    recipe = hcd.Recipe(
        arch=period.ARCHS[name],
        pretrained=False,
        head_dropout=0.0,
        batch_size=period.BATCH_SIZE,
        head_epochs=period.EPOCHS,
        finetune_epochs=period.EPOCHS,
        sweep_iterations=period.FIND_STEPS,
        tta_passes=period.TTA_PASSES,
        rng_seed=period.SPLIT_STATE,
    )
    dataset = hcd.open_dataset(period.write_dataset(folder / "data"))
    names = {
        "hcd": hcd,
        "recipe": recipe,
        "output": folder,
        "dataset": dataset,
        "num_workers": 0,
        "device": "cpu",
        "plt": plt,
        "pd": pd,
        "Path": Path,
        "checkpoints": hcd.Checkpoints(folder / "checkpoints", recipe, dataset),
        "accuracy": accuracy,
        "model_name": name,
        "remove_outliers": False,
        "back_to_stage1": False,
        "slides": None,
        "ClassificationInterpretation": ClassificationInterpretation,
    }

    def new_learner(data, recipe, path):
        learner = plain_get_learner(data, recipe, path)
        period.deterministic_weights(learner.model)
        learner.freeze()  # as a pretrained one is
        learner.callback_fns.append(period.GroupSettings)
        random.seed(period.RNG_SEEDS["sweep"])
        return learner

    plain_get_learner = hcd.get_learner
    with (
        mock.patch.object(hcd, "get_learner", new_learner),
        mock.patch.object(hcd.sweep, "get_learner", new_learner),
    ):
        entries = play_data(names)
        entries |= play_start(names)
        entries |= play_training(names)
        return entries | play_validation(names) | play_test_set(names)


def play_data(names):
    dataset = names["dataset"]
    paths = dataset.train_paths
    entries = {
        "label_counts": dataset.labels["label"].value_counts().sort_index().tolist(),
        "decoded_sha1": period.sha1(*[hcd.read_image(path)[:, :, ::-1] for path in paths]),
        "whole_read_sha1": period.sha1(
            *[hcd.read_cropped_image(path, augmentations=False) for path in paths]
        ),
    }
    for rng_seed in period.READ_SEEDS:
        random.seed(rng_seed)
        reads = [hcd.read_cropped_image(path) for path in paths[: period.READ_PATCHES]]
        entries[f"augmented_sha1_seed_{rng_seed}"] = [period.sha1(read) for read in reads]
    run_cell(7, names)
    found = names["statistics"]
    entries |= {
        "too_dark": found.too_dark,
        "too_bright": found.too_bright,
        "counted": found.counted,
        "channel_mean": list(found.mean),
        "channel_std": list(found.std),
    }
    for state in period.SPLIT_STATES:
        train, valid = hcd.stratified_split(dataset.labels["label"], 0.1, state)
        entries[f"split_{state}_train"], entries[f"split_{state}_valid"] = (
            train.tolist(),
            valid.tolist(),
        )
    return entries


def play_start(names):
    run_cell(10, names)
    # from here on the record draws as the walkthrough does, unseeded
    names["recipe"] = replace(names["recipe"], rng_seed=None)
    run_cell(14, names)
    data = period.settle_data(names["data"])
    random.seed(period.RNG_SEEDS["batch"])
    images, targets = next(iter(data.train_dl))
    run_cell(16, names)
    learner = names["learner"]
    entries = {
        "batch_sha1": period.sha1(images.numpy()),
        "batch_labels": targets.tolist(),
        "weights_sha1": period.sha1(
            *[value.numpy() for value in learner.model.state_dict().values()]
        ),
        "group_parameters": period.counts(learner, False),
        "group_trainable_frozen": period.counts(learner, True),
    }
    learner.unfreeze()
    entries["group_trainable_unfrozen"] = period.counts(learner, True)
    predictions, _, losses = period.predict(learner, "untrained")
    return {
        **entries,
        "untrained_predictions": period.numbers(predictions),
        "untrained_losses": period.numbers(losses),
    }


def play_training(names):
    run_cell(17, names)
    entries = {}
    for curve in names["curves"]:
        (
            entries[f"sweep_{curve.weight_decay:g}_lrs"],
            entries[f"sweep_{curve.weight_decay:g}_losses"],
        ) = (curve.lrs, curve.losses)
    run_cell(19, names, "stage1")
    learner = names["learner"]
    # fastai replaces them at the next prediction
    recorder, settings = learner.recorder, learner.group_settings
    run_cell(22, names, "stage1_interp")
    entries |= fit_entries("stage1", learner, recorder, settings, names["interp"])
    entries["stage1_frozen_sha1"] = period.frozen_sha1(learner)
    run_cell(23, names)
    fresh = hcd.get_learner(names["data"], names["recipe"], names["output"]).load(
        f"{names['model_name']}_stage1"
    )
    entries["stage1_loaded_predictions"] = period.numbers(period.predict(fresh, "stage1_loaded")[0])
    entries["stage1_loaded_steps"] = sorted(
        {int(state["step"]) for state in fresh.opt.opt.state.values()}
    )
    run_cell(24, names, "stage2_find")
    for kind in ("lrs", "losses"):
        entries[f"stage2_find_{kind}"] = period.numbers(getattr(learner.recorder, kind))
    run_cell(25, names, "stage2")
    recorder, settings = learner.recorder, learner.group_settings
    run_cell(27, names, "stage2_interp")
    run_cell(28, names)
    run_cell(29, names)
    return entries | fit_entries("stage2", learner, recorder, settings, names["interp"])


def fit_entries(stage, learner, recorder, settings, interp):
    """Return what period/record.py's record_fit keeps of one 1cycle."""
    entries = {
        "lrs": period.numbers(recorder.lrs),
        "group_lrs": settings.rates,
        "momenta": period.numbers(recorder.moms),
        "weight_decays": settings.decays,
        "losses": period.numbers(recorder.losses),
        "valid_losses": period.numbers(recorder.val_losses),
        "accuracy": [float(m[0]) for m in recorder.metrics],
        "running_means": period.running_sums(learner, "running_mean"),
        "running_vars": period.running_sums(learner, "running_var"),
        "confusion": interp.confusion_matrix().tolist(),
        "predictions": period.numbers(interp.preds),
    }
    return {f"{stage}_{key}": value for key, value in entries.items()}


def play_validation(names):
    learner = names["learner"]
    run_cell(30, names, "validate")
    run_cell(37, names)
    score = names["score"]
    random.seed(period.RNG_SEEDS["validate"])
    interp = ClassificationInterpretation.from_learner(learner)
    (_, _), (_, worst), (_, best) = hcd.choose_patches(interp, count=len(interp.preds))
    assert best == worst[::-1]
    maps = []
    for index in period.HEATMAP_INDICES:
        random.seed(period.RNG_SEEDS["heatmap"] + index)
        maps.append(hcd.get_heatmap(learner, index))
    return {
        "predictions": period.numbers(names["probabilities"]),
        "targets": names["targets"].tolist(),
        "losses": period.numbers(names["losses"]),
        "accuracy": score.accuracy,
        "top_losses": period.numbers(interp.losses[worst]),
        "top_losses_order": worst,
        "gradcam_maps": [heatmap.tolist() for heatmap, _ in maps],
        "gradcam_gray_means": [float(gray.mean(dtype=float)) for _, gray in maps],
        "roc_fpr": score.false_positive_rate.tolist(),
        "roc_tpr": score.true_positive_rate.tolist(),
        "auc": score.auc,
    }


def play_test_set(names):
    learner, dataset = names["learner"], names["dataset"]
    run_cell(39, names, "tta")
    run_cell(41, names)
    # given a name, fastai leaves its file open
    with open(learner.path / "export.pkl", "wb") as file:
        learner.export(file)
    deployed = hcd.load_export(learner.path / "export.pkl", trust=True)
    bundle = SimpleNamespace(model=deployed.model.eval(), recipe=names["recipe"])
    tumour = [hcd.predict_image(bundle, path).probability for path in dataset.test_paths]
    return {
        "tta_ids": [Path(item).stem for item in learner.data.test_ds.items],
        "tta_probabilities": names["test_probabilities"].tolist(),
        "submission_ids": names["submission"]["id"].tolist(),
        "submission_labels": names["submission"]["label"].tolist(),
        "exported_probabilities": [[1 - probability, probability] for probability in tumour],
    }


def entry_names(arch):
    return [
        name
        for part in ("data", arch)
        for name in RECORD[part]
        if name not in ("arch", "patch_ids_sha1")
    ]


def check_entry(played, arch, name):
    """Compare one entry; a failure names it, by how much it drifted, and which entry was the first
    to drift."""
    want = {**RECORD["data"], **RECORD[arch]}
    drifts = []
    for entry in entry_names(arch):
        drifted, text = period.difference(entry, want[entry], played[entry])
        if drifted:
            drifts.append(f"{entry}: {text}")
    mine = [drift for drift in drifts if drift.startswith(f"{name}: ")]
    assert not mine, f"{mine[0]}; the first record of {arch} that drifted is {drifts[0]}"


@pytest.fixture
def copied():
    """The small architecture's record itself, to be changed."""
    return copy.deepcopy({**RECORD["data"], **RECORD["small"]})


def test_the_record_passes_the_comparison_and_so_does_what_is_within_the_tolerance(copied):
    copied["stage1_losses"][5] *= 1 + 9e-9
    for entry in entry_names("small"):
        check_entry(copied, "small", entry)


@pytest.mark.parametrize(
    "name, change, text",
    [
        ("stage1_losses", "[5] *= 1 + 3e-8", "relative 3.0e-08, absolute "),
        (
            "stage1_lrs",
            "[5] *= 1 + 1e-15",
            "relative ",
        ),  # of what must be equal the last digit counts
        ("gradcam_maps", "[2][1][0] += 1", "relative 1.0e+00, absolute 1.0e+00, of the largest "),
        ("split_2019_valid", "[3] += 1", "1 of 8 differ, first at 3: 39 became 40"),
        ("stage2_confusion", "[1] = [0, 3]", "2 of 4 differ, first at 2: 2 became 0"),
        (
            "augmented_sha1_seed_1",
            "[7] = 'other'",
            "1 of 12 differ, first at 7: '25d8ab20cb06023a25baa1d909917aa17a7cfed0' became 'other'",
        ),
        (
            "decoded_sha1",
            " = 'other'",
            "1 of 1 differ, first at 0: '087ce8df6f0a38e2c27072bf662e6aa5b6c1c025' became 'other'",
        ),
        ("too_dark", ".clear()", "shape (1,) became (0,)"),
        ("stage2_group_lrs", "[1].pop()", "shape (16, 3) became (16, (3,), (2,), "),
    ],
)
def test_one_changed_value_is_named_with_its_amount(copied, name, change, text):
    exec(f"copied[name]{change}")
    last, found = "exported_probabilities", {}
    copied[last][0][0] *= 1 + 1e-6
    for entry in entry_names("small"):
        try:
            check_entry(copied, "small", entry)
        except AssertionError as error:
            found[entry] = str(error).splitlines()[0]
    assert list(found) == [name, last]
    assert found[name].startswith(f"{name}: {text}") and found[last].startswith(
        f"{last}: relative 1.0e-06, "
    )
    assert all(
        f"; the first record of small that drifted is {name}: {text}" in message
        for message in found.values()
    )


@pytest.mark.parametrize("name", entry_names("small"))
def test_small_architecture_gives_the_numbers_of_the_period_stack(small, name):
    check_entry(small, "small", name)


@pytest.mark.long
@pytest.mark.parametrize("name", entry_names("densenet169"))
def test_densenet169_gives_the_numbers_of_the_period_stack(densenet169, name):
    check_entry(densenet169, "densenet169", name)


def test_record_is_of_the_period_stack():
    versions = RECORD["versions"]
    assert (versions["torch"], versions["fastai"], versions["opencv"]) == (
        "1.4.0",
        "1.0.61",
        "4.5.5",
    )
    assert re.match(r"3\.8\.", versions["python"])


def test_stage2_runs_at_fastais_weight_decay(small):
    assert (
        set(small["stage2_weight_decays"]) == set(RECORD["small"]["stage2_weight_decays"]) == {1e-2}
    )
    assert set(small["stage1_weight_decays"]) == {1e-4}


def test_learning_rate_peaks_after_30_percent(small):
    lrs = small["stage1_lrs"]
    assert np.argmax(lrs) == pytest.approx(0.3 * len(lrs), abs=1)
