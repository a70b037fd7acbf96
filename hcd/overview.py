"""Which validation patches to show, and the two overview figures."""

import random
from collections.abc import Sequence
from typing import Any

from fastai.basic_data import DatasetType
from fastai.train import ClassificationInterpretation
from fastai.vision import image2np
from matplotlib.figure import Figure

from .gradcam import get_heatmap
from .plots import Cell, plot_patch_grid

CLASSES = ("Negative", "Tumour")


def choose_patches(
    interp: ClassificationInterpretation, count: int = 4, rng: Any = random
) -> list[tuple[str, list[int]]]:
    """Choose validation patches at random, with the largest and with the smallest losses.

    Args:
        interp: fastai ClassificationInterpretation of the validation set.
        count: patches a row. rng: source of the random row, with Python's `random` interface.
    Returns:
        list of (row label, list of positions in the validation set).

    CHANGED C7: the walkthrough's random position can lie one past the end.

    Source: In 31, In 35.
    """
    order = [int(i) for i in interp.top_losses()[1]]  # largest loss first
    return [
        ("Random\nsamples", [order[rng.randrange(len(order))] for _ in range(count)]),
        ("Most incorrect\nsamples", order[:count]),
        ("Most correct\nsamples", order[::-1][:count]),
    ]


def plot_overview(
    interp: ClassificationInterpretation, classes: Sequence[str] = CLASSES, rng: Any = random
) -> Figure:
    """Show random, most incorrect and most correct validation patches: predicted / actual / loss /
    probability.

    Args:
        interp: fastai ClassificationInterpretation of the validation set.
        classes: names of label 0 and 1. rng: see `choose_patches`.
    Returns:
        matplotlib Figure, 3 x 4 patches.

    KEPT K7: each patch is drawn anew, so the crop shown is not the very one that was predicted.
    READ R1: `interp.probability` does not exist in fastai 1.0.61; shown is the probability of the
    actual class, as in fastai's own plot_top_losses.

    Source: In 31.
    """
    dataset = interp.learn.data.dl(DatasetType.Valid).dataset
    return _plot(
        interp,
        classes,
        rng,
        "Predicted / Actual / Loss / Probability",
        lambda i: {"image": image2np(dataset[i][0].data)},
    )


def plot_heatmap_overview(
    interp: ClassificationInterpretation, classes: Sequence[str] = CLASSES, rng: Any = random
) -> Figure:
    """Show the same kind of overview in grey, under the Grad-CAM heatmap of each patch's actual
    class.

    Returns:
        matplotlib Figure, 3 x 4 patches.

    Source: In 35.
    """

    def draw(i):
        heatmap, gray = get_heatmap(interp.learn, i)
        return {"image": gray, "heatmap": heatmap}

    return _plot(interp, classes, rng, "Grad-CAM\nPredicted / Actual / Loss / Probability", draw)


def _plot(interp, classes, rng, title, draw):
    rows = [
        (label, [Cell(caption=_caption(interp, i, classes), **draw(i)) for i in chosen])
        for label, chosen in choose_patches(interp, rng=rng)
    ]
    return plot_patch_grid(rows, title)


def _caption(interp, i, classes):
    predicted, actual = int(interp.pred_class[i]), int(interp.y_true[i])
    # without -0.00
    loss, probability = max(float(interp.losses[i]), 0.0), float(interp.preds[i, actual])
    return f"{classes[predicted]} / {classes[actual]} / {loss:.2f} / {probability:.2f}"
