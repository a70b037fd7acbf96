"""DenseNet's layers in fast mode: what torchvision's compute, with fewer operations."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.models.densenet import DenseNet, _DenseLayer, _Transition

from hcd.engine import dense
from hcd.engine.dense import FastLayer, FastTransition, hasten_layers
from hcd.engine.fast import FastModel
from hcd.learner import build_model, build_shapes


def features(kind=torch.float64, spread=0.3):
    """Return a small DenseNet's features with batch norms that have seen the images, in evaluation;
    `spread` is that of the logarithm of their weights."""
    torch.manual_seed(0)
    net = DenseNet(8, (2, 3), 16, num_classes=2).features.double()
    for one in net.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.momentum = None  # the mean of all that it sees
            one.bias.data.normal_()
            one.weight.data.log_normal_(0, spread)
            one.weight.data[::3] *= -1
    with torch.no_grad():
        net(images())
    return net.to(kind, memory_format=torch.channels_last).eval()


def images(kind=torch.float64):
    """Return images that leave a map of odd sides to pool."""
    torch.manual_seed(1)
    return torch.randn(3, 3, 44, 44).to(kind, memory_format=torch.channels_last)


def hastened(net):
    """Return a copy with quick layers."""
    net = copy.deepcopy(net)
    hasten_layers(net)
    return net


@pytest.fixture
def everywhere(monkeypatch):
    """Compute quickly in any type, to see that the arithmetic is the same."""
    monkeypatch.setattr(dense, "_quickly", lambda features: True)


def test_they_compute_the_same_in_float64(everywhere):
    net = features()
    with torch.no_grad():
        torch.testing.assert_close(hastened(net)(images()), net(images()), rtol=1e-12, atol=1e-12)


def test_training_has_the_same_gradients_in_float64(everywhere):
    nets = [one.train() for one in (features(), hastened(features()))]
    for net in nets:
        net(images()).pow(3).sum().backward()
    for theirs, ours in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    for theirs, ours in zip(*(net.buffers() for net in nets)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1, 3])
def test_in_16_bits_it_is_about_as_exact(spread):
    """Also where batch norms scale by little and by much, as after a stage at high rates: folded
    into the convolutions they were up to ten times less exact."""
    exact, net = features(spread=spread), features(torch.float32, spread)
    errors = []
    for one in (net, hastened(net)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            off = one(images(torch.float32)).double() - exact(images())
        errors.append(off.pow(2).mean().sqrt())
    assert 0 < errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize("training", [False, True])
def test_in_float32_no_bit_changes(training):
    outputs = []
    for net in (features(torch.float32), hastened(features(torch.float32))):
        net.train(training)
        output = net(images(torch.float32))
        output.sum().backward()
        outputs.append([output, *(one.grad for one in net.parameters()), *net.buffers()])
        with torch.no_grad():
            outputs[-1].append(net(images(torch.float32)))
    assert all(map(torch.equal, *outputs))


def predicted(net):
    """Return what the fast layers predict."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return net(images(torch.float32))


@pytest.mark.parametrize("name", ["denseblock1.denselayer2", "denseblock2.denselayer1.conv1"])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_who_watches_a_layer_sees_it(name, hook):
    net, seen = hastened(features(torch.float32)), []
    handle = getattr(net.get_submodule(name), hook)(lambda *given: seen.append(1))
    predicted(net)
    handle.remove()
    predicted(net)
    assert seen == [1]


def test_an_exchanged_layer_is_used():
    net = hastened(features(torch.float32))
    before = predicted(net)
    net.denseblock1.denselayer1.relu1 = nn.Sigmoid()
    net.transition1.relu = nn.Sigmoid()
    theirs = features(torch.float32)
    theirs.denseblock1.denselayer1.relu1 = theirs.transition1.relu = nn.Sigmoid()
    torch.testing.assert_close(predicted(net), predicted(theirs), rtol=0.1, atol=0.1)
    assert (predicted(net) - before).abs().max() > 0.3


def wider(net):
    torch.manual_seed(2)
    net.transition1.conv = nn.Conv2d(32, 16, 3, padding=1, bias=False)


def coarser(net):
    net.transition1.conv.stride = (2, 2)


def with_bias(net):
    net.transition1.conv.bias = nn.Parameter(torch.ones(16))


def largest(net):
    net.transition1.pool = nn.MaxPool2d(2, 2)


def replaced_between(net):
    net.transition1.relu.forward = torch.sigmoid


def apart(one, other):
    """Return how far two outputs lie apart, as a share of how large they are."""
    return (one - other).float().norm() / other.float().norm()


@pytest.mark.parametrize("change", [wider, coarser, with_bias, largest, replaced_between])
def test_a_layer_of_another_shape_computes_as_it_says(change):
    theirs = features(torch.float32)
    ours = hastened(theirs)
    before = predicted(ours)
    change(theirs)
    change(ours)
    expected, found = predicted(theirs), predicted(ours)
    assert apart(found, expected) < 0.02  # by rounding
    assert found.shape != before.shape or apart(found, before) > 0.05


@pytest.mark.parametrize("name", ["denselayer2.conv1", "denselayer2.conv2", "denselayer1.norm1"])
def test_a_layers_own_forward_is_called(name):
    net, called = hastened(features(torch.float32)), []
    layer = net.denseblock1.get_submodule(name)
    layer.forward = lambda given: called.append(1) or type(layer).forward(layer, given)
    predicted(net)
    assert called == [1]


def test_who_watches_all_layers_sees_each():
    net, seen = hastened(features(torch.float32)), []
    handle = register_module_forward_hook(lambda module, *given: seen.append(module))
    try:
        predicted(net)
    finally:
        handle.remove()
    assert net.denseblock1.denselayer1.conv1 in seen and net.transition1.conv in seen


def test_who_watches_the_way_back_sees_it():
    net, seen = hastened(features(torch.float32)), []
    net.transition1.conv.register_full_backward_pre_hook(lambda *given: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        net(images(torch.float32)).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("arch", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_every_densenet_is_made_quicker(small_recipe, arch):
    kinds = [
        type(one) for one in FastModel(build_shapes(replace(small_recipe, arch=arch))).modules()
    ]
    assert kinds.count(FastTransition) == 3 and FastLayer in kinds
    assert not {_DenseLayer, _Transition} & set(kinds)


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "vgg11_bn", "mobilenet_v2"])
def test_other_networks_keep_their_layers(small_recipe, arch):
    recipe = replace(small_recipe, arch=arch)
    fast = FastModel(build_shapes(recipe))
    assert [type(one) for one in fast.modules()][1:] == [
        type(one) for one in build_shapes(recipe).modules()
    ][1:]


def test_a_pretrained_models_float32_half_is_untouched(small_recipe):
    torch.manual_seed(0)
    model, _ = build_model(replace(small_recipe, arch="densenet121"))
    batch, plain = torch.randn(2, 3, 90, 90), copy.deepcopy(model).eval()
    with torch.no_grad():
        assert torch.equal(
            FastModel(model).eval()[:](batch), plain.to(memory_format=torch.channels_last)(batch)
        )
