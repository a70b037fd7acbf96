"""The learner is fastai's cnn_learner: cut, head, groups, what is frozen; and it is refused before
it could fail."""

import random
from dataclasses import replace
from functools import partial
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from fastai.vision.learner import model_meta
from torch import nn

from hcd import Learner, Recipe, check_machine, get_learner, make_databunch, set_rng_seed
from hcd.learner import ShowGraph, accuracy, build_model, build_shapes, require_savable


def tiny_arch(pretrained=False):
    """An architecture of a user's own: two convolutions with a batch norm each; its "pretrained"
    weights are all 0.25."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    if pretrained:
        for layer in (model[0], model[3]):
            nn.init.constant_(layer.weight, 0.25)
    return model


model_meta[tiny_arch] = {"cut": None, "split": lambda model: (model[1],)}  # of no card's


@pytest.fixture
def tiny_learner(databunch, small_recipe, tmp_path):
    """Function of the recipe's changes that builds a learner on the tiny architecture."""
    return lambda **changes: get_learner(
        databunch, replace(small_recipe, arch=tiny_arch, **changes), tmp_path
    )


def is_norm(layer):
    return isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))


def test_walkthroughs_model_has_densenet169s_body_and_fastais_head():
    body, head = build_shapes(Recipe())
    # torchvision's 14,149,480 parameters less its classifier of 1664 x 1000 weights and 1000 biases
    assert sum(parameter.numel() for parameter in body.parameters()) == 14_149_480 - 1_665_000
    kinds = [
        "AdaptiveConcatPool2d",
        "Flatten",
        "BatchNorm1d",
        "Dropout",
        "Linear",
        "ReLU",
        "BatchNorm1d",
        "Dropout",
        "Linear",
    ]
    assert [type(layer).__name__ for layer in head] == kinds
    assert (head[4].in_features, head[4].out_features, head[8].out_features) == (2 * 1664, 512, 2)


def test_layer_groups_are_fastais_and_cover_every_layer_once(learner):
    groups = [
        sum(parameter.numel() for parameter in group.parameters()) for group in learner.layer_groups
    ]
    assert groups == [25632, 94784, 602080, 528898]
    assert sum(groups[:3]) == 1_235_496 - 513_000  # SqueezeNet 1.1 without its classifier
    in_groups = [id(p) for group in learner.layer_groups for p in group.parameters()]
    assert in_groups == [id(p) for p in learner.model.parameters()]


def test_parts_of_the_learner(learner, databunch):
    assert isinstance(learner, Learner)
    assert learner.data is databunch
    assert learner.metrics == [accuracy]
    assert ShowGraph in learner.callback_fns
    assert learner.model[1][-1].out_features == 2


def test_path_is_where_save_writes(tiny_learner, tmp_path):
    assert tiny_learner().save("here", return_path=True) == tmp_path / "models" / "here.pth"
    assert (tmp_path / "models" / "here.pth").is_file()


@pytest.mark.parametrize("given", [0.5, 0.2])
def test_head_dropout_is_halved_before_the_hidden_layer(tiny_learner, given):
    head = tiny_learner(head_dropout=given).model[1]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [given / 2, given]


def test_head_starts_kaiming_normal(learner):
    hidden = learner.model[1][4]
    # torch's own start has 0.018
    assert float(hidden.weight.detach().std()) == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert not hidden.bias.any()


def test_frozen_layers_still_train_their_batch_norms(tiny_learner):
    learner = tiny_learner(pretrained=True)
    body, head = learner.model
    free = {
        layer
        for layer in learner.model.modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    }
    assert free == {layer for layer in body if is_norm(layer)} | {
        layer for layer in head if list(layer.parameters())
    }
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.fit(1, 1e-2)
    after = learner.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == set(before) - {"0.0.weight", "0.3.weight"}  # all but the body's convolutions
    # whose biases fastai's weight decay of 1e-2 shrinks in each of the 5 steps
    for name in ("0.0.bias", "0.3.bias"):
        torch.testing.assert_close(after[name], before[name] * (1 - 1e-2 * 1e-2) ** 5)


def test_without_pretrained_weights_nothing_is_frozen(learner, tiny_learner):
    assert all(parameter.requires_grad for parameter in learner.model.parameters())
    assert all(parameter.requires_grad for parameter in tiny_learner().model.parameters())


def test_pretrained_reaches_a_callable(tiny_learner):
    assert (tiny_learner(pretrained=True).model[0][0].weight == 0.25).all()
    assert not (tiny_learner(pretrained=False).model[0][0].weight == 0.25).any()


def test_what_cannot_be_saved_is_refused_before_it_is_built(
    databunch, small_recipe, tmp_path, refused
):
    def own(pretrained):
        raise AssertionError("built")

    for arch, rule in (
        (own, "no card can name it"),
        (lambda pretrained: own(pretrained), "no card can name it"),
        (partial(torchvision.models.resnet18, progress=False), "no card can name it"),
        ("regnet_y_400mf", "cannot be made into body and head"),
        (torchvision.models.regnet_y_400mf, "'regnet_y_400mf' cannot be made into"),
    ):
        with refused(ValueError, rule):
            get_learner(databunch, replace(small_recipe, arch=arch), tmp_path)
        with refused(ValueError, rule):
            check_machine(replace(small_recipe, arch=arch), "cpu")


def test_the_check_draws_nothing(small_recipe):
    set_rng_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    require_savable(small_recipe)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_name_and_callable_build_the_same(databunch, small_recipe, learner, tmp_path):
    set_rng_seed(0)  # as the fixture `learner` was built by name
    other = get_learner(
        databunch, replace(small_recipe, arch=torchvision.models.squeezenet1_1), tmp_path
    )
    assert all(
        torch.equal(value, other.model.state_dict()[name])
        for name, value in learner.model.state_dict().items()
    )


def test_pretrained_weights_are_torchvisions(
    shared, databunch, small_recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights"))
    recipe = replace(small_recipe, pretrained=True)
    check_machine(recipe, "cpu")
    body = get_learner(databunch, recipe, tmp_path).model[0].state_dict()
    (file,) = (shared / "weights/hub/checkpoints").glob("squeezenet1_1-*.pth")
    published = torch.load(file, weights_only=True)
    published = {
        name.replace("features.", "0."): value
        for name, value in published.items()
        if name.startswith("features.")
    }
    assert set(body) == set(published) and len(body) == 50
    assert all(torch.equal(value, published[name]) for name, value in body.items())


def test_shapes_take_no_memory_and_are_the_models(small_recipe):
    shapes, model = (
        build_shapes(small_recipe).state_dict(),
        build_model(small_recipe)[0].state_dict(),
    )
    assert {value.device.type for value in shapes.values()} == {"meta"}
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in model.items()
    }


@pytest.mark.parametrize(
    "arch", ["vit_b_16", "vit_h_14", "mnasnet1_0", "maxvit_t", "shufflenet_v2_x1_0"]
)
def test_architecture_that_fastai_cannot_cut(arch):
    with pytest.raises(ValueError, match=f"arch='{arch}' cannot be .* such as densenet169"):
        check_machine(Recipe(arch=arch, pretrained=False), "cpu")


def test_model_that_could_not_be_saved_is_refused_before_training():
    with pytest.raises(ValueError, match="arch='regnet_y_400mf' cannot be .* choose another"):
        check_machine(Recipe(arch="regnet_y_400mf", pretrained=False), "cpu")


def test_unknown_architecture_names_the_nearest(databunch, small_recipe):
    for call in (check_machine, lambda recipe: get_learner(databunch, recipe)):
        with pytest.raises(
            ValueError, match=r"arch='densenet170' is no model .* did you mean .*densenet169"
        ):
            call(replace(small_recipe, arch="densenet170"))


@pytest.mark.parametrize(
    "arch, side", [("densenet169", 16), ("squeezenet1_1", 8), ("vgg11", 16), ("alexnet", 32)]
)
def test_a_crop_that_the_networks_pooling_leaves_nothing_of(
    sample, split, small_recipe, tmp_path, arch, side, refused
):
    recipe = replace(small_recipe, arch=arch, crop_size=side).plain()
    with refused(ValueError, arch, f"crop_size={side}", "larger crop_size"):
        check_machine(recipe, "cpu")
    check_machine(replace(recipe, crop_size=90), "cpu")
    data = make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    # the databunch's crops count, whatever the learner's recipe says
    with refused(ValueError, arch, f"crop_size={side}", "larger crop_size"):
        get_learner(data, replace(recipe, crop_size=90), tmp_path)


def test_no_such_device(small_recipe):
    check_machine(small_recipe, "cpu")
    with pytest.raises(ValueError, match="device='nonsense' cannot be used"):
        check_machine(small_recipe, "nonsense")


def test_no_pretrained_weights_to_be_had(databunch, small_recipe, tmp_path, monkeypatch):
    def offline(*_):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    recipe = replace(small_recipe, pretrained=True)
    for call in (check_machine, lambda recipe: get_learner(databunch, recipe)):
        with pytest.raises(
            FileNotFoundError, match="no pretrained weights for squeezenet1_1: .*pretrained=False"
        ):
            call(recipe)


@pytest.mark.parametrize("repeatable", [True, False])
def test_repeatable_kernels_stay_asked_for(small_recipe, monkeypatch, repeatable):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", repeatable)
    monkeypatch.setattr(cudnn, "benchmark", False)
    build_shapes(small_recipe)
    assert cudnn.benchmark is not repeatable  # fastai switches it on


def test_recipe_of_the_databunch_is_the_one_given(sample, small_recipe, split):
    data = make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")
    # what save_bundle writes on the card
    assert data.train_ds.x.recipe is data.valid_ds.x.recipe is small_recipe
