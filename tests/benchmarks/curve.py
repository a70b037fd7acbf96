"""How does the AUC grow with the patches, and what does the split have to do with it? Train one
recipe on more and more patches, under a random split and under one by islands of tissue, at several
rng seeds; judge each model on its validation patches and on the slides of test/.

    python -m tests.benchmarks.curve --data DIR --into FOLDER [--figure FILE]

from the checkout's root; an hour a seed on two quiet CPU cores. FOLDER keeps the predictions of
each model, and the same command goes on from there. It prints the table, and FILE gets the figure.
"""

import argparse
import io
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hcd import walkthrough
from hcd.plots import LINES

SPLITS, SIDES = ("random", "islands"), ("validation", "other slides")
RECIPE = hcd.Recipe(
    arch="densenet121",
    fast=True,
    batch_size=64,
    sweep_weight_decays=(1e-4,),
    sweep_iterations=2,
    head_epochs=1,
    finetune_epochs=2,
    tta_passes=2,
)
HEADER = (
    "| patches | split | rng seed | validation AUC | 95 % interval | islands"
    " | AUC on other slides | 95 % interval | islands |\n|---|---|---|---|---|---|---|---|---|"
)


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.curve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="folder of real patches with test_labels.csv")
    parser.add_argument("--into", required=True, type=Path, help="folder that keeps predictions")
    parser.add_argument("--figure", help="PNG file to draw into")
    parser.add_argument("--patches", type=int, nargs="+", default=[2500, 5000, 10_000, 19_171])
    parser.add_argument("--rng-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arch", default=RECIPE.arch, help="(default: %(default)s)")
    parser.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPE, arch=options.arch, pretrained=not options.no_pretrained)
    for rng_seed in options.rng_seeds:
        for count in options.patches:
            for split in SPLITS:
                path = options.into / f"{split}_{count}_{rng_seed}.csv"
                if not path.exists():
                    changed = replace(recipe, split=split, rng_seed=rng_seed)
                    start = time.perf_counter()
                    train(options.data, count, changed).to_csv(path, index=False)
                    seconds = time.perf_counter() - start
                    print(f"{path.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    rows = summarise(options.into, hcd.open_dataset(options.data))
    print(HEADER, *map(_line, rows.itertuples(index=False)), sep="\n")
    if options.figure:
        plot(rows).savefig(options.figure, dpi=100)


def train(data, count, recipe):
    """Return what a model of some of the patches says: side, id and probability."""
    ids = hcd.open_dataset(data).labels["id"]
    others = ids.drop(ids.sample(count, random_state=recipe.rng_seed).index)
    # where fastai shows its progress
    with tempfile.TemporaryDirectory(prefix="hcd-curve-") as folder, redirect_stdout(io.StringIO()):
        run = walkthrough.begin(data, recipe, folder)
        walkthrough.split(run, others)
        walkthrough.train(run)
        valid = run.learner.get_preds()[0][:, 1]
        test = hcd.predict_tta(run.learner, recipe.tta_passes)[:, 1]
    return pd.concat(
        pd.DataFrame({"side": side, "id": [Path(i).stem for i in items], "probability": found})
        for side, items, found in (
            ("valid", run.data.valid_ds.items, valid),
            ("test", run.data.test_ds.items, test),
        )
    )


def summarise(folder, dataset):
    """Return a DataFrame, a row a model: patches, split, rng_seed, and of validation and of the
    other slides the AUC, its interval's ends and how many islands it counts."""
    islands = {}
    for paths, ids in (
        (dataset.train_paths, dataset.labels["id"]),
        (dataset.test_paths, dataset.test_ids),
    ):
        islands |= dict(zip(ids, hcd.find_overlaps(paths, progress=False).islands))
    labels = pd.concat([dataset.labels, dataset.test_labels]).set_index("id")["label"]
    rows = []
    for path in folder.glob("*_*_*.csv"):
        split, count, rng_seed = path.stem.split("_")
        row = {"patches": int(count), "split": split, "rng_seed": int(rng_seed)}
        table = pd.read_csv(path, dtype={"id": str})
        for side, name in (("valid", "validation"), ("test", "other")):
            part = table[table["side"] == side]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the table says how many there are
                found = hcd.clustered_auc(
                    part["probability"],
                    labels[part["id"]],
                    [islands[patch_id] for patch_id in part["id"]],
                )
            row |= {f"{name}_auc": found.auc, f"{name}_low": found.interval[0]}
            row |= {f"{name}_high": found.interval[1], f"{name}_islands": found.groups}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["patches", "split", "rng_seed"], ignore_index=True)


def _line(row):
    cells = [f"{row.patches:,}", row.split, str(row.rng_seed)]
    for name in ("validation", "other"):
        auc, low, high, count = (
            getattr(row, f"{name}_{what}") for what in ("auc", "low", "high", "islands")
        )
        cells += [f"{auc:.4f}", f"{low:.4f} to {high:.4f}", f"{count:,}"]
    return f"| {' | '.join(cells)} |"


def plot(rows):
    """Draw the mean over the rng seeds of each AUC, and of its interval's ends."""
    figure, axis = plt.subplots(figsize=(8, 5), constrained_layout=True)
    means = rows.groupby(["split", "patches"]).mean().reset_index("patches")
    shown = [(side, split) for side in ("validation", "other") for split in SPLITS]
    for number, (side, split) in enumerate(shown):
        part = means.loc[[split]]
        auc = part[f"{side}_auc"]
        ends = np.abs([auc - part[f"{side}_low"], part[f"{side}_high"] - auc])
        colour, dashes = LINES[number]
        name = {"validation": "validation patches", "other": "other slides"}[side]
        axis.errorbar(
            part["patches"] * 1.03 ** (number - 1.5),
            auc,
            ends,
            color=colour,
            linestyle=dashes,
            marker="o",
            capsize=3,
            label=f"{name}, {split} split",
        )
    sizes = sorted(set(rows["patches"]))
    axis.set(
        xscale="log",
        xlabel="Labelled patches, a tenth of them for validation",
        ylabel="AUC, 95 % interval over islands of tissue",
    )
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
