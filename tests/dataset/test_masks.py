"""Masks are read where they are, and a patch without one has no tumour."""

import cv2
import numpy as np

from hcd import InputError, open_dataset
from hcd.dataset.masks import read_masks


def test_masks_of_some_patches(copy_of_sample, refused):
    dataset = open_dataset(copy_of_sample)
    first, second = dataset.labels["id"][:2]
    assert read_masks(dataset, [first, second]) is None
    folder = copy_of_sample / "masks"
    folder.mkdir()
    pixels = np.zeros((96, 96), np.uint8)
    pixels[10:20, 30:50] = 255
    cv2.imwrite(str(folder / f"{second}.png"), pixels)
    masks = read_masks(dataset, [first, second])
    assert masks.shape == (2, 96, 96) and masks.dtype == bool
    assert not masks[0].any() and np.array_equal(masks[1], pixels > 0)
    cv2.imwrite(str(folder / f"{first}.png"), pixels[:50])
    with refused(InputError, "96 x 50 px"):
        read_masks(dataset, [first])
    (folder / f"{first}.png").write_bytes(b"no picture")
    with refused(InputError, "is no image"):
        read_masks(dataset, [first])
