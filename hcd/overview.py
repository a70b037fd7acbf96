"""Which patches to show, and the two overview figures."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from fastai.basic_data import DatasetType
from fastai.train import ClassificationInterpretation
from fastai.vision import image2np
from matplotlib.figure import Figure

from .disk.shown import loss_text
from .engine.given import class_names, require_width
from .engine.interpreted import WithProbabilities, interpreted_set
from .errors import InputError, InputTypeError
from .gradcam import explain_item, find_method
from .plots import Cell, plot_patch_grid

CLASSES = ("Negative", "Tumour")
CAPTION = "Predicted / Actual / Loss / Probability"


def choose_patches(
    interp: ClassificationInterpretation, count: int = 4, rng: Any = random
) -> list[tuple[str, list[int]]]:
    """Choose patches at random, with the largest and with the smallest losses.

    Args:
        interp: fastai ClassificationInterpretation.
        count: patches a row. rng: source of the random row, with Python's `random` interface.
    Returns:
        list of (row label, list of positions in the set that was interpreted).
    Raises:
        InputError: no loss, or more or less than one, for each patch.

    CHANGED C7: the walkthrough's random position can lie one past the end.

    Source: In 31, In 35.
    """
    losses = getattr(interp, "losses", None)
    if not isinstance(losses, torch.Tensor) or losses.ndim != 1 or not len(losses):
        shape = tuple(getattr(losses, "shape", ()))
        raise InputError(
            f"{type(interp).__name__} has losses of shape {shape}; give a"
            " ClassificationInterpretation with one loss for each patch, (N,)"
        )
    order = [int(i) for i in interp.top_losses()[1]]  # largest loss first
    return [
        ("Random\nsamples", [order[rng.randrange(len(order))] for _ in range(count)]),
        ("Most incorrect\nsamples", order[:count]),
        ("Most correct\nsamples", order[::-1][:count]),
    ]


def plot_overview(
    interp: ClassificationInterpretation,
    classes: Sequence[str] | None = None,
    rng: Any = random,
    ds_type: DatasetType | None = None,
) -> Figure:
    """Show random, most incorrect and most correct patches: predicted / actual / loss /
    probability.

    Args:
        interp: fastai ClassificationInterpretation, of the validation set or another with labels.
        classes: other names for the databunch's classes, in their order; None takes its own, and
            Negative and Tumour for 0 and 1. rng: see `choose_patches`.
        ds_type: the set that was interpreted; None takes the interpretation's own, or where
            its labels are others, the set that has them.
    Returns:
        matplotlib Figure, 3 x 4 patches.
    Raises:
        InputError: a set without labels or without an order, wrong number of names, predictions
            that are no probabilities.

    KEPT K7: each patch is drawn anew, so the crop shown is not the very one that was predicted.
    READ R1: `interp.probability` does not exist in fastai 1.0.61; shown is the probability of the
    actual class, as in fastai's own plot_top_losses.

    Source: In 31.
    """
    names, kind = _names(interp, classes), interpreted_set(interp, ds_type)
    items = interp.data._grab_dataset(interp.data.dl(kind))
    rows = _rows(interp, names, rng, lambda i: {"image": image2np(items[i][0].data)})
    return plot_patch_grid(rows, CAPTION)


def plot_heatmap_overview(
    interp: ClassificationInterpretation,
    classes: Sequence[str] | None = None,
    rng: Any = random,
    ds_type: DatasetType | None = None,
    method: str = "grad_cam",
    size: int | None = None,
) -> Figure:
    """Show the same kind of overview in grey, under the Grad-CAM heatmap of each patch's actual
    class.

    Args:
        interp, classes, rng, ds_type: see `plot_overview`.
        method, size: see `get_heatmap`; the title names the method and the real size of its maps.
    Returns:
        matplotlib Figure, 3 x 4 patches.
    Raises:
        InputError: as `plot_overview` and `get_heatmap`.

    Source: In 35.
    """
    names, kind = _names(interp, classes), interpreted_set(interp, ds_type)
    title, _ = find_method(method)
    sizes = set()

    def draw(i):
        heatmap, gray = explain_item(interp.learn.model, interp.data, kind, i, method, size)
        sizes.add(" x ".join(map(str, heatmap.shape)))
        return {"image": gray, "heatmap": heatmap}

    rows = _rows(interp, names, rng, draw)
    if (method, size) != ("grad_cam", None):
        title += f" ({', '.join(sizes)} maps)"
    return plot_patch_grid(rows, f"{title}\n{CAPTION}")


def _names(interp, classes):
    """Return what to call each class, as many as the model has outputs."""
    if not all(hasattr(interp, name) for name in ("pred_class", "preds", "y_true", "data")):
        raise InputTypeError(
            f"interp is a {type(interp).__name__}; give fastai's"
            " ClassificationInterpretation.from_learner(learner)"
        )
    own = class_names(interp.data)
    require_width(interp.preds.shape[1], own)
    if classes is None:
        return CLASSES if [str(name) for name in own] == ["0", "1"] else [str(n) for n in own]
    if isinstance(classes, str) or len(classes) != len(own):
        raise InputError(
            f"classes={classes!r} does not rename the {len(own)} classes"
            f" {' '.join(str(own).split())[:120]}; give {len(own)} names in their order"
        )
    return classes


def _rows(interp, names, rng, draw):
    interp = WithProbabilities(interp)
    return [
        (label, [Cell(caption=_caption(interp, i, names), **draw(i)) for i in chosen])
        for label, chosen in choose_patches(interp, rng=rng)
    ]


def _caption(interp, i, classes):
    predicted, actual = int(interp.pred_class[i]), int(interp.y_true[i])
    loss, probability = loss_text(interp.losses[i]), float(interp.preds[i, actual])
    return f"{classes[predicted]} / {classes[actual]} / {loss} / {probability:.2f}"
