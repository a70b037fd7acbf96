"""Kill whole runs with SIGKILL at random moments, resume them, and require the very bits of a run
that was never stopped (Linux).

    python -m tests.kills --kills 20 --rng-seed 1    from the checkout's root; a quarter of an hour

Every process of a run goes at once: the command, the notebook's, the readers of patches. A resumed
run may be killed again, and again, until one gets to its end. Exit code 0: each run that was killed
ended as the first one did, and so did a second one that was not.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import psutil

from hcd.engine.compat import load_tensors

CHECKOUT = Path(__file__).resolve().parents[1]
RECIPE = [
    "--arch=squeezenet1_1",
    "--no-pretrained",
    "--batch-size=8",
    "--valid-fraction=0.25",
    "--sweep-iterations=4",
    "--head-epochs=2",
    "--finetune-epochs=3",
    "--tta-passes=4",
    "--rng-seed=3",
    "--workers=2",
    "--device=cpu",
]


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rng-seed", type=int, default=1, help="of the moments")
    options = parser.parse_args(arguments)
    rng, left, number = random.Random(options.rng_seed), options.kills, 0
    with tempfile.TemporaryDirectory(prefix="hcd-kills-") as folder:
        folder = Path(folder)
        hcd.make_sample(folder / "data", train=80, test=16)
        whole, seconds = finish(folder, "whole")
        again, _ = finish(folder, "again")
        print(
            f"one run: {seconds:.0f} s; a second one:"
            f" {differences(whole, again) or 'the same bits'}",
            flush=True,
        )
        failed = whole != again
        while left:
            number, moments = number + 1, []
            while (
                left
                and (moment := kill(folder, f"killed{number}", rng.uniform(0, seconds))) is not None
            ):
                moments.append(moment)
                left -= 1
            found, _ = finish(folder, f"killed{number}")
            moments = ", ".join(moments) or "no moment: it was done before"
            print(
                f"killed at {moments}; {options.kills - left} in all:"
                f" {differences(whole, found) or 'the same bits'}",
                flush=True,
            )
            failed |= whole != found
    return int(failed)


def kill(folder, name, after):
    """Start or resume a run and kill it after so many seconds; return the moment in words, or None
    where it was done before."""
    # the kill before came between the record's last word and the process's end
    if is_finished(folder / name):
        return None
    run = start(folder, name)
    try:
        output, _ = run.communicate(timeout=after)
        require_done(run, output)
        return None
    except subprocess.TimeoutExpired:
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        for process in family:  # the command first, so that it cannot tell of the others' end
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        run.communicate()
        psutil.wait_procs(family)
    kept = folder / name / "checkpoints"
    newest = (
        max(kept.glob("*.pth"), key=lambda file: file.stat().st_mtime_ns).stem
        if any(kept.glob("*.pth"))
        else "nothing"
    )
    return f"{after:.1f} s ({newest} kept)"


def finish(folder, name):
    """Run to the end, unless that is done; return what a run leaves, and the seconds that it
    took."""
    begin = time.perf_counter()
    if not is_finished(folder / name):
        run = start(folder, name)
        output, _ = run.communicate()
        require_done(run, output)
    return results(folder / name), time.perf_counter() - begin


def is_finished(folder):
    """Say whether a run's record has its end."""
    record = folder / "run.json"
    return record.is_file() and bool(json.loads(record.read_text())["finished"])


def start(folder, name, **options):
    """Start a run, or resume one that has left a record; options are those of Popen."""
    where = (
        ["--resume", str(folder / name)]
        if (folder / name / "run.json").is_file()
        else ["--output", str(folder / name)]
    )
    command = [
        sys.executable,
        "-m",
        "hcd.cli",
        "run",
        "--data",
        str(folder / "data"),
        *where,
        *RECIPE,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # so little work is not worth two threads
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def require_done(run, output):
    """Require exit code 0."""
    if run.returncode:
        raise RuntimeError(f"{' '.join(run.args)} ended with {run.returncode}:\n{output}")


def results(folder):
    """Return SHA-1 by name: of the metrics, the submission, the histories and the deployed weights,
    and of each tensor of the models."""
    files = [
        folder / "metrics.json",
        *folder.glob("*_submission.csv"),
        *folder.glob("history_*.csv"),
        *folder.glob("model/*.safetensors"),
    ]
    found = {file.name: file.read_bytes() for file in files}
    for file in folder.glob("models/*.pth"):
        state = load_tensors(file)
        weights = state["model"] if "opt" in state else state
        found.update(
            {f"{file.name}: {name}": values.numpy().tobytes() for name, values in weights.items()}
        )
    return {name: hashlib.sha1(content).hexdigest() for name, content in found.items()}


def differences(one, other):
    """Say which names differ, in a few words; nothing where none does."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return f"DIFFERENT in {len(names)} of {len(one)}, such as {names[0]}" if names else ""


if __name__ == "__main__":
    sys.exit(main())
