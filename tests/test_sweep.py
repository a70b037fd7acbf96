"""Each range test starts from the same kind of fresh learner and really trains with its weight
decay."""

from dataclasses import replace

import pytest
import torch
from fastai.vision.learner import model_meta
from torch import nn

from hcd import get_learner, set_rng_seed, sweep, sweep_weight_decay
from hcd.engine.compat import fastai


def tiny_arch(pretrained=False):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


model_meta[tiny_arch] = {"cut": None, "split": lambda model: (model[1],)}


@pytest.fixture
def seeded(monkeypatch, databunch):
    """Give every learner of a sweep the same weights, patches and draws; return the learners that
    were built."""
    built = []

    def build(*args):
        start_again(databunch)
        built.append(get_learner(*args))
        return built[-1]

    monkeypatch.setattr(sweep, "get_learner", build)
    return built


def start_again(databunch):
    set_rng_seed(1)
    databunch.passes.count = 0


def run(databunch, recipe, folder, **changes):
    return sweep_weight_decay(databunch, replace(recipe, arch=tiny_arch, **changes), folder)


def test_equal_starts_and_different_weight_decays(databunch, small_recipe, tmp_path, seeded):
    none, again, strong = run(
        databunch, small_recipe, tmp_path, sweep_weight_decays=(0, 0.0, 0.5), sweep_iterations=8
    )
    assert none.losses == again.losses  # nothing of the first test is left in the second
    assert none.losses[0] == strong.losses[0]
    assert none.losses[-1] != strong.losses[-1]
    assert len({id(learner.model) for learner in seeded}) == 3


@pytest.mark.parametrize("iterations", [4, 7])  # an epoch has 5
def test_points_rise_evenly_from_1e_7_towards_10(databunch, small_recipe, tmp_path, iterations):
    curves = run(databunch, small_recipe, tmp_path, sweep_iterations=iterations)
    assert [curve.weight_decay for curve in curves] == list(small_recipe.sweep_weight_decays)
    for curve in curves:
        assert len(curve.lrs) == len(curve.losses) <= iterations
        assert curve.lrs == pytest.approx(
            [1e-7 * 1e8 ** (i / iterations) for i in range(len(curve.lrs))]
        )
        assert {type(value) for value in curve.lrs + curve.losses} == {float}  # as JSON wants them
    assert max(len(curve.losses) for curve in curves) == iterations


def test_weight_decay_reaches_the_optimiser(databunch, small_recipe, tmp_path, monkeypatch):
    seen = []

    class Spy(fastai.basic_train.LearnerCallback):
        def on_batch_end(self, **_):
            seen.append(self.learn.opt.wd)

    def build(*args):
        learner = get_learner(*args)
        learner.callback_fns.append(Spy)
        return learner

    monkeypatch.setattr(sweep, "get_learner", build)
    curves = run(databunch, small_recipe, tmp_path, sweep_weight_decays=(1e-6, 1e-2))
    assert seen == [1e-6] * len(curves[0].losses) + [1e-2] * len(curves[1].losses)


def test_first_loss_is_the_untrained_models(databunch, small_recipe, tmp_path, seeded):
    (curve,) = run(databunch, small_recipe, tmp_path, sweep_weight_decays=(1e-4,))
    start_again(databunch)
    learner = get_learner(databunch, replace(small_recipe, arch=tiny_arch))
    images, labels = next(iter(databunch.train_dl))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(learner.model.train()(images), labels)
    assert curve.losses[0] == pytest.approx(float(loss), rel=1e-5)


def test_diverging_test_stops_early(databunch, small_recipe, tmp_path, seeded):
    (curve,) = run(databunch, small_recipe, tmp_path, sweep_weight_decays=(0,), sweep_iterations=60)
    assert len(curve.losses) == len(curve.lrs) < 60
    assert curve.losses[-1] > 2 * min(curve.losses)


def test_temporary_weights_go_where_told(databunch, small_recipe, tmp_path):
    run(databunch, small_recipe, tmp_path / "there", sweep_weight_decays=(0,), sweep_iterations=2)
    assert [path.name for path in (tmp_path / "there" / "models").iterdir()] == ["tmp.pth"]


def test_one_bar_a_test_says_which_it_is(databunch, small_recipe, tmp_path, monkeypatch, capsys):
    opened, open_bar = [], sweep.progress_bar

    def spy(total, title):
        assert all(bar.disable for bar in opened)  # the one before is closed
        opened.append(open_bar(total, title))
        return opened[-1]

    monkeypatch.setattr(sweep, "progress_bar", spy)
    curves = run(databunch, small_recipe, tmp_path, sweep_weight_decays=(1e-6, 1e-4, 0.015))
    assert [bar.desc for bar in opened] == [
        "weight decay 1e-6 (1 of 3)",
        "weight decay 1e-4 (2 of 3)",
        "weight decay 1.5e-2 (3 of 3)",
    ]
    assert [bar.n for bar in opened] == [len(curve.losses) for curve in curves]
    assert "LR Finder" not in capsys.readouterr().out
