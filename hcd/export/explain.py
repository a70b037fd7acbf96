"""Where a loaded model looks in one file."""

from typing import Any

import numpy as np

from ..gradcam import compute_map
from ..reader import read_patch
from .bundle import Bundle, prepared, refused_crops, require_bundle


def explain_image(
    bundle: Bundle,
    path: Any,
    method: str = "layer_cam",
    size: int | None = 11,
    category: int = 1,
) -> np.ndarray:
    """Compute the heatmap of one image file with a loaded model.

    Args:
        bundle: see `load_bundle`.
        path: an 8-bit RGB patch of the size that the recipe names, 96 x 96 px.
        method: "layer_cam", "hires_cam" or "grad_cam", the walkthrough's.
        size: least side of the map, in cells; None takes the model's last map, which is 2 x 2 for
            DenseNet at 90 px and cannot point at the centre.
        category: whose logit is explained: 1 for tumour, 0 for negative.
    Returns:
        (h, w) float32 array that covers the centre crop_size px of the patch; 0 or above, but for
        `grad_cam`. The model is left as it was.
    Raises:
        FileNotFoundError, InputError: as `predict_image`, or no such method, map or category.
    """
    require_bundle(bundle, "explain_image")
    batch = prepared(bundle, read_patch(path, bundle.recipe)[None])
    with refused_crops(bundle, path):
        return compute_map(bundle.model, batch, category, method, size)
