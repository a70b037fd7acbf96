"""A fit of the whole network ends on the mean of its weights over the last epoch, and no other fit
does."""

from dataclasses import replace

import pytest
import torch
from fastai.basic_train import LearnerCallback

import hcd
from hcd.engine.device import set_rng_seed


class Weights(LearnerCallback):
    """Note the weights after every step, before they are replaced, and at each epoch's end."""

    _order = -100

    def on_train_begin(self, **kwargs):
        self.steps, self.ends = [], []

    def values(self):
        state = self.learn.model.state_dict()
        return {name: one.clone() for name, one in state.items() if one.is_floating_point()}

    def on_step_end(self, epoch, **kwargs):
        self.steps.append((epoch, self.values()))

    def on_epoch_end(self, **kwargs):
        self.ends.append(self.values())


def trained(sample, recipe, split, frozen=False):
    set_rng_seed(0)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe)
    (learner.freeze if frozen else learner.unfreeze)()
    seen = Weights(learner)
    learner.fit_one_cycle(2, 1e-3, callbacks=[seen])
    return learner, seen


@pytest.mark.parametrize("fast", [False, True])
def test_the_last_epochs_mean(sample, small_recipe, split, fast):
    recipe = replace(small_recipe, fast=fast, mean_weights=True, batch_size=10)
    learner, seen = trained(sample, recipe, split)
    last = [weights for epoch, weights in seen.steps if epoch == 1]
    assert len(last) == len(learner.data.train_dl) == 4
    for name, found in seen.ends[1].items():  # batch norms' running values too
        expected = torch.stack([weights[name].double() for weights in last]).mean(0)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    # an epoch that is not the last ends on its last step
    before = [weights for epoch, weights in seen.steps if epoch == 0][-1]
    assert all(torch.equal(seen.ends[0][name], before[name]) for name in before)
    state = learner.model.state_dict()
    assert all(torch.equal(state[name], one) for name, one in seen.ends[1].items())


def test_frozen_layers_and_a_recipe_without_it_end_on_the_last_step(sample, small_recipe, split):
    recipe = replace(small_recipe, batch_size=10)
    for changed, frozen in ((recipe, False), (replace(recipe, mean_weights=True), True)):
        _, seen = trained(sample, changed, split, frozen)
        last = seen.steps[-1][1]
        assert all(torch.equal(seen.ends[1][name], last[name]) for name in last)


def test_training_itself_is_the_same(sample, small_recipe, split):
    recipe = replace(small_recipe, batch_size=10)
    plain, mean = (
        trained(sample, replace(recipe, mean_weights=on), split)[0] for on in (False, True)
    )
    assert [float(loss) for loss in plain.recorder.losses] == [
        float(loss) for loss in mean.recorder.losses
    ]
    assert plain.recorder.val_losses[0] == mean.recorder.val_losses[0]
    assert plain.recorder.val_losses[1] != mean.recorder.val_losses[1]


def test_a_range_test_leaves_the_weights_as_they_were(sample, small_recipe, split, tmp_path):
    recipe = replace(small_recipe, mean_weights=True, batch_size=10)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe, tmp_path)  # it saves the weights for a while
    learner.unfreeze()
    before = {name: one.clone() for name, one in learner.model.state_dict().items()}
    learner.lr_find(num_it=8, stop_div=False)
    after = learner.model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
