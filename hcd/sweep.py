"""One learning-rate range test per weight decay."""

import io
import math
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass

from .disk.shown import loss_text, progress_bar
from .disk.whole import StrPath
from .engine.compat import DataBunch
from .learner import get_learner
from .plots import short_number
from .recipe import Recipe
from .runs.checkpoint import Checkpoints, NoCheckpoints, split_digest


@dataclass(frozen=True)
class Curve:
    """One range test: `lrs` and the smoothed training `losses` of its iterations, two lists of
    float, at one weight decay."""

    weight_decay: float
    lrs: list
    losses: list


def sweep_weight_decay(
    data: DataBunch, recipe: Recipe, path: StrPath = ".", checkpoints: Checkpoints | None = None
) -> list:
    """Run `lr_find` once for each weight decay of the recipe, each time on a fresh learner.

    Args:
        data: see `make_databunch`.
        recipe: `sweep_weight_decays` and `sweep_iterations`, and what `get_learner` needs.
        path: folder for lr_find's temporary models/tmp.pth. checkpoints: see `Checkpoints`; a
            resumed run skips finished tests.
    Returns:
        list of Curve, in the order of `sweep_weight_decays`; shorter than sweep_iterations where
        the loss diverged.

    Source: In 17.
    """
    curves, count = [], len(recipe.sweep_weight_decays)
    for number, weight_decay in enumerate(recipe.sweep_weight_decays):
        step = (checkpoints or NoCheckpoints()).step(
            f"sweep{number}",
            data,
            lambda wd=weight_decay: {"split": split_digest(data), "wd": wd, **_network(recipe)},
        )
        curve = step.load(lambda kept: Curve(**kept["curve"]))
        if curve is None:
            title = f"weight decay {short_number(weight_decay)} ({number + 1} of {count})"
            curve = _range_test(data, recipe, path, weight_decay, title)
            step.save(curve=asdict(curve))
            least = min(filter(math.isfinite, curve.losses), default=math.nan)
            step.tell(f"{title}: least loss {loss_text(least)}")
        curves.append(curve)
    return curves


def _network(recipe) -> dict:
    """Return what a range test takes from the recipe that it is given."""
    kept = ("sweep_iterations", "pretrained", "head_dropout", "fast", "arch")
    return {f"sweep's {name}": getattr(recipe, name) for name in kept}


def _range_test(data, recipe, path, weight_decay, title) -> Curve:
    learner = get_learner(data, recipe, path)
    count = recipe.sweep_iterations
    # fastai's hint to plot a single test is not for several
    with progress_bar(count, title) as bar, redirect_stdout(io.StringIO()):
        learner.lr_find(wd=weight_decay, num_it=count, bar=bar)
    recorder = learner.recorder
    lrs, losses = ([float(value) for value in values] for values in (recorder.lrs, recorder.losses))
    return Curve(weight_decay, lrs, losses)
