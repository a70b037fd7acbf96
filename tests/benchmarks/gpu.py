"""What does a GPU make of the walkthrough's recipe? Train, predict and count with plain fastai
calls, with `fast=True`, and with the patches on the device besides, in turn.

    python -m tests.benchmarks.gpu --json FILE [--data DIR] [--whole [EPOCHS EPOCHS]]

from the checkout's root; some minutes. Rates are of training once it is under way, without
validation. `--whole` trains as many patches as the competition has, those of DIR again and again,
and without the two numbers for all 20 epochs. FILE gets every number; the table is printed.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import hcd  # isort: skip  first, so that fastai is imported quietly

import pandas as pd
import torch
import torchvision
from fastai.basic_train import LearnerCallback

from hcd.engine.device import find_device

from . import plain
from .__main__ import EPOCH, machine, now

MODES = {"plain": None, "fast": {"resident": False}, "resident": {"resident": True}}
STAGES = {"stage 1": ("freeze", {"max_lr": 2e-2, "wd": 1e-4}), "stage 2": ("unfreeze", {})}
LABELLED, VALIDATED, TESTED = 220_025, 22_003, 57_458  # patches of the competition
GFLOP = 2.901  # of DenseNet-169 at 90 px, forward and back, by torch's FlopCounterMode


class Clock(LearnerCallback):
    """Time a fit's batches but the first ones, and the share of that time that kernels run."""

    def __init__(self, learn, skip, profiled=0):
        super().__init__(learn)
        self.skip, self.profiled, self.busy = skip, profiled, None

    def on_batch_end(self, num_batch, train, **kwargs):
        """Start and stop the clock; in between nobody waits for the device."""
        if not train:
            return
        rest = len(self.learn.data.train_dl) - 1 - self.skip
        self.count = self.profiled or rest
        if num_batch == self.skip:
            self.start = now(self.learn.data.device)
            if self.profiled:
                kinds = [torch.profiler.ProfilerActivity.CUDA]
                self.profile = torch.profiler.profile(activities=kinds)
                self.profile.__enter__()
                self.start = now(self.learn.data.device)
        if num_batch == self.skip + self.count:
            self.last = now(self.learn.data.device)
            if self.profiled:
                self.profile.__exit__(None, None, None)
                self.busy = busy_time(self.profile) / (self.last - self.start)


def busy_time(profile):
    """Return how many seconds at least one of the profiled kernels ran."""
    return covered(
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def covered(spans):
    """Return how long at least one of some spans lasts."""
    total, end = 0, float("-inf")
    for first, last in sorted(spans):
        total += max(0, last - max(first, end))
        end = max(end, last)
    return total


def main(arguments=None):
    """Run the command."""
    options = parse(arguments)
    where = SimpleNamespace(device=options.device, data=options.data)
    found = {"machine": machine(where), "modes": {}, "TFLOP/s": matrix_rate(options.device)}
    print(found["machine"], flush=True)
    with tempfile.TemporaryDirectory(prefix="hcd-gpu-") as folder, redirect_stdout(sys.stderr):
        folder = Path(folder)
        dataset = some_patches(options, folder / "data")
        found["statistics"] = statistics(dataset, options)
        learners = {name: build(name, dataset, options, folder) for name in options.modes}
        found["modes"] = measured(learners, options)
        found["passes"] = {name: passes(name, learners[name], options) for name in learners}
        if options.device.type == "cuda":
            found["busy"] = busy(learners[options.modes[-1]], options)
            found["memory GiB"] = torch.cuda.max_memory_allocated() / 2**30
        learners.clear()
        if options.whole is not None:
            found["whole"] = whole(dataset, options, folder)
    found["minutes by multiplication"] = {
        name: multiplied(found["modes"][name], found["passes"][name]) for name in options.modes
    }
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    show(found)


def parse(arguments):
    """Return the options, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--data", help="folder of real patches (default: the synthetic sample)")
    parser.add_argument("--device", help="(default: a GPU where there is one)")
    parser.add_argument("--arch", default="densenet169", help="(default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=80, help="of a round")
    parser.add_argument("--skip", type=int, default=20, help="of them, before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", type=int, nargs="*", metavar="EPOCHS", help="see above")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    options = parser.parse_args(arguments)
    try:
        options.device = find_device(options.device)
        options.dataset = hcd.open_dataset(options.data) if options.data else None
    except (hcd.InputError, OSError) as error:
        parser.error(str(error))
    if options.tiny:
        options.arch, options.batch_size, options.batches = "squeezenet1_1", 8, 4
        options.skip, options.rounds = 1, 1
    return options


def some_patches(options, root):
    """Return a data set of a few patches, real ones where there are any."""
    return options.dataset or hcd.make_sample(root, train=200, test=40)


def repeated(dataset, labelled, tested):
    """Return a data set of so many patches, drawn from another with repetition."""
    table = dataset.labels.sample(labelled, replace=True, random_state=0, ignore_index=True)
    tests = pd.Series(dataset.test_ids).sample(tested, replace=True, random_state=0)
    return replace(dataset, labels=table, test_ids=tuple(tests))


def matrix_rate(device):
    """Return how many TFLOP/s the device makes of a product of bfloat16 matrices."""
    side = 8192 if device.type == "cuda" else 512
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = now(device)
        matrix @ matrix
        times.append(now(device) - start)
    return 2 * side**3 / median(times) / 1e12


def statistics(dataset, options):
    """Return patches/s of the channel statistics, plain and ours."""
    files = [str(path) for path in dataset.train_paths[: 30 if options.tiny else 2000]]
    times = {"plain": [], "hcd": []}
    for _ in range(1 + options.rounds):
        for name, count in (
            ("plain", plain.channel_statistics),
            ("hcd", lambda paths: hcd.channel_statistics(paths, progress=False)),
        ):
            start = time.perf_counter()
            count(files)
            times[name].append(time.perf_counter() - start)
    return {name: len(files) / median(found[1:]) for name, found in times.items()}


def build(mode, dataset, options, folder):
    """Return the learner of a mode, on as many patches as a round takes."""
    count = options.batches * options.batch_size
    table = repeated(dataset, count + 2 * options.batch_size, 3 * options.batch_size)
    valid_idx = range(count, len(table.labels))
    if mode == "plain":
        data = plain.make_data(
            [str(path) for path in table.train_paths],
            table.labels["label"].to_numpy(),
            list(valid_idx),
            [str(path) for path in table.test_paths],
            options.batch_size,
            options.device,
        )
        return plain.make_learner(data, getattr(torchvision.models, options.arch), folder)
    recipe = hcd.Recipe(
        arch=options.arch,
        batch_size=options.batch_size,
        pretrained=False,
        fast=True,
        **MODES[mode],
    )
    data = hcd.make_databunch(table, recipe, list(valid_idx), device=options.device)
    return hcd.get_learner(data, recipe, path=folder)


def measured(learners, options):
    """Return patches/s of each mode and stage, timed in turn: the median and all rounds."""
    found = {name: {stage: [] for stage in STAGES} for name in learners}
    for stage in STAGES:
        for number in range(options.rounds):
            for name, learner in learners.items():
                clock = Clock(learner, options.skip)
                epoch(learner, stage, clock)
                rate = clock.count * options.batch_size / (clock.last - clock.start)
                found[name][stage].append(rate)
                print(f"{stage}, round {number + 1}, {name}: {rate:,.0f}/s", flush=True)
    return {
        name: {stage: {"median": median(rates), "rounds": rates} for stage, rates in both.items()}
        for name, both in found.items()
    }


def epoch(learner, stage, clock):
    """Train one epoch as a stage of the walkthrough does."""
    prepare, rates = STAGES[stage]
    getattr(learner, prepare)()
    with redirect_stdout(io.StringIO()):  # where fastai shows its progress
        learner.fit_one_cycle(1, **(rates or {"max_lr": slice(4e-5, 4e-4)}), callbacks=[clock])


def passes(mode, learner, options):
    """Return crops/s of averaged passes: after one to warm up, the median of the rounds."""
    count, crops, times = 2 if mode == "plain" else 12, len(learner.data.test_ds), []
    for number in range(1 + options.rounds):
        random.seed(number)
        start = now(options.device)
        with redirect_stdout(io.StringIO()):
            if mode == "plain":
                plain.averaged_passes(learner, count)
            else:
                hcd.predict_tta(learner, count, progress=False)
        times.append(now(options.device) - start)
    return count * crops / median(times[1:])


def busy(learner, options):
    """Return the share of the time that kernels run in, of each stage."""
    shares = {}
    for stage in STAGES:
        clock = Clock(learner, options.skip, profiled=min(10, options.batches - options.skip - 1))
        epoch(learner, stage, clock)
        shares[stage] = clock.busy
    return shares


def whole(dataset, options, folder):
    """Train the recipe on as many patches as the competition has; return the seconds of each
    step."""
    head, tuned = options.whole or (8, 12)
    count = (100, 20) if options.tiny else (LABELLED, TESTED)
    table, seconds = repeated(dataset, *count), {"epochs": [head, tuned]}
    iterations = 2 if options.tiny else 600 * (head + tuned) // 20
    recipe = hcd.Recipe(
        arch=options.arch,
        batch_size=options.batch_size,
        pretrained=False,
        fast=True,
        sweep_iterations=iterations,
    )
    seconds["sweep iterations"] = recipe.sweep_iterations

    def timed(name, step):
        start = now(options.device)
        found = step()
        seconds[name] = now(options.device) - start
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        return found

    timed("statistics", lambda: hcd.channel_statistics(table.train_paths, progress=False))
    _, valid_idx = hcd.stratified_split(table.labels["label"], recipe.valid_fraction, 0)
    data = timed(
        "databunch", lambda: hcd.make_databunch(table, recipe, valid_idx, device=options.device)
    )
    timed("sweep", lambda: hcd.sweep_weight_decay(data, recipe, folder))
    learner = hcd.get_learner(data, recipe, folder)
    with redirect_stdout(io.StringIO()):
        timed("stage 1", lambda: learner.fit_one_cycle(head, recipe.head_max_lr, wd=1e-4))
        learner.unfreeze()
        count = min(100, iterations)
        timed("range test", lambda: learner.lr_find(wd=recipe.weight_decay, num_it=count))
        timed("stage 2", lambda: learner.fit_one_cycle(tuned, slice(*recipe.finetune_max_lr)))
        timed("validation", learner.get_preds)
    timed("averaged passes", lambda: hcd.predict_tta(learner, recipe.tta_passes, progress=False))
    return seconds


def multiplied(rates, crops):
    """Return how many minutes the whole recipe takes at these rates."""
    one, two = (rates[stage]["median"] for stage in STAGES)
    seconds = (8 * EPOCH + 3 * 600 * 128) / one + (12 * EPOCH + 100 * 128) / two
    return (seconds + (21 * VALIDATED + 12 * TESTED) / crops) / 60


def show(found):
    """Print the table."""
    modes = found["modes"]
    print("\n| | " + " | ".join(modes) + " |\n|" + "---|" * (1 + len(modes)))
    for stage in STAGES:
        cells = [f"{rates[stage]['median']:,.0f}" for rates in modes.values()]
        print(f"| {stage}, patches/s | {' | '.join(cells)} |")
    cells = [f"{value:,.0f}" for value in found["passes"].values()]
    print(f"| averaged passes, crops/s | {' | '.join(cells)} |")
    cells = [f"{value:.1f}" for value in found["minutes by multiplication"].values()]
    print(f"| the whole recipe by multiplication, minutes | {' | '.join(cells)} |")
    name, rates = list(modes.items())[-1]
    two = rates["stage 2"]["median"]
    floor = found["TFLOP/s"] * 1000 / GFLOP
    print(
        f"\nMatrices: {found['TFLOP/s']:.1f} TFLOP/s; at {GFLOP} GFLOP a training patch"
        f" {floor:,.0f} patches/s, of which {name} stage 2 is {100 * two / floor:.1f} %."
    )
    for name in ("statistics", "busy", "memory GiB", "whole"):
        if name in found:
            print(f"{name}: {json.dumps(found[name])}")


if __name__ == "__main__":
    main()
