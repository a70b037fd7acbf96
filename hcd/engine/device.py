"""The device that computes, and the generators that draw."""

import random

import numpy as np
import torch

from ..errors import InputError


def find_device(device=None):
    """Return the torch device to use; None takes a GPU when there is one.

    Raises:
        InputError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:120]
        raise InputError(
            f'device={str(device)!r} cannot be used here ({reason}); use "cpu" or leave it out'
        ) from error
    return torch.device(device)


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
