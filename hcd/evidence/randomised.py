"""The same network before any training, and how like its maps are to the trained one's (Adebayo et
al. 2018, arXiv 1810.03292)."""

from copy import deepcopy

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn


def randomised(model: nn.Module, rng_seed: int) -> nn.Module:
    """Return a copy of a model with weights drawn anew, as they are before any training.

    Batch norms forget their running statistics too. Weights that a layer cannot draw by itself
    come from a normal distribution of their own mean and spread. Random generators stay as they
    are.
    """
    twin = deepcopy(model).cpu()
    state = torch.get_rng_state()
    try:
        # of the CPU alone, where manual_seed would seed every GPU too
        torch.default_generator.manual_seed(rng_seed)
        for layer in twin.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
                continue
            for weights in layer.parameters(recurse=False):
                values = weights.data
                values.normal_(float(values.mean()), float(values.std(correction=0)))
    finally:
        torch.set_rng_state(state)
    return twin.to(next(model.parameters()).device)


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the rank correlation of two maps' non-negative parts; None where one is even."""
    one, other = one.clip(0).ravel(), other.clip(0).ravel()
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
