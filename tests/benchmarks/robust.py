"""What helps on slides that the model has never seen? Train the walkthrough's recipe, short, and
the same with one change at a time, at several rng seeds, and compare on the slides of test/.

    python -m tests.benchmarks.robust --data DIR --into FOLDER [--only NAME ...]

from the checkout's root; seven minutes a model on two quiet CPU cores. FOLDER keeps the predictions
of each model, and the same command goes on from there. A change earns its place if the interval of
its difference, over islands of tissue, lies above 0.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import numpy as np
import pandas as pd
from scipy.stats import t as student

from hcd.evidence.intervals import auc_covariance
from hcd.recipe import robust_changes

from .curve import RECIPE, train

PLAIN = "as it is"
WHOLE = {"crop_size": 96, "max_shift": 0, "max_rotation": 0}
CHANGES = {
    PLAIN: {},
    "stain jitter 0.05": {"stain_jitter": 0.05},
    "stain jitter 0.1": {"stain_jitter": 0.1},
    "stain jitter 0.2": {"stain_jitter": 0.2},
    "the whole 96 px": WHOLE,
    "mean weights": {"mean_weights": True},
    "robust": robust_changes({}),
    "12 passes": {"tta_passes": 12},
    "the whole 96 px, 12 passes": {**WHOLE, "tta_passes": 12},
    "robust, 4 epochs, 12 passes": {
        **robust_changes({}),
        "finetune_epochs": 4,
        "tta_passes": 12,
    },
    "gentler rates": {"head_max_lr": 5e-3, "finetune_max_lr": (2e-5, 2e-4)},
}
HEADER = (
    "| change | AUC on other slides, each rng seed | mean | above the plain recipe"
    " | 95 % interval |\n|---|---|---|---|---|"
)


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.robust", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="folder of real patches with test_labels.csv")
    parser.add_argument("--into", required=True, type=Path, help="folder that keeps predictions")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--rng-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arch", default=RECIPE.arch, help="(default: %(default)s)")
    parser.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    dataset = hcd.open_dataset(options.data)
    recipe = replace(RECIPE, arch=options.arch, pretrained=not options.no_pretrained)
    wanted = list(dict.fromkeys([PLAIN, *options.only]))
    for rng_seed in options.rng_seeds:
        for name in wanted:
            path = _path(options.into, name, rng_seed)
            if not path.exists():
                changed = replace(recipe, rng_seed=rng_seed, **CHANGES[name])
                start = time.perf_counter()
                train(options.data, len(dataset.labels), changed).to_csv(path, index=False)
                seconds = time.perf_counter() - start
                print(f"{path.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    print(HEADER)
    for row in compare(options.into, dataset, wanted, options.rng_seeds):
        print(row, flush=True)


def _path(folder, name, rng_seed):
    return folder / f"{name.replace(' ', '-')}_{rng_seed}.csv"


def compare(folder, dataset, names, rng_seeds):
    """Yield the table's rows: each change against the plain recipe, as the mean over rng seeds of
    paired differences on the same test patches."""
    labels = dataset.test_labels.set_index("id")["label"]
    groups = hcd.find_overlaps([dataset.test_path(name) for name in labels.index]).islands
    plain = _scores(folder, PLAIN, rng_seeds, labels.index)
    for name in names:
        scores = _scores(folder, name, rng_seeds, labels.index)
        both = np.concatenate([scores, plain], 1)  # (N, 2 seeds)
        aucs, covariance = auc_covariance(both, labels, groups)
        contrast = np.repeat([1, -1], len(rng_seeds)) / len(rng_seeds)
        difference, error = contrast @ aucs, np.sqrt(contrast @ covariance @ contrast)
        reach = student.ppf(0.975, groups.max()) * error
        own = aucs[: len(rng_seeds)]
        shown = "" if name == PLAIN else f"{difference:+.4f}"
        ends = "" if name == PLAIN else f"{difference - reach:+.4f} to {difference + reach:+.4f}"
        yield (
            f"| {name} | {', '.join(f'{auc:.4f}' for auc in own)} | {own.mean():.4f} | {shown}"
            f" | {ends} |"
        )


def _scores(folder, name, rng_seeds, ids):
    """Return what the models of one recipe say of the test patches, (N, seeds)."""
    columns = []
    for rng_seed in rng_seeds:
        table = pd.read_csv(_path(folder, name, rng_seed), dtype={"id": str})
        columns.append(table[table["side"] == "test"].set_index("id")["probability"][ids])
    return np.stack(columns, 1)


if __name__ == "__main__":
    main()
