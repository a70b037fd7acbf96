"""Speed and memory of `hcd import pcam` at several sizes, each in a process of its own (Linux).

    python -m tests.benchmarks.pcam [--patches 2000 8000 32768]    from the checkout's root

The files are made up: of PCam's layout, as gunzip leaves them, with noise for patches, eight in ten
of them in train, which has masks, and one in ten each in valid and test. 32,768 patches take 2.2 GB
in the temporary folder. They have just been written, so the cache holds them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from .audit import run_measured

AT_ONCE = 500  # patches in this process's memory, which Linux counts as the next process's as well
HEADER = "| patches | time | patches/s | most memory |\n|---|---|---|---|"


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.pcam", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--patches", type=int, nargs="+", default=[2000, 8000, 32_768])
    options = parser.parse_args(arguments)
    print(HEADER)
    for count in options.patches:
        with tempfile.TemporaryDirectory(prefix="hcd-pcam-") as folder:
            source = Path(folder, "pcam")
            write_files(source, count)
            start = time.perf_counter()
            answer, memory = run_measured("import", "pcam", source, Path(folder, "data"))
            seconds = time.perf_counter() - start
            written = answer["counts"]["train"] + answer["counts"]["test"]
            print(
                f"| {written:,} | {seconds:.1f} s | {written / seconds:,.0f}"
                f" | {memory / 2**20:.0f} MiB |",
                flush=True,
            )


def write_files(source, count):
    """Write PCam's files of `count` patches in all, 20 or more, half of each side with tumour."""
    rng, tenth = np.random.default_rng(0), count // 10
    tumour = np.zeros((96, 96, 1), np.uint8)
    tumour[30:60, 40:80] = 1
    source.mkdir()
    for side, rows in {"train": count - 2 * tenth, "valid": tenth, "test": tenth}.items():
        place = f"{source}/camelyonpatch_level_2_split_{side}_"
        with h5py.File(f"{place}x.h5", "w") as file:
            patches = file.create_dataset("x", (rows, 96, 96, 3), np.uint8)
            for start in range(0, rows, AT_ONCE):
                shape = (min(AT_ONCE, rows - start), 96, 96, 3)
                patches[start : start + AT_ONCE] = rng.integers(0, 256, shape, np.uint8)
        with h5py.File(f"{place}y.h5", "w") as file:
            file["y"] = (np.arange(rows) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        if side == "train":
            with h5py.File(f"{place}mask.h5", "w") as file:
                masks = file.create_dataset("mask", (rows, 96, 96, 1), np.uint8)
                for row in range(1, rows, 2):
                    masks[row] = tumour
        kind = "test" if side == "test" else "train"
        slides = [f"camelyon16_{kind}_{row // 1000:03}" for row in range(rows)]
        lines = [f"{row % 2 == 1},{slide}\n" for row, slide in enumerate(slides)]
        Path(f"{place}meta.csv").write_text("".join(["center_tumor_patch,wsi\n", *lines]))


if __name__ == "__main__":
    main()
