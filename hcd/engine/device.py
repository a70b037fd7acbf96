"""The device that computes, and the generators that draw."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError


def find_device(device: Any = None) -> torch.device:
    """Return the torch device to use; None takes a GPU when there is one.

    One kernel is run on it: torch counts a GPU that it has no kernels for, such as a P100 today, as
    available, and dies at the first operation.

    Raises:
        InputError: no such device here, or one that cannot compute.
    """
    if device is None and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        wanted = torch.device("cuda" if device is None else device)
        if wanted.type == "meta" or (wanted.type == "cpu" and wanted.index not in (None, 0)):
            raise RuntimeError("it holds no values of its own")
        float(torch.ones(1, device=wanted).add_(1))
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError) as error:
        reason = " ".join(str(error).splitlines()[:1]).split(". ")[0].rstrip(".")[:120]
        given = f"device={str(device)!r}" if device is not None else "the default device"
        raise InputError(
            f"{given} cannot be used here{_gpu_in_words(device)} ({reason}); use"
            ' "cpu" (--device cpu) or another device'
        ) from error
    return wanted


def _gpu_in_words(device):
    """Return name and capability of the GPU that was asked for, where there is one."""
    if not torch.cuda.is_available() or not str("cuda" if device is None else device).startswith(
        "cuda"
    ):
        return ""
    number = torch.device("cuda" if device is None else device).index or 0
    if number >= torch.cuda.device_count():
        return ""
    major, minor = torch.cuda.get_device_capability(number)
    return f", a {torch.cuda.get_device_name(number)} of capability {major}.{minor}"


def set_rng_seed(rng_seed: int | None) -> None:
    """Seed Python's, numpy's and torch's generators, and ask cuDNN for repeatable kernels; None
    leaves all as they are.

    A databunch that was made by a recipe with an rng_seed counts its own passes, see `Passes`: make
    it anew to repeat them.

    CHANGED C16: the walkthrough seeds nothing, so no two of its runs agree.
    """
    if rng_seed is None:
        return
    random.seed(rng_seed)
    np.random.seed(rng_seed)
    torch.manual_seed(rng_seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches that torch has each worker read ahead
DRAW_BYTES = 8 * 8  # of a patch's row and draw, see `resident.ResidentItems`
FILES_A_WORKER = 4 + 2 * PREFETCHED  # its pipes, and one for each tensor of a batch
FILES_BESIDE = 32  # that are opened later: packs, CSV files, devices


def require_room_for_workers(
    num_workers: int, batch_size: int, side: int, loaders: int = 1, resident: bool = False
) -> None:
    """Require the shared memory and the open files that reading processes take.

    Without them a worker dies amid an epoch of "Bus error" or "Too many open files".

    Args:
        num_workers: processes of one loader; 0 needs nothing. batch_size, side: of the batches that
            they hand over, (batch_size, 3, side, side) float32. loaders: how many are at work at
            once. resident: they hand over a row and a draw of each patch in the place of its crop.
    Raises:
        InputError: names what is there, what is needed and the way round.
    """
    if num_workers < 0:
        raise InputError(f"num_workers={num_workers} is no number of processes; give 0 or more")
    if not num_workers:
        return
    remedy = "give fewer num_workers (0 reads in this process)"
    in_flight = loaders * num_workers * PREFETCHED
    needed = in_flight * batch_size * (DRAW_BYTES if resident else 3 * side * side * 4)
    needed += in_flight * batch_size * 8  # their labels
    if SHARED_MEMORY.is_dir():
        there = os.statvfs(SHARED_MEMORY)
        free = there.f_bavail * there.f_frsize
        if free < needed:
            raise InputError(
                f"num_workers={num_workers} and batch_size={batch_size} keep {in_flight} batches of"
                f" {needed // in_flight:,} bytes in {SHARED_MEMORY}, which has {free:,} bytes free"
                f" for {needed:,}; {remedy}, a smaller batch_size, or the container a larger"
                " --shm-size"
            )
    _require_open_files(loaders * num_workers, remedy)


def _require_open_files(workers, remedy):
    if os.name != "posix":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    mine = Path("/proc/self/fd")
    opened = len(os.listdir(mine)) if mine.is_dir() else 64
    needed = opened + workers * FILES_A_WORKER + FILES_BESIDE
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(
            f"{workers} workers need about {needed} open files, and ulimit -n allows {limit};"
            f" {remedy}, or raise the limit with ulimit -n {needed}"
        )
