"""Channel mean and standard deviation, too dark and too bright patches, in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .disk.parallel import listed_paths, map_patches
from .errors import InputError
from .reader import read_patch
from .recipe import Recipe

DARK_BELOW = 10  # grey level that no pixel of a too dark patch reaches
BRIGHT_ABOVE = 245  # grey level that every pixel of a too bright patch exceeds


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of a set of patches.

    Attributes:
        mean, std: R, G and B on the [0, 1] scale, tuples of float, outliers left out.
        too_dark, too_bright: ids of the outliers, in the order of the paths. counted: patches that
            are none.
    """

    mean: tuple
    std: tuple
    too_dark: list
    too_bright: list
    counted: int


def channel_statistics(
    paths: Sequence, recipe: Recipe = Recipe(), progress: bool = True
) -> ChannelStatistics:
    """Compute channel statistics over whole, unaugmented patches and list the outliers.

    Args:
        paths: files of patches. recipe: their size. progress: show a bar.
    Returns:
        ChannelStatistics; the same whatever the order of `paths`, but for the order of the
        outliers.
    Raises:
        InputError: a file is no patch, or no patch is left to count.

    Source: In 7, In 8.
    """
    paths = listed_paths(paths)
    total, total_squares, counted = np.zeros(3), np.zeros(3), 0
    too_dark, too_bright = [], []
    moments = map_patches(
        lambda path: _moments(read_patch(path, recipe)),
        paths,
        "channel statistics",
        progress,
    )
    for path, (lowest, highest, sums, squares) in zip(paths, moments):
        if highest < DARK_BELOW:
            too_dark.append(Path(path).stem)
        elif lowest > BRIGHT_ABOVE:
            too_bright.append(Path(path).stem)
        else:
            total += sums
            total_squares += squares
            counted += 1
    if not counted:
        raise InputError(
            f"none of the {len(paths)} patches can be counted: {len(too_dark)} are too dark and"
            f" {len(too_bright)} too bright; name the folder of the training patches"
        )
    pixels = counted * recipe.original_size**2
    mean = total / pixels / 255
    # n * sum(x^2) - sum(x)^2 in whole numbers: the same difference in floats can lose all digits of
    # a small std, even its sign
    std = tuple(
        math.sqrt(pixels * int(squares) - int(level) ** 2) / pixels / 255
        for squares, level in zip(total_squares, total)
    )
    return ChannelStatistics(tuple(mean.tolist()), std, too_dark, too_bright, counted)


def _moments(patch):
    """Return lowest and highest level, and per channel the sums of levels and of their squares,
    exact as whole numbers."""
    mean, std = cv2.meanStdDev(patch)  # (3, 1) each
    pixels = patch.shape[0] * patch.shape[1]
    sums = np.rint(mean[:, 0] * pixels)
    squares = np.rint((std[:, 0] ** 2 + mean[:, 0] ** 2) * pixels)
    return patch.min(), patch.max(), sums, squares
