"""Does `fast=True` cost accuracy? Train the same recipe plain and fast at several rng seeds and
print each validation AUC.

    python -m tests.benchmarks.auc --data DIR    from the checkout's root; an hour or two on a CPU

Both of a seed see the same patches, split, order and crops. The walkthrough's learning rates, one
epoch in each stage.
"""

import argparse
import io
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from statistics import mean, stdev

import hcd  # isort: skip  first, so that fastai is imported quietly

HEADER = "| rng seed | plain | fast |\n|---|---|---|"


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.auc", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="folder of real patches")
    parser.add_argument(
        "--patches", type=int, help="of the folder's, drawn at random (default: all)"
    )
    parser.add_argument("--rng-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arch", default="densenet121", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    options = parser.parse_args(arguments)
    dataset = hcd.open_dataset(options.data)
    labels = dataset.labels.sample(
        options.patches or len(dataset.labels), random_state=0, ignore_index=True
    )
    dataset = replace(dataset, labels=labels)
    recipe = hcd.Recipe(
        arch=options.arch,
        batch_size=options.batch_size,
        valid_fraction=0.25,
        pretrained=not options.no_pretrained,
        head_epochs=1,
        finetune_epochs=1,
    )
    print(
        f"{options.arch}, 1 + 1 epochs, {len(labels):,} patches, a quarter of them to validate",
        HEADER,
        sep="\n\n",
        flush=True,
    )
    found = {"plain": [], "fast": []}
    for rng_seed in options.rng_seeds:
        for name, aucs in found.items():
            start = time.perf_counter()
            aucs.append(train(dataset, replace(recipe, rng_seed=rng_seed, fast=name == "fast")))
            print(
                f"{name}, rng seed {rng_seed}: {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        print(f"| {rng_seed} | {found['plain'][-1]:.4f} | {found['fast'][-1]:.4f} |", flush=True)
    if len(options.rng_seeds) > 1:
        print(
            "| mean (standard deviation) |",
            " | ".join(f"{mean(aucs):.4f} ({stdev(aucs):.4f})" for aucs in found.values()),
            "|",
        )


def train(dataset, recipe):
    """Return the validation AUC after both stages."""
    hcd.set_rng_seed(recipe.rng_seed)
    _, valid_idx = hcd.stratified_split(
        dataset.labels["label"], recipe.valid_fraction, recipe.rng_seed
    )
    # where fastai shows its progress
    with tempfile.TemporaryDirectory(prefix="hcd-auc-") as folder, redirect_stdout(io.StringIO()):
        learner = hcd.get_learner(
            hcd.make_databunch(dataset, recipe, valid_idx), recipe, path=folder
        )
        learner.fit_one_cycle(recipe.head_epochs, recipe.head_max_lr, wd=recipe.weight_decay)
        learner.unfreeze()
        learner.fit_one_cycle(recipe.finetune_epochs, slice(*recipe.finetune_max_lr))
        return hcd.score_predictions(*learner.get_preds()).auc


if __name__ == "__main__":
    main()
