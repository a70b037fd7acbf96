"""Draw what the numbers of a report mean; see `plots` for the rules of figures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ..errors import InputError
from ..plots import LINES


def plot_reliability(
    predicted: Sequence[float] | np.ndarray,
    observed: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    expected_error: float,
) -> Figure:
    """Draw a reliability diagram: how often patches of about one probability hold tumour, above how
    many patches have that probability.

    Args: predicted, observed: (B,) floats in [0, 1], mean probability and share of tumour of each
    bin; counts: (B,) patches in it; expected_error: expected calibration error, see `calibration`.
    Returns: Figure of two axes with one scale of probability.
    Raises: InputError: the three differ in length.
    """
    if not len(predicted) == len(observed) == len(counts):
        raise InputError(
            f"{len(predicted)} predicted, {len(observed)} observed and {len(counts)} counts: give"
            " one of each a bin"
        )
    figure, (axis, below) = plt.subplots(
        2, figsize=(6, 7.5), sharex=True, height_ratios=(4, 1), constrained_layout=True
    )
    axis.plot([0, 1], [0, 1], color="0.5", linestyle="--", label="as it should be")
    axis.plot(
        predicted,
        observed,
        color=LINES[0][0],
        marker="o",
        label=f"model (expected error {expected_error:.3f})",
    )
    axis.set(
        xlim=(0, 1), ylim=(0, 1), ylabel="Share of tumour patches", title="Reliability diagram"
    )
    axis.legend(loc="upper left")
    axis.grid(alpha=0.3)
    below.bar(predicted, counts, width=0.03, color=LINES[0][0])
    below.set(yscale="log", xlabel="Tumour probability", ylabel="Patches")
    below.set_ylim(bottom=0.8)  # a single patch is seen too
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.yaxis.set_minor_formatter(NullFormatter())
    return figure


def plot_group_aucs(
    names: Sequence, aucs: Sequence[float], sizes: Sequence[int], auc: float, what: str = "slide"
) -> Figure:
    """Draw the AUC within each group, the lowest first, beside that of all patches.

    Args: names, aucs, sizes: (G,) each group's name, AUC and number of patches; auc: of all
    patches; what: a group is.
    Returns: Figure of one axes; of more than 25 groups the 25 lowest.
    Raises: InputError: the three differ in length, or there is no group.
    """
    if not len(names) == len(aucs) == len(sizes) or not len(names):
        raise InputError(
            f"{len(names)} names, {len(aucs)} AUCs and {len(sizes)} sizes: give one of each a"
            " group, and some"
        )
    order = np.argsort(aucs, kind="stable")[:25]
    figure, axis = plt.subplots(figsize=(7, 1.6 + 0.26 * len(order)), constrained_layout=True)
    rows = np.arange(len(order))[::-1]
    axis.scatter(np.asarray(aucs)[order], rows, color=LINES[0][0], zorder=3)
    axis.axvline(auc, color=LINES[1][0], linestyle="--", label=f"all patches ({auc:.3f})")
    # matplotlib would set what stands between dollar signs as a formula
    shown = [str(names[i])[:40].replace("$", r"\$") for i in order]
    labels = [f"{name} ({sizes[i]:,})" for name, i in zip(shown, order)]
    axis.set_yticks(rows, labels, fontsize=9)
    few = f"the {len(order)} lowest of {len(aucs)}" if len(aucs) > len(order) else "all"
    axis.set(
        xlim=(min(0.45, float(np.min(aucs)) - 0.02), 1.01),
        xlabel=f"AUC within the {what} (patches in brackets)",
        title=f"AUC {what} by {what}, {few}",
    )
    axis.legend(loc="lower left")
    axis.grid(alpha=0.3)
    return figure
