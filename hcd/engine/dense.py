"""DenseNet's layers in fast mode on a CPU: the same under the same names, with less to compute.

What it saves, and what did not pay: tests/benchmarks/README.md.
"""

import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook
from torchvision.models.densenet import _DenseLayer, _Transition

SINGLE = (1, 1), (1, 1), (0, 0), 1, "zeros", None  # a convolution of single pixels, see `_mixes`


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
        if not (_quickly(features) and _mixes(self.conv) and _averages(self.pool)):
            return super().forward(features)
        return _mixed(self.pool(self.relu(self.norm(features))), self.conv.weight.flatten(1))


class FastLayer(_DenseLayer):
    """A dense layer whose convolution of single pixels is the matrix product that it comes to,
    which has the quicker gradients."""

    def bn_function(self, inputs):
        """Return the output of the first convolution."""
        if not (_quickly(inputs[0]) and _mixes(self.conv1)):
            return super().bn_function(inputs)
        return _mixed(self.relu1(self.norm1(torch.cat(inputs, 1))), self.conv1.weight.flatten(1))


def _quickly(features):
    """Tell whether to compute quickly: in 16 bits on a CPU, since in float32 each rounding is to
    stay as it was."""
    quick = features.device.type == "cpu" and features.dtype == torch.bfloat16
    return quick and torch.is_autocast_enabled("cpu") and not _has_any_global_hook()


def _mixes(layer):
    """Tell whether a layer, which is not called then, is torch's convolution of single pixels."""
    if type(layer) is not nn.Conv2d or _is_called_for(layer):
        return False
    numbers = layer.kernel_size, layer.stride, layer.padding, layer.groups, layer.padding_mode
    return (*numbers, layer.bias) == SINGLE


def _averages(layer):
    """Tell whether a layer is torch's average, which is called earlier then."""
    return type(layer) is nn.AvgPool2d and not _is_called_for(layer)


def _is_called_for(layer):
    return is_watched(layer) or "forward" in vars(layer)


def is_watched(module: nn.Module) -> bool:
    """Say whether Python is to be run within a module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _mixed(features, weight):
    """Return a convolution of single pixels, `weight` (new channels, channels)."""
    return linear(features.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
