"""DenseNet's blocks in fast mode on a CPU: the same layers under the same names, with less to
compute and to copy.

What it saves, and what did not pay: tests/benchmarks/README.md.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, linear
from torchvision.models.densenet import _DenseBlock, _DenseLayer, _Transition


def hasten_blocks(model: nn.Module) -> None:
    """Have torchvision's dense blocks and transitions compute in the ways below; any other layer
    stays as it is, and so do all names and weights."""
    ours = {_DenseBlock: FastBlock, _DenseLayer: FastLayer, _Transition: FastTransition}
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


class FastBlock(_DenseBlock):
    """A dense block that predicts without copying all features anew for each layer.

    Each layer writes its features beside those before, and its batch norms become a part of its
    first convolution. For s > 0, relu(s x + b) = s max(x, -b / s) + b; for s < 0 it is min. So one
    comparison of x is left, and s and b go into the convolution, which is of single pixels.
    """

    folded: Any = None

    def forward(self, init_features):
        """Return the features of the block's input and of all its layers, side by side."""
        if torch.is_grad_enabled() or not self._foldable(init_features):
            return super().forward(init_features)
        made_of = [
            (one.data_ptr(), -1 if one.is_inference() else one._version)
            for one in (*self.parameters(), *self.buffers())
        ]
        if self.folded is None or self.folded[0] != made_of:
            self.folded = made_of, [_folded(layer, init_features.dtype) for layer in self.values()]
        return _computed(init_features, self.folded[1])

    def _foldable(self, features):
        quick = all(_quickly(one, features) for one in (self, *self.values()))
        # a batch norm may be put into training by itself
        return quick and not any(one.training for one in self.modules())

    def train(self, mode=True):
        """Set the mode; before each evaluation the weights may have changed in ways that leave no
        trace."""
        self.folded = None
        return super().train(mode)

    def __getstate__(self):
        return {**self.__dict__, "folded": None}


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
    known = type(layer) in (FastLayer, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.AvgPool2d)
    return known and not watched and (type(layer) is not nn.Conv2d or layer.bias is None)


def _mixed(features, weight, bias=None):
    """Return a convolution of single pixels, `weight` (new channels, channels)."""
    return linear(features.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _computed(features, layers):
    """Return the features beside those of all layers."""
    count, start, height, width = features.shape
    room = start + sum(len(second) for *_, second in layers)
    every = torch.empty(
        (count, room, height, width), dtype=features.dtype, memory_format=torch.channels_last
    )
    every[:, :start] = features
    for low, high, first, bias, second in layers:
        compared = torch.maximum(every[:, :start], low)
        if high is not None:
            torch.minimum(compared, high, out=compared)
        hidden = _mixed(compared, first, bias).relu_()
        every[:, start : start + len(second)] = conv2d(hidden, second, padding=1)
        start += len(second)
    return every


def _folded(layer, kind):
    """Return a layer's bounds, (C, 1, 1) or None where nothing is above, weight and bias of the
    first convolution, and weight of the second, in a 16-bit type."""
    scale, shift = _line(layer.norm1)
    turn = torch.where(scale == 0, 0, -shift / scale)
    low = torch.where(scale > 0, turn, -torch.inf)
    high = torch.where(scale < 0, turn, torch.inf)
    shift = torch.where(scale == 0, shift.relu(), shift)  # then x counts for nothing
    second_scale, second_shift = _line(layer.norm2)
    first = layer.conv1.weight.double().flatten(1) * second_scale[:, None]
    return (
        low.to(kind)[:, None, None],
        high.to(kind)[:, None, None] if (scale < 0).any() else None,
        (first * scale).to(kind),
        (first @ shift + second_shift).to(kind),
        layer.conv2.weight.to(kind),
    )


def _line(norm):
    """Return what a batch norm multiplies with and adds in evaluation, float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale
