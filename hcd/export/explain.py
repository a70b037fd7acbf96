"""Where a loaded model looks in one image file."""

import random
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from ..engine.layers import find_layer
from ..errors import InputError
from ..gradcam import find_method, hooked_backward
from ..reader import augment
from .answer import normalised, require_bundle, tumour_probabilities
from .bundle import Bundle
from .prediction import CLASSES, Prediction, name_of, prediction, to_patch


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looks in one file.

    Attributes:
        prediction: what `predict_image` says of the file.
        category: the class that the heatmap speaks for, 0 negative or 1 tumour.
        method: its name for a caption, such as "LayerCAM". layer: the layer whose map it is.
        heatmap: (h, w) float32; of any sign by Grad-CAM, 0 or more by the others.
        gray: (crop_size, crop_size) float32 in [0, 1], the crop that the heatmap covers.
    """

    prediction: Prediction
    category: int
    method: str
    layer: str
    heatmap: np.ndarray
    gray: np.ndarray

    @property
    def title(self) -> str:
        """Caption with the map's real size, such as "LayerCAM for tumour, 11 x 11 map"."""
        height, width = self.heatmap.shape
        return f"{self.method} for {CLASSES[self.category]}, {height} x {width} map"

    def png(self, zoom: int = 4) -> bytes:
        """Return the heatmap over the crop as a PNG file, (crop_size zoom) px a side.

        Each value of the map is one square, so that it looks no finer than it is; the more it
        speaks for the class, the more it covers. The white box is the centre 32 x 32 px, which the
        label is about.
        """
        side = len(self.gray) * zoom
        shown = cv2.resize(self.gray, (side, side), interpolation=cv2.INTER_NEAREST)
        shown = np.repeat(shown[..., None] * 255, 3, axis=2)
        for_class = np.maximum(self.heatmap, 0)
        share = for_class / max(float(for_class.max()), 1e-12)
        share = cv2.resize(share, (side, side), interpolation=cv2.INTER_NEAREST)
        colours = cv2.applyColorMap(np.uint8(255 * share), cv2.COLORMAP_MAGMA)
        cover = 0.6 * share[..., None]
        shown = np.uint8(shown * (1 - cover) + colours * cover)
        near, far = side // 2 - 16 * zoom, side // 2 + 16 * zoom
        cv2.rectangle(shown, (near, near), (far, far), (255, 255, 255), 1)
        return cv2.imencode(".png", shown)[1].tobytes()


def explain_image(
    bundle: Bundle,
    image: Any,
    method: str = "layer_cam",
    size: int | None = 11,
    category: int | None = None,
) -> Explanation:
    """Show where a loaded model looks in one image file, for the tumour or another class.

    Args:
        bundle: see `load_bundle`; left as it is, without gradients.
        image: as `predict_images` takes it; the centre crop is explained.
        method: "grad_cam", "hires_cam" or "layer_cam".
        size: least side of the map; the last layer with such a map gives it, see
            `engine.layers.find_layer`. None takes the body's last map, which for DenseNet at 90 px
            is 2 x 2 and cannot point at the centre.
        category: class whose logit is explained, 0 negative or 1 tumour; None takes the tumour,
            whatever is predicted.
    Returns:
        Explanation.
    Raises:
        FileNotFoundError, InputError, InputTypeError: as `predict_images`, or no such method, size
            or class.
    """
    name, to_map = find_method(method)
    category = 1 if category is None else category
    if category not in (0, 1):
        raise InputError(
            f"category={category!r} is no class; give 0 for negative, 1 for tumour or None for"
            " tumour"
        )
    require_bundle(bundle)
    recipe = bundle.recipe.plain()
    patch = to_patch(image, recipe.original_size)
    probability = tumour_probabilities(bundle.model, patch[None], recipe)[0]
    # leaves the generators of the caller alone
    crop = augment(patch, recipe, random.Random(0))
    batch = normalised(torch.from_numpy(crop)[None], recipe, next(bundle.model.parameters()))
    layer, name_of_layer = None, "0"
    if size is not None:
        name_of_layer, layer = find_layer(bundle.model, batch, size)
    heatmap = to_map(*hooked_backward(bundle.model, batch, int(category), layer)).numpy()
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).clip(0, 1)
    answer = prediction(name_of(image), float(probability))
    return Explanation(answer, int(category), name, name_of_layer, heatmap, gray)
