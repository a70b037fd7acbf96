"""One learning-rate range test per weight decay."""

from dataclasses import asdict, dataclass

from .learner import get_learner
from .runs.checkpoint import split_digest


@dataclass(frozen=True)
class Curve:
    """One range test: `lrs` and the smoothed training `losses` of its iterations, two lists of
    float, at one weight decay."""

    weight_decay: float
    lrs: list
    losses: list


def sweep_weight_decay(data, recipe, path=".", checkpoints=None):
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
    curves, call = [], {"split": split_digest(data)} if checkpoints else None
    for number, weight_decay in enumerate(recipe.sweep_weight_decays):
        kept = checkpoints.load(f"sweep{number}", call, data) if checkpoints else None
        if kept:
            with checkpoints.reading(f"sweep{number}"):
                curves.append(Curve(**kept["curve"]))
            continue
        learner = get_learner(data, recipe, path)
        learner.lr_find(wd=weight_decay, num_it=recipe.sweep_iterations)
        recorder = learner.recorder
        curves.append(
            Curve(
                weight_decay,
                [float(lr) for lr in recorder.lrs],
                [float(loss) for loss in recorder.losses],
            )
        )
        if checkpoints:
            checkpoints.save(f"sweep{number}", call, data, curve=asdict(curves[-1]))
    return curves
