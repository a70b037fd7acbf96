"""Is the workers' memory flat through an epoch of ten times the competition's patches?

    python -m tests.benchmarks.epoch [--patches N] [--data DIR]    from the checkout's root (Linux)

fastai trains a network of eight numbers for one epoch, its validation included, so that nearly all
of the time is reading: every file is opened, read, augmented and normalised by two workers. The
files are hard links to a few real ones, see `startup`. Each line of the table is of one moment.
"""

import argparse
import io
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

from fastai.basic_train import Learner, LearnerCallback
from torch import nn

from .rows import copy_some
from .startup import make_folder, memory

HEADER = (
    "| batch | patches/s so far | the parent | a worker, with what it shares | a worker's own |"
)


class Watch(LearnerCallback):
    """Print a line after the first batch of training, after every so many, and after the last."""

    def __init__(self, learn, every):
        super().__init__(learn)
        self.every, self.out = every, sys.stdout  # which the progress bar does not get

    def on_epoch_begin(self, **kwargs):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_batch_end(self, num_batch, train, **kwargs):
        """Look at the memory; in the last two batches, workers may have gone."""
        count = num_batch + 1
        if train and (count == 1 or count % self.every == 0 or count == self.last):
            self.show(count)

    @property
    def last(self):
        """The last batch after which all workers are still there."""
        return len(self.learn.data.train_dl) - 2

    def show(self, count):
        """Print one line."""
        rate = count * self.learn.data.batch_size / (time.perf_counter() - self.start)
        sizes = " | ".join(f"{mib:,.0f} MiB" for mib in memory())
        print(f"| {count:,} | {rate:,.0f} | {sizes} |", file=self.out, flush=True)


def main(arguments=None):
    """Run the command."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="hcd-epoch-") as folder:
        folder = Path(folder)
        if options.data:
            copy_some(options.data, folder / "few")
            few = hcd.open_dataset(folder / "few")
        else:
            few = hcd.make_sample(folder / "few", train=60, test=8)
        root = Path(options.folder or folder / "many")
        if not root.exists():
            make_folder(root, few.train_paths, options.patches)
        train(root, options)


def train(root, options):
    """Train an epoch on all patches of a folder."""
    recipe = hcd.Recipe(batch_size=options.batch_size, rng_seed=0)
    dataset = hcd.open_dataset(root)
    _, valid_idx = hcd.split_dataset(dataset, recipe)
    data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=2, device="cpu")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    learner = Learner(data, model, path=root, silent=True)
    learner.callbacks = [Watch(learner, options.every)]
    print(f"{len(data.train_ds):,} patches, {len(data.train_dl):,} batches of {data.batch_size}\n")
    print(HEADER, "|---|---|---|---|---|", sep="\n", flush=True)
    with redirect_stdout(io.StringIO()):  # where fastai shows its progress
        learner.fit(1, 1e-3)
    print(f"\nvalidation loss {learner.recorder.val_losses[-1]:.4f}")


def parse(arguments):
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.epoch", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--patches", type=int, default=2_200_250, help="(default: %(default)s)")
    parser.add_argument("--data", help="folder of real patches to link (default: the sample)")
    parser.add_argument("--folder", help="where the links lie, or are made and left")
    parser.add_argument("--batch-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=1000, help="batches (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
