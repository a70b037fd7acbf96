"""The whole slide at a glance, and where on it there is tissue."""

import cv2
import numpy as np
from PIL import Image

from ..errors import InputError
from .opened import Slide

MOST_SIDE = 2048  # px of the overview
MOST_PIXELS = 1 << 29  # of the level that it is made of
STRIP = 1 << 23  # pixels of that level, read at once
COARSE_UM = 8  # spacing at which tissue is told from glass: a few pixels a nucleus
# Otsu's threshold of saturation, 0 to 255, is kept within these: a slide without glass or without
# tissue has no two kinds to part
LEAST, MOST = 12, 20
INK = 50  # saturation from which a bluish green is ink, and no lamp's tint
DARK = 60  # brightness, 0 to 255, below which nothing that light went through lies


def overview(slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    """Read the whole slide at a low resolution, by strips.

    Returns:
        (H, W, 3) uint8 RGB, its longer side at most MOST_SIDE px; (H, W) float32, how much of each
        pixel is there, see `Slide.read`.
    Raises:
        InputError: its smallest level is too large, or cannot be read.
    """
    level = overview_level(slide)
    width, height = slide.sizes[level]
    scale = max(1, max(width, height) / MOST_SIDE)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    rgb: np.ndarray = np.empty((size[1], size[0], 3), np.uint8)
    there: np.ndarray = np.empty((size[1], size[0]), np.float32)
    rows = max(1, int(STRIP / (width * scale)))
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        # from whole pixels to whole pixels of the overview, which begin within one of the level
        first, last = top * height / size[1], bottom * height / size[1]
        y, end = int(first), min(height, int(np.ceil(last)))
        pixels, real = slide.read(level, 0, y, width, end - y)
        box = (0, first - y, width, last - y)
        small = size[0], bottom - top
        rgb[top:bottom] = Image.fromarray(pixels).resize(small, Image.Resampling.BOX, box)
        real = Image.fromarray(real.astype(np.float32))
        there[top:bottom] = real.resize(small, Image.Resampling.BOX, box)
    return rgb, there


def overview_level(slide: Slide) -> int:
    """Return the smallest level that is at least as large as the overview, or the smallest.

    Raises:
        InputError: it is too large.
    """
    large = [i for i, size in enumerate(slide.sizes) if max(size) >= MOST_SIDE]
    level = large[-1] if large else 0
    if len(slide.sizes) > level + 1 and np.prod(slide.sizes[level]) > MOST_PIXELS:
        level += 1
    width, height = slide.sizes[level]
    if width * height > MOST_PIXELS:
        one = "has one level only" if len(slide.sizes) == 1 else "has no small level, the least"
        raise InputError(
            f"{slide.path} {one} of {width} x {height} px, to look for tissue in; save it as a"
            " pyramid, such as with vips tiffsave IN OUT --tile --pyramid"
        )
    return level


def tissue_mask(rgb: np.ndarray, spacing_um: float) -> np.ndarray:
    """Tell tissue from glass, black edges and pen marks.

    Otsu's threshold of the saturation, on the pixels that are neither black nor ink. In H&E green
    is what tissue swallows most; blue and green ink let more green than red through, and red ink
    lets as little blue through as green.

    Args:
        rgb: (H, W, 3) uint8. spacing_um: of its pixels.
    Returns:
        (H, W) float32, the share of each pixel that is tissue.
    """
    height, width = rgb.shape[:2]
    factor = min(1.0, spacing_um / COARSE_UM)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    coarse = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
    red, green, blue = (coarse[..., channel].astype(int) for channel in range(3))
    most, least = coarse.max(axis=2).astype(int), coarse.min(axis=2).astype(int)
    saturation = 255 * (most - least) // np.maximum(most, 1)
    # a scanner's noise gives single pixels of glass a colour
    saturation = cv2.medianBlur(saturation.astype(np.uint8), 3).astype(int)
    alien = (most < DARK) | ((green > red + 8) & (saturation > INK))
    alien |= (saturation > 150) & (5 * blue < 7 * green) & (red > blue)
    # ink fades out at its rim
    alien = cv2.dilate(alien.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    plain = saturation[~alien].astype(np.uint8).reshape(-1, 1)
    if not len(plain):
        return np.zeros((height, width), np.float32)
    threshold, _ = cv2.threshold(plain, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    found = (saturation > np.clip(threshold, LEAST, MOST)) & ~alien
    found = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    large = Image.fromarray(found.astype(np.float32))
    return np.asarray(large.resize((width, height), Image.Resampling.NEAREST))
