"""Heatmaps against sums done by hand and against the walkthrough's two hooks."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from hcd import get_heatmap, grad_cam, hires_cam, hooked_backward, layer_cam
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


def two_relus():
    """A body whose ReLU overwrites what the convolution gave, and a head that weighs each pixel."""
    body = nn.Sequential(two_layer_model()[0], nn.ReLU(inplace=True))
    head = nn.Sequential(nn.Flatten(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        head[1].weight.copy_(torch.tensor([[0.0] * 8, [1, -1, 2, -0.25, 5, 3, -2, 1]]))
    return nn.Sequential(body, head)


def test_place_by_place_by_hand_also_before_a_relu_in_place():
    model = two_relus()
    # before the ReLU: it lets through the gradient of what is positive
    before = hooked_backward(model, BATCH, 1, model[0][0])
    assert before[0].tolist() == [[[[1, 2], [3, 4]], [[-2, 0], [0, 2]]]]
    assert before[1].tolist() == [[[[1, -1], [2, -0.25]], [[0, 0], [0, 1]]]]
    after = hooked_backward(model, BATCH, 1, model[0][1])
    assert after[0].tolist() == [[[[1, 2], [3, 4]], [[0, 0], [0, 2]]]]
    assert after[1].tolist() == [[[[1, -1], [2, -0.25]], [[5, 3], [-2, 1]]]]
    assert all(torch.equal(a, b) for a, b in zip(after, hooked_backward(model, BATCH, 1)))
    for pair in (before, after):
        # 1 * 1, 2 * -1, 3 * 2, 4 * -0.25 + 2 * 1
        assert hires_cam(*pair).tolist() == [[1, 0], [6, 1]]
        # the -0.25 is left out before the sum
        assert layer_cam(*pair).tolist() == [[1, 0], [6, 2]]


def test_negative_activations_speak_against_the_class():
    activations, gradients = torch.tensor([[[[-3.0, -3]], [[1, 4]]]]), torch.ones(1, 2, 1, 2)
    assert layer_cam(activations, gradients).tolist() == [[0, 1]]
    assert hires_cam(activations, gradients).tolist() == [[0, 1]]
    # two negatives: the product speaks for the class, LayerCAM leaves the gradient out
    assert hires_cam(-activations[:, :1], -gradients[:, :1]).tolist() == [[0, 0]]
    assert hires_cam(activations[:, :1], -gradients[:, :1]).tolist() == [[3, 3]]
    assert layer_cam(activations[:, :1], -gradients[:, :1]).tolist() == [[0, 0]]


@pytest.mark.parametrize("place", [5, 8])
def test_an_earlier_layers_gradients_against_autograd_on_the_rest(place):
    model, batch = small_model().eval(), torch.randn(1, 3, 90, 90)
    layers = model[0][0]
    with torch.no_grad():
        expected = layers[: place + 1](batch)
    rest = expected.clone().requires_grad_()
    logits = model[1](nn.Sequential(layers[place + 1 :], *model[0][1:])(rest * 1))
    (gradients,) = torch.autograd.grad(logits[0, 1], rest)
    found = hooked_backward(model, batch, 1, layers[place])
    assert torch.equal(found[0], expected)
    torch.testing.assert_close(found[1], gradients, rtol=1e-5, atol=1e-9)
    assert gradients.abs().max() > 0


def test_hires_cam_of_a_linear_head_adds_up_to_the_logit():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False)),
    )
    batch = torch.randn(1, 3, 8, 8)
    activations, gradients = hooked_backward(model, batch, 1)
    spoken = hires_cam(activations, gradients).sum() - hires_cam(activations, -gradients).sum()
    assert float(spoken) == pytest.approx(float(model(batch)[0, 1].detach()), rel=1e-5)


def test_shapes_that_do_not_belong_together(refused):
    for pair in [
        (torch.zeros(2, 3, 4, 4),) * 2,
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)),
    ]:
        for method in (grad_cam, hires_cam, layer_cam):
            with refused(ValueError, tuple(pair[1].shape), "(1, C, h, w)"):
                method(*pair)


def test_a_layer_that_gives_no_map(refused):
    model = two_relus()
    for layer in (model[1][1], nn.ReLU()):
        with refused(ValueError, f"layer={type(layer).__name__}", "body"):
            hooked_backward(model, BATCH, 1, layer)


@pytest.mark.parametrize("method, function", [("hires_cam", hires_cam), ("layer_cam", layer_cam)])
def test_another_method_at_another_size(learner, method, function):
    random.seed(4)
    heatmap, gray = get_heatmap(learner, 5, method, 11)
    random.seed(4)
    image, batch = draw(learner, 5)
    label = int(learner.data.valid_ds.y.items[5])
    layer = learner.model[0][0][7]  # the last Fire before the second last pooling
    expected = function(*hooked_backward(learner.model, batch, label, layer)).numpy()
    assert heatmap.shape == (11, 11) and heatmap.dtype == np.float32 and heatmap.max() > 0
    np.testing.assert_allclose(heatmap, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert gray.shape == (90, 90)


def test_a_method_or_a_size_that_is_not_there(learner, refused):
    with refused(ValueError, "method='cam'", "grad_cam, hires_cam, layer_cam"):
        get_heatmap(learner, 0, "cam")
    with refused(ValueError, "size=500"):
        get_heatmap(learner, 0, size=500)
