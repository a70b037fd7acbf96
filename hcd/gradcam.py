"""Grad-CAM: where a learner looks in one validation patch."""

import cv2
import numpy as np
import torch
from fastai.callbacks.hooks import hook_output
from fastai.vision import image2np

from .engine.compat import Learner


def hooked_backward(
    model: torch.nn.Module, batch: torch.Tensor, category: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one image through the model and return the body's activations with their gradients.

    Args:
        model: body and head, as `get_learner` builds it; used in evaluation mode and left as it
            was, layer by layer.
        batch: (1, 3, H, W) normalised image.
        category: class whose logit is differentiated.
    Returns:
        activations, gradients: (1, C, h, w) each, on the model's device.

    CHANGED C5: the walkthrough's backward pass leaves gradients in the model, and the next training
    step adds them in; here the gradient of the activations alone is computed.

    Source: In 33.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), hook_output(model[0], detach=False) as hook:
            # asking the input for its gradient reaches the activations also when every layer is
            # frozen
            logits = model(batch.detach().requires_grad_())
            activations = hook.stored
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
        IndexError: no such patch.

    KEPT K6: the class is the patch's label, also where the model predicts the other one.

    Source: In 34.
    """
    data = learner.data
    if not 0 <= valid_index < len(data.valid_ds):
        raise IndexError(
            f"valid_index={valid_index} is outside the validation set; give 0 to"
            f" {len(data.valid_ds) - 1}"
        )
    image, category = data.valid_ds[int(valid_index)]
    batch, _ = data.one_item(image)
    gray = cv2.cvtColor(image2np(data.denorm(batch)[0].cpu()).astype("float32"), cv2.COLOR_RGB2GRAY)
    heatmap = grad_cam(*hooked_backward(learner.model, batch, category.data))
    return heatmap.numpy(), gray.clip(0, 1)
