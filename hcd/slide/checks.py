"""What an answer must be before it is written."""

import math
from numbers import Real

import numpy as np

from ..errors import InputError, InputTypeError
from .answer import SlideAnswer


def check_answer(answer: SlideAnswer, threshold: float) -> None:
    """Require an answer to be what its class says, and a threshold to part probabilities.

    Raises:
        InputError, InputTypeError: one is not.
    """
    kinds: dict = {"probabilities": np.ndarray, "thumbnail": np.ndarray, "card": dict}
    for name, kind in (kinds | dict.fromkeys(("size", "mpp", "cell"), tuple)).items():
        if not isinstance(getattr(answer, name, None), kind):
            raise InputTypeError(
                f"{type(answer).__name__}.{name} is no {kind.__name__}; give what predict_slide"
                " returns"
            )
    if not isinstance(threshold, Real) or not 0 <= threshold < 1:
        raise InputError(
            f"threshold={threshold!r} parts no probabilities; give a number from 0 to below 1"
        )
    for name in ("size", "mpp", "cell"):
        pair = getattr(answer, name)
        if len(pair) != 2 or not all(isinstance(value, Real) for value in pair):
            raise InputError(f"{name}={pair!r} is no pair (x, y); give two numbers above 0")
        if not all(math.isfinite(value) and value > 0 for value in pair):
            raise InputError(f"{name}={pair!r} must be above 0 and finite; give such numbers")
    _check_grid(answer)
    thumbnail = answer.thumbnail
    shaped = thumbnail.ndim == 3 and thumbnail.shape[2] == 3 and thumbnail.size
    if not shaped or thumbnail.dtype != np.uint8:
        raise InputError(
            f"a thumbnail of shape {thumbnail.shape} and type {thumbnail.dtype} is no picture; give"
            " (H, W, 3) uint8"
        )


def _check_grid(answer):
    """Require the probabilities to be some, and their cells to cover the slide."""
    grid = answer.probabilities
    if grid.ndim != 2 or grid.dtype.kind != "f" or not grid.size:
        raise InputError(
            f"probabilities of shape {grid.shape} and type {grid.dtype} are no grid of cells; give"
            " (rows, columns) of floats"
        )
    known = grid[~np.isnan(grid)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        raise InputError(
            f"probabilities from {known.min()} to {known.max()} must lie within 0 to 1; compute the"
            " softmax of logits first"
        )
    for axis, count, cell, end in zip("xy", grid.shape[::-1], answer.cell, answer.size):
        if not (count - 1) * cell < end or count * cell < end * (1 - 1e-6):
            raise InputError(
                f"{count} cells of {cell} px do not cover the slide's {end} px in {axis}; give as"
                " many as begin within it"
            )
