"""Stain jitter: the same patch as another laboratory might have stained it."""

import cv2
import numpy as np

# how haematoxylin, eosin and DAB absorb red, green and blue (Ruifrok & Johnston, 2001), one a row
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DARKEST = 1 / 255  # level; what is darker absorbs as much
PARTS = 1000  # draws are whole numbers: thousandths of the jitter
DRAWN = 6  # numbers of one draw


def draw_stains(rng) -> tuple:
    """Draw what `jitter_stains` does, six whole numbers from -1000 to 1000: for each stain its
    factor, then for each its shift."""
    return tuple(rng.randint(-PARTS, PARTS) for _ in range(DRAWN))


def jitter_stains(logs: np.ndarray, draw, jitter: float) -> np.ndarray:
    """Stain a patch anew: each stain's concentration c becomes c a + b, with a from 1 - jitter to 1
    + jitter and b from -jitter to jitter (Tellez et al., 2018).

    Args:
        logs: (H, W, 3) float32, natural logarithms of RGB levels from `DARKEST` to 1.
        draw: see `draw_stains`. jitter: the recipe's.
    Returns:
        (H, W, 3) float32 RGB in [0, 1].
    """
    factors, shifts = jitter * np.reshape(draw, (2, 3)) / PARTS
    # by Beer and Lambert -log(RGB) = c @ STAINS, so the whole of it is one affine map of the logs
    mixed = np.linalg.inv(STAINS) @ np.diag(1 + factors) @ STAINS
    affine = np.hstack([mixed.T, -(shifts @ STAINS)[:, None]])  # (3, 4)
    return np.minimum(cv2.exp(cv2.transform(logs, affine)), 1)
