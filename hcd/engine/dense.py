"""DenseNet's layers in fast mode on a CPU: the same under the same names, with less to compute.

What it saves, and what did not pay: tests/benchmarks/README.md.
"""

import torch
from torch import nn
from torch.nn.functional import linear
from torchvision.models.densenet import _DenseLayer, _Transition


def hasten_layers(model: nn.Module) -> None:
    """Have torchvision's dense layers and transitions compute in the ways below; any other layer
    stays as it is, and so do all names and weights."""
    ours = {_DenseLayer: FastLayer, _Transition: FastTransition}
    for layer in model.modules():
        if type(layer) in ours:
            layer.__class__ = ours[type(layer)]


class FastTransition(_Transition):
    """A transition that pools before its convolution, which then has a quarter of the pixels; both
    are linear, and the convolution is of single pixels, so they may change places."""

    def forward(self, features):
        """Return the mixed and pooled features."""
        if not _quickly(self, features):
            return super().forward(features)
        return _mixed(self.pool(self.relu(self.norm(features))), self.conv.weight.flatten(1))


class FastLayer(_DenseLayer):
    """A dense layer whose convolution of single pixels is the matrix product that it comes to,
    which has the quicker gradients."""

    def bn_function(self, inputs):
        """Return the output of the first convolution."""
        if not _quickly(self, inputs[0]):
            return super().bn_function(inputs)
        return _mixed(self.relu1(self.norm1(torch.cat(inputs, 1))), self.conv1.weight.flatten(1))


def _quickly(module, features):
    """Tell whether to compute quickly: in 16 bits on a CPU, since in float32 each rounding is to
    stay as it was, and with the layers that torchvision put there, which nobody watches."""
    return (
        features.device.type == "cpu"
        and features.dtype == torch.bfloat16
        and torch.is_autocast_enabled("cpu")
        and all(map(_as_built, module.children()))
    )


def _as_built(layer):
    watched = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    known = type(layer) in (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.AvgPool2d)
    return known and not watched and (type(layer) is not nn.Conv2d or layer.bias is None)


def _mixed(features, weight):
    """Return a convolution of single pixels, `weight` (new channels, channels)."""
    return linear(features.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
