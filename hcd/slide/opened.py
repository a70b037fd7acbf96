"""An opened slide, whatever library reads it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.whole import shorten
from ..errors import InputError

BLACK = 8  # brightest value of a pixel that is black, or that is missing


@dataclass(frozen=True, eq=False)
class Slide:
    """An opened slide, whose levels are read by any number of threads at once.

    Attributes:
        path: of the file. sizes: (width, height) of each level in px, the largest first.
        mpp: micrometres a pixel of level 0 (x, y), as the file states them; None where it does not.
        reader: name of the library. identity: what else tells it from other slides.
    """

    path: Path
    sizes: list[tuple[int, int]]
    mpp: tuple[float, float] | None
    reader: str
    identity: str
    _pixels: Callable = field(repr=False)
    _close: Callable = field(repr=False)

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def downsample(self, level: int) -> tuple[float, float]:
        """Return how many pixels of level 0 one of another level covers (x, y)."""
        (width, height), (w, h) = self.sizes[0], self.sizes[level]
        return width / w, height / h

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a region that lies within a level.

        openslide is asked for places of level 0; where a level's size is no whole part of level
        0's, it blends neighbours, by less than half a pixel of level 0.

        Args:
            level: 0 is the largest. x, y, width, height: in its pixels.
        Returns:
            (height, width, 3) uint8 RGB, what is transparent being white; (height, width) bool,
            where there is something: neither wholly transparent nor black, which is how the
            libraries return, without a word, tiles that a file lacks.
        Raises:
            InputError: no such place, or it cannot be decoded.
        """
        here = f"level {level} of {self.path} at {x}, {y}"
        inside = 0 <= level < len(self.sizes) and min(x, y) >= 0 and min(width, height) > 0
        if not inside or x + width > self.sizes[level][0] or y + height > self.sizes[level][1]:
            raise InputError(f"{here}, {width} x {height} px, is not there; check the place")
        try:
            pixels = self._pixels(level, x, y, width, height)
        except Exception as error:  # the codecs' errors have no class in common
            reason = shorten(" ".join(str(error).split()), 120)
            raise InputError(
                f"{here} cannot be read ({reason}); the file is damaged, get it again"
            ) from error
        return _on_white(pixels)


def _on_white(pixels):
    """Compose (H, W, 3 or 4) uint8 on white; returns RGB and where there is something."""
    rgb = pixels[..., :3]
    there = rgb.max(axis=2) > BLACK
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(rgb), there
    alpha = pixels[..., 3:]
    there &= alpha[..., 0] > 0
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb), there
    mixed = (rgb.astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8), there
