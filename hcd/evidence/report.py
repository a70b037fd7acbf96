"""`hcd report`: what the numbers of a run are worth, on one page that opens anywhere."""

import json
import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from ..dataset.masks import read_masks
from ..dataset.opened import Dataset, open_dataset
from ..dataset.slides import read_slides, slides_of
from ..disk.shown import loss_text
from ..disk.whole import (
    StrPath,
    parse_json,
    read_json,
    refuse_link,
    whole_write,
    writable_folder,
    write_json,
)
from ..errors import InputError
from ..evaluate import score_predictions
from ..export.answer import normalised
from ..export.bundle import Bundle, load_bundle
from ..export.explain import explain_image
from ..plots import Cell, plot_patch_grid, plot_roc
from ..reader import augment, read_image, read_patch
from ..recipe import SPLITS
from ..runs.readme import write_readme
from ..stats import channel_statistics
from .colour import colour_baseline
from .faithfulness import heatmap_faithfulness
from .figures import plot_group_aucs, plot_reliability
from .intervals import clustered_difference
from .judge import judge_predictions
from .overlap import find_overlaps
from .page import write_page

PAGE, NUMBERS, MOST_BYTES = "report.html", "report.json", 1 << 24
WORST, DRAWS = 8, 100  # patches shown, and over how many draws their losses are told
FEW = 3  # groups whose own AUCs make a figure
MAPPED = 60  # patches of each label that heatmaps are measured on
MAPS = (
    ("grad_cam", None),
    ("hires_cam", 5),
    ("hires_cam", 11),
    ("layer_cam", 5),
    ("layer_cam", 11),
)


@dataclass(frozen=True, eq=False)
class Kept:
    """What a run has kept: its folder, the kind of its split, validation predictions (id, label,
    probability, loss), model, data set, and slides, None where they are not known."""

    folder: Path
    split: str
    valid: pd.DataFrame
    bundle: Bundle
    dataset: Dataset
    slides: pd.DataFrame | None


def write_report(
    run: StrPath,
    data_folder: StrPath | None = None,
    slides: StrPath | None = None,
    progress: bool = True,
) -> dict:
    """Write report.html and report.json into a run's folder.

    Args:
        run: folder of a finished run.
        data_folder: its data set; None takes the one that it was run on.
        slides: table of slides, see `read_slides`; None takes the run's, or slides.csv of the data
            folder. Without one, groups are islands of patches that show the same tissue.
        progress: show bars.
    Returns:
        the numbers, as they stand in report.json: validation and test (None without answers to it)
        hold a Judgement's, points of the ROC curve among them.
    Raises:
        FileNotFoundError, InputError: no finished run, one that has kept no predictions, or another
        data set; nothing is written then.
    """
    kept = _read_run(Path(run).expanduser(), data_folder, slides)
    numbers, figures = _measure(kept, progress)
    numbers = parse_json(json.dumps(numbers, allow_nan=False))  # as they are read back
    page = write_page(numbers, figures)
    write_json(kept.folder / NUMBERS, numbers)
    with whole_write(kept.folder / PAGE, "w") as file:
        file.write(page)
    write_readme(kept.folder, kept.dataset.root)  # which now leads to the report
    return numbers


def _read_run(folder, data_folder, slides):
    for name in ("metrics.json", "validation.csv", "model/card.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing, and a report needs it; name the folder of a finished"
                " run, or run it again with this hcd"
            )
    for name in PAGE, NUMBERS:
        refuse_link(folder / name)
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder; remove it")
    writable_folder(folder)  # better now than when all has been measured
    metrics = read_json(folder / "metrics.json", MOST_BYTES)
    split = metrics.get("split", "random") if isinstance(metrics, dict) else None
    if split not in SPLITS:  # older runs know no other than the random one
        raise InputError(
            f"{folder / 'metrics.json'} names the split {str(split)[:60]!r} and not one of"
            f" {', '.join(SPLITS)}; restore it, or run again"
        )
    valid = read_predictions(folder / "validation.csv", "probability", ("loss",))
    bundle = load_bundle(folder / "model")
    parameters = _parameters(folder / "run.json")
    root = data_folder or parameters.get("data_folder") or folder / "data"
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}, the data of {folder}, is missing; give --data DIR")
    whole = open_dataset(root)
    table = read_slides(slides or parameters.get("slides_file"), whole)
    dataset = _as_it_was(whole, metrics, bundle.recipe)
    known = valid[["id", "label"]].merge(dataset.labels, on=["id", "label"])
    if len(known) < len(valid):
        raise InputError(
            f"{len(valid) - len(known)} of the {len(valid)} patches of {folder / 'validation.csv'}"
            f" are not in {root}, or have other labels there; restore that file, or run again"
        )
    return Kept(folder, split, valid, bundle, dataset, table)


def _as_it_was(dataset, metrics, recipe):
    """Return a data set as a run has split it: outliers may have been left out before (In 10)."""
    wanted = metrics.get("data_fingerprint")
    if dataset.fingerprint == wanted:
        return dataset
    statistics = channel_statistics(dataset.train_paths, recipe, progress=False)
    without = dataset.without(statistics.too_dark + statistics.too_bright)
    if without.fingerprint == wanted:
        return without
    raise InputError(
        f"{dataset.root} holds other ids or labels than the run was made on; give --data with the"
        " data set of that run"
    )


def _parameters(path):
    """Return the texts among the parameters of a run's record; none where it has no record."""
    record = read_json(path, MOST_BYTES) if path.is_file() else {}
    parameters = record.get("parameters") if isinstance(record, dict) else None
    given = parameters.items() if isinstance(parameters, dict) else ()
    return {name: value for name, value in given if isinstance(value, str)}


def read_predictions(path: Path, column: str, others: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of predictions that a run has written.

    Args:
        path: CSV file. column: of the tumour probabilities. others: columns of numbers beside it.
    Returns:
        DataFrame, columns id, label (0 or 1, unless it is the column of probabilities),
        probability, and the others.
    Raises:
        InputError: no such table, an id that stands twice, or a number that is none.
    """
    labels = [] if column == "label" else ["label"]
    try:
        table = pd.read_csv(path, dtype={"id": str}, keep_default_na=False)  # an id may be NA
        table = table[["id", *labels, column, *others]].rename(columns={column: "probability"})
        numbers = table.drop(columns="id").astype(float)
        finite = np.isfinite(numbers).all(axis=1).to_numpy()
        if not finite.all():
            raise ValueError(f"a number of row {finite.argmin() + 2} is not finite")
        if table["id"].duplicated().any():
            raise ValueError(f"id {table['id'][table['id'].duplicated()].iloc[0]} stands twice")
        if not numbers["probability"].between(0, 1).all():
            raise ValueError("a probability is outside [0, 1]")
        if (numbers[list(others)] < 0).any(axis=None):
            raise ValueError("a loss is below 0")
        if labels and not numbers["label"].isin([0, 1]).all():
            raise ValueError("a label is neither 0 nor 1")
        table[numbers.columns] = numbers
        return table.astype(dict.fromkeys(labels, "int64"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is no table of predictions ({' '.join(str(error).split())[:100]}); restore it,"
            " or run again"
        ) from error


def _measure(kept, progress):
    """Return the numbers, a dict that JSON can hold, and the figures by name."""
    labels = kept.dataset.labels
    recipe = kept.bundle.recipe
    overlaps = find_overlaps(kept.dataset.train_paths, recipe=recipe, progress=progress)
    position = pd.Series(range(len(labels)), labels["id"])[kept.valid["id"]].to_numpy()
    if kept.slides is None:
        groups, what = overlaps.islands[position], "island of tissue"
    else:
        groups, what = slides_of(kept.slides, kept.valid["id"]), "slide"
    in_train: np.ndarray = np.ones(len(labels), bool)
    in_train[position] = False
    judged = judge_predictions(kept.valid["probability"], kept.valid["label"], groups, what)
    test = _test(kept, progress)
    colour = _colour(kept, in_train, position, groups, test, progress)
    spread = _loss_spread(kept)
    numbers = {
        "run": os.fsencode(kept.folder.resolve().name).decode("utf-8", "backslashreplace"),
        "arch": recipe.arch,
        "side": recipe.original_size,
        "recipe": kept.bundle.card["recipe"],
        "patches": {"training": int(in_train.sum()), "validation": len(position)},
        "split": kept.split,
        "leak": _leak(kept, overlaps, in_train, position),
        "validation": {**judged.as_dict(), **colour["validation"]},
        "test": {**test["judged"].as_dict(), **colour["test"]} if test else None,
        "largest_losses": spread,
        "heatmaps": _faithfulness(kept, progress),
        "mapped": MAPPED,
    }
    return numbers, _figures(kept, judged, test)


def _leak(kept, overlaps, in_train, position):
    """Say how many validation patches share tissue with training, and the AUC of these and of the
    others."""
    shared = overlaps.shared_with(in_train)[position]
    sizes = np.bincount(overlaps.islands)
    found: dict = {
        "share": float(shared.mean()),
        "pairs": len(overlaps.pairs),
        "islands": len(sizes),
        "largest_island": int(sizes.max()),
    }
    for name, side in (("auc_shared", shared), ("auc_not_shared", ~shared)):
        rows = kept.valid[side]
        both = rows["label"].nunique() == 2
        found[name] = float(roc_auc_score(rows["label"], rows["probability"])) if both else None
    if kept.slides is not None:
        slides = slides_of(kept.slides, kept.dataset.labels["id"])
        same = np.isin(slides[position], slides[in_train])
        found["slide_share"] = float(same.mean())
    return found


def _test(kept, progress):
    """Judge the test predictions, where there are some and their answers; else None."""
    answers = kept.dataset.test_labels
    file = kept.folder / f"{kept.bundle.recipe.arch}_submission.csv"
    if answers is None or not file.is_file():
        return None
    table = read_predictions(file, "label").merge(answers, on="id")
    if len(table) != len(answers):
        raise InputError(
            f"{file} does not answer for the test patches of {kept.dataset.root}; give --data"
            " with the data set of that run"
        )
    what = "slide"
    if kept.slides is not None and set(table["id"]) <= set(kept.slides["id"]):
        groups = slides_of(kept.slides, table["id"])
    else:
        paths = [kept.dataset.test_path(name) for name in table["id"]]
        overlaps = find_overlaps(paths, recipe=kept.bundle.recipe, progress=progress)
        groups, what = overlaps.islands, "island of tissue"
    judged = judge_predictions(table["probability"], table["label"], groups, what)
    return {"table": table, "groups": groups, "judged": judged}


def _colour(kept, in_train, position, groups, test, progress):
    """Train the colour baseline on the same split, and compare."""
    paths = kept.dataset.train_paths
    train = [path for path, wanted in zip(paths, in_train) if wanted]
    others = [paths[i] for i in position]
    others += [kept.dataset.test_path(name) for name in test["table"]["id"]] if test else []
    labels = kept.dataset.labels["label"][in_train]
    found = colour_baseline(train, labels, others, kept.bundle.recipe, progress)
    sides = {"validation": _compared(kept.valid, found[: len(position)], groups)}
    if test:
        sides["test"] = _compared(test["table"], found[len(position) :], test["groups"])
    return sides


def _compared(table, colour, groups):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the page says how few groups there are
            difference = clustered_difference(table["probability"], colour, table["label"], groups)
        interval = list(difference.interval)
    except InputError:  # the judgement says why there is no interval
        interval = None
    auc = float(roc_auc_score(table["label"], colour))
    return {"colour_auc": auc, "above_colour": interval}


def _loss_spread(kept):
    """Tell how much of the mean loss the largest make, and what they are over many draws."""
    losses = kept.valid["loss"].to_numpy()
    worst, total = np.argsort(-losses, kind="stable")[:WORST], losses.sum()
    rows = []
    for i in worst:
        drawn = draw_losses(
            kept.bundle, kept.dataset.train_path(kept.valid["id"][i]), int(kept.valid["label"][i])
        )
        rows.append(
            {
                "id": kept.valid["id"][i],
                "label": int(kept.valid["label"][i]),
                "loss": float(losses[i]),
                "share_of_mean": float(losses[i] / total) if total else 0.0,
                "median": float(np.median(drawn)),
                "upper_tenth": float(np.quantile(drawn, 0.9)),
                "largest": float(drawn.max()),
            }
        )
    return {"mean": float(losses.mean()), "draws": DRAWS, "patches": rows}


def draw_losses(
    bundle: Bundle, path: Any, label: int, draws: int = DRAWS, rng_seed: int = 0
) -> np.ndarray:
    """Compute the loss of one patch over many draws of its augmentation, in float32.

    Args:
        bundle: see `load_bundle`. path: file of a patch, or packed patch. label: 0 or 1.
        draws: how many. rng_seed: of the draws.
    Returns:
        (draws,) float64 cross-entropy losses.
    """
    recipe, rng = bundle.recipe, random.Random(rng_seed)
    patch, weights = read_patch(path, recipe), next(bundle.model.parameters())
    losses = []
    for start in range(0, draws, 50):
        crops = [augment(patch, recipe, rng) for _ in range(min(50, draws - start))]
        with torch.inference_mode():
            batch = normalised(torch.from_numpy(np.stack(crops)), recipe, weights)
            logits = bundle.model(batch).double()
        losses.append(0 - torch.log_softmax(logits, 1)[:, label])  # 0 has no sign so
    return torch.cat(losses).numpy()


def _faithfulness(kept, progress):
    rng = np.random.default_rng(0)
    rows = [
        rng.permutation(np.flatnonzero(kept.valid["label"] == label))[:MAPPED] for label in (0, 1)
    ]
    chosen = kept.valid.iloc[np.sort(np.concatenate(rows))]
    paths = [kept.dataset.train_path(name) for name in chosen["id"]]
    masks = read_masks(kept.dataset, chosen["id"], kept.bundle.recipe.original_size)
    found = []
    for method, size in MAPS:
        try:
            measured = heatmap_faithfulness(
                kept.bundle, paths, chosen["label"], masks, method, size, progress=progress
            )
            found.append(measured.as_dict())
        except InputError as error:  # a network without such a map
            found.append({"method": method, "size": size, "why_not": str(error).split("; ")[0]})
    return found


def _figures(kept, judged, test):
    figures = {}
    sides = [("validation", kept.valid, judged)]
    if test:
        sides.append(("test", test["table"], test["judged"]))
    for name, table, found in sides:
        values = table["probability"].to_numpy(float)
        score = score_predictions(np.stack([1 - values, values], 1), table["label"])
        figures[f"roc_{name}"] = plot_roc(
            score.false_positive_rate, score.true_positive_rate, score.auc
        )
        bins = found.calibration
        figures[f"reliability_{name}"] = plot_reliability(
            bins.predicted, bins.observed, bins.counts, bins.expected_error
        )
        groups = found.group_aucs
        if len(groups) >= FEW:
            figures[f"groups_{name}"] = plot_group_aucs(
                groups["group"], groups["auc"], groups["patches"], found.value, found.what
            )
    figures["worst"] = _plot_worst(kept)
    for figure in figures.values():
        plt.close(figure)
    return figures


def _plot_worst(kept):
    """Draw the patches with the largest losses, each above where the model found tumour in it."""
    worst = kept.valid.sort_values("loss", ascending=False, kind="stable")[:WORST]
    cells, maps = [], []
    start = kept.bundle.recipe.margin
    shown = slice(start, start + kept.bundle.recipe.crop_size)
    for patch_id, label, probability, loss in worst.itertuples(index=False):
        path = kept.dataset.train_path(patch_id)
        crop = read_image(path)[shown, shown]
        actual = "tumour" if label else "negative"
        cells.append(Cell(crop, f"{actual}, p = {probability:.3f}\nloss {loss_text(loss, 1)}"))
        explained = _explained(kept.bundle, path)
        maps.append(Cell(explained.gray, explained.title, explained.heatmap))
    rows = []
    for first in range(0, len(cells), 4):
        rows.append(("Patch", cells[first : first + 4]))
        rows.append(("Heatmap", maps[first : first + 4]))
    return plot_patch_grid(rows, "The largest losses: actual label, tumour probability")


def _explained(bundle, path):
    try:
        return explain_image(bundle, path, "hires_cam")
    except InputError:  # a network whose maps are all smaller
        return explain_image(bundle, path, "hires_cam", None)
