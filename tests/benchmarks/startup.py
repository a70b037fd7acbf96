"""Start-up and memory with as many patches as the competition has, each run in a process of its own
(Linux).

Every file is there and can be read, but only a few are distinct: each name is a hard link to one of
them, which takes no room. Page and directory caches are warm.

    python -m tests.benchmarks.startup ours|table|plain FOLDER BATCHES      one run; prints a line
                                                                             of JSON

`ours` splits the data set as `hcd run` does; `table` asks for `dataset.labels` first, as README's
ten lines do.
"""

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

CHECKOUT = Path(__file__).resolve().parents[2]
LINKS = 20_000  # of one file; some file systems allow 32,000
TEST_SHARE = 57_458 / 220_025
# patches in a batch, batches in the slice of an epoch that memory is followed through, and in that
# of ten times the competition's patches
BATCH, SLICE, SHORT_SLICE = 128, 400, 60


def rows(root, sources, size, rounds):
    """Time both sides in turn on a new folder of `size` patches; yield the table's cells: step,
    plain, ours, ratios, reach."""
    make_folder(root, sources, size)
    full, count = size > 1_000_000, f"{size:,} patches on disk"
    runs = {"plain": [], "ours": [], "table": []}
    for number in range(rounds):
        for side in ("plain", "ours") if number % 2 else ("ours", "plain"):
            runs[side].append(run(side, root, SHORT_SLICE if full else SLICE))
        runs["table"].append(run("table", root, 1))

    def cells(step, unit, value, reach="", ours="ours"):
        values = [[value(found) for found in runs[side]] for side in ("plain", ours)]
        return (
            step,
            *(unit.format(median(column)) for column in values),
            [a / b for a, b in zip(*values)],
            reach,
        )

    yield cells(
        f"set-up (labels, checks, split, databunch), {count}",
        "{:.1f} s",
        lambda f: f["set_up"],
        "under 60 s" * full,
    )
    yield cells(
        f"most memory in set-up, {count}", "{:.2f} GiB", lambda f: f["peak"], "under 1.2 GiB" * full
    )
    step = f"the same where `dataset.labels` is asked for, {count}"
    yield cells(step, "{:.2f} GiB", lambda f: f["peak"], ours="table")
    yield cells(f"memory of it that files do not back, {count}", "{:.2f} GiB", lambda f: f["own"])
    if not full:
        yield cells(f"import, {count}", "{:.1f} s", lambda f: f["import"])
        yield cells(
            f"first batch after the import, {count}",
            "{:.1f} s",
            lambda f: f["set_up"] + f["first_batch"],
            "under 10 s",
        )
    for place, name in enumerate(("the parent", "a worker, with what it shares", "a worker's own")):
        for when, batch in (("start", 1), ("end", runs["ours"][0]["batches"])):
            yield cells(
                f"memory of {name} after batch {batch}" + f", {count}" * full,
                "{:.0f} MiB",
                lambda f, when=when, place=place: f[when][place],
            )
    if not full:
        # once, for one round says enough of minutes or seconds
        seconds = [[check(side, root)] for side in ("plain", "ours")]
        yield (
            f"`hcd check`, {count} and {round(size * TEST_SHARE):,} test patches",
            *(f"{value:.0f} s" for (value,) in seconds),
            [seconds[0][0] / seconds[1][0]],
            "under 2 min",
        )


def make_folder(root, sources, rows):
    """Fill a folder in the competition's layout with `rows` labelled patches and a fitting number
    of test patches.

    Args:
        root: new folder. sources: files of patches on the same disk, read only.
    """
    copies = []
    for part, count in (("train", rows), ("test", max(2, round(rows * TEST_SHARE)))):
        (root / part).mkdir(parents=True)
        ids = [hashlib.sha1(f"{part}{k}".encode()).hexdigest() for k in range(count)]
        for k, patch_id in enumerate(ids):
            if k % LINKS == 0:
                copies.append(root / f"{len(copies)}.tif")
                copies[-1].write_bytes(Path(sources[len(copies) % len(sources)]).read_bytes())
            os.link(copies[-1], root / part / f"{patch_id}.tif")
        labels = (
            np.random.default_rng(0).random(count) < 89_117 / 220_025
            if part == "train"
            else np.zeros(count)
        )
        labels[:2] = 0, 1
        table = "train_labels.csv" if part == "train" else "sample_submission.csv"
        pd.DataFrame({"id": ids, "label": labels.astype(int)}).to_csv(root / table, index=False)


def check(side, root):
    """Return the seconds that it takes to read every file of a folder and to hold its name against
    the SHA-1 of its pixels."""
    import hcd

    from . import plain

    begin = time.perf_counter()
    wrong = (
        plain.wrong_names(root)
        if side == "plain"
        else hcd.check_dataset(root, progress=False).findings["wrong_id"]
    )
    # made up, all of them
    assert len(wrong) == sum(len(os.listdir(root / part)) for part in ("train", "test"))
    return time.perf_counter() - begin


def run(side, root, batches):
    """Start a process that opens `root` and reads some batches; return what it measured."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.startup",
        side,
        str(root),
        str(batches),
    ]
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


def measure(side, root, batches):
    """Open a folder and read batches as a user would.

    Returns:
        import, set_up, first_batch: seconds, each from the end of the one before. peak: GiB of this
            process when set up. own: GiB of it then that no file backs, such as a library's code.
        start, end: after the first and after the last batch, MiB: resident in the parent, and the
        mean over the workers of what is resident and of what is a worker's own.
    """
    clock = [time.perf_counter()]
    if side in ("ours", "table"):
        import hcd

        # a name is loaded when it is first used, and with it torch and fastai
        make_databunch, split_dataset = hcd.make_databunch, hcd.split_dataset
        clock.append(time.perf_counter())
        dataset = hcd.open_dataset(root)
        recipe = hcd.Recipe(batch_size=min(BATCH, len(dataset.label_values) // 2))
        if side == "table":
            assert list(dataset.labels) == ["id", "label"]
        _, valid_idx = split_dataset(dataset, recipe)
        data = make_databunch(dataset, recipe, valid_idx)
    else:
        from . import plain

        clock.append(time.perf_counter())
        data = plain.open_folder(
            root, min(BATCH, len(os.listdir(os.path.join(root, "train"))) // 2)
        )
    clock.append(time.perf_counter())
    peak, own = (_kib("/proc/self/status", field) / 2**20 for field in ("VmHWM", "RssAnon"))
    stream = iter(data.train_dl)
    next(stream)
    clock.append(time.perf_counter())
    start, read = memory(), 1
    while read < min(batches, len(data.train_dl) - 1):  # in the last one, workers may have gone
        next(stream)
        read += 1
    seconds = dict(zip(("import", "set_up", "first_batch"), np.diff(clock).tolist()))
    return {**seconds, "peak": peak, "own": own, "start": start, "end": memory(), "batches": read}


def memory():
    """Return MiB resident in the parent, and per worker resident and private."""
    workers = [worker.pid for worker in multiprocessing.active_children()]
    resident = [_kib(f"/proc/{pid}/smaps_rollup", "Rss") for pid in workers]
    private = [
        _kib(f"/proc/{pid}/smaps_rollup", "Private_Clean", "Private_Dirty") for pid in workers
    ]
    return [
        float(np.mean(kib)) / 1024
        for kib in ([_kib("/proc/self/status", "VmRSS")], resident, private)
    ]


def _kib(file, *fields):
    text = Path(file).read_text()
    return sum(int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[1]) for field in fields)


if __name__ == "__main__":
    side, root, batches = sys.argv[1:]
    print(json.dumps(measure(side, root, int(batches))))
