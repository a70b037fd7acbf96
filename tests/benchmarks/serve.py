"""Does `hcd serve` hold under load? Many clients for a minute, beside `predict_images`.

    python -m tests.benchmarks.serve --model DIR [--data DIR]

from the checkout's root. Each client posts the same patches again and again. First and last
`predict_images` answers as many in another process, for the ratio; both use all cores. Errors must
be 0, and the server's memory flat: it is printed after a quarter and at the end.
"""

import argparse
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import hcd  # isort: skip  first, so that fastai is imported quietly

import psutil

BOUNDARY = "hcd-benchmark"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
BESIDE = """
import itertools, sys, time, hcd
answers = hcd.predict_images(hcd.load_bundle(sys.argv[1]), itertools.cycle(sys.argv[2:]))
for _ in range(256):
    next(answers)
start, count = time.perf_counter(), 0
while time.perf_counter() - start < 15:
    next(answers)
    count += 1
print(count / (time.perf_counter() - start))
"""


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.serve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--data", help="folder with test patches; default: drawn ones")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--files", type=int, default=64, help="of each request")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hcd-serve-") as folder:
        dataset = hcd.open_dataset(options.data) if options.data else hcd.make_sample(folder + "/s")
        paths = [str(path) for path in dataset.test_paths[: options.files]]
        rates = [_beside(options.model, paths)]
        answered, errors, memory = _load(options, paths)
        rates.append(_beside(options.model, paths))
    ratio = answered / options.seconds / median(rates)
    print(f"{options.clients} clients, {len(paths)} files a request, {options.seconds:.0f} s")
    print(f"answered {answered}, errors {errors}, {answered / options.seconds:.0f} patches/s")
    print(f"predict_images before and after: {rates[0]:.0f}, {rates[1]:.0f} patches/s")
    print(
        f"ratio {ratio:.2f}; memory {memory[0]:.0f} MiB after a quarter, {memory[1]:.0f} at the end"
    )
    return 1 if errors else 0


def _beside(model, paths):
    """Return the patches/s of `predict_images` in a process of its own."""
    command = [sys.executable, "-c", BESIDE, model, *paths]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _load(options, paths):
    """Return how many patches were answered, how many requests failed, and the server's memory."""
    parts = []
    for path in paths:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.tif"'
        parts += [head.encode(), b"\r\n\r\n", Path(path).read_bytes(), b"\r\n"]
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    command = [sys.executable, "-m", "hcd.cli", "serve", options.model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            place = server.stdout.readline().split("http://")[1].split()[0]
            counts = [[0, 0] for _ in range(options.clients)]
            until = time.monotonic() + options.seconds
            clients = [
                threading.Thread(target=_ask, args=(place, body, len(paths), until, count))
                for count in counts
            ]
            for client in clients:
                client.start()
            process = psutil.Process(server.pid)
            time.sleep(options.seconds / 4)
            memory = [process.memory_info().rss / 2**20]
            for client in clients:
                client.join()
            memory.append(process.memory_info().rss / 2**20)
        finally:
            server.terminate()
    return sum(count[0] for count in counts), sum(count[1] for count in counts), memory


def _ask(place, body, files, until, count):
    """Post again and again; count answered patches and failed requests."""
    while time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection(place, timeout=300)
            connection.request("POST", "/predict", body, HEADERS)
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            good = answer.status == 200 and text.count(b'"error":""') == files
        except OSError:
            good = False
        if time.monotonic() < until:
            count[0] += files if good else 0
        count[1] += not good


if __name__ == "__main__":
    sys.exit(main())
