"""The centre 32 x 32 px that decide a patch's label: how much of a map lies there, and patches with
the centre or all else blurred."""

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from ..errors import InputError
from ..plots import CENTRE
from ..recipe import Recipe

# px; a nucleus at this resolution measures about 10, so its shape goes and the tissue's colour
# stays
SIGMA = 10.0


def centre_box(recipe: Recipe) -> tuple[slice, slice]:
    """Return which rows (and columns) the centre takes of a patch, and of its centre crop.

    Raises:
        InputError: a crop that shows nothing but the centre, or less.
    """
    if recipe.crop_size <= CENTRE:
        raise InputError(
            f"crop_size={recipe.crop_size} px leaves nothing around the centre {CENTRE} px; take a"
            f" model of crops larger than {CENTRE} px"
        )
    first = (recipe.original_size - CENTRE) // 2
    in_crop = first - recipe.margin
    return slice(first, first + CENTRE), slice(in_crop, in_crop + CENTRE)


def square(side: int, box: slice) -> np.ndarray:
    """Return which pixels of a picture lie in a square: (side, side) bool."""
    inside: np.ndarray = np.zeros((side, side), bool)
    inside[box, box] = True
    return inside


def spread_over(heatmap: np.ndarray, side: int) -> np.ndarray:
    """Return a map's non-negative part at the crop's pixels: (side, side) float64.

    Bilinear between the centres of the map's cells and constant beyond the outermost (torch's
    align_corners=False), as the overview's picture shows it.
    """
    values = torch.from_numpy(np.asarray(heatmap, float)).relu()[None, None]
    spread = interpolate(values, (side, side), mode="bilinear", align_corners=False)
    return spread[0, 0].numpy()


def share_in(heatmap: np.ndarray, region: np.ndarray) -> float | None:
    """Return the share of a map's energy that lies in a region of the crop; None for a map that is
    nowhere positive.

    Args:
        heatmap: (h, w) of any sign, the non-negative part counts. region: (S, S) bool.
    """
    energy = spread_over(heatmap, len(region))
    return float(energy[region].sum() / energy.sum()) if energy.any() else None


def share_range(shape: tuple[int, int], side: int, box: slice) -> tuple[float, float]:
    """Return the smallest and the largest share of its energy that any non-negative map of a shape
    can have in a square of the crop.

    A map's share is the mean of its cells' shares, weighted by their energy, so one cell alone
    reaches either end; and a cell's share is the product of its row's and its column's.

    Args:
        shape: (h, w) of the map. side: of the crop, px. box: rows and columns of the square.
    """
    low, high = 1.0, 1.0
    for cells in shape:
        alone = torch.eye(cells, dtype=torch.float64)[:, None]
        spread = interpolate(alone, side, mode="linear", align_corners=False)[:, 0]
        spread = spread[spread.sum(1) > 0]  # a map finer than the crop has cells between pixels
        shares = spread[:, box].sum(1) / spread.sum(1)
        low, high = low * float(shares.min()), high * float(shares.max())
    return low, high


def blur_region(patch: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Blur a region of a patch by a Gaussian of `SIGMA` px and leave the rest as it is.

    Only pixels of the region are mixed, so that nothing of the rest's colour gets into it or the
    other way round; of the region there remain the colours at a coarse scale.

    Args:
        patch: (S, S, 3) uint8. region: (S, S) bool.
    Returns:
        (S, S, 3) uint8.
    """
    inside: np.ndarray = region.astype(np.float32)
    mixed = cv2.GaussianBlur(patch * inside[..., None], (0, 0), SIGMA)
    weight = cv2.GaussianBlur(inside, (0, 0), SIGMA)
    # the weight is above 0 wherever the region is
    blurred = mixed / np.maximum(weight, np.finfo(np.float32).tiny)[..., None]
    blurred = np.rint(np.where(region[..., None], blurred, 0)).clip(0, 255).astype(np.uint8)
    return np.where(region[..., None], blurred, patch)
