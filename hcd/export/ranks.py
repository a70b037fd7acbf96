"""Several processes, on one machine or more, that share a list; torchrun starts them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun has started: `rank` of `world`, and the `device` that
    it should compute on, None to choose."""

    rank: int = 0
    world: int = 1
    device: str | None = None


def launched() -> Ranks:
    """Return what torchrun has told this process; one process alone otherwise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return Ranks()
    import torch

    here = int(os.environ["LOCAL_RANK"])
    # on a machine with fewer GPUs than processes some of them share one
    device = f"cuda:{here % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


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
