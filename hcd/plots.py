"""Draw the walkthrough's figures from arrays.

Each function returns one new pyplot figure and neither shows nor closes it: a notebook displays it
at the end of its cell; a script saves it and then closes it. Images are (H, W, 3), or gray (H, W),
uint8 or float in [0, 1].
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .errors import InputError

CENTRE = 32  # px, side of the square in the middle of a patch that decides its label
# told apart without colour too
LINES = [("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", "-."), ("#CC79A7", ":")]


@dataclass(frozen=True, eq=False)
class Cell:
    """Hold one picture of `plot_patch_grid`; the heatmap, (h, w) of any size and scale, is drawn
    over the image."""

    image: Any
    caption: str = ""
    heatmap: Any = None


def plot_patches(
    negatives: Sequence, positives: Sequence, title: str, centre_box: bool = False
) -> Figure:
    """Draw up to five negative patches above up to five tumour patches.

    Args: negatives, positives: images; title: str; centre_box: outline the centre 32 x 32 px in
    blue or red.
    Returns: Figure of 2 x 5 axes in px; those without a patch are hidden.
    Raises: InputError: no patch at all, more than five of a class, not an image, or a box that does
    not fit.

    CHANGED C10: axes count pixel edges, so the box frames exactly pixels 32 to 63; the
    walkthrough's lies half a pixel off.

    Source: In 3, In 5.
    """
    rows = [
        ("Negative", [Cell(image) for image in negatives]),
        ("Tumour", [Cell(image) for image in positives]),
    ]
    sides = [side for _, cells in rows for cell in cells for side in np.shape(cell.image)[:2]]
    if centre_box and min(sides, default=CENTRE) < CENTRE:
        raise InputError(
            f"a patch side of {min(sides)} px is below {CENTRE} px: set centre_box=False"
        )
    figure, axes = _draw_rows(rows, 5, (15, 6.6), title, ticks=True)
    for row, (_, cells), colour in zip(axes, rows, ("blue", "red")):
        for axis, cell in zip(row, cells) if centre_box else ():
            height, width = np.shape(cell.image)[:2]
            axis.add_patch(
                Rectangle(
                    ((width - CENTRE) / 2, (height - CENTRE) / 2),
                    CENTRE,
                    CENTRE,
                    linewidth=4,
                    edgecolor=colour,
                    facecolor="none",
                    linestyle=":",
                    capstyle="round",
                )
            )
    return figure


def plot_draws(images: Sequence, title: str) -> Figure:
    """Draw several augmented draws of one patch side by side.

    Args: images: at least one image; title: str.
    Returns: Figure of one row, one axes a draw.
    Raises: InputError: no image, or not an image.
    Source: In 6.
    """
    cells = [Cell(image) for image in images]
    return _draw_rows([("", cells)], len(cells), (min(3 * len(cells), 16), 3.6), title, ticks=True)[
        0
    ]


def plot_outliers(dark: Sequence[tuple], bright: Sequence[tuple], most: int = 6) -> Figure:
    """Draw the patches that are almost black or almost white.

    Args: dark, bright: lists, perhaps empty, of (id, label, image); most: how many of each are
    shown.
    Returns: Figure of two rows of axes; a row tells its count, "6 of 9" where some are left out.
    Raises: InputError: most is below 1, or not an image.

    CHANGED C11: none, and more than six, are said to be so; the walkthrough shows six in silence.

    Source: In 9.
    """
    if most < 1:
        raise InputError(f"most={most} leaves nothing to show: it must be at least 1")
    rows = []
    for name, found in (("Extremely dark", dark), ("Extremely bright", bright)):
        count = (
            f"\n{most} of {len(found)}"
            if len(found) > most
            else f"\n{len(found)} found"
            if len(found)
            else ""
        )
        # 40 hex characters take two lines of 20
        rows.append(
            (
                name + count,
                [
                    Cell(image, f"{textwrap.fill(str(patch_id), 20)}\nlabel {label}")
                    for patch_id, label, image in found[:most]
                ],
            )
        )
    title = "Almost black and almost white patches"
    # no columns without a patch, over which the title would float
    columns = max(1, *(len(cells) for _, cells in rows))
    size = max(2.5 * columns + 1, 6), 7 if len(dark) or len(bright) else 5
    return _draw_rows(
        rows, columns, size, title, may_be_empty=True, fontsize=9, family="monospace"
    )[0]


def plot_sweep(curves: Sequence) -> Figure:
    """Draw the learning-rate sweeps of several weight decays into one plot, its limits taken from
    the curves.

    Args: curves: objects with .weight_decay, .lrs and .losses (smoothed already); a loss not finite
    leaves a gap.
    Returns: Figure of one axes, learning rate on a logarithmic axis, one line a curve.
    Raises: InputError: no curves, or a curve with more or fewer learning rates than losses.

    CHANGED C12: the walkthrough fixes the limits for its own curves.

    Source: In 17, In 18.
    """
    if not len(curves):
        raise InputError("0 curves: there is nothing to plot; give one a weight decay")
    lines, usable = [], []
    for curve in curves:
        name = short_number(curve.weight_decay)
        lrs, losses = (
            np.array([float(value) for value in values]) for values in (curve.lrs, curve.losses)
        )
        if len(lrs) != len(losses):
            raise InputError(
                f"weight decay {name} has {len(lrs)} learning rates and {len(losses)} losses: "
                "give one loss a learning rate"
            )
        finite = np.isfinite(losses) & np.isfinite(lrs) & (lrs > 0)
        style = dict(
            label=name if finite.any() else f"{name} (no finite loss)",
            marker="o" if sum(finite) == 1 else "",
        )
        lines.append((lrs, np.where(finite, losses, np.nan), style))
        usable += [(lrs[finite], losses[finite])] if finite.any() else []
    figure, axis = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    for (lrs, losses, style), (colour, dashes) in zip(lines, cycle(LINES)):
        axis.plot(lrs, losses, color=colour, linestyle=dashes, linewidth=2, **style)
    axis.set(
        xscale="log", xlabel="Learning rate", ylabel="Loss (smoothed)", title="Learning-rate sweep"
    )
    if usable:
        _limit_sweep(axis, usable)
    axis.legend(title="Weight decay")
    axis.grid(alpha=0.3)
    return figure


def plot_patch_grid(rows, title):
    """Draw labelled rows of captioned patches, with heatmaps over those that have one.

    Args: rows: list of (row label, list of up to four `Cell`); title: str, what the captions mean.
    Returns: Figure of len(rows) x 4 axes; those without a cell are hidden.
    Raises: InputError: no cell at all, more than four in a row, not an image, or not a finite 2-D
    heatmap.

    CHANGED C13: grey levels keep one scale and the heatmap covers the image exactly; the
    walkthrough stretches each patch.

    Source: In 31, In 35.
    """
    return _draw_rows(rows, 4, (14, 3.3 * len(rows) + 1), title, horizontal=True, fontsize=11)[0]


def plot_roc(
    false_positive_rate: Sequence[float] | np.ndarray,
    true_positive_rate: Sequence[float] | np.ndarray,
    auc: float,
) -> Figure:
    """Draw the receiver operating characteristic above the diagonal of chance.

    Args: false_positive_rate, true_positive_rate: (T,) floats in [0, 1], one a threshold; auc: area
    under the curve.
    Returns: Figure of one square axes, the AUC in its legend.
    Raises: InputError: the two rates differ in length.
    Source: In 38.
    """
    if len(false_positive_rate) != len(true_positive_rate):
        raise InputError(
            f"{len(false_positive_rate)} false and {len(true_positive_rate)} true positive rates: "
            "give one of each a threshold"
        )
    figure, axis = plt.subplots(figsize=(6, 6), constrained_layout=True)
    axis.plot(
        false_positive_rate,
        true_positive_rate,
        color="darkorange",
        linewidth=2,
        label=f"ROC curve (AUC = {auc:.4f})",
    )
    axis.plot([0, 1], [0, 1], color="navy", linestyle="--", label="Chance")
    axis.set(
        xlim=(-0.01, 1),
        ylim=(0, 1.01),
        aspect="equal",
        xlabel="False positive rate",
        ylabel="True positive rate",
        title="Receiver operating characteristic",
    )
    axis.legend(loc="lower right")
    return figure


def plot_prediction(image: Any, label: str, probability: float) -> Figure:
    """Draw one patch under what the model says about it.

    Args: image: one image; label: name of the predicted class; probability: of tumour, in [0, 1].
    Returns: Figure of one axes, titled such as "negative, tumour probability 0.03".
    Raises: InputError: not an image, or a probability outside [0, 1].
    Source: In 45.
    """
    if not 0 <= probability <= 1:
        raise InputError(
            f"probability={probability} is not within 0 to 1: apply softmax to logits first"
        )
    return _draw_rows(
        [("", [Cell(image, f"{label}, tumour probability {probability:.2f}")])], 1, (4, 4.3), None
    )[0]


def _draw_rows(
    rows, columns, size, title, ticks=False, horizontal=False, may_be_empty=False, **caption_style
):
    """Lay out (label, cells) rows; return the figure and its (rows, columns) axes."""
    longest = max((len(cells) for _, cells in rows), default=0)
    if not (longest or may_be_empty):
        raise InputError("0 images: there is nothing to plot; give at least one")
    if longest > columns:
        raise InputError(f"a row of {longest} images does not fit: give at most {columns} a row")
    # checked before a figure is left lying about
    pixels = [[_pixels(cell) for cell in cells] for _, cells in rows]
    figure, axes = plt.subplots(
        len(rows), columns, figsize=size, squeeze=False, constrained_layout=True
    )
    figure.suptitle(title or "", fontsize=18)
    for row, (label, cells), images in zip(axes, rows, pixels):
        for column, axis in enumerate(row):
            axis.set(
                visible=column < max(len(cells), 1), **({} if ticks else dict(xticks=[], yticks=[]))
            )
        for axis, cell, image in zip(row, cells, images):
            _draw_cell(axis, cell, image)
            axis.set_title(cell.caption, **caption_style)
        if not cells:
            _say_none_found(row[0])
        row[0].set_ylabel(
            label, fontsize=14, **(dict(rotation=0, ha="right", va="center") if horizontal else {})
        )
    return figure, axes


def _draw_cell(axis, cell, image):
    """Draw a cell's image, and its heatmap over it."""
    # px from the upper left corner: left, right, bottom, top
    extent = (0, image.shape[1], image.shape[0], 0)
    # fixed ends: a blank gray patch stays white or black instead of being stretched
    most = 255 if image.dtype == np.uint8 else 1
    axis.imshow(image, cmap="gray", vmin=0, vmax=most, extent=extent)
    if cell.heatmap is not None:
        axis.imshow(
            cell.heatmap, cmap="inferno", alpha=0.5, interpolation="bilinear", extent=extent
        )


def _say_none_found(axis):
    """Leave the first axes of an empty row, as wide as a patch, for the row's label."""
    axis.set(frame_on=False, xticks=[], yticks=[], box_aspect=1)
    middle = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, "none found", fontsize=14, **middle)


def _pixels(cell):
    """Return a cell's image as an array, checked like its heatmap."""
    image = np.asarray(cell.image)
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
        raise InputError(
            f"an image of shape {image.shape} cannot be shown: it must be (H, W, 3) or (H, W)"
        )
    if cell.heatmap is not None and (
        np.ndim(cell.heatmap) != 2 or not np.isfinite(np.asarray(cell.heatmap)).all()
    ):
        raise InputError(
            f"a heatmap of shape {np.shape(cell.heatmap)} cannot be shown: it must be (h, w), all"
            " finite"
        )
    # denormalising in float32 may overshoot by a rounding error; NaN fails the comparison
    if image.dtype != np.uint8 and not (
        image.dtype.kind == "f" and image.min() >= -1e-3 and image.max() <= 1.001
    ):
        raise InputError(
            f"an image of {image.dtype} from {image.min()} to {image.max()} cannot be shown: it"
            " must be uint8, or float within [0, 1]; denormalise it first"
        )
    return image if image.dtype == np.uint8 else image.clip(0, 1)


def short_number(number):
    """Write 1e-6 for 0.000001 and 1.5e-3 for 0.0015."""
    mantissa, exponent = f"{number:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if number else "0"


def _limit_sweep(axis, curves):
    """Limit both axes to what matters in the curves, (lrs, losses) pairs, finite and not empty."""
    # middle of a curve's first half: neither the noisy start nor the divergence that ends a sweep
    # moves it
    plateaus = [np.median(losses[: (len(losses) + 1) // 2]) for _, losses in curves]
    low = min(losses.min() for _, losses in curves)
    span = max(max(plateaus) - low, 0.05 * abs(low), 1e-3)
    top = low + 1.25 * span
    # learning rates at which each curve has left its plateau, and leaves the plot
    left, right = [], []
    for (lrs, losses), plateau in zip(curves, plateaus):
        least = losses.argmin()
        down = losses[: least + 1] > losses[least] + 0.8 * (plateau - losses[least])
        left.append(lrs[np.flatnonzero(down).max(initial=0)])
        right.append(lrs[np.flatnonzero(losses <= top).max(initial=least)])
    ends = max(min(left) / 10, min(lrs.min() for lrs, _ in curves) / 2), max(right) * 2
    axis.set(xlim=ends, ylim=(low - 0.1 * span, top))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 1e5 * ends[0] else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())
