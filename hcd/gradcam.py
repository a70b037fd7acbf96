"""Grad-CAM, HiResCAM and LayerCAM: where a model looks in one patch."""

import random
from itertools import takewhile
from typing import Any

import cv2
import numpy as np
import torch
from fastai.basic_data import DatasetType
from fastai.callbacks.hooks import hook_output
from fastai.data_block import EmptyLabelList
from fastai.vision import image2np
from torch import nn

from .engine.given import class_names, require_learner, require_same_place, unwrapped
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
        layer: the layer of the model whose output is wanted, see `find_layer`; None takes the body.
    Returns:
        activations, gradients: (1, C, h, w) each, on the model's device.
    Raises:
        InputError: a model without body and head, more or less than one image, or no such class.

    CHANGED C5: the walkthrough's backward pass leaves gradients in the model, and the next training
    step adds them in; here the gradient of the activations alone is computed.

    Source: In 33.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Sequential) or not len(model):
        raise InputError(
            f"the model is a {type(model).__name__}; give one that is Sequential(body, head), as"
            " get_learner builds it"
        )
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise InputError(
            f"batch has shape {tuple(batch.shape)}; give one image, (1, 3, height, width)"
        )
    require_same_place(model, batch)
    layer = model[0] if layer is None else layer
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), hook_output(layer, detach=False) as hook:
            # asking the input for its gradient reaches the activations also when every layer is
            # frozen
            logits = model(batch.detach().requires_grad_())
            activations = hook.stored
            if not 0 <= int(category) < logits.shape[1]:
                raise InputError(
                    f"category={int(category)} is none of the model's {logits.shape[1]} classes;"
                    f" give 0 to {logits.shape[1] - 1}"
                )
            (gradients,) = torch.autograd.grad(logits[0, int(category)], activations)
    finally:
        for module, training in modes:
            module.training = training
    return activations.detach(), gradients


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
    acts, grads = _single(activations, gradients)
    weights = grads.mean(dim=(1, 2))  # (C,)
    return (acts * weights[:, None, None]).mean(0)


def _single(*batches):
    """Return each (1, C, h, w) as (C, h, w) on the CPU, of at least float32, for a fast learner's
    are 16-bit."""
    return [
        values[0].cpu().to(torch.promote_types(values.dtype, torch.float32)) for values in batches
    ]


def hires_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Weight each value by its own gradient and sum over the channels (arXiv 2011.08891).

    Args:
        activations, gradients: (1, C, h, w), see `hooked_backward`.
    Returns:
        (h, w) tensor on the CPU, 0 or above.
    """
    acts, grads = _single(activations, gradients)
    return torch.relu((acts * grads).sum(0))


def layer_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Weight each value by its own gradient where that is positive, and sum over the channels
    (LayerCAM, Jiang et al. 2021), for maps of earlier layers.

    Args:
        activations, gradients: (1, C, h, w), see `hooked_backward`.
    Returns:
        (h, w) tensor on the CPU, 0 or above.
    """
    acts, grads = _single(activations, gradients)
    return torch.relu((acts * torch.relu(grads)).sum(0))


METHODS = {"grad_cam": grad_cam, "hires_cam": hires_cam, "layer_cam": layer_cam}


def find_layer(model: nn.Module, batch: torch.Tensor, size: int | None) -> nn.Module:
    """Find the last stage of a body whose map still has a size.

    Args:
        model: see `hooked_backward`. batch: (1, 3, H, W) normalised image.
        size: of a side of the map, in cells, at least; None takes the whole body.
    Returns:
        a layer of the body: of DenseNet at 90 px the body's map is 2 x 2, and 5 and 11 take the
        third and the second dense block.
    Raises:
        InputError: no stage of the body has so large a map.
    """
    body = unwrapped(model)[0]
    if size is None:
        return body
    stages = _stages(body)
    sides: dict = {}
    hooks = [
        stage.register_forward_hook(lambda stage, _, out: sides.update({stage: _side(out)}))
        for stage in stages
    ]
    training = {module: module.training for module in body.modules()}
    try:
        with torch.no_grad():
            body.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    # VGG's last pooling enlarges what was smaller before
    large = list(takewhile(lambda stage: sides.get(stage, 0) >= size, stages))
    if not large:
        raise InputError(
            f"size={size} is more than the {max(sides.values(), default=0)} cells a side of the"
            " body's largest map; give a smaller one, or None for its last map"
        )
    return large[-1]


def _stages(body):
    """Return the layers and blocks of a body in order, out of nested nn.Sequential; a subclass of
    that, such as DenseNet's transitions, is a block."""
    if type(body) is not nn.Sequential:
        return [body]
    return [stage for part in body for stage in _stages(part)]


def _side(output):
    is_map = isinstance(output, torch.Tensor) and output.ndim == 4
    return min(output.shape[2:]) if is_map else 0


def compute_map(
    model: nn.Module, batch: torch.Tensor, category: int, method: str, size: int | None
) -> np.ndarray:
    """Compute the heatmap of one image.

    Args:
        model, batch, category: see `hooked_backward`.
        method: one of METHODS. size: see `find_layer`.
    Returns:
        (h, w) array, float32 or more.
    Raises:
        InputError: as `hooked_backward` and `find_layer`, or no such method.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} draws no heatmap; give one of {', '.join(METHODS)}")
    layer = None if size is None else find_layer(model, batch, size)
    return METHODS[method](*hooked_backward(model, batch, category, layer)).numpy()


def get_heatmap(
    learner: Learner, valid_index: int, method: str = "grad_cam", size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmap of one validation patch for its true class.

    Args:
        learner: see `get_learner`.
        valid_index: position in the validation set; the patch is drawn anew with its augmentation.
        method: "grad_cam" as the walkthrough has it, "hires_cam" or "layer_cam".
        size: least side of the map, in cells; None takes the last map, the walkthrough's.
    Returns:
        heatmap: (h, w) float32 array, of any sign for `grad_cam`.
        gray: (crop_size, crop_size) float32 array in [0, 1], the very draw that the heatmap belongs
            to.
    Raises:
        IndexError: no such patch. InputError: a learner that does not tell classes apart, no such
            method, or no map so large.

    KEPT K6: the class is the patch's label, also where the model predicts the other one.

    Source: In 34.
    """
    require_learner(learner)
    if not 0 <= valid_index < len(learner.data.valid_ds):
        raise IndexError(
            f"valid_index={valid_index} is outside the validation set; give 0 to"
            f" {len(learner.data.valid_ds) - 1}"
        )
    index = int(valid_index)
    return explain_item(learner.model, learner.data, DatasetType.Valid, index, method, size)


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
        InputError: the set has no labels.
    """
    class_names(data)
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
    heatmap = compute_map(model, batch, category.data, method, size)
    return heatmap, gray.clip(0, 1)
