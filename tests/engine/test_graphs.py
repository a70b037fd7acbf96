"""A recorded step does what the network does, and nothing is recorded that would not.

CUDA graphs need a GPU; on a CPU a step that computes anew, into the same memory each time as a
graph does, shows that all around it is right.
"""

import copy
import pickle
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fastai.basic_train import LearnerCallback
from torch import nn

import hcd
from hcd.engine import graphs
from hcd.engine.device import set_rng_seed
from hcd.engine.fast import FastModel
from hcd.engine.graphs import EAGER, Graphs

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class AnewStep:
    """Stands in for a CUDA graph: the same memory for inputs, outputs and gradients each time."""

    made = 0

    def __init__(self, model, images, parameters):
        AnewStep.made += 1
        self.compute, self.images, self.parameters = model._compute, images.clone(), parameters
        self.outputs, self.gradients = None, [torch.zeros_like(one) for one in parameters]

    def forward(self, images):
        self.images.copy_(images)
        with torch.set_grad_enabled(bool(self.parameters)):
            self.found = self.compute(self.images)
        if self.outputs is None:
            self.outputs = torch.empty_like(self.found)
        return self.outputs.copy_(self.found.detach())

    def backward(self, gradient):
        for kept, new in zip(
            self.gradients, torch.autograd.grad(self.found, self.parameters, gradient)
        ):
            kept.copy_(new)


@pytest.fixture
def recording(monkeypatch):
    """Record on the CPU too, and count from 0."""
    AnewStep.made = 0

    def record(model, device):
        if isinstance(model, FastModel):
            model.graphs = Graphs(AnewStep)

    monkeypatch.setattr(graphs, "record_steps", record)


def trained(sample, recipe, split, epochs=2, device="cpu", callback=None):
    """Return losses, weights and averaged predictions of a short training, stage 1 and 2."""
    set_rng_seed(0)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device=device)
    learner = hcd.get_learner(data, recipe)
    if device == "cpu":
        learner.callbacks.append(graphs.RecordedSteps(learner))
    learner.freeze()
    callbacks = [callback(learner)] if callback else []
    learner.fit_one_cycle(epochs, 1e-3, callbacks=callbacks)
    learner.unfreeze()
    learner.fit_one_cycle(epochs, slice(1e-5, 1e-4), callbacks=callbacks)
    return (
        [float(loss) for loss in learner.recorder.losses + learner.recorder.val_losses],
        {name: value.cpu().tolist() for name, value in learner.model.state_dict().items()},
        hcd.predict_tta(learner, 2, progress=False).tolist(),
    )


def test_a_training_by_recorded_steps_has_the_same_bits(
    sample, small_recipe, split, recording, monkeypatch
):
    recipe = replace(small_recipe, fast=True, batch_size=10)
    recorded = trained(sample, recipe, split, epochs=3)
    assert AnewStep.made >= 4  # stages 1 and 2, training and validation
    monkeypatch.setattr(graphs, "record_steps", lambda model, device: None)
    assert trained(sample, recipe, split, epochs=3) == recorded


class EverySecond(LearnerCallback):
    """Takes a step on the gradients of two batches."""

    def on_backward_end(self, iteration, **kwargs):
        return {"skip_step": iteration % 2 == 0}

    def on_step_end(self, iteration, **kwargs):
        return {"skip_zero": iteration % 2 == 0}


def test_gradients_of_several_batches_add_up(sample, small_recipe, split, recording, monkeypatch):
    recipe = replace(small_recipe, fast=True, batch_size=10)
    recorded = trained(sample, recipe, split, callback=EverySecond)
    assert AnewStep.made
    monkeypatch.setattr(graphs, "record_steps", lambda model, device: None)
    assert trained(sample, recipe, split, callback=EverySecond) == recorded


def small_model():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = FastModel(nn.Sequential(body, head))
    model.graphs = Graphs(AnewStep)
    return model


def test_each_kind_of_step_is_recorded_once_it_has_come_often_enough():
    model, images, AnewStep.made = small_model(), torch.randn(4, 3, 8, 8), 0
    for number in range(1, 6):
        model(images)
        assert AnewStep.made == int(number > EAGER)
    with torch.no_grad():
        [model(images) for _ in range(5)]
    assert AnewStep.made == 2
    model[0][0].weight.requires_grad_(False)  # FastModel's slices share its layers
    [model(images) for _ in range(5)]
    assert AnewStep.made == 3
    model.eval()
    [model(images[:3]) for _ in range(5)]
    assert AnewStep.made == 4


def test_a_network_with_hooks_is_not_recorded():
    model, images, seen = small_model(), torch.randn(4, 3, 8, 8), []
    [model(images) for _ in range(5)]
    hook = model[0].register_forward_hook(lambda *given: seen.append(1))
    [model(images) for _ in range(5)]
    assert len(seen) == 5
    hook.remove()
    before = AnewStep.made
    [model(images) for _ in range(5)]
    assert len(seen) == 5 and AnewStep.made == before


def test_outputs_outlive_the_next_step():
    model = small_model().eval()
    with torch.no_grad():
        given = [torch.randn(4, 3, 8, 8) for _ in range(5)]
        found = [model(images) for images in given]
        model.graphs = None
        assert all(torch.equal(model(one), other) for one, other in zip(given, found))


def test_a_step_is_recorded_on_other_tensors_in_the_parameters_memory(monkeypatch):
    """`CudaStep` itself, with a recorder in CUDA's place that does what it is told at once."""

    class Graph:
        def pool(self):
            return None

        def replay(self):
            pass

    @contextmanager
    def graph(recorded, **options):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model, images = small_model(), torch.randn(4, 3, 8, 8)
    model.graphs.record = graphs.CudaStep
    model[0][0].bias.requires_grad_(False)
    for _ in range(EAGER):
        model(images).sum().backward()
    before = [one.grad for one in model.parameters()]
    model(images).sum().backward()  # recorded with a gradient of zeros for the outputs
    (step,) = [kind.step for kind in model.graphs.kinds]
    trained = [one for one in model.parameters() if one.requires_grad]
    assert len(step.gradients) == len(step.parameters) == len(trained)
    assert all(not found.any() for found in step.gradients)
    assert all(
        one is None or torch.equal(one, two.grad) for one, two in zip(before, model.parameters())
    )


def test_without_memory_a_step_goes_on_unrecorded(capsys):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, images = small_model(), torch.randn(4, 3, 8, 8)
    model.graphs = Graphs(full)
    model.eval()
    assert torch.equal(model(images), [model(images) for _ in range(5)][-1])
    assert capsys.readouterr().err == (
        "a step on 4 crops cannot be recorded (CUDA out of memory); it goes on unrecorded, only"
        " slower\n"
    )


def gradients(model, *batches):
    """Return the parameters' gradients of a loss on several batches."""
    model.zero_grad()
    sum((place + 1) * model(one).pow(2).sum() for place, one in enumerate(batches)).backward()
    return [one.grad.clone() for one in model.parameters()]


def test_two_batches_in_one_loss_go_back_through_their_own_activations():
    model = small_model()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    [gradients(model, batches[0]) for _ in range(4)]
    assert AnewStep.made
    found = gradients(model, *batches)
    model.graphs = None
    assert all(map(torch.equal, found, gradients(model, *batches)))


def test_what_a_replay_cannot_go_back_through_again_is_refused():
    model, images = small_model(), torch.randn(4, 3, 8, 8)
    [gradients(model, images) for _ in range(4)]
    loss = model(images).sum()
    loss.backward(retain_graph=True)
    model(images).sum().backward()
    with pytest.raises(RuntimeError, match="a recorded step goes back only before"):
        loss.backward()


def test_gradients_that_somebody_waits_for_are_not_replayed(monkeypatch):
    model, images, seen = small_model(), torch.randn(4, 3, 8, 8), []
    [gradients(model, images) for _ in range(4)]
    kinds, replays = len(model.graphs.kinds), []
    step = model.graphs.kinds[0].step
    monkeypatch.setattr(step, "forward", replays.append)
    gradients(model, images.requires_grad_())
    assert images.grad.any()
    model[0][0].weight.register_hook(lambda gradient: seen.append(1))
    gradients(model, images.detach())
    assert seen == [1] and len(model.graphs.kinds) == kinds and not replays


def test_a_copy_of_a_model_does_not_record():
    model, images = small_model(), torch.randn(4, 3, 8, 8)
    [model(images) for _ in range(5)]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.graphs is None and torch.equal(other(images), other(images))


class Meddle(LearnerCallback):
    """Change the network between two epochs, or fail before the first."""

    def __init__(self, learn, how):
        super().__init__(learn)
        self.how, self.kept = how, []

    def on_train_begin(self, **kwargs):
        if self.how == "fail":
            raise ValueError("no fit today")

    def on_epoch_begin(self, epoch, **kwargs):
        self.kept.append(self.learn.model.graphs)
        if epoch == 1 and self.how == "dropout":
            self.learn.model[1][3].p = 0.9
        if epoch == 1 and self.how == "freeze":
            next(self.learn.model.parameters()).requires_grad_(False)


@pytest.mark.parametrize("how, count", [("nothing", 1), ("dropout", 2), ("freeze", 2)])
def test_a_network_that_is_changed_between_epochs_is_recorded_anew(
    sample, small_recipe, split, recording, how, count
):
    recipe = replace(small_recipe, fast=True, batch_size=10)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe)
    learner.callbacks.append(graphs.RecordedSteps(learner))
    meddle = Meddle(learner, how)
    meddle._order = -1000  # before the recording looks
    learner.fit(3, 1e-4, callbacks=[meddle])
    assert len({id(one) for one in (*meddle.kept,)}) == count and learner.model.graphs is None


def test_a_fit_that_fails_before_it_begins_leaves_no_recording(
    sample, small_recipe, split, recording
):
    recipe = replace(small_recipe, fast=True, batch_size=10)
    data = hcd.make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe)
    learner.callbacks.append(graphs.RecordedSteps(learner))
    with pytest.raises(ValueError, match="no fit today"):
        learner.fit(1, 1e-4, callbacks=[Meddle(learner, "fail")])
    assert learner.model.graphs is None


def test_decay_at_once_is_fastais(sample, small_recipe, split, monkeypatch):
    recipe = replace(small_recipe, fast=True)
    monkeypatch.setattr(graphs, "take_step", lambda optimiser, device: optimiser.step())
    ours = trained(sample, recipe, split, epochs=1)
    monkeypatch.setattr(graphs.DecayAtOnce, "on_backward_end", lambda self, **kwargs: {})
    assert trained(sample, recipe, split, epochs=1) == ours


@pytest.mark.parametrize("told", [{}, {"foreach": True}, {"fused": False}])
def test_a_step_on_a_cpu_is_fused_unless_the_optimiser_was_told_how(told):
    """What it was told stays in its groups, and so in what is saved."""
    start = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    ours, theirs = (torch.optim.Adam([one], 0.01, (0.9, 0.99), **told) for one in weights)
    steps = []
    ours.register_step_pre_hook(lambda *given: steps.append(ours.param_groups[0]["fused"]))
    for number in range(5):
        for one in weights:
            one.grad = torch.randn(50, 7, generator=torch.Generator().manual_seed(number))
        graphs.take_step(ours, torch.device("cpu"))
        theirs.step()
    assert steps == [told.get("fused", not told or None)] * 5
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert [{**one, "params": 0} for one in ours.state_dict()["param_groups"]] == [
        {**one, "params": 0} for one in theirs.state_dict()["param_groups"]
    ]


@pytest.mark.parametrize("gradients", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("moments", [torch.channels_last, torch.contiguous_format])
def test_gradients_and_moments_that_lie_otherwise_go_to_their_own_weights(gradients, moments):
    weights = []
    for step in (lambda optimiser: graphs.take_step(optimiser, torch.device("cpu")), None):
        torch.manual_seed(0)
        value = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
        weight = nn.Parameter(value)
        weight.grad = torch.randn(8, 4, 3, 3).to(memory_format=gradients)
        optimiser = torch.optim.Adam([weight], lr=0.1)
        mean, square = (torch.rand(8, 4, 3, 3).to(memory_format=moments) for _ in range(2))
        optimiser.state[weight] = dict(step=torch.tensor(3.0), exp_avg=mean, exp_avg_sq=square)
        step(optimiser) if step else optimiser.step()
        weights.append(weight.detach())
    torch.testing.assert_close(*weights)


def test_an_optimiser_without_fused_kernels_steps_as_ever():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimiser = torch.optim.RMSprop([weight], 0.01)
    graphs.take_step(optimiser, torch.device("cpu"))
    assert (weight < 1).all() and "fused" not in optimiser.param_groups[0]


def test_fastais_mixed_precision_trains_a_fast_learner(sample, small_recipe, split):
    """It gives the optimiser gradients after every other callback of fastai's."""
    data = hcd.make_databunch(sample, replace(small_recipe, fast=True), split[1], 0, "cpu")
    learner = hcd.get_learner(data, replace(small_recipe, fast=True)).to_fp16()
    steps, fit_step = [], torch.optim.Adam.step

    def step(optimizer, *given):
        steps.append(any(p.grad is not None for g in optimizer.param_groups for p in g["params"]))
        return fit_step(optimizer, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        learner.fit(1, 1e-3)
    assert any(steps)  # the first ones overflow


@cuda
@pytest.mark.parametrize("arch", ["resnet18", "densenet121"])
def test_on_a_gpu_a_training_by_recorded_steps_has_the_same_bits(
    sample, small_recipe, split, arch, monkeypatch
):
    recipe = replace(small_recipe, fast=True, batch_size=10, arch=arch)
    recorded = trained(sample, recipe, split, device="cuda")
    monkeypatch.setattr(graphs, "record_steps", lambda model, device: None)
    unrecorded = trained(sample, recipe, split, device="cuda")
    assert recorded[0] == unrecorded[0]
    assert recorded == unrecorded


@cuda
def test_on_a_gpu_every_batch_is_that_of_the_workers(sample, small_recipe, split):
    seen = []
    for where in (False, True):
        recipe = replace(small_recipe, fast=True, resident=where)
        data = hcd.make_databunch(sample, recipe, split[1], num_workers=2, device="cuda")
        seen.append([images.cpu().numpy().tobytes() for images, _ in data.train_dl])
    assert seen[0] == seen[1]
