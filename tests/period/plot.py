"""Draw the training losses of two records over each other, and how far apart they are.

python tests/period/record.py --out now.json
python tests/period/plot.py now.json tests/period/losses.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("now", help="a record made on today's stack")
    parser.add_argument("picture", help="PNG to write")
    options = parser.parse_args()
    then, now = (
        json.loads(Path(file).read_text())
        for file in (Path(__file__).with_name("record.json"), options.now)
    )
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1), constrained_layout=True
    )
    for arch, colour in (("densenet169", "tab:blue"), ("small", "tab:orange")):
        old, new = (
            np.array(record[arch]["stage1_losses"] + record[arch]["stage2_losses"])
            for record in (then, now)
        )
        above.plot(
            old,
            color=colour,
            linewidth=5,
            alpha=0.35,
            label=f"{arch}, torch {then['versions']['torch']}",
        )
        above.plot(
            new, color=colour, linewidth=1.2, label=f"{arch}, torch {now['versions']['torch']}"
        )
        below.semilogy(np.maximum(abs(new / old - 1), 1e-17), color=colour)
    steps = len(then["small"]["stage1_losses"])
    for axis in (above, below):
        axis.axvline(steps - 0.5, color="gray", linestyle=":")
    above.text(
        steps, 0.97, "stage 2", va="top", color="gray", transform=above.get_xaxis_transform()
    )
    above.set_ylabel("training loss (smoothed)")
    above.legend()
    below.set(xlabel="optimiser step", ylabel="relative gap", ylim=(1e-17, 1e-7))
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
