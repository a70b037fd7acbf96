"""Time and memory of `hcd audit` at several sizes, each in a process of its own (Linux).

    python -m tests.benchmarks.audit [--patches 5000 20000 220025]    from the checkout's root

The patches are cut from made-up slides without any glass, a thousand or so from each, so near to
each other that one in four places of the grid is taken, as in the whole of PatchCamelyon. 220,025
of them take 6.5 GB in the temporary folder. They have just been written, so the cache holds them.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hcd.disk.images import encode_tiff

A_SLIDE, PLACES = 1019, 66  # patches of a slide, and places along each edge of its grid
HEADER = "| patches | overlapping pairs | time | us a patch | most memory |\n|---|---|---|---|---|"


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.audit", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--patches", type=int, nargs="+", default=[5000, 20_000, 220_025])
    options = parser.parse_args(arguments)
    print(HEADER)
    for count in options.patches:
        with tempfile.TemporaryDirectory(prefix="hcd-audit-") as folder:
            write_patches(Path(folder), count)
            start = time.perf_counter()
            report, memory = run_measured("audit", folder)
            seconds = time.perf_counter() - start
            print(
                f"| {count:,} | {report['pairs']['labelled']:,} | {seconds:.1f} s"
                f" | {seconds / count * 1e6:.0f} | {memory / 2**30:.2f} GiB |",
                flush=True,
            )


def write_patches(root, count):
    """Write a data folder of `count` patches, and no test set."""
    rng, side = np.random.default_rng(0), (PLACES + 5) * 16
    (root / "train").mkdir()
    rows = []
    while len(rows) < count:
        slide = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        for place in rng.permutation(PLACES**2)[: min(A_SLIDE, count - len(rows))]:
            y, x = np.multiply(divmod(place, PLACES), 16)
            patch = np.ascontiguousarray(slide[y : y + 96, x : x + 96])
            name = hashlib.sha1(patch.data).hexdigest()
            (root / "train" / f"{name}.tif").write_bytes(encode_tiff(patch))
            rows.append(f"{name},{len(rows) % 2}\n")
    (root / "train_labels.csv").write_text("".join(["id,label\n", *rows]))


def run_measured(*arguments):
    """Run a command of hcd with --json; return its answer and the most memory it had, in bytes."""
    command = [sys.executable, "-m", "hcd.cli", *map(str, arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process.stdout:
        answer = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    return answer, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
