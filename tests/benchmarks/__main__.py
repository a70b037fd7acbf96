"""Time each step as the walkthrough does it and as hcd does it, in turn in one process, and print a
table of medians.

    python -m tests.benchmarks                       from the checkout's root
    python -m tests.benchmarks --data DIR --setup    real patches, and start-up (Linux)

A GPU is used when there is one. Start-up is timed with 220,025 and with 2,200,250 patches.

A ratio is the plain version's time over hcd's: the median over the rounds, in brackets the least
and the most. One round before them only warms up, and all files are in the page cache by then.
Training is a whole short epoch through fastai, validation and data loading included, as the
walkthrough's own times are.
"""

import argparse
import io
import os
import platform
import random
import sys
import tempfile
import time
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from statistics import median

import hcd  # isort: skip  # noqa: F401  first, so that fastai is imported quietly

import cv2
import fastai
import numpy as np
import torch

from . import rows, startup
from .rows import ROWS, Bench

# in processor time, which suffers less from other programs than the clock does
ONE_CORE = ("read", "opencv", "packed", "item")
SHORT = (*ONE_CORE, "statistics")  # milliseconds each, so that more rounds cost nothing
# patches of the competition that the walkthrough trains on, and validates on 22,003 others
EPOCH = 198_022
# its epochs and times
STAGES = {"stage1": ("stage 1", 8, "41:53"), "stage2": ("stage 2", 12, "1:20:23")}
HEADER = "| step | plain here | ours | ratio | reach |\n|---|---|---|---|---|"


def main(arguments=None):
    """Run the command."""
    options = parse(arguments)
    print(machine(options), HEADER, sep="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="hcd-benchmarks-") as folder:
        folder = Path(folder)
        bench, rates = Bench(options, folder), {}
        for name in options.only:
            row = getattr(bench, name)()
            plain, ours = in_turn(row, options, name)
            line(
                row.step,
                row.show(median(plain)),
                row.show(median(ours)),
                [a / b for a, b in zip(plain, ours)],
                row.reach,
            )
            rates[name] = row.patches / median(plain), row.patches / median(ours)
        if options.setup:
            for size in options.setup_patches:
                for cells in startup.rows(
                    folder / f"patches-{size}", bench.files, size, options.rounds
                ):
                    line(*cells)
    if options.arch == "densenet169" and rates.keys() & STAGES:
        full_recipe({name: rates[name] for name in STAGES if name in rates}, options.device)


def parse(arguments):
    """Return the options, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--data",
        help="folder of real patches; a part of it is copied (default: the synthetic sample)",
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help="rows to time")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="rounds of the long rows; the short ones get five times as many",
    )
    parser.add_argument(
        "--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--batch-size", type=int, help="default: 64, and 128 on a GPU")
    parser.add_argument(
        "--batches", type=int, help="of the short epoch (default: 8, and 200 on a GPU)"
    )
    parser.add_argument("--setup", action="store_true", help="time start-up and memory too")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    options = parser.parse_args(arguments)
    gpu = options.device.type == "cuda"
    options.batch_size = options.batch_size or (8 if options.tiny else 128 if gpu else 64)
    options.batches = options.batches or (2 if options.tiny else 200 if gpu else 8)
    options.arch, options.patches = (
        ("squeezenet1_1", 30) if options.tiny else ("densenet169", rows.TRAIN)
    )
    options.setup_patches = (300,) if options.tiny else (220_025, 2_200_250)
    options.rounds = 1 if options.tiny else options.rounds
    return options


def in_turn(row, options, name):
    """Time both sides of a row, each first in every other round; return the seconds of all rounds
    but the warm-up."""
    times = {"plain": [], "ours": []}
    threads = cv2.getNumThreads(), torch.get_num_threads()
    clock = time.process_time if name in ONE_CORE else lambda: now(options.device)
    if name in ONE_CORE:  # as a worker of a data loader reads
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
    for number in range(1 + options.rounds * (5 if name in SHORT else 1)):
        for side in ("plain", "ours") if number % 2 else ("ours", "plain"):
            random.seed(number)  # both draw the same
            with redirect_stdout(io.StringIO()):  # where fastai shows its progress
                start = clock()
                getattr(row, side)()
                times[side].append(clock() - start)
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])
    return times["plain"][1:], times["ours"][1:]


def now(device):
    """Return the clock in seconds, once a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def line(step, plain, ours, ratios, reach):
    """Print one line of the table; beside the median ratio, the lowest and the highest."""
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)}"
    print(
        f"| {step} | {plain} | {ours} | {median(ratios):.2f} x ({spread}) | {reach} |", flush=True
    )


def full_recipe(rates, device):
    """Print how long the walkthrough's epochs would take at the rates measured."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    print(
        f"\n| on {place} | patches/s, plain | patches/s, fast | all epochs, plain | all epochs,"
        " fast | the walkthrough |"
    )
    print("|---|---|---|---|---|---|")
    for name, (plain, fast) in rates.items():
        stage, epochs, theirs = STAGES[name]
        hours = [f"{epochs * EPOCH / rate / 3600:.2f} h" for rate in (plain, fast)]
        print(
            f"| {stage}, {epochs} epochs | {plain:,.0f} | {fast:,.0f} | {hours[0]} | {hours[1]} |"
            f" {theirs} |"
        )


def machine(options):
    """Say in one line where, when and on what the table was made."""
    cpus = [
        text.split(":")[1].strip()
        for text in _lines("/proc/cpuinfo")
        if text.startswith("model name")
    ]
    gpu = f", {torch.cuda.get_device_name(options.device)}" if options.device.type == "cuda" else ""
    packages = (
        f"torch {torch.__version__}, numpy {np.__version__}, OpenCV {cv2.__version__}, fastai"
        f" {fastai.__version__}"
    )
    day = date.today().strftime("%d %B %Y").lstrip("0")
    python, load = platform.python_version(), os.getloadavg()[0]
    return (
        f"{cpus[0] if cpus else platform.processor()}, {os.cpu_count()} cores{gpu}; Python"
        f" {python}, {packages}; {day}; {'real patches' if options.data else 'synthetic sample'};"
        f" load {load:.1f} at the start"
    )


def _lines(file):
    return Path(file).read_text().splitlines() if Path(file).is_file() else []


if __name__ == "__main__":
    sys.exit(main())
