"""The layers of a body, and which of them gives a map of at least a wanted size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .given import require_same_place, unwrapped


def body_of(model: nn.Module) -> nn.Module:
    """Return the body of a model of body and head.

    Raises:
        InputError: a model of another build.
    """
    if not isinstance(model, nn.Sequential) or not len(model):
        raise InputError(
            f"the model is a {type(model).__name__}; give one that is Sequential(body, head), as"
            " get_learner builds it"
        )
    return model[0]


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards each layer back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def find_layer(model: nn.Module, batch: torch.Tensor, size: Any) -> tuple[str, nn.Module]:
    """Find the last layer of the body whose map is at least `size` x `size`.

    Looked at are the layers that the body calls one after the other: stages, dense blocks, residual
    blocks, and single layers where the body has no larger unit. What lies within a block sees only
    a part of what the network knows by then. A layer that enlarges its map, as VGG's last pooling
    does for small images, adds nothing to see and is passed over.

    Args:
        model: body and head, as `get_learner` builds it. batch: (1, 3, H, W) normalised image.
        size: least side of the map.
    Returns:
        name: as in `model.named_modules()`. layer: its output is (1, C, h, w).
    Raises:
        InputError: a size that is no whole number, or larger than every map.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(
            f"size={size!r} is no side of a map; give a whole number from 1, or None for the body's"
            " last map"
        )
    model = unwrapped(model)
    require_same_place(model, batch)
    sides = _map_sides(model, batch)
    found = [layer for layer, side in sides if side >= size]
    if not found:
        raise InputError(
            f"size={size} is larger than every map of the body, of which the largest is"
            f" {max((side for _, side in sides), default=0)} px wide; give a smaller one"
        )
    names = {module: name for name, module in model.named_modules()}
    return names[found[-1]], found[-1]


def _map_sides(model, batch):
    """Return (layer, shorter side of its map) of the body's layers, in the order they are
    called."""
    sides: list[tuple[nn.Module, int]] = []
    height, width = batch.shape[2:]

    def note(layer, given, output):
        shape = list(getattr(output, "shape", []))
        # Swin's blocks keep their channels last: (1, h, w, C)
        if len(shape) != 4 or (height == width and shape[2] != shape[3]):
            return
        side = min(shape[2:])
        if not sides or side <= sides[-1][1]:
            sides.append((layer, side))

    hooks = [layer.register_forward_hook(note) for layer in _steps(body_of(model))]
    try:
        with evaluated(model), torch.no_grad():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return sides


def _steps(layer):
    """Yield what a body calls one after the other; a subclass of Sequential, such as DenseNet's
    transition, is one step."""
    if type(layer) is not nn.Sequential:
        yield layer
        return
    for child in layer:
        yield from _steps(child)
