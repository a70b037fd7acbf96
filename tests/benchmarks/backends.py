"""Which back end answers fastest, and how far from the others? One model, every way to run it here.

    python -m tests.benchmarks.backends [--arch densenet169] [--data DIR]

from the checkout's root. One by one is `predict_image`; the others take the patches in batches
through `predict_images`, reading included. OpenVINO, where it is installed, reads the ONNX file.
All are timed in turn in one process: the median over the rounds, beside one by one.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import hcd  # isort: skip  first, so that fastai is imported quietly

import numpy as np
import torch

from hcd.export.answer import TorchModel
from hcd.export.bundle import Bundle
from hcd.export.prediction import to_patch
from hcd.learner import build_model

FEW = 16  # patches that are answered one by one


def main(arguments=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.backends", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--arch", default="densenet169", help="(default: %(default)s)")
    parser.add_argument("--data", help="folder with test patches; default: drawn ones")
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hcd-backends-") as folder:
        root = options.data or hcd.make_sample(Path(folder, "sample"), test=options.patches).root
        paths = hcd.open_dataset(root).test_paths[: options.patches]
        bundle = random_bundle(options.arch)
        file = hcd.export_onnx(bundle, Path(folder, "model.onnx"))
        ways = {"one by one": lambda: [hcd.predict_image(bundle, p) for p in paths[:FEW]]}
        for name, model in back_ends(bundle, file).items():
            ways[name] = lambda model=model: list(hcd.predict_images(model, paths))
        seconds, answers = in_turn(ways, options.rounds)
        reading = read_seconds(paths)
    expected = np.array([answer.probability for answer in answers["torch float32"]])
    alone = median(seconds["one by one"]) / FEW
    print(f"{options.arch}, {len(paths)} patches, {torch.get_num_threads()} threads\n")
    print("| back end | patches/s | beside one by one | largest difference |\n|---|---|---|---|")
    for name, taken in seconds.items():
        found = np.array([answer.probability for answer in answers[name]])
        apart = np.abs(found - expected[: len(found)]).max()
        each = median(taken) / len(found)
        print(f"| {name} | {1 / each:.0f} | {alone / each:.2f} | {apart:.1g} |")
    share = reading / median(seconds["torch float32"])
    print(f"\nreading alone, in one thread: {share:.1%} of the time of torch float32")


def random_bundle(arch):
    """Return a model without a folder, of random weights."""
    torch.manual_seed(0)
    recipe = hcd.Recipe(arch=arch, pretrained=False)
    card = {"spacing_um_px": 0.972, "weights_sha256": "0" * 64, "limits": "a benchmark's"}
    return Bundle(build_model(recipe)[0].eval(), recipe, card)


def back_ends(bundle, file):
    """Return what answers batches, by name."""
    found = {
        "torch float32": TorchModel(bundle),
        "torch, `fast`": TorchModel(bundle, fast=True),
        "onnxruntime": hcd.load_onnx(file),
    }
    try:
        import openvino
    except ImportError:
        return found
    for precision in ("f32", "bf16"):
        found[f"OpenVINO {precision}"] = OpenVINO(openvino, file, precision)
    return found


class OpenVINO:
    """The same ONNX file, run by another library."""

    original_size = 96

    def __init__(self, openvino, file, precision):
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self.model = openvino.Core().compile_model(str(file), "CPU", settings)

    def probabilities(self, patches):
        """Return (N,) tumour probabilities."""
        return self.model([patches])[0].astype(float)


def in_turn(ways, rounds):
    """Call each function once to warm up, then all in turn; return seconds and answers by name."""
    answers = {name: function() for name, function in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, function in ways.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds, answers


def read_seconds(paths):
    """Return how long all patches take to be read in one thread."""
    start = time.perf_counter()
    for path in paths:
        to_patch(path, 96)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
