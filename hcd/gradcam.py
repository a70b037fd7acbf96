"""Grad-CAM: where a learner looks in one validation patch."""

import random
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
    model: nn.Module, batch: torch.Tensor, category: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one image through the model and return the body's activations with their gradients.

    Args:
        model: body and head, as `get_learner` builds it; used in evaluation mode and left as it
            was, layer by layer.
        batch: (1, 3, H, W) normalised image.
        category: class whose logit is differentiated.
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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), hook_output(model[0], detach=False) as hook:
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
    # at least float32, for a fast learner's are 16-bit
    acts, grads = (
        values[0].cpu().to(torch.promote_types(values.dtype, torch.float32))
        for values in (activations, gradients)
    )
    weights = grads.mean(dim=(1, 2))  # (C,)
    return (acts * weights[:, None, None]).mean(0)


def get_heatmap(learner: Learner, valid_index: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmap of one validation patch for its true class.

    Args:
        learner: see `get_learner`.
        valid_index: position in the validation set; the patch is drawn anew with its augmentation.
    Returns:
        heatmap: (h, w) float32 array of any sign, see `grad_cam`.
        gray: (crop_size, crop_size) float32 array in [0, 1], the very draw that the heatmap belongs
            to.
    Raises:
        IndexError: no such patch. InputError: a learner that does not tell classes apart.

    KEPT K6: the class is the patch's label, also where the model predicts the other one.

    Source: In 34.
    """
    require_learner(learner)
    if not 0 <= valid_index < len(learner.data.valid_ds):
        raise IndexError(
            f"valid_index={valid_index} is outside the validation set; give 0 to"
            f" {len(learner.data.valid_ds) - 1}"
        )
    return explain_item(learner.model, learner.data, DatasetType.Valid, int(valid_index))


def explain_item(
    model: nn.Module, data: Any, kind: DatasetType, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmap of one labelled patch of any set of a databunch.

    Args:
        model: see `hooked_backward`. data: the databunch. kind: which of its sets. index: position
            in that set.
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
    heatmap = grad_cam(*hooked_backward(model, batch, category.data))
    return heatmap.numpy(), gray.clip(0, 1)
