"""`Recipe(fast=True)`: the same network, trained and evaluated in 16-bit arithmetic and in the
memory layout that suits it.

On CUDA the optimiser stays as it is: torch's Adam uses its foreach kernels by itself, and fused it
fails under a GradScaler (TypeError), which takes fastai's OptimWrapper around it for an optimiser
that unscales on its own. On a CPU see `graphs.take_step`. Nor is torch.compile used: for
DenseNet-169 at batch 64, on two busy cores, it worked for 8 minutes on training and nearly 3 on
evaluation and saved 0.8 of 4.6 s a training step and nothing in evaluation, which 800 steps repay;
not measured on a GPU.
"""

from typing import Any

import torch
from fastai.basic_train import LearnerCallback
from torch import nn

from .dense import hasten_layers


class FastModel(nn.Sequential):
    """Body and head that compute in 16 bits, pixels beside their channels (channels_last); weights
    and logits stay float32.

    Names and values of the weights are those of the plain model, so either loads what the other
    saved.
    """

    graphs: Any = None  # see `graphs.recorded`

    def __init__(self, model):
        super().__init__(*model.children())
        self.to(memory_format=torch.channels_last)
        hasten_layers(self)

    def forward(self, images):
        if self.graphs is None:
            return self._compute(images)
        return self.graphs(self, self._compute, images)

    def _compute(self, images):
        # each weight is converted once a pass, so keeping it saves nothing, and no recording may
        # keep memory that is not its own
        kind = low_precision(images.device)
        with torch.autocast(images.device.type, kind, cache_enabled=False):
            logits = super().forward(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def __getitem__(self, place):
        """Return a layer, or of a slice a plain Sequential of the same layers, which computes in
        float32."""
        return nn.Sequential(*self.children())[place]


class LossScaler(LearnerCallback):
    """Scale the loss so that float16 gradients do not vanish, and leave out the steps whose
    gradients overflow."""

    _order = 999  # after all that read the loss

    def __init__(self, learn):
        super().__init__(learn)
        self.reset()

    def reset(self):
        """Begin with a fresh scale; fastai calls it after `lr_find`, whose last rates make
        gradients overflow and the scale collapse."""
        self.scaler = torch.amp.GradScaler(self.learn.data.device.type)

    def on_backward_begin(self, last_loss, **kwargs):
        """Hand fastai the scaled loss."""
        return {"last_loss": self.scaler.scale(last_loss)}

    def on_backward_end(self, **kwargs):
        """Take the step through the scaler, and keep fastai from taking it."""
        self.scaler.step(self.learn.opt)
        self.scaler.update()
        return {"skip_step": True}


def low_precision(device):
    """Return the 16-bit type that a device computes in: bfloat16, which needs no scaling, or
    float16 on a GPU without it."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current one of several
            return (
                torch.bfloat16
                if torch.cuda.is_bf16_supported(including_emulation=False)
                else torch.float16
            )
    return torch.bfloat16 if device.type == "cpu" else torch.float16
