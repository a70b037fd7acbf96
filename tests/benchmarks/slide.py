"""How much of a whole slide's time is reading, how many cells a second, and how much memory?

    python -m tests.benchmarks.slide [--arch densenet121] [--form jpeg]

from the checkout's root. Sections are painted as in the tests, of two sizes; a model of random
weights answers them. Reading alone is all blocks with tissue, by the same threads, without a model;
beside it stand the cells of one of the blocks, as arrays, through `predict_images`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import numpy as np
import torch

from hcd.slide.cells import CELL, make_grid
from hcd.slide.libraries import open_slide
from hcd.slide.predict import _read, _survey
from tests.slide import painted
from tests.slide.helpers import most_memory

from .backends import random_bundle

SIZES = {"6,000 x 4,480": (6000, 4480), "20,000 x 15,360": (20000, 15360)}
MPP, ROOT = 0.25, Path(__file__).resolve().parents[2]
HEADER = (
    "| slide, px | cells | cells/s | `predict_images`, patches/s | ratio | reading alone |"
    " its share | most memory |\n|---|---|---|---|---|---|---|---|"
)
ONE = "from tests.benchmarks.slide import answer; answer({!r}, {!r}, {!r})"


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.slide", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--arch", default="densenet121", help="(default: %(default)s)")
    parser.add_argument("--form", default="jpeg", choices=("jpeg", "deflate", "SubIFDs"))
    parser.add_argument("--fast", action="store_true", help="compute in 16 bits")
    parser.add_argument("--small", action="store_true", help="the smaller of the two slides alone")
    parser.add_argument("--tiny", action="store_true", help="one small slide, to try it out")
    options = parser.parse_args(arguments)
    sizes = {"1,536 x 1,152": (1536, 1152)} if options.tiny else SIZES
    if options.small:
        sizes = dict(list(SIZES.items())[:1])
    print(f"{options.arch}, {options.form}, {torch.get_num_threads()} threads\n\n{HEADER}")
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory(prefix="hcd-slide-") as folder:
            path = paint(Path(folder, "slide.tif"), size, options.form)
            command = [sys.executable, "-c", ONE.format(str(path), options.arch, options.fast)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        print(f"| {name} {done.stdout.strip()}", flush=True)


def paint(path, size, form):
    """Save a section with one tumour."""
    width, height = (round(length * MPP / painted.SPACING) for length in size)
    section = painted.paint(width, height, [(width / 2, height / 2, min(width, height) / 6)])
    compression = "jpeg" if form == "jpeg" else "deflate"
    own = {"compression": compression, "sub": form == "SubIFDs", "levels": 4}
    return painted.save(path, section, MPP, size, **own)


def answer(path, arch, fast):
    """Print the cells of a slide's row; in a process of its own, for its memory."""
    bundle = random_bundle(arch)
    reading, patches = read(path)
    before = predicted(bundle, patches, fast)
    start = time.perf_counter()
    found = hcd.predict_slide(bundle, path, fast=fast, progress=False)
    whole = time.perf_counter() - start
    memory = most_memory()
    cells = int(np.isfinite(found.probabilities).sum())
    rate = (before + predicted(bundle, patches, fast)) / 2
    print(
        f"| {cells:,} | {cells / whole:.0f} | {rate:.0f} | {cells / whole / rate:.2f} |"
        f" {reading:.1f} s | {reading / whole:.1%} | {memory:,.0f} MiB |"
    )


def predicted(bundle, patches, fast):
    """Return how many patches a second `predict_images` answers."""
    start = time.perf_counter()
    list(hcd.predict_images(bundle, patches, fast=fast))
    return len(patches) / (time.perf_counter() - start)


def read(path):
    """Return the seconds that all blocks take to be read, the survey included, and the patches of
    one of them."""
    start = time.perf_counter()
    with open_slide(path) as slide:
        grid = make_grid(slide, slide.mpp, painted.SPACING)
        _, _, tissue = _survey(slide, grid, slide.mpp)
        todo = [(n, place) for n, place in enumerate(grid.blocks()) if tissue[place].any()]
        fullest = max(todo, key=lambda one: tissue[one[1]].sum())[0]
        for number, place, rgb, _ in _read(slide, grid, todo):
            if number == fullest:
                kept = rgb, np.argwhere(tissue[place])
    seconds = time.perf_counter() - start
    rgb, cells = kept
    return seconds, [rgb[y : y + 96, x : x + 96] for y, x in cells * CELL]


if __name__ == "__main__":
    main()
