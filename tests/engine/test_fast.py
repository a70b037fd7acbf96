"""Fast mode: the same weights and names, computed in 16 bits, close to float32; and the loss scaler
of older GPUs."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from hcd import (
    get_heatmap,
    get_learner,
    load_bundle,
    load_export,
    make_databunch,
    predict_tta,
    save_bundle,
    set_rng_seed,
)
from hcd.engine.fast import FastModel, LossScaler, low_precision
from hcd.learner import build_model


def build(sample, recipe, split, folder):
    set_rng_seed(0)
    return get_learner(
        make_databunch(sample, recipe, split[1], num_workers=0, device="cpu"), recipe, folder
    )


@pytest.fixture(scope="module")
def pair(sample, small_recipe, split, tmp_path_factory):
    """A plain and a fast learner with the same weights, both untrained."""
    return [
        build(sample, replace(small_recipe, fast=fast), split, tmp_path_factory.mktemp("pair"))
        for fast in (False, True)
    ]


def test_same_weights_under_the_same_names(pair):
    plain, fast = (learner.model.state_dict() for learner in pair)
    assert list(plain) == list(fast) and all(
        torch.equal(value, fast[name]) for name, value in plain.items()
    )
    assert all(value.dtype == fast[name].dtype for name, value in plain.items())
    groups = [[len(list(group.parameters())) for group in learner.layer_groups] for learner in pair]
    assert groups[0] == groups[1]


def test_it_computes_in_16_bits_and_channels_last_and_answers_in_float32(pair):
    seen = []
    convolution = next(
        layer for layer in pair[1].model.modules() if isinstance(layer, torch.nn.Conv2d)
    )
    hook = convolution.register_forward_hook(
        lambda layer, taken, given: seen.append((taken[0], given))
    )
    # else its batch norms would remember the zeros
    logits = pair[1].model.eval()(torch.zeros(2, 3, 90, 90))
    hook.remove()
    assert logits.dtype == torch.float32 and seen[0][1].dtype == torch.bfloat16
    assert seen[0][0].is_contiguous(memory_format=torch.channels_last)
    assert (
        convolution.weight.is_contiguous(memory_format=torch.channels_last)
        and convolution.weight.dtype == torch.float32
    )


def test_a_part_of_it_is_a_plain_model_of_the_same_layers(pair):
    model = pair[1].model.eval()
    assert model[1] is list(model.children())[1]
    for part, names in ((model[:1], ["0"]), (model[1:], ["1"]), (model[:], ["0", "1"])):
        assert type(part) is torch.nn.Sequential and dict(part.named_children()) == {
            name: model[int(name)] for name in names
        }
    images = torch.zeros(2, 3, 90, 90)
    assert torch.equal(model[1:](model[:1](images)), model[:](images))


def test_predictions_are_close_to_float32(pair):
    plain, fast = (predict_tta(learner, 2, progress=False) for learner in map(unaugmented, pair))
    assert 0 < np.abs(plain - fast).max() < 0.05


def unaugmented(learner):
    for part in (learner.data.test_ds, learner.data.valid_ds):
        part.x.recipe = part.x.recipe.plain()
    return learner


@pytest.mark.parametrize("arch", ["densenet121", "resnet18"])
def test_gradients_point_the_same_way(small_recipe, arch):
    torch.manual_seed(0)
    plain, _ = build_model(replace(small_recipe, arch=arch, head_dropout=0.0))
    fast, _ = build_model(replace(small_recipe, arch=arch, head_dropout=0.0))
    fast.load_state_dict(plain.state_dict())
    images, labels = torch.randn(8, 3, 90, 90), torch.arange(8) % 2
    gradients = []
    for model in (plain, FastModel(fast)):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


def test_trained_fast_it_is_saved_as_any_model(sample, small_recipe, split, tmp_path):
    learner = build(sample, replace(small_recipe, fast=True), split, tmp_path)
    learner.fit_one_cycle(1, 1e-3)
    bundle = load_bundle(save_bundle(learner, tmp_path / "model"))
    assert type(bundle.model) is torch.nn.Sequential and bundle.recipe.fast
    assert all(
        torch.equal(value, learner.model.state_dict()[name])
        for name, value in bundle.model.state_dict().items()
    )
    learner.save("fast")
    plain = build(sample, small_recipe, split, tmp_path).load("fast", with_opt=False)
    assert all(
        torch.equal(value, learner.model.state_dict()[name])
        for name, value in plain.model.state_dict().items()
    )


def test_heatmaps_come_in_float32(pair):
    heatmap, gray = get_heatmap(pair[1], 0)
    assert heatmap.dtype == np.float32 and np.isfinite(heatmap).all() and gray.shape == (90, 90)


def test_validation_runs_in_the_same_mode(pair):
    seen = []
    convolution = next(
        layer for layer in pair[1].model.modules() if isinstance(layer, torch.nn.Conv2d)
    )
    hook = convolution.register_forward_hook(
        lambda layer, taken, given: seen.append((layer.training, given.dtype))
    )
    pair[1].validate()
    hook.remove()
    assert seen == [(False, torch.bfloat16)] * 2


def test_which_16_bits(monkeypatch):
    assert low_precision(torch.device("cpu")) == torch.bfloat16
    asked = []

    @contextmanager
    def current(device):
        asked.append(device)
        yield
        asked.append(None)

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: asked[-1] == torch.device("cuda:1"),
    )
    assert (
        low_precision(torch.device("cuda:1")) == torch.bfloat16
        and low_precision(torch.device("cuda:0")) == torch.float16
    )
    assert low_precision(torch.device("mps")) == torch.float16


@pytest.mark.long
def test_float16_trains_with_a_scaled_loss_and_skips_steps_that_overflow(
    sample, small_recipe, split, tmp_path, float16
):
    learner = build(sample, replace(small_recipe, fast=True), split, tmp_path)
    (scaler,) = [callback for callback in learner.callbacks if isinstance(callback, LossScaler)]
    assert scaler.scaler.get_scale() == 65536
    before = learner.model[1][4].weight.clone()
    # torch 2.6 skips the first five steps, whose scale is too large for it
    learner.fit_one_cycle(2, 1e-3)
    assert not torch.equal(before, learner.model[1][4].weight)
    # recorded before it is scaled
    assert all(0 < float(loss) < 10 for loss in learner.recorder.losses)
    scaler.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)  # any gradient overflows
    before = {name: value.clone() for name, value in learner.model.named_parameters()}
    steps = [state["step"] for state in learner.opt.state_dict()["state"].values()]
    learner.fit(1, 1e-3)
    after = [state["step"] for state in learner.opt.state_dict()["state"].values()]
    assert scaler.scaler.get_scale() < 2.0**120 and max(after) == max(steps)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.named_parameters())


def test_a_range_test_leaves_the_scale_as_it_was(sample, small_recipe, split, tmp_path, float16):
    learner = build(sample, replace(small_recipe, fast=True), split, tmp_path)
    (scaler,) = [callback for callback in learner.callbacks if isinstance(callback, LossScaler)]
    # as a rate of 10 does, which makes gradients overflow
    scaler.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    learner.lr_find(num_it=2)
    assert scaler.scaler.get_scale() == 65536


@pytest.mark.parametrize("mode", ["bfloat16", "float16"])
def test_a_fast_learners_export_predicts_what_it_predicts(
    sample, small_recipe, split, tmp_path, request, mode
):
    if mode == "float16":
        request.getfixturevalue("float16")
    learner = build(sample, replace(small_recipe, fast=True), split, tmp_path)
    learner.fit_one_cycle(1, 1e-3)
    with open(tmp_path / "export.pkl", "wb") as file:
        learner.export(file)
    loaded = load_export(tmp_path / "export.pkl", trust=True)
    assert type(loaded.model) is FastModel and any(
        isinstance(callback, LossScaler) for callback in loaded.callbacks
    ) == (mode == "float16")
    image = learner.data.valid_ds[0][0]
    assert torch.equal(loaded.predict(image)[2], learner.predict(image)[2])
