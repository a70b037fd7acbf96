"""Grad-CAM against sums done by hand and against the walkthrough's two hooks."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from hcd import get_heatmap, grad_cam, hires_cam, hooked_backward, layer_cam
from hcd.gradcam import compute_map, find_layer
from hcd.learner import build_model, build_shapes
from hcd.recipe import Recipe


def two_layer_model():
    """1 x 1 convolution to two channels, mean over the image, two logits: derivatives can be
    written down."""
    body = nn.Conv2d(3, 2, 1, bias=False)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        body.weight.copy_(torch.tensor([[1.0, 0, 0], [0, -2, 0]])[..., None, None])
        head[2].weight.copy_(torch.tensor([[3.0, 1], [-4, 8]]))
        head[2].bias.copy_(torch.tensor([5.0, -7]))
    return nn.Sequential(body, head)


# red, green, blue
BATCH = torch.tensor([[[1.0, 2], [3, 4]], [[1, 0], [0, -1]], [[9, 9], [9, 9]]])[None]


def small_model():
    """A real network of both batch norm and dropout, small enough for a test."""
    torch.manual_seed(0)
    return build_model(Recipe(arch="mobilenet_v3_small", pretrained=False))[0].train()


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_hand_computed():
    # channel 0 is red, channel 1 is -2 green; each pixel's share of logit c is weight[c, channel] /
    # 4
    activations, gradients = hooked_backward(two_layer_model(), BATCH, 1)
    assert activations.tolist() == [[[[1, 2], [3, 4]], [[-2, 0], [0, 2]]]]
    assert gradients.tolist() == [[[[-1, -1], [-1, -1]], [[2, 2], [2, 2]]]]
    # (-1 red + 2 (-2 green)) / 2 channels
    assert grad_cam(activations, gradients).tolist() == [[-2.5, -1], [-1.5, 0]]
    _, gradients = hooked_backward(two_layer_model(), BATCH, 0)
    assert gradients.tolist() == [[[[0.75] * 2] * 2, [[0.25] * 2] * 2]]


def test_map_is_a_mean_without_relu():
    activations, gradients = hooked_backward(two_layer_model(), BATCH, 1)
    heatmap = grad_cam(activations, gradients)
    weights = gradients[0].mean(dim=(1, 2))
    # arXiv 1610.02391, eq. 2
    paper = torch.relu(sum(weight * channel for weight, channel in zip(weights, activations[0])))
    assert heatmap.min() < 0
    assert not torch.equal(heatmap, paper)
    assert torch.equal(torch.relu(heatmap * len(weights)), paper)


def test_equals_the_walkthroughs_two_hooks():
    model, batch = small_model().eval(), torch.randn(1, 3, 90, 90)
    kept = {}
    hooks = [
        model[0].register_forward_hook(
            lambda module, given, output: kept.update(activations=output.detach())
        ),
        model[0].register_full_backward_hook(
            lambda module, given, output: kept.update(gradients=output[0])
        ),
    ]
    model(batch.clone().requires_grad_())[0, 1].backward()
    for hook in hooks:
        hook.remove()
    activations, gradients = hooked_backward(model, batch, 1)
    assert activations.shape == gradients.shape == (1, 576, 3, 3)
    torch.testing.assert_close(activations, kept["activations"], rtol=0, atol=0)
    torch.testing.assert_close(gradients, kept["gradients"], rtol=1e-6, atol=1e-9)
    assert gradients.abs().max() > 0
    expected = (
        kept["activations"][0] * kept["gradients"][0].mean(1).mean(1)[..., None, None]
    ).mean(0)
    torch.testing.assert_close(grad_cam(activations, gradients), expected, rtol=1e-5, atol=1e-9)


def assert_untouched(model, before, modes):
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_leaves_no_gradients_hooks_or_modes():
    model, batch = small_model(), torch.randn(1, 3, 90, 90)
    model[0][0].eval()  # one layer unlike the others, as after fastai's BnFreeze
    before, modes = tensors(model), [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    hooked_backward(model, batch, 0)
    assert_untouched(model, before, modes)
    assert not batch.requires_grad


def test_leaves_nothing_when_the_head_raises():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken head")

    model = small_model()
    model[1] = Broken()
    before, modes = tensors(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken head"):
        hooked_backward(model, torch.randn(1, 3, 90, 90), 0)
    assert_untouched(model, before, modes)


def test_evaluation_mode_is_used():
    model, batch = small_model(), torch.randn(1, 3, 90, 90)
    trained_mode = hooked_backward(model, batch, 0)
    evaluated = hooked_backward(model.eval(), batch, 0)
    assert all(torch.equal(a, b) for a, b in zip(trained_mode, evaluated))


def test_works_when_everything_is_frozen():
    model, batch = small_model(), torch.randn(1, 3, 90, 90)
    free = hooked_backward(model, batch, 1)
    for parameter in model.parameters():
        parameter.requires_grad = False
    with torch.no_grad():
        frozen = hooked_backward(model, batch, 1)
    assert all(torch.equal(a, b) for a, b in zip(free, frozen))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_densenet_map_is_two_by_two_at_90_px():
    activations, gradients = hooked_backward(
        build_shapes(Recipe()), torch.empty(1, 3, 90, 90, device="meta"), 0
    )
    assert activations.shape == gradients.shape == (1, 1664, 2, 2)


def draw(learner, index):
    """Return the next draw of a validation patch as a normalised batch, in plain arithmetic."""
    recipe = learner.data.train_ds.x.recipe
    image = learner.data.valid_ds[index][0].data
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    return image, ((image - mean) / std)[None]


def test_heatmap_is_for_the_label_also_where_the_model_says_otherwise(learner):
    mistaken = 0
    for index, label in enumerate(learner.data.valid_ds.y.items[:5]):
        random.seed(index)
        heatmap, _ = get_heatmap(learner, index)
        random.seed(index)
        _, batch = draw(learner, index)
        maps = [
            grad_cam(*hooked_backward(learner.model, batch, category)).numpy()
            for category in (0, 1)
        ]
        np.testing.assert_allclose(heatmap, maps[label], rtol=1e-4, atol=1e-6 * np.abs(maps).max())
        assert np.abs(maps[0] - maps[1]).max() > 1e-3 * np.abs(maps).max()
        with torch.no_grad():
            mistaken += int(learner.model.eval()(batch).argmax()) != label
    assert mistaken, "no patch among these tells the label from the prediction"


def test_gray_is_the_draw_that_was_explained(learner):
    random.seed(4)
    heatmap, gray = get_heatmap(learner, 5)
    random.seed(4)
    image, _ = draw(learner, 5)
    red, green, blue = image.numpy()
    np.testing.assert_allclose(gray, 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-5)
    assert gray.shape == (90, 90) and gray.dtype == np.float32
    assert gray.min() >= 0 and gray.max() <= 1
    assert heatmap.shape == (5, 5) and heatmap.dtype == np.float32
    random.seed(5)
    assert not np.allclose(get_heatmap(learner, 5)[1], gray)  # the next draw is another one


@pytest.mark.parametrize("index", [-1, 15])
def test_heatmap_of_a_patch_that_is_not_there(learner, index):
    with pytest.raises(IndexError, match=f"valid_index={index} .* give 0 to 14"):
        get_heatmap(learner, index)


# the other methods, and maps of earlier layers


def test_the_other_methods_by_hand():
    activations, gradients = hooked_backward(two_layer_model(), BATCH, 1)
    # channel 0: red times -1; channel 1: (-2 green) times 2
    assert hires_cam(activations, gradients).tolist() == [[0, 0], [0, 0]]
    assert layer_cam(activations, gradients).tolist() == [[0, 0], [0, 4]]
    activations = torch.tensor([[[[1.0, 2]], [[-3, 4]]]])
    gradients = torch.tensor([[[[5.0, -6]], [[1, 2]]]])
    assert hires_cam(activations, gradients).tolist() == [[2, 0]]  # 5 - 3, and -12 + 8
    assert layer_cam(activations, gradients).tolist() == [[2, 8]]


def test_hires_cam_of_a_linear_head_is_the_logit_it_adds_up_to():
    """The property that gives the method its name: the map sums up to the logit, here without
    bias and all above 0."""
    model = two_layer_model()
    with torch.no_grad():
        model[0].weight.abs_()
        model[1][2].weight.abs_()
        model[1][2].bias.zero_()
    batch = BATCH.abs()
    heatmap = hires_cam(*hooked_backward(model, batch, 1))
    assert torch.allclose(heatmap.sum(), model(batch)[0, 1])


@pytest.mark.parametrize(
    "arch, sizes",
    [
        ("densenet121", {None: 2, 3: 5, 5: 5, 11: 11, 12: 23, 23: 23}),
        ("resnet18", {None: 3, 3: 3, 5: 6, 11: 12, 23: 23}),
        ("squeezenet1_1", {None: 5, 5: 5, 11: 11}),
        ("vgg11_bn", {None: 7, 5: 5, 11: 11}),
    ],
)
def test_maps_of_earlier_layers_have_at_least_the_size_asked_for(arch, sizes):
    torch.manual_seed(0)
    model = build_model(Recipe(arch=arch, pretrained=False))[0].train()
    modes = [module.training for module in model.modules()]
    batch = torch.randn(1, 3, 90, 90)
    for size, side in sizes.items():
        heatmap = compute_map(model, batch, 1, "layer_cam", size)
        assert heatmap.shape == (side, side), size
        assert (heatmap >= 0).all() and heatmap.max() > 0
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_map_of_an_earlier_layer_against_differences():
    """HiResCAM of one cell is activation times slope; the slope by central differences."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2), nn.Tanh(), nn.Conv2d(2, 3, 3), nn.Tanh())
    model = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(12, 2))).double().eval()
    batch = torch.randn(1, 3, 9, 9, dtype=torch.double)
    layer = find_layer(model, batch, 4)
    assert layer is body[1]
    activations, gradients = hooked_backward(model, batch, 1, layer)
    for index in [(0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 1, 1)]:
        logits = []
        for step in (1e-5, -1e-5):
            moved = activations.clone()
            moved[index] += step
            logits.append(float(model[1](body[3](body[2](moved)))[0, 1].detach()))
        assert abs((logits[0] - logits[1]) / 2e-5 - float(gradients[index])) < 1e-6


def test_a_learners_heatmap_by_another_method(learner):
    random.seed(0)
    first, gray = get_heatmap(learner, 2)
    random.seed(0)
    same, _ = get_heatmap(learner, 2, "grad_cam", None)
    random.seed(0)
    other, gray_again = get_heatmap(learner, 2, "layer_cam", 11)
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(gray, gray_again)
    assert first.shape == (5, 5) and other.shape == (11, 11) and other.min() >= 0


def test_no_such_method_or_map(learner, refused):
    with refused(ValueError, "method='scorecam'", "grad_cam, hires_cam, layer_cam"):
        get_heatmap(learner, 0, "scorecam")
    with refused(ValueError, "size=91", "44 cells"):
        get_heatmap(learner, 0, "layer_cam", 91)
