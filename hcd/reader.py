"""File -> patch; patch -> augmented crop."""

import random
from functools import cache
from typing import Any

import cv2
import numpy as np

from .disk.images import MOST_PIXELS, claimed_size, decode_image, other_kind, read_content
from .disk.tiff import plain_rgb
from .errors import InputError
from .recipe import Recipe


def read_image(path: Any) -> np.ndarray:
    """Read one image file.

    Args:
        path: an 8-bit RGB image; the competition's are TIFF. A `PackedPatch` gives its pixels, a
            read-only view.
    Returns:
        (H, W, 3) uint8 RGB, 0 to 255.
    Raises:
        FileNotFoundError: no such file. InputError: no readable image, or one that is not 8-bit
            RGB.

    CHANGED C14: the walkthrough's reader turns grey, 16-bit and alpha images into 8-bit colour in
        silence.

    Source: In 2.
    """
    pixels = getattr(path, "pixels", None)  # of a packed patch; a path has none
    if pixels is not None:
        return pixels()
    content = read_content(path)
    image = plain_rgb(content)
    if image is not None:
        return image
    image = decode_image(content)
    if image is None:
        width, height = claimed_size(content) or (0, 0)
        if width * height > MOST_PIXELS:
            raise InputError(
                f"{path} claims {width} x {height} px; at most {MOST_PIXELS} px are decoded,"
                " restore it from the data set"
            )
        kind = other_kind(content)
        if kind:
            raise InputError(
                f"{path} is a {kind} image, and a patch is plain 8-bit RGB; convert it, for"
                " example with Pillow's Image.open(...).convert('RGB').save(...)"
            )
        raise InputError(
            f"{path} ({len(content)} bytes) cannot be decoded as an image; it is damaged or no"
            " TIFF, PNG or JPEG, restore it from the data set"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise InputError(
            f"{path} has {channels} channel(s) of {image.dtype}; a patch is 8-bit RGB with 3,"
            " convert or restore it"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_patch(path, recipe=Recipe()):
    """Read one image file and require the recipe's patch size.

    Returns:
        (original_size, original_size, 3) uint8 RGB.
    Raises:
        FileNotFoundError, InputError: as `read_image`, or another size.
    """
    image = read_image(path)
    size = recipe.original_size
    if image.shape[:2] != (size, size):
        raise InputError(
            f"{path} is {image.shape[1]} x {image.shape[0]} px; the recipe reads patches of {size}"
            f" x {size} px, restore the file or change original_size"
        )
    return image


def read_cropped_image(
    path: Any, augmentations: bool = True, recipe: Recipe = Recipe(), rng: Any = random
) -> np.ndarray:
    """Read one patch and return one random augmented crop of it.

    Args:
        path: the patch's file.
        augmentations: False returns the whole patch unchanged (for statistics), True a fresh draw
            every call.
        recipe: sizes and ranges of the augmentations.
        rng: source of the draws, with Python's `random` interface.
    Returns:
        (crop_size, crop_size, 3) float32 RGB in [0, 1]; without augmentations (original_size,
        original_size, 3).
    Raises:
        FileNotFoundError, InputError: as `read_patch`.

    KEPT K1: without augmentations the patch is not cropped either.

    Source: In 4.
    """
    patch = read_patch(path, recipe)
    if not augmentations:
        return _tone_table(0, 0)[patch]
    return augment(patch, recipe, rng)


def augment(patch, recipe=Recipe(), rng=random):
    """Draw one augmented crop of a patch: turn, shift, crop, flip, brightness, contrast.

    Args:
        patch: (original_size, original_size, 3) uint8 RGB.
    Returns:
        (crop_size, crop_size, 3) float32 RGB in [0, 1], C-contiguous; equal bit for bit to the
        walkthrough's float64 arithmetic rounded to float32.

    KEPT K2: the turn is about (48, 48), half a pixel off the patch's centre, and leaves black
        corners that a shifted crop can show.

    Source: In 4.
    """
    return apply_draw(patch, draw_augmentation(recipe, rng), recipe)


def draw_augmentation(recipe=Recipe(), rng=random):
    """Draw what `apply_draw` does to a patch, seven whole numbers: turn in degrees, first row and
    column, two flips, brightness and contrast in percent. Their order is part of the result: golden
    arrays and period parity depend on it.
    """
    turn = rng.randint(-recipe.max_rotation, recipe.max_rotation)
    if recipe.quarter_turns:
        turn += rng.randint(-1, 1) * 90
    down = recipe.margin + rng.randint(-recipe.max_shift, recipe.max_shift)
    right = recipe.margin + rng.randint(-recipe.max_shift, recipe.max_shift)
    mirror, upend = (rng.getrandbits(1), rng.getrandbits(1)) if recipe.flips else (0, 0)
    brightness = rng.randint(-recipe.max_brightness, recipe.max_brightness)
    contrast = rng.randint(-recipe.max_contrast, recipe.max_contrast)
    return turn, down, right, mirror, upend, brightness, contrast


def apply_draw(patch, draw, recipe=Recipe()):
    """Return the crop of a patch that `draw_augmentation` has drawn; shapes as in `augment`."""
    turn, down, right, mirror, upend, brightness, contrast = draw
    size, crop = recipe.original_size, recipe.crop_size
    if turn:  # turning by 0 copies the patch exactly
        patch = cv2.warpAffine(patch, _turn_matrix(turn, size), (size, size))
    patch = patch[down : down + crop, right : right + crop]
    if mirror or upend:
        patch = cv2.flip(patch, -1 if mirror and upend else int(mirror))
    return cv2.LUT(patch, _tone_table(brightness, contrast))


@cache
def _turn_matrix(degrees, size):
    return cv2.getRotationMatrix2D((size // 2, size // 2), degrees, 1)


@cache
def _tone_table(brightness, contrast):
    """Return what each grey level becomes: (256,) float32. Brightness and contrast act on levels,
    so 256 cases say it all."""
    levels = np.arange(256) / 255 + brightness / 100.0
    return np.clip(levels * (1.0 + contrast / 100.0), 0, 1.0).astype(np.float32)
