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
COUNTED, DARK, BRIGHT = range(3)  # kinds of patches


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
    means, stds = np.empty((2, len(paths), 3, 1))
    kinds = map_patches(
        lambda row: _measure(read_patch(paths[row], recipe), means[row], stds[row]),
        range(len(paths)),
        "channel statistics",
        progress,
    )
    kind = np.fromiter(kinds, np.int8, len(paths))
    too_dark, too_bright = (
        [Path(paths[row]).stem for row in np.flatnonzero(kind == outlier)]
        for outlier in (DARK, BRIGHT)
    )
    kept = kind == COUNTED
    counted = int(kept.sum())
    if not counted:
        raise InputError(
            f"none of the {len(paths)} patches can be counted: {len(too_dark)} are too dark and"
            f" {len(too_bright)} too bright; name the folder of the training patches"
        )
    total, total_squares = _sums(means[kept], stds[kept], recipe.original_size**2)
    pixels = counted * recipe.original_size**2
    mean = total / pixels / 255
    # n * sum(x^2) - sum(x)^2 in whole numbers: the same difference in floats can lose all digits of
    # a small std, even its sign
    std = tuple(
        math.sqrt(pixels * int(squares) - int(level) ** 2) / pixels / 255
        for squares, level in zip(total_squares, total)
    )
    return ChannelStatistics(tuple(mean.tolist()), std, too_dark, too_bright, counted)


def _measure(patch, mean, std):
    """Write mean and standard deviation of each channel, (3, 1) each, and return the patch's kind.

    Every pixel is looked at only where red alone does not show that the patch is no outlier.
    """
    cv2.meanStdDev(patch, mean, std)
    red = mean[0, 0]
    if red < DARK_BELOW and patch.max() < DARK_BELOW:
        return DARK
    if red > BRIGHT_ABOVE and patch.min() > BRIGHT_ABOVE:
        return BRIGHT
    return COUNTED


def _sums(means, stds, pixels):
    """Return the sums of levels and of their squares over patches of so many pixels, (3,) each,
    exact as whole numbers."""
    levels = np.rint(means * pixels).sum(axis=(0, 2))
    squares = np.rint((stds**2 + means**2) * pixels).sum(axis=(0, 2))
    return levels, squares
