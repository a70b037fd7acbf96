"""How far does the colour of a patch alone go? The baseline that any honest model must beat."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ..disk.parallel import listed_paths, map_patches
from ..errors import InputError
from ..reader import read_patch
from ..recipe import Recipe

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the pixels that lie below a level


def colour_baseline(
    train_paths: Sequence,
    labels: Any,
    paths: Sequence,
    recipe: Recipe = Recipe(),
    progress: bool = True,
) -> np.ndarray:
    """Train gradient boosting on the colour statistics of patches, which know nothing of shapes,
    and predict others.

    Args:
        train_paths: (N,) files of the patches to train on, or packed patches.
        labels: (N,) of 0 and 1.
        paths: (M,) files to predict.
        recipe: the size of patches. progress: show a bar.
    Returns:
        (M,) float64 probabilities of label 1; the same at every call.
    Raises:
        InputError: a file is no patch, or the labels are not as many, or not both, 0 and 1.
    """
    labels = np.asarray(labels)
    train_paths, paths = listed_paths(train_paths), listed_paths(paths)
    if labels.shape != (len(train_paths),) or set(np.unique(labels)) != {0, 1}:
        raise InputError(
            f"labels of shape {labels.shape} hold {np.unique(labels)[:5].tolist()} for"
            f" {len(train_paths)} patches; give one for each, 0 or 1, and some of both"
        )
    # whole patches, without a draw; early stopping would set patches of the same slides aside
    model = HistGradientBoostingClassifier(random_state=0, early_stopping=False)
    model.fit(colour_statistics(train_paths, recipe, progress), labels)
    return model.predict_proba(colour_statistics(paths, recipe, progress))[:, 1]


def colour_statistics(
    paths: Sequence, recipe: Recipe = Recipe(), progress: bool = True
) -> np.ndarray:
    """Compute the colour statistics of whole patches.

    Args:
        paths: (N,) files of patches, or packed patches. recipe: their size. progress: show a bar.
    Returns:
        (N, 42) float32, of R, G, B, hue, saturation and value: mean, standard deviation and five
        quantiles, in grey levels.
    Raises:
        InputError: a file is no patch.
    """
    found = map_patches(
        lambda path: _statistics(read_patch(path, recipe)), paths, "colour statistics", progress
    )
    return np.array(list(found), np.float32).reshape(len(paths), 6 * (2 + len(SHARES)))


def _statistics(patch):
    pixels = np.dstack([patch, cv2.cvtColor(patch, cv2.COLOR_RGB2HSV)])
    mean, std = cv2.meanStdDev(pixels.reshape(-1, 1, 6)[:, :, :3])
    other_mean, other_std = cv2.meanStdDev(pixels.reshape(-1, 1, 6)[:, :, 3:])
    quantiles: list = []
    for channel in range(6):
        below = np.cumsum(np.bincount(pixels[..., channel].ravel(), minlength=256))
        quantiles.append(np.searchsorted(below, np.multiply(SHARES, below[-1])))
    return np.concatenate([mean, std, other_mean, other_std, np.reshape(quantiles, (-1, 1))])[:, 0]
