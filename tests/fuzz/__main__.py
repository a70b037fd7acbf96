"""Try thousands of damaged inputs in a process of its own, which may take 1 GiB and 20 s an input,
and count what comes of them.

    python -m tests.fuzz --count 20000 --rng-seed 1            # all kinds, each its share
    python -m tests.fuzz --only tiff:123 --rng-seed 1    # one case again; --keep FOLDER for files

Exit code 0: each input was read correctly or refused with one clear line. 1: not so, and the cases
are listed.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SHARES = {
    "tiff": 0.4,
    "image": 0.15,
    "csv": 0.15,
    "card": 0.11,
    "safetensors": 0.1,
    "save": 0.05,
    "record": 0.04,
}
GIB = 1 << 30
# what native libraries say of too little memory
SCARCE = rb"^(?!.*\(0 elements).*(nsufficient memory|out of memory|no space|alloc).*$"


def main(arguments=None):
    """Parse, run, print; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Hostile input by the thousand."
    )
    parser.add_argument("--count", type=int, default=20000, help="inputs in all")
    parser.add_argument(
        "--rng-seed", type=int, default=1, help="the same one makes the same inputs"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=SHARES,
        default=list(SHARES),
        help="all but these are left out",
    )
    parser.add_argument("--only", metavar="KIND:NUMBER", help="this one case alone")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="stop after trying for so long, whatever is left",
    )
    parser.add_argument("--limit", type=float, default=20, help="seconds that one input may take")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--keep", metavar="FOLDER", help="work here and leave the files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return work(options)
    shares = {
        kind: SHARES[kind] / sum(SHARES[kind] for kind in options.kinds) for kind in options.kinds
    }
    cases = [
        (kind, number)
        for kind in options.kinds
        for number in range(round(options.count * shares[kind]))
    ]
    # all kinds go on side by side, for a run that is stopped early
    cases.sort(key=lambda case: case[1] / shares[case[0]])
    if options.only:
        cases = [(options.only.split(":")[0], int(options.only.split(":")[1]))]
    results = run(cases, options)
    failures = [result for result in results if result["outcome"] not in ("read", "refused")]
    print(json.dumps(summary(results)) if options.json else "\n".join(table(results)))
    for result in failures[:50]:
        again = f"--only {result['kind']}:{result['number']} --rng-seed {options.rng_seed}"
        print(f"FAILED {again}: {result['outcome']}", file=sys.stderr)
    return 1 if failures or not results else 0


def run(cases, options):
    """Hand the cases to worker processes; a new one takes over where one dies or hangs. Return a
    dict for each case."""
    results, left = [], options.seconds
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
    while len(results) < len(cases) and left > 0:
        folder = tempfile.mkdtemp(prefix="hcd-fuzz-") if not options.keep else options.keep
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--worker",
            folder,
            "--rng-seed",
            str(options.rng_seed),
        ]
        with (
            open(Path(folder, "native.txt"), "wb") as native,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=native,
                text=True,
                bufsize=1,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
            ) as worker,
        ):
            try:
                # it has imported hcd, which a busy machine takes its time for
                ready = answer(worker, 600)
                if ready.get("dead"):
                    raise RuntimeError(
                        f"{ready['outcome']} before the first case:"
                        f" {Path(folder, 'native.txt').read_text()[-500:]}"
                    )
                start = time.monotonic()
                while len(results) < len(cases) and time.monotonic() - start < left:
                    kind, number = cases[len(results)]
                    worker.stdin.write(f"{kind} {number}\n")
                    results.append(
                        {
                            "kind": kind,
                            "number": number,
                            "seconds": 0,
                            "mib": 0,
                            **answer(worker, options.limit),
                        }
                    )
                    if results[-1].get("dead"):
                        results[-1]["outcome"] += (
                            " " + Path(folder, "native.txt").read_text(errors="replace")[-500:]
                        )
                        break
                left -= time.monotonic() - start
            finally:
                worker.kill()
        if not options.keep:
            shutil.rmtree(folder)
    return results


def answer(worker, limit):
    """Return a worker's next line as a dict, or what became of the worker."""
    ready, _, _ = select.select([worker.stdout], [], [], limit)
    line = worker.stdout.readline() if ready else ""
    if line:
        return json.loads(line)
    if not ready:
        return {"outcome": f"hangs for more than {limit:g} s", "dead": True}
    return {"outcome": f"the process ends with {worker.wait()}", "dead": True}


def work(options):
    """Be the worker: read lines "<kind> <number>", answer each with a JSON line."""
    lines, sys.stdout = sys.stdout, sys.stderr
    from .cases import Cases, Wrong

    folder = Path(options.worker)
    cases, native = Cases(folder), folder / "native.txt"
    # address space is what counts, for memory that is asked for and not touched is refused by a
    # smaller machine
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + GIB, resource.RLIM_INFINITY))
    print(json.dumps({"outcome": "ready"}), file=lines, flush=True)
    for line in sys.stdin:
        kind, number = line.split()
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
        before, noise, start = status("VmRSS"), native.stat().st_size, time.perf_counter()
        try:
            outcome = cases.run(kind, options.rng_seed, int(number))
        except Wrong as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"lets {type(error).__name__} out: {str(error)[:300]}"
        seconds, mib = time.perf_counter() - start, (status("VmHWM") - before) / 2**20
        with open(native, "rb") as file:
            file.seek(noise)
            found = re.search(SCARCE, file.read(), re.IGNORECASE | re.MULTILINE)
        if found and outcome in ("read", "refused"):
            outcome = f"wants too much memory: {found[0].decode(errors='replace')[:300]}"
        if mib > 1024:
            outcome = f"takes {mib:.0f} MiB"
        print(
            json.dumps({"outcome": outcome, "seconds": round(seconds, 4), "mib": round(mib, 1)}),
            file=lines,
            flush=True,
        )
    return 0


def status(name):
    """Return one of this process's sizes in bytes."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def summary(results):
    """Return per kind how many were read, refused and failed, and the slowest case and the most
    memory."""
    found = {}
    for kind in dict.fromkeys(result["kind"] for result in results):
        own = [result for result in results if result["kind"] == kind]
        counts = Counter(
            result["outcome"] if result["outcome"] in ("read", "refused") else "failed"
            for result in own
        )
        slowest, largest = (
            max(own, key=lambda result: result["seconds"]),
            max(own, key=lambda result: result["mib"]),
        )
        found[kind] = {
            "inputs": len(own),
            **{name: counts[name] for name in ("read", "refused", "failed")},
            "slowest_s": slowest["seconds"],
            "slowest_case": slowest["number"],
            "most_mib": largest["mib"],
            "most_mib_case": largest["number"],
            "seconds": round(sum(result["seconds"] for result in own), 1),
        }
    return found


def table(results):
    """Return the summary as lines for people."""
    yield (
        f"{'kind':12} {'inputs':>7} {'read':>7} {'refused':>8} {'failed':>7}   {'slowest':>18}  "
        f" {'most memory':>18}"
    )
    for kind, row in summary(results).items():
        yield (
            f"{kind:12} {row['inputs']:7,} {row['read']:7,} {row['refused']:8,} {row['failed']:7,} "
            f"  {row['slowest_s']:8.3f} s ({row['slowest_case']:5})   {row['most_mib']:6.0f} MiB"
            f" ({row['most_mib_case']:5})"
        )


if __name__ == "__main__":
    sys.exit(main())
