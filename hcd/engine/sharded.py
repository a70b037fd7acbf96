"""One training on several ranks: each reads and computes its share of every batch, so that together
they see what one process would.

Outside `ranks.joined` there is one rank, and nothing here changes anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.utils.data import Sampler

from ..errors import InputError
from .compat import fastai
from .given import unwrapped
from .ranks import PATIENCE, current, gathered, on_first

_gpu_groups: list = []  # of this process; one serves all fits


def require_shareable(recipe: Any) -> None:
    """Require a recipe whose batches can be shared by the ranks.

    Raises:
        InputError: its draws are no function of pass and index, or its batches leave a rest.
    """
    world = current().world
    if world > 1 and recipe.rng_seed is None:
        raise InputError(
            f"rng_seed=None would have each of {world} ranks draw otherwise; give one, such as"
            " --rng-seed 0"
        )
    if recipe.batch_size % world:
        raise InputError(
            f"batch_size={recipe.batch_size} cannot be shared by {world} ranks; give a multiple of"
            f" {world}, such as {recipe.batch_size // world * world or world}"
        )


class _Share(Sampler):
    """This rank's part of each batch that another sampler's items make, `batch_size` of them for
    each rank; a last batch is shared too, its last item repeated so that all ranks have as many."""

    def __init__(self, sampler, batch_size, drop_last):
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __getattr__(self, name):
        if name == "sampler":  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __len__(self):
        whole, rest = divmod(len(self.sampler), self.batch_size * current().world)
        last = 0 if self.drop_last else -(-rest // current().world)
        return whole * self.batch_size + last

    def __iter__(self):
        ranks, items = current(), iter(self.sampler)
        while batch := list(islice(items, self.batch_size * ranks.world)):
            if self.drop_last and len(batch) < self.batch_size * ranks.world:
                return
            size = -(-len(batch) // ranks.world)
            mine = batch[ranks.rank * size : (ranks.rank + 1) * size]
            yield from mine + batch[-1:] * (size - len(mine))


def shared(sampler: Any, batch_size: int, drop_last: bool = False) -> Any:
    """Return a sampler of this rank's share of each batch.

    Args:
        sampler: of all items, the same on every rank. batch_size: of this rank, see `own_batch`.
        drop_last: leave out a last batch that is not full.
    """
    return sampler if current().world == 1 else _Share(sampler, batch_size, drop_last)


def own_batch(batch_size: int) -> int:
    """Return how many items of a batch are this rank's."""
    return batch_size // current().world


def whole_labels(loader: Any, batches: Iterator) -> Iterator:
    """Return a loader's batches, those of evaluation with the labels of the whole batch beside this
    rank's images; labels need no reading, and `AcrossRanks` brings the outputs of all."""
    return batches if current().world == 1 or loader.drop_last else _labelled(loader, batches)


def _labelled(loader, batches):
    size, labels = loader.batch_size * current().world, loader.dataset.y
    for number, (images, _) in enumerate(batches):
        places = range(number * size, min((number + 1) * size, len(loader.dataset)))
        yield images, loader.collate_fn([labels[place] for place in places])


class AcrossRanks(fastai.basic_train.LearnerCallback):
    """Shows losses and metrics the whole batch in evaluation, and keeps the ranks' dropout
    apart."""

    _order = -30  # before all that reads an output or a loss

    def on_loss_begin(self, last_output, last_target, train, **kwargs):
        """Gather the outputs of all ranks where the labels are those of all; of a batch of one,
        each rank has computed the same output."""
        if train or len(last_output) == len(last_target):
            return None
        return {"last_output": gathered(last_output)[: len(last_target)]}

    def on_epoch_begin(self, **kwargs):
        """Seed each rank's dropout by pass and rank; rank 0's goes on as without other ranks."""
        passes, rank = self.learn.data.passes, current().rank
        if rank and self.learn.model.training:
            torch.manual_seed(passes.rng(passes.count, -1 - rank).getrandbits(63))

    def on_train_end(self, exception=False, **kwargs):
        """Do nothing more after an error, for the other ranks may know of none."""
        if exception:
            raise exception


def across_ranks(learner: Any) -> list:
    """Return the callbacks that a learner needs: none where one process is alone."""
    return [] if current().world == 1 else [AcrossRanks(learner)]


@contextmanager
def in_step(learner: Any) -> Iterator[None]:
    """Have the ranks take each step of a fit together: gradients and losses are averages over all.

    On GPUs batch norms count the whole batch; on CPUs torch has none that do, and each counts its
    rank's share.
    """
    if current().world == 1:
        yield
        return
    model, loss, weights = learner.model, learner.loss_func, next(learner.model.parameters())
    on_gpu, group = weights.is_cuda, _group(weights.is_cuda)
    swapped = _synchronised(model, group) if on_gpu else []
    learner.model = nn.parallel.DistributedDataParallel(
        model, [weights.device] if on_gpu else None, process_group=group
    )
    learner.loss_func = _MeanLoss(loss)
    try:
        yield
        for values in unwrapped(model).buffers():
            torch.distributed.broadcast(values, 0, group)
        on_first(lambda: None)  # every generator is rank 0's again
    finally:
        learner.model, learner.loss_func = model, loss
        _give_back(swapped, model)


def _group(on_gpu):
    """Return the group that exchanges gradients: NCCL's of the GPUs, else the one that was
    joined."""
    if not on_gpu:
        return torch.distributed.group.WORLD
    if not _gpu_groups:
        _gpu_groups.append(torch.distributed.new_group(backend="nccl", timeout=PATIENCE))
    return _gpu_groups[0]


def _synchronised(model, group):
    """Put batch norms of all ranks in the place of a model's own, with the very same tensors;
    returns (parent, name, layer) of each that was there."""
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    ]
    for parent, name, layer in found:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer, group))
    return found


def _give_back(swapped, model):
    """Put a model's own batch norms in their places again."""
    for parent, name, layer in swapped:
        layer.train(model.training)
        setattr(parent, name, layer)


class _MeanLoss:
    """A loss whose value is the mean over all ranks' shares; its gradient stays that of the share,
    for gradients are averaged by themselves."""

    def __init__(self, loss):
        self.own = loss

    def __getattr__(self, name):
        return getattr(self.__dict__["own"], name)

    def __call__(self, outputs, *targets, **options):
        loss = self.own(outputs, *targets, **options)
        return _Mean.apply(loss) if loss.requires_grad else loss


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return gathered(loss.reshape(1)).mean()

    @staticmethod
    def backward(ctx, gradient):
        return gradient
