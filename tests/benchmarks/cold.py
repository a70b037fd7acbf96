"""Is a packed data set worth it? Read every patch of a folder once, TIFF files against a pack of
them, cold and warm (Linux).

    python -m tests.benchmarks.cold --data DIR --into FOLDER    from the checkout's root

Run it as root, or directories stay cached.

FOLDER, on the disk that is asked about, gets a copy of the patches and a pack, which are removed at
the end. Cold: flushed, and the page cache emptied of them before each reading. Random: an epoch's
order. One process reads, through `hcd.read_image`. The ratio is the files' time over the pack's:
the median over the rounds, in brackets the least and the most.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import hcd  # isort: skip  first, so that fastai is imported quietly

from hcd.dataset.packer import pack_dataset

from .__main__ import line
from .rows import copy_some, each

DROP = Path("/proc/sys/vm/drop_caches")


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.cold", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--data", required=True, help="folder of patches; nothing is written into it"
    )
    parser.add_argument(
        "--into", default=".", help="where to work, on the disk to be measured (default: here)"
    )
    parser.add_argument(
        "--patches",
        type=int,
        default=20_000,
        help="labelled patches to take (default: %(default)s at most)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hcd-cold-", dir=options.into) as folder:
        files = Path(folder, "files")
        copy_some(options.data, files, options.patches, 2)
        pack_dataset(files, into=Path(folder, "packed"))
        everything = [path for path in Path(folder).rglob("*") if path.is_file()]
        count = len(hcd.open_dataset(files).labels)
        print(f"\n| {count:,} patches | files | pack | ratio | |\n|---|---|---|---|---|")
        for order in ("random order", "in order"):
            for state in ("cold", "warm"):
                seconds = [[], []]
                for number in range(options.rounds):
                    for side in (0, 1) if number % 2 else (1, 0):
                        root = (files, Path(folder, "packed"))[side]
                        seconds[side].append(
                            read(root, order, number, everything if state == "cold" else [])
                        )
                cells = [f"{median(values) / count * 1e6:.0f} us a patch" for values in seconds]
                line(f"{state}, {order}", *cells, [a / b for a, b in zip(*seconds)], "")


def read(root, order, number, cold):
    """Return the seconds that it takes to read all patches, after the files `cold` were taken from
    the page cache."""
    evict(cold)  # before the pack is opened, for what is mapped into memory stays there
    paths = hcd.open_dataset(root).train_paths
    paths = random.Random(number).sample(paths, len(paths)) if order == "random order" else paths
    start = time.perf_counter()
    # the maximum touches every page of a memory map
    each(lambda path: hcd.read_image(path).max(), paths)
    return time.perf_counter() - start


def evict(files):
    """Take files out of the page cache, and, where this process may, directories and inodes too."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if files and os.access(DROP, os.W_OK):
        DROP.write_text("2")


if __name__ == "__main__":
    main()
