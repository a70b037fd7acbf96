"""Grad-CAM, and two methods that keep to the pixels: where a learner looks in one validation
patch."""

import random
from typing import Any

import cv2
import numpy as np
import torch
from fastai.basic_data import DatasetType
from fastai.data_block import EmptyLabelList
from fastai.vision import image2np
from torch import nn

from .engine.given import class_names, require_learner, require_same_place, unwrapped
from .engine.layers import body_of, evaluated, find_layer
from .engine.saving import Learner
from .errors import InputError


def hooked_backward(
    model: nn.Module, batch: torch.Tensor, category: int, layer: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one image through the model and return the body's activations with their gradients.

    Args:
        model: body and head, as `get_learner` builds it; used in evaluation mode and left as it
            was, layer by layer.
        batch: (1, 3, H, W) normalised image.
        category: class whose logit is differentiated.
        layer: of the model, for its output in place of the body's; see `engine.layers.find_layer`.
    Returns:
        activations, gradients: (1, C, h, w) each, on the model's device.
    Raises:
        InputError: a model without body and head, more or less than one image, no such class, or no
            such layer.

    CHANGED C5: the walkthrough's backward pass leaves gradients in the model, and the next training
    step adds them in; here the gradient of the activations alone is computed.

    Source: In 33.
    """
    model = unwrapped(model)
    body = body_of(model)
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise InputError(
            f"batch has shape {tuple(batch.shape)}; give one image, (1, 3, height, width)"
        )
    require_same_place(model, batch)
    target = body if layer is None else layer
    kept: list = []

    def keep(module, given, output):
        kept.append(output)
        # a ReLU in place would change what was kept
        return output.clone() if isinstance(output, torch.Tensor) else output

    with evaluated(model), torch.enable_grad(), target.register_forward_hook(keep):
        # asking the input for its gradient reaches the activations also when every layer is frozen
        logits = model(batch.detach().requires_grad_())
        if not kept or getattr(kept[-1], "ndim", 0) != 4:
            raise InputError(
                f"layer={type(target).__name__} gives no map (1, C, h, w) in this model;"
                " give a layer of its body, such as a block"
            )
        if not 0 <= int(category) < logits.shape[1]:
            raise InputError(
                f"category={int(category)} is none of the model's {logits.shape[1]} classes;"
                f" give 0 to {logits.shape[1] - 1}"
            )
        (gradients,) = torch.autograd.grad(logits[0, int(category)], kept[-1])
    return kept[-1].detach(), gradients


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Weight each channel by its mean gradient and average the channels.

    Args:
        activations, gradients: (1, C, h, w), see `hooked_backward`.
    Returns:
        (h, w) tensor on the CPU, of any sign; 2 x 2 for DenseNet at 90 px.

    KEPT K5: a mean over channels without ReLU, where the paper (arXiv 1610.02391, eq. 2) has a sum
        and a ReLU.

    Source: In 34.
    """
    acts, grads = _of_one_image(activations, gradients)
    weights = grads.mean(dim=(1, 2))  # (C,)
    return (acts * weights[:, None, None]).mean(0)


def hires_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Multiply activations by gradients place by place, sum over the channels and keep what speaks
    for the class (HiResCAM, arXiv 2011.08891).

    Grad-CAM's mean gradient gives a place credit for what its channel does elsewhere; here each
    place has its own gradient.

    Args:
        activations, gradients: (1, C, h, w), see `hooked_backward`.
    Returns:
        (h, w) tensor on the CPU, 0 or more.
    Raises:
        InputError: other shapes.
    """
    acts, grads = _of_one_image(activations, gradients)
    return (grads * acts).sum(0).relu()


def layer_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Weight activations by their positive gradients place by place, sum over the channels and keep
    what speaks for the class (LayerCAM, Jiang et al. 2021, doi 10.1109/TIP.2021.3089943).

    Args:
        activations, gradients: (1, C, h, w), see `hooked_backward`.
    Returns:
        (h, w) tensor on the CPU, 0 or more.
    Raises:
        InputError: other shapes.
    """
    acts, grads = _of_one_image(activations, gradients)
    return (grads.relu() * acts).sum(0).relu()


METHODS = {
    "grad_cam": ("Grad-CAM", grad_cam),
    "hires_cam": ("HiResCAM", hires_cam),
    "layer_cam": ("LayerCAM", layer_cam),
}


def find_method(method: Any) -> tuple[str, Any]:
    """Return a method's name for a caption and its function.

    Raises:
        InputError: no such method.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method={method!r} is unknown; give one of {', '.join(METHODS)}")
    return METHODS[method]


def _of_one_image(activations, gradients):
    """Return both without their first axis, on the CPU, in at least float32."""
    if activations.ndim != 4 or len(activations) != 1 or gradients.shape != activations.shape:
        raise InputError(
            f"activations have shape {tuple(activations.shape)} and gradients"
            f" {tuple(gradients.shape)}; give (1, C, h, w) of both, as hooked_backward returns them"
        )
    # a fast learner's are 16-bit
    return (
        values[0].cpu().to(torch.promote_types(values.dtype, torch.float32))
        for values in (activations, gradients)
    )


def get_heatmap(
    learner: Learner, valid_index: int, method: str = "grad_cam", size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmap of one validation patch for its true class.

    Args:
        learner: see `get_learner`.
        valid_index: position in the validation set; the patch is drawn anew with its augmentation.
        method: "grad_cam", "hires_cam" or "layer_cam". size: least side of the map, such as 11; the
            last layer with such a map gives it, see `engine.layers.find_layer`. None takes the
            body's last map, which for DenseNet at 90 px is 2 x 2 and cannot point at the centre.
    Returns:
        heatmap: (h, w) float32 array; of any sign by `grad_cam`, 0 or more by the others.
        gray: (crop_size, crop_size) float32 array in [0, 1], the very draw that the heatmap belongs
            to.
    Raises:
        IndexError: no such patch. InputError: a learner that does not tell classes apart, no such
            method, or no map of that size.

    KEPT K6: the class is the patch's label, also where the model predicts the other one.

    Source: In 34.
    """
    require_learner(learner)
    if not 0 <= valid_index < len(learner.data.valid_ds):
        raise IndexError(
            f"valid_index={valid_index} is outside the validation set; give 0 to"
            f" {len(learner.data.valid_ds) - 1}"
        )
    return explain_item(
        learner.model, learner.data, DatasetType.Valid, int(valid_index), method, size
    )


def explain_item(
    model: nn.Module,
    data: Any,
    kind: DatasetType,
    index: int,
    method: str = "grad_cam",
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmap of one labelled patch of any set of a databunch.

    Args:
        model: see `hooked_backward`. data: the databunch. kind: which of its sets. index: position
            in that set. method, size: see `get_heatmap`.
    Returns:
        heatmap, gray: see `get_heatmap`.
    Raises:
        InputError: the set has no labels, or as `get_heatmap`.
    """
    class_names(data)
    _, to_map = find_method(method)
    loader = data.dl(kind)
    items = data._grab_dataset(loader)
    if isinstance(items.y, EmptyLabelList):
        raise InputError(
            f"the {kind.name} set has no labels, and a heatmap is of the patch's own class; take"
            " DatasetType.Valid"
        )
    image, category = items[index]
    # the walkthrough hands the image to data.one_item, which draws a number, and would transform
    # it a second time
    getattr(image, "rng", random).random()
    batch, _ = loader.proc_batch((image.data[None], torch.tensor([int(category.data)])))
    gray = cv2.cvtColor(image2np(image.data).astype("float32"), cv2.COLOR_RGB2GRAY)
    layer = None if size is None else find_layer(model, batch, size)[1]
    heatmap = to_map(*hooked_backward(model, batch, category.data, layer))
    return heatmap.numpy(), gray.clip(0, 1)
