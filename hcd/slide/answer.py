"""What is known of a slide once a model has seen it; knows no reader, no model and no file."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SlideAnswer:
    """A model's probabilities over one slide, on a grid of square cells.

    Cell (row, column) covers the pixels of level 0 from (column, row) * `cell` up to its own
    length; cells of the last row and column may reach beyond the slide.

    Attributes:
        path: of the slide.
        size: its (width, height) at level 0, px.
        mpp: micrometres a pixel of level 0 (x, y).
        cell: length of a cell's sides in pixels of level 0 (x, y); whole numbers seldom.
        probabilities: (rows, columns) float32 of tumour in [0, 1]; NaN where there is no tissue.
        thumbnail: (H, W, 3) uint8 RGB of the whole slide.
        card: the model's, see `make_card`.
    """

    path: str
    size: tuple[int, int]
    mpp: tuple[float, float]
    cell: tuple[float, float]
    probabilities: np.ndarray
    thumbnail: np.ndarray
    card: dict
