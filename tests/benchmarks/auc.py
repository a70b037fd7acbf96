"""Does `fast=True` cost accuracy? Train the same recipe plain and fast at several rng seeds and
print each validation AUC.

    python -m tests.benchmarks.auc --data DIR    from the checkout's root; an hour or two on a CPU

Both of a seed see the same patches, split, order and crops. The walkthrough's chapters and learning
rates, one epoch in each stage, a sweep of two batches.
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
from hcd import walkthrough

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
    listed = hcd.open_dataset(options.data).labels["id"]
    count = options.patches or len(listed)
    others = listed.drop(listed.sample(count, random_state=0).index)
    recipe = hcd.Recipe(
        arch=options.arch,
        batch_size=options.batch_size,
        valid_fraction=0.25,
        pretrained=not options.no_pretrained,
        sweep_weight_decays=(1e-4,),
        sweep_iterations=2,
        head_epochs=1,
        finetune_epochs=1,
    )
    print(
        f"{options.arch}, 1 + 1 epochs, {count:,} patches, a quarter of them to validate",
        HEADER,
        sep="\n\n",
        flush=True,
    )
    found = {"plain": [], "fast": []}
    for rng_seed in options.rng_seeds:
        for name, aucs in found.items():
            start = time.perf_counter()
            changes = {"rng_seed": rng_seed, "fast": name == "fast"}
            aucs.append(train(options.data, others, replace(recipe, **changes)))
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


def train(data, others, recipe):
    """Return the validation AUC after both stages, without the other patches."""
    # where fastai shows its progress
    with tempfile.TemporaryDirectory(prefix="hcd-auc-") as folder, redirect_stdout(io.StringIO()):
        run = walkthrough.begin(data, recipe, folder)
        walkthrough.split(run, others)
        walkthrough.train(run)
        return hcd.score_predictions(*run.learner.get_preds()).auc


if __name__ == "__main__":
    main()
