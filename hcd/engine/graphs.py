"""CUDA graphs: a network's kernels recorded once and launched together.

DenseNet-169 takes 3,900 launches a training step, and Python takes longer to give them than a GPU
to do them. A graph does the same kernels on the same memory, so no number changes; what it cannot
do is run Python again, so a network with hooks is not recorded.
"""

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fastai.basic_train import LearnerCallback
from torch import nn
from torch.func import functional_call

from .dense import is_watched
from .fast import FastModel

EAGER = 2  # calls of one kind that go before its recording: cuDNN picks its kernels in them


@dataclass
class _Kind:
    """Calls with one shape of batch and one state of the network, how many there were, and their
    recorded step."""

    batch: tuple
    state: list
    seen: int = 0
    step: Any = None
    last: Callable = lambda: None  # its last replay, which autograd may still go back through


class Graphs:
    """The recorded steps of one network, by the shape of the batch and by what it trains.

    Args:
        record: makes a step of (model, images, parameters); None records CUDA graphs.
    """

    def __init__(self, record: Callable | None = None) -> None:
        self.record = record or CudaStep
        self.modules: list = []
        self.recording = False
        self.kinds: list[_Kind] = []

    def __reduce__(self):  # a recording holds for one copy of the weights, on one device
        return type(None), ()

    def __call__(self, model: nn.Module, compute: Callable, images: torch.Tensor) -> torch.Tensor:
        """Return what `compute(images)` returns, by a recorded step where there is one.

        Args:
            model: the network that computes; its weights, modes and hooks tell whether a recorded
                step still holds. compute: function of images alone. images: (B, 3, H, W).
        """
        if self.recording:
            return compute(images)
        if not self.modules:
            self.modules, self.parameters = list(model.modules()), list(model.parameters())
            self.buffers = list(model.buffers())
        hooked = any(map(is_watched, self.modules)) or any(map(_is_heard, self.parameters))
        if hooked or images.requires_grad:
            return compute(images)
        training = torch.is_grad_enabled()
        kind = self._kind(images, training)
        kind.seen += 1
        if kind.seen <= EAGER:
            return compute(images)
        if kind.seen == EAGER + 1:
            trained = [one for one in self.parameters if training and one.requires_grad]
            kind.step = self._recorded(model, images, trained)
        step = kind.step
        if step is None:
            return compute(images)
        if not training:
            return step.forward(images).clone()
        earlier = kind.last()
        if earlier is not None and not earlier.done:
            return compute(images)  # a replay would overwrite what its way back needs
        # autograd goes back through what has an input that wants a gradient
        return _Replayed.apply(images, torch.ones((), requires_grad=True), kind)

    def _kind(self, images, training):
        """Return what is known of calls like this one; compared, for to hash a thousand numbers
        takes longer."""
        batch = (images.shape, images.dtype, training)
        state = [one.training for one in self.modules]
        state += [one.requires_grad for one in self.parameters]
        state += [one.data_ptr() for one in self.parameters]
        state += [one.data_ptr() for one in self.buffers]
        for kind in self.kinds:
            if kind.batch == batch and kind.state == state:
                return kind
        self.kinds.append(_Kind(batch, state))
        return self.kinds[-1]

    def _recorded(self, model, images, parameters):
        """Return a recorded step, or None where it cannot be had."""
        self.recording = True
        try:
            return self.record(model, images, parameters)
        except RuntimeError as error:  # such as no memory
            reason = " ".join(str(error).splitlines()[:1])[:160]
            print(
                f"a step on {len(images)} crops cannot be recorded ({reason}); it goes on"
                " unrecorded, only slower",
                file=sys.stderr,
            )
            return None
        finally:
            self.recording = False


def _is_heard(parameter):
    """Say whether Python is to be run when a parameter gets its gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


class _Replayed(torch.autograd.Function):
    """A recorded step, as autograd sees it; it puts the weights' gradients in their place
    itself."""

    @staticmethod
    def forward(ctx, images, anchor, kind):
        ctx.kind, ctx.done = kind, False
        kind.last = weakref.ref(ctx)
        return kind.step.forward(images).clone()

    @staticmethod
    def backward(ctx, *gradients):
        step, ctx.done = ctx.kind.step, True
        if ctx.kind.last() is not ctx:
            raise RuntimeError("a recorded step goes back only before the next one is taken")
        # what is there where somebody gathers the gradients of several batches; copied, for it may
        # be the memory that the step writes to
        earlier = [None if one.grad is None else one.grad.clone() for one in step.parameters]
        step.backward(gradients[0])
        for one, found, before in zip(step.parameters, step.gradients, earlier):
            if found is not None:
                one.grad = found if before is None else before.add_(found)
        return None, None, None


class CudaStep:
    """One forward and, where there are parameters to train, one backward pass as CUDA graphs."""

    def __init__(self, model, images, parameters):
        torch.cuda.empty_cache()  # a graph has memory of its own
        self.images, self.parameters = images.clone(), parameters
        # other tensors in the same memory: autograd has bound the parameters themselves to the
        # stream of earlier steps, and a recording may not wait for another stream
        alias = {id(one): one.detach().requires_grad_(one.requires_grad) for one in parameters}
        bound = {name: alias.get(id(one), one) for name, one in model.named_parameters()}
        # loaders have threads of their own, which may use the GPU meanwhile
        mode = {"capture_error_mode": "thread_local"}
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, **mode):
            outputs = functional_call(model, bound, (self.images,))
        self.outputs = outputs.detach()
        if not parameters:
            return
        self.back, self.gradient = torch.cuda.CUDAGraph(), torch.zeros_like(outputs)
        with torch.cuda.graph(self.back, pool=self.graph.pool(), **mode):
            self.gradients = torch.autograd.grad(
                outputs, list(alias.values()), self.gradient, allow_unused=True
            )

    def forward(self, images):
        """Return the outputs; the next call overwrites them."""
        self.images.copy_(images)
        self.graph.replay()
        return self.outputs

    def backward(self, gradient):
        """Compute the `gradients` of the parameters, given that of the outputs."""
        self.gradient.copy_(gradient)
        self.back.replay()


@contextmanager
def recorded(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a fast model record its steps on a GPU while the context is open."""
    record_steps(model, device)
    try:
        yield
    finally:
        forget_steps(model)


def record_steps(model: nn.Module, device: torch.device) -> None:
    """Have a fast model record its steps on a GPU; any other stays as it is."""
    if isinstance(model, FastModel) and device.type == "cuda":
        model.graphs = Graphs()


def forget_steps(model: nn.Module) -> None:
    """Give the recordings' memory back."""
    if isinstance(model, FastModel):
        model.graphs = None


class RecordedSteps(LearnerCallback):
    """Record the steps of each fit."""

    def on_train_begin(self, **kwargs):
        """Begin to record."""
        self.made_of = _made_of(self.learn.model)
        record_steps(self.learn.model, self.learn.data.device)

    def on_epoch_begin(self, **kwargs):
        """Begin anew where somebody has changed the network, such as its layers or a dropout; a
        recording holds all of it."""
        if self.made_of != _made_of(self.learn.model):
            self.on_train_begin()

    def on_train_end(self, **kwargs):
        """Stop it."""
        forget_steps(self.learn.model)


def _made_of(model):
    """Return what a recording takes for given and no call looks at: which layers there are, their
    numbers, and which weights are trained."""
    numbers = ("p", "momentum", "eps")
    layers = [(id(one), *(getattr(one, name, None) for name in numbers)) for one in model.modules()]
    return layers, [one.requires_grad for one in model.parameters()]


class DecayAtOnce(LearnerCallback):
    """Decay all weights of a layer group in one launch, where fastai's optimiser decays one after
    the other, and step."""

    _order = math.inf  # after whatever changes gradients, such as fastai's MixedPrecision

    def on_backward_end(self, skip_step, **kwargs):
        """Take fastai's step, unless another callback has taken it or wants none."""
        if skip_step:
            return {}
        wrapper = self.learn.opt
        if wrapper.true_wd:
            groups = wrapper.opt.param_groups
            with torch.no_grad():
                for lr, wd, weights, norms in zip(
                    wrapper._lr, wrapper._wd, groups[::2], groups[1::2]
                ):
                    decayed = weights["params"] + (norms["params"] if wrapper.bn_wd else [])
                    if decayed:
                        torch._foreach_mul_(decayed, 1 - wd * lr)
            wrapper.set_val("weight_decay", [0] * len(wrapper._wd))
        take_step(wrapper.opt, self.learn.data.device)
        return {"skip_step": True}


def take_step(optimiser, device):
    """Take an optimiser's step; on a CPU fused, which is three times as fast, unless it was told
    how. What is saved does not say so, for it may be loaded on another machine."""
    groups = optimiser.param_groups if device.type == "cpu" else []
    # None leaves it to torch; an optimiser without such kernels has no such key
    free = [one for one in groups if one.get("fused", 0) is one.get("foreach", 0) is None]
    free = [one for one in free if _lies_alike(one["params"], optimiser.state)]
    for one in free:
        one["fused"] = True
    try:
        optimiser.step()
    finally:
        for one in free:
            one["fused"] = None


def _lies_alike(weights, state):
    """Say whether gradients and moments lie in memory as their weights do. Fused kernels take that
    for given and would mix up others, such as a plain learner's moments loaded into a fast one."""
    pairs = (
        (weight, one)
        for weight in weights
        for one in (weight.grad, *state.get(weight, {}).values())
        if isinstance(one, torch.Tensor) and one.dim()  # a count of steps has no axes
    )
    return all(
        one.stride() == weight.stride()
        or (one.is_contiguous() and weight.is_contiguous())  # of an axis of length 1 none counts
        for weight, one in pairs
    )
