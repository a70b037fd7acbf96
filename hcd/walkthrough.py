"""In 1 to In 45 as one plain function: the notebook's twin, for scripts and tests.

It does what the cells do, in their order and with the same draws, and leaves the same files; the
figures are drawn and closed. Read the notebook for the why. Who needs a part of it, such as a test
or a benchmark, calls its chapters one by one.

On several ranks (`engine/ranks.py`) all train and predict, and rank 0 alone writes and draws.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from fastai.metrics import accuracy
from fastai.train import ClassificationInterpretation

from .data import make_databunch
from .dataset.opened import open_dataset, pixel_digests
from .dataset.sample import make_sample
from .dataset.slides import read_slides
from .disk.whole import StrPath, write_json
from .engine.device import set_rng_seed
from .engine.ranks import agree, current, on_first
from .engine.sharded import require_shareable
from .evaluate import score_predictions
from .evidence.figures import plot_reliability
from .evidence.judge import judge_predictions
from .export.answer import predict_image
from .export.bundle import load_bundle, save_bundle
from .gradcam import get_heatmap, hooked_backward
from .learner import check_machine, get_learner
from .overview import choose_patches, plot_heatmap_overview, plot_overview
from .plots import plot_draws, plot_outliers, plot_patches, plot_prediction, plot_roc, plot_sweep
from .predict import predict_tta, write_submission, write_validation
from .reader import read_cropped_image, read_image
from .recipe import Recipe
from .runs.checkpoint import Checkpoints
from .runs.folder import prepare_output
from .runs.readme import write_readme
from .runs.tidy import tidy_run
from .split import evidence_groups, split_dataset
from .stats import channel_statistics
from .sweep import sweep_weight_decay


@dataclass
class Run:
    """What the chapters hand on to each other, under the names that the notebook has for it."""

    recipe: Recipe
    output: Path
    dataset: Any
    checkpoints: Checkpoints
    slides: Any = None
    valid_idx: Any = None
    data: Any = None
    learner: Any = None
    interp: Any = None
    final_model: str = ""
    metrics: dict = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        arch = self.recipe.arch
        return arch if isinstance(arch, str) else arch.__name__


def run_walkthrough(
    data_folder: StrPath = "",
    recipe: Recipe | None = None,
    output_folder: StrPath = "",
    num_workers: int | None = None,
    device: str | None = None,
    remove_outliers: bool = False,
    back_to_stage1: bool = False,
    resume: bool = False,
    slides_file: StrPath = "",
) -> dict:
    """Run the whole walkthrough, and return what it comes to.

    Args:
        data_folder: the competition's folder; "" draws the synthetic sample.
        recipe: its numbers; None takes the walkthrough's, or the sample's where that is drawn.
        output_folder: where models, submission and metrics go; "" makes a new folder, see
            `prepare_output`.
        num_workers, device: see `make_databunch`.
        remove_outliers: drop the too dark and too bright patches before the split (In 10).
        back_to_stage1: go on with the stage-1 model (In 29).
        resume: go on with the interrupted run in output_folder.
        slides_file: see `read_slides`.
    Returns:
        the metrics, as they stand in metrics.json.
    Raises:
        InputError, OSError: settings or data that cannot be used, before anything is trained.

    Source: In 1 to In 45.
    """
    recipe = recipe or (Recipe() if str(data_folder) else Recipe.sample())
    run = begin(data_folder, recipe, output_folder, device, resume, slides_file)
    statistics = on_first(lambda: look(run))
    outliers = statistics.too_dark + statistics.too_bright
    split(run, outliers if remove_outliers else [], num_workers, device)
    train(run, back_to_stage1)
    validate(run, statistics)
    predict(run)
    return on_first(lambda: _finish(run, data_folder))


def _finish(run: Run, data_folder: StrPath) -> dict:
    deploy(run)
    write_json(run.output / "metrics.json", run.metrics)
    tidy_run(run.output, run.final_model)
    write_readme(run.output, data_folder)
    return run.metrics


def begin(data_folder, recipe, output_folder, device=None, resume=False, slides_file="") -> Run:
    """Check everything that can be checked at once: In 1."""
    require_shareable(recipe)
    opened = open_dataset(data_folder) if str(data_folder) else None
    agree(data_fingerprint=opened and opened.fingerprint)
    output = on_first(lambda: prepare_output(output_folder, resume=resume))
    check_machine(recipe, device)
    set_rng_seed(recipe.rng_seed)
    dataset = opened or on_first(lambda: make_sample(output / "data"))
    slides = on_first(lambda: read_slides(slides_file, dataset, recipe))
    pixels = None
    if not current().local:  # once a machine
        pixels = pixel_digests(dataset.train_paths + dataset.test_paths, recipe)
    agree(pixels=None if pixels is None else hashlib.sha256(pixels.tobytes()).hexdigest())
    checkpoints = Checkpoints(output / "checkpoints", recipe, dataset, resume, pixels)
    return Run(recipe, output, dataset, checkpoints, slides)


def look(run: Run):
    """Look at patches and crops, and compute the channel statistics: In 2 to In 9."""
    recipe, dataset = run.recipe, run.dataset
    shuffled = dataset.labels.sample(frac=1, random_state=recipe.rng_seed)
    first = {
        label: [dataset.train_path(name) for name in shuffled["id"][shuffled["label"] == label][:5]]
        for label in (0, 1)
    }
    whole = [[read_image(path) for path in first[label]] for label in (0, 1)]
    crops = [[read_cropped_image(path, recipe=recipe) for path in first[label]] for label in (0, 1)]
    plt.close(plot_patches(whole[0], whole[1], "Patches", centre_box=recipe.original_size >= 32))
    plt.close(plot_patches(crops[0], crops[1], "Crops"))
    draws = [read_cropped_image(first[0][0], recipe=recipe) for _ in range(5)]
    plt.close(plot_draws(draws, "Five draws of one patch"))
    statistics = channel_statistics(dataset.train_paths, recipe)
    known = dict(zip(dataset.labels["id"], dataset.labels["label"]))
    outliers = [
        [(name, int(known[name]), read_image(dataset.train_path(name))) for name in names]
        for names in (statistics.too_dark, statistics.too_bright)
    ]
    plt.close(plot_outliers(outliers[0], outliers[1]))
    return statistics


def split(run: Run, outliers=(), num_workers=None, device=None) -> None:
    """Split what is left without the outliers, and build the databunch: In 10 to In 15."""
    run.dataset = run.dataset.without(outliers)
    _, valid_idx = on_first(lambda: split_dataset(run.dataset, run.recipe, run.slides))
    run.valid_idx = valid_idx
    run.data = make_databunch(run.dataset, run.recipe, valid_idx, num_workers, device)
    on_first(lambda: repr(run.data))  # In 14 shows it: reads a few patches and draws for them
    passes = on_first(lambda: _show_batch(run.data))
    if run.data.passes:
        run.data.passes.count = passes


def _show_batch(data):
    """Show a few crops; returns how many passes were begun then."""
    data.show_batch(rows=2, figsize=(5, 5))
    plt.close()
    return data.passes and data.passes.count


def train(run: Run, back_to_stage1: bool = False) -> None:
    """Sweep, train the head, fine-tune everything: In 16 to In 29."""
    recipe, kept = run.recipe, run.checkpoints
    get_learner(run.data, recipe, run.output)  # In 16; its draws count
    curves = sweep_weight_decay(run.data, recipe, run.output, kept)
    on_first(lambda: plt.close(plot_sweep(curves)))
    learner = run.learner = get_learner(run.data, recipe, run.output)
    learner.fit_one_cycle(
        recipe.head_epochs,
        recipe.head_max_lr,
        wd=recipe.weight_decay,
        callbacks=[kept.callback(learner, "stage1")],
    )
    _note_stage(run, "stage1")
    learner.load(f"{run.model_name}_stage1")
    learner.unfreeze()
    learner.lr_find(wd=recipe.weight_decay, num_it=min(100, recipe.sweep_iterations))
    learner.fit_one_cycle(
        recipe.finetune_epochs,
        slice(*recipe.finetune_max_lr),
        callbacks=[kept.callback(learner, "stage2")],
    )
    _note_stage(run, "stage2")
    run.final_model = f"{run.model_name}_stage2"
    if back_to_stage1:
        run.final_model = f"{run.model_name}_stage1"
        learner.load(run.final_model, with_opt=False)
        run.interp = ClassificationInterpretation.from_learner(learner)


def _note_stage(run: Run, stage: str) -> None:
    """Validate and save what a stage has trained: In 22 and 23, In 27 and 28."""
    interp = run.interp = ClassificationInterpretation.from_learner(run.learner)
    run.metrics[stage] = {
        "valid_loss": float(interp.losses.mean()),
        "accuracy": float(accuracy(interp.preds, interp.y_true)),
    }
    run.learner.save(f"{run.model_name}_{stage}")


def validate(run: Run, statistics) -> None:
    """Score and look at the validation patches: In 30 to In 38."""
    probabilities, targets, losses = run.learner.get_preds(with_loss=True)
    run.metrics = on_first(lambda: _judge(run, statistics, probabilities, targets, losses))


def _judge(run: Run, statistics, probabilities, targets, losses) -> dict:
    """Draw and score what was predicted; returns the metrics so far."""
    write_validation(run.output / "validation.csv", run.learner, probabilities, losses)
    choose_patches(run.interp)
    plt.close(plot_overview(run.interp))
    image, category = run.data.valid_ds[0]
    hooked_backward(run.learner.model, run.data.one_item(image)[0], category.data)
    get_heatmap(run.learner, 0)
    plt.close(plot_heatmap_overview(run.interp))
    score = score_predictions(probabilities, targets)
    plt.close(plot_roc(score.false_positive_rate, score.true_positive_rate, score.auc))
    groups, what = evidence_groups(run.dataset, run.recipe, run.slides)
    judged = judge_predictions(probabilities[:, 1], targets, groups[run.valid_idx], what)
    found = judged.calibration
    plt.close(plot_reliability(found.predicted, found.observed, found.counts, found.expected_error))
    return {
        "data_fingerprint": run.dataset.fingerprint,
        "patches": len(run.dataset.labels),
        "split": run.recipe.split,
        "mean": statistics.mean,
        "std": statistics.std,
        **run.metrics,
        "final_model": run.final_model,
        "valid_accuracy": score.accuracy,
        "valid_auc": score.auc,
        "valid_auc_interval": judged.interval,
        "tta_passes": 0 if run.dataset.no_test else run.recipe.tta_passes,
    }


def predict(run: Run) -> None:
    """Average augmented predictions of the test set and write the submission: In 39 to In 42; left
    out where there is no test set."""
    run.learner.load(run.final_model, with_opt=False)
    if run.dataset.no_test:
        print(f"In 39 to 41 are left out: {run.dataset.no_test}")
        return
    probabilities = predict_tta(run.learner, run.recipe.tta_passes, checkpoints=run.checkpoints)
    run.metrics = on_first(lambda: _submit(run, probabilities))


def _submit(run: Run, probabilities) -> dict:
    """Write the submission; returns the metrics, with the test set's where its labels are there."""
    path = run.output / f"{run.model_name}_submission.csv"
    submission = write_submission(path, run.dataset, run.learner, probabilities)
    if run.dataset.test_labels is not None:  # answers that the competition does not ship
        answers = run.dataset.test_labels
        truth = submission.merge(answers, on="id", suffixes=("_predicted", ""))
        predicted = truth["label_predicted"].to_numpy()
        pairs = list(zip(1 - predicted, predicted))
        run.metrics["test_auc"] = score_predictions(pairs, truth["label"]).auc
    return run.metrics


def deploy(run: Run) -> None:
    """Save the model for another machine and try it on one patch: In 43 to In 45."""
    measured = ("stage1", "stage2", "valid_accuracy", "valid_auc")
    splits = dict.fromkeys(measured, run.recipe.split)
    digest = run.dataset.fingerprint
    folder = save_bundle(run.learner, run.output / "model", run.metrics, digest, splits)
    shown = run.data.valid_ds if run.dataset.no_test else run.data.test_ds
    patch = shown.x.find(shown.items[0])
    prediction = predict_image(load_bundle(folder), patch)
    plt.close(plot_prediction(read_image(patch), prediction.label, prediction.probability))
