"""Where is the tumour? The masks that `hcd import pcam` leaves beside the patches."""

from collections.abc import Sequence

import cv2
import numpy as np

from ..disk.whole import StrPath
from ..errors import InputError
from .opened import Dataset

FOLDER = "masks"


def read_masks(dataset: Dataset, ids: Sequence[str], side: int = 96) -> np.ndarray | None:
    """Read the tumour masks of patches.

    Args:
        dataset: whose folder holds masks/<id>.png, of the patches with at least one such pixel.
        ids: (N,) of the patches. side: of a patch, in px.
    Returns:
        (N, side, side) bool, True where tumour is; None where the folder has no masks at all.
    Raises:
        InputError: a mask that cannot be read, or of another size.
    """
    folder = dataset.root / FOLDER
    if not folder.is_dir():
        return None
    masks: np.ndarray = np.zeros((len(ids), side, side), bool)
    for mask, patch_id in zip(masks, ids):
        path = folder / f"{patch_id}.png"
        if path.exists():
            mask[:] = _read(path, side)
    return masks


def _read(path: StrPath, side):
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape != (side, side):
        found = "no image" if pixels is None else f"{pixels.shape[1]} x {pixels.shape[0]} px"
        raise InputError(
            f"{path} is {found} where a mask of {side} x {side} px belongs; restore it, or remove"
            " the folder to do without masks"
        )
    return pixels > 0
