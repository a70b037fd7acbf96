"""File -> patch; patch -> augmented crop."""

import random
from functools import cache
from typing import Any

import cv2
import numpy as np

from .disk.headers import claimed_size
from .disk.images import MOST_BYTES, MOST_PIXELS, decode_image, read_content
from .disk.pillow import other_kind
from .disk.tiff import plain_rgb
from .errors import InputError
from .recipe import Recipe
from .stain import DARKEST, DRAWN, draw_stains, jitter_stains

CONVERT = (
    "convert it, for example with Pillow's Image.open(name).convert('RGB').save(new_name,"
    " compression='raw'), or restore it"
)


def read_image(path: Any, proven: bool = False) -> np.ndarray:
    """Read one image file.

    Args:
        path: an 8-bit RGB image; the competition's are TIFF. A `PackedPatch` gives its pixels, a
            read-only view.
        proven: True for a file that `verify_patches` or `check_dataset` has read, as in training: a
            compressed one is decoded by OpenCV alone, without Pillow's second opinion.
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
    return _decode(read_content(path), path, proven)


def _decode(content, path, proven=False):
    """Return an image file's bytes as `read_image` returns the file."""
    image = plain_rgb(content)
    if image is not None:
        return image
    image = decode_image(content, proven)
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(_no_patch(path, content, image))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _no_patch(path, content, image):
    """Say in a sentence why a file's bytes are no 8-bit RGB image; image: what OpenCV made of
    them."""
    width, height = claimed_size(content) or (0, 0)
    if width * height > MOST_PIXELS:
        return (
            f"{path} claims {width} x {height} px; at most {MOST_PIXELS} px are decoded, restore it"
            " from the data set"
        )
    kind = other_kind(content)
    if image is None and not kind:
        return (
            f"{path} ({len(content)} bytes) cannot be decoded as an image; it is damaged or no"
            " TIFF, PNG or JPEG, restore it from the data set"
        )
    if image is None:
        return f"{path} is a {kind} image; a patch is 8-bit RGB, {CONVERT}"
    channels = 1 if image.ndim == 2 else image.shape[2]
    kind = kind or {1: "grey", 3: "RGB", 4: "RGB with alpha"}.get(channels, "stacked")
    # of other types Pillow's convert would cut the values off
    remedy = CONVERT if image.dtype == np.uint8 else "scale its values to 0 to 255 and restore it"
    return (
        f"{path} has {channels} channel(s) of {image.dtype} ({kind}); a patch is 8-bit RGB with 3,"
        f" {remedy}"
    )


def read_patch(path: Any, recipe: Recipe = Recipe(), proven: bool = False) -> np.ndarray:
    """Read one image file and require the recipe's patch size.

    Args:
        path, proven: see `read_image`.
    Returns:
        (original_size, original_size, 3) uint8 RGB.
    Raises:
        FileNotFoundError, InputError: as `read_image`, or another size.
    """
    return _sized(read_image(path, proven), path, recipe)


def decode_patch(content: bytes, name: str, recipe: Recipe = Recipe()) -> np.ndarray:
    """Decode the bytes of an image file, for one that never was on this disk.

    Args:
        content: all of the file. name: to call it by in messages. recipe: `original_size`.
    Returns:
        (original_size, original_size, 3) uint8 RGB.
    Raises:
        InputError: as `read_patch`.
    """
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{name} has {len(content)} bytes; an image file has at most {MOST_BYTES}, restore it"
            " from the data set"
        )
    return _sized(_decode(content, name), name, recipe)


def _sized(image, path, recipe):
    """Require the recipe's patch size."""
    size = recipe.original_size
    if image.shape[:2] != (size, size):
        raise InputError(
            f"{path} is {image.shape[1]} x {image.shape[0]} px; the recipe reads patches of {size}"
            f" x {size} px, restore the file or change original_size"
        )
    return image


def read_cropped_image(
    path: Any,
    augmentations: bool = True,
    recipe: Recipe = Recipe(),
    rng: Any = random,
    proven: bool = False,
) -> np.ndarray:
    """Read one patch and return one random augmented crop of it.

    Args:
        path: the patch's file.
        augmentations: False returns the whole patch unchanged (for statistics), True a fresh draw
            every call.
        recipe: sizes and ranges of the augmentations.
        rng: source of the draws, with Python's `random` interface. proven: see `read_image`.
    Returns:
        (crop_size, crop_size, 3) float32 RGB in [0, 1]; without augmentations (original_size,
        original_size, 3).
    Raises:
        FileNotFoundError, InputError: as `read_patch`.

    KEPT K1: without augmentations the patch is not cropped either.

    Source: In 4.
    """
    patch = read_patch(path, recipe, proven)
    if not augmentations:
        return tone_table(0, 0)[patch]
    return augment(patch, recipe, rng)


def augment(patch, recipe=Recipe(), rng=random):
    """Draw one augmented crop of a patch: turn, shift, crop, flip, brightness, contrast, and where
    the recipe has stain_jitter, stains.

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
    """Draw what `apply_draw` does to a patch, whole numbers, as many as `draw_size` says: turn in
    degrees, first row and column, two flips, brightness and contrast in percent, and with
    stain_jitter those of `draw_stains`. Their order is part of the result: golden arrays and period
    parity depend on it.
    """
    turn = rng.randint(-recipe.max_rotation, recipe.max_rotation)
    if recipe.quarter_turns:
        turn += rng.randint(-1, 1) * 90
    down = recipe.margin + rng.randint(-recipe.max_shift, recipe.max_shift)
    right = recipe.margin + rng.randint(-recipe.max_shift, recipe.max_shift)
    mirror, upend = (rng.getrandbits(1), rng.getrandbits(1)) if recipe.flips else (0, 0)
    brightness = rng.randint(-recipe.max_brightness, recipe.max_brightness)
    contrast = rng.randint(-recipe.max_contrast, recipe.max_contrast)
    stains = draw_stains(rng) if recipe.stain_jitter else ()
    return turn, down, right, mirror, upend, brightness, contrast, *stains


def draw_size(recipe=Recipe()):
    """Return how many numbers `draw_augmentation` draws."""
    return 7 + (DRAWN if recipe.stain_jitter else 0)


def apply_draw(patch, draw, recipe=Recipe()):
    """Return the crop of a patch that `draw_augmentation` has drawn; shapes as in `augment`."""
    turn, down, right, mirror, upend, brightness, contrast, *stains = draw
    size, crop = recipe.original_size, recipe.crop_size
    if turn:  # turning by 0 copies the patch exactly
        patch = cv2.warpAffine(patch, _turn_matrix(turn, size), (size, size))
    patch = patch[down : down + crop, right : right + crop]
    if mirror or upend:
        patch = cv2.flip(patch, -1 if mirror and upend else int(mirror))
    if stains:
        logs = cv2.LUT(patch, _log_table(brightness, contrast))
        return jitter_stains(logs, stains, recipe.stain_jitter)
    return cv2.LUT(patch, tone_table(brightness, contrast))


@cache
def _turn_matrix(degrees, size):
    return cv2.getRotationMatrix2D((size // 2, size // 2), degrees, 1)


@cache
def tone_table(brightness, contrast):
    """Return what each grey level becomes: (256,) float32. Brightness and contrast act on levels,
    so 256 cases say it all."""
    levels = np.arange(256) / 255 + brightness / 100.0
    return np.clip(levels * (1.0 + contrast / 100.0), 0, 1.0).astype(np.float32)


@cache
def _log_table(brightness, contrast):
    """Return the natural logarithm of what each grey level becomes: (256,) float32."""
    return np.log(np.maximum(tone_table(brightness, contrast), DARKEST))
