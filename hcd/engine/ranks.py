"""Several processes, on one machine or more, that work as one; torchrun starts them.

One process alone is rank 0 of 1 and needs neither torch nor a group for what is here, so that the
rest of hcd calls these functions without asking.
"""

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..disk.whole import shorten
from ..errors import InputError

# what one rank may do while the others wait, such as reading all patches; a rank that is dead is
# found by `Watch` long before
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun has started: `rank` of `world`, the `device` that it
    should compute on, None to choose, and `local` of `neighbours`, its number among those of its
    machine."""

    rank: int = 0
    world: int = 1
    device: str | None = None
    local: int = 0
    neighbours: int = 1


_joined: list[Ranks] = []  # what this process belongs to now


def launched() -> Ranks:
    """Return what torchrun has told this process; one process alone otherwise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return Ranks()
    import torch

    here, neighbours = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # on a machine with fewer GPUs than processes some of them share one
    device = f"cuda:{here % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Ranks(rank, world, device, here, neighbours)


def current() -> Ranks:
    """Return what this process belongs to now; one process alone outside `joined`."""
    return _joined[-1] if _joined else Ranks()


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Have this process work with the others of its world.

    Raises:
        InputError: they cannot be reached.
    """
    import torch.distributed as group

    # fastai takes these two for its own way of distributing: it would average metrics without
    # weights, and run lr_find to its end whatever the loss
    hidden = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    try:
        group.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = shorten(" ".join(str(error).split()), 120).rstrip(".")
        raise InputError(
            f"the ranks cannot meet at {place}, which may be in use ({reason}); give torchrun"
            " another --master-port, or --standalone on a single machine"
        ) from error
    for name in hidden:
        del os.environ[name]
    _joined.append(ranks)
    try:
        yield
        group.barrier()
        group.destroy_process_group()
    finally:
        # after an error the others may be in the midst of something, and nobody waits for them
        _joined.remove(ranks)
        os.environ.update(hidden)


def is_first() -> bool:
    """Return whether this is the rank that writes, draws and prints; of one process it is."""
    return current().rank == 0


def on_first(function: Callable[[], Any]) -> Any:
    """Return on every rank what `function` returns on rank 0, where alone it is called; what it
    draws from Python's, numpy's and torch's generators is drawn on every rank."""
    ranks = current()
    if ranks.world == 1:
        return function()
    import numpy as np
    import torch
    import torch.distributed as group

    answer: list = [None]
    if ranks.rank == 0:
        result = function()
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        answer = [(result, *states)]
    group.broadcast_object_list(answer)
    result, python, numpy_state, torch_state = answer[0]
    random.setstate(python)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    return result


def agree(**facts: Any) -> None:
    """Require every rank to have the same facts.

    Args:
        facts: what JSON could hold, by its name in words; None is no fact and agrees with all.
    Raises:
        InputError: two ranks differ; names them and the first fact.
    """
    if current().world == 1:
        return
    import torch.distributed as group

    found: list = [None] * current().world
    group.all_gather_object(found, facts)
    for rank, theirs in enumerate(found):
        for name, ours in found[0].items():
            if theirs[name] not in (None, ours):
                words = name.replace("_", " ")
                was, now = (shorten(str(value), 80) for value in (ours, theirs[name]))
                raise InputError(
                    f"rank 0 has {words} {was} and rank {rank} {now}; give all ranks the same data,"
                    " recipe, device and hcd"
                )


def gathered(values: Any) -> Any:
    """Return the rows of every rank's tensor, rank 0's first; all have equally many."""
    if current().world == 1:
        return values
    import torch
    import torch.distributed as group

    mine = values.detach().cpu().contiguous()
    parts = [torch.empty_like(mine) for _ in range(current().world)]
    group.all_gather(parts, mine)
    return torch.cat(parts).to(values.device)


def in_rounds(
    ranks: Ranks, work: Callable[[Sequence], Iterator], items: Sequence[str], size: int
) -> Iterator[Any]:
    """Yield `work(items)` in order on the first rank, and nothing on the others; each rank does the
    `size` items that are its own in each round.

    Raises:
        InputError: the ranks have other items.
    """
    import torch.distributed as group

    group.init_process_group("gloo")
    try:
        _require_equal(group, ranks, items)
        a_round = ranks.world * size
        for start in range(0, len(items), a_round):
            first = start + ranks.rank * size
            mine = list(work(items[first : first + size]))
            parts: list = [()] * ranks.world
            group.gather_object(mine, parts if ranks.rank == 0 else None)
            for part in parts:
                yield from part
    finally:
        group.destroy_process_group()


def _require_equal(group, ranks, items):
    """Require every rank, maybe on another machine, to have the same list."""
    digest = hashlib.sha256("\0".join(items).encode("utf-8", "surrogateescape")).hexdigest()
    found = [None] * ranks.world
    group.all_gather_object(found, (len(items), digest))
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            raise InputError(
                f"rank 0 sees {found[0][0]} images and rank {rank} {theirs[0]}, or others; give all"
                " machines the same files under the same names"
            )
