"""Which layer gives a map of a wanted size, in networks of several builds."""

import pytest
import torch
from torch import nn

from hcd import InputError
from hcd.engine.layers import evaluated, find_layer
from hcd.learner import build_shapes
from hcd.recipe import Recipe


def map_of(model, batch, size):
    """Return the layer's name and the shape of what it gives."""
    name, layer = find_layer(model, batch, size)
    assert model.get_submodule(name) is layer
    shapes = []
    hook = layer.register_forward_hook(lambda module, given, output: shapes.append(output.shape))
    model.eval()(batch)
    hook.remove()
    return name, tuple(shapes[0][1:])


@pytest.mark.parametrize(
    "arch, expected",
    [
        (
            "densenet121",
            {
                1: ("0.0.norm5", (1024, 2, 2)),
                5: ("0.0.denseblock3", (1024, 5, 5)),
                11: ("0.0.denseblock2", (512, 11, 11)),
                12: ("0.0.denseblock1", (256, 23, 23)),
            },
        ),
        # a stage's last block, after its ReLU
        ("resnet18", {3: ("0.7.1", (512, 3, 3)), 5: ("0.6.1", (256, 6, 6))}),
        # 0.1 is AdaptiveAvgPool2d, which makes 7 x 7 out of 2 x 2
        ("vgg11", {2: ("0.0.20", (512, 2, 2)), 5: ("0.0.19", (512, 5, 5))}),
    ],
)
def test_the_last_layer_of_at_least_that_size(arch, expected):
    model = build_shapes(Recipe(arch=arch))
    batch = torch.empty(1, 3, 90, 90, device="meta")
    assert {size: map_of(model, batch, size) for size in expected} == expected


def test_a_body_that_is_one_layer():
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=4), nn.Flatten())
    assert find_layer(model, torch.zeros(1, 3, 41, 41), 10) == ("0", model[0])


def test_channels_last_is_no_map():
    class Moved(nn.Module):
        def __init__(self, *axes):
            super().__init__()
            self.axes = axes

        def forward(self, x):
            return x.permute(*self.axes)

    body = nn.Sequential(nn.Conv2d(3, 2, 1), Moved(0, 2, 3, 1), Moved(0, 3, 1, 2))
    model = nn.Sequential(body, nn.Flatten())
    assert find_layer(model, torch.zeros(1, 3, 6, 6), 3)[0] == "0.2"
    body.append(Moved(0, 2, 3, 1))
    assert find_layer(model, torch.zeros(1, 3, 6, 6), 3)[0] == "0.2"


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "11", None])
def test_what_is_no_size(size, refused):
    with refused(InputError, f"size={size!r}", "from 1"):
        find_layer(nn.Sequential(nn.Conv2d(3, 2, 1)), torch.zeros(1, 3, 4, 4), size)


def test_no_map_that_large(refused):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2)), nn.Flatten())
    with refused(InputError, "size=9", "8 px"):
        find_layer(model, torch.zeros(1, 3, 10, 10), 9)


def test_a_model_without_a_body(refused):
    with refused(InputError, "Conv2d", "body, head"):
        find_layer(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4), 1)


def test_modes_and_hooks_are_left_as_they_were():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), nn.Flatten())
    model.train()
    model[0][1].eval()
    modes = [module.training for module in model.modules()]
    find_layer(model, torch.zeros(1, 3, 4, 4), 2)
    with pytest.raises(RuntimeError, match="within"), evaluated(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("within")
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
