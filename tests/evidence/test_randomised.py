"""The untrained twin: drawn anew by its seed, and the model and the generators as they were."""

import numpy as np
import pytest
import torch
from torch import nn

from hcd.evidence.randomised import correlation, randomised


class Scaled(nn.Module):
    """A layer with a weight that it cannot draw by itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(4, 6, 200))


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Scaled(), nn.Linear(4, 2))
    made[1](torch.randn(8, 4, 5, 5) * 3 + 7)
    return made.eval()


def values(of):
    return {name: value.clone() for name, value in of.state_dict().items()}


def test_everything_learned_is_gone_and_nothing_else_moves():
    trained = model()
    before, state = values(trained), torch.get_rng_state()
    twin = randomised(trained, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in values(trained).items())
    found = values(twin)
    for name in ("0.weight", "0.bias", "2.scale", "3.weight", "3.bias"):
        assert not (found[name] == before[name]).any(), name
    assert before["1.running_mean"].min() > 0.5 and not found["1.running_mean"].any()
    assert 4.8 < found["2.scale"].mean() < 5.2 and 0.4 < found["2.scale"].std() < 0.8
    assert not twin.training


def test_the_seed_decides():
    one, same, other = (values(randomised(model(), seed)) for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_correlation_is_of_ranks_and_of_what_is_positive():
    one = np.float32([[1, 2], [3, 40]])
    assert correlation(one, np.exp(one / 10)) == pytest.approx(1)
    assert correlation(one, -one + 50) == pytest.approx(-1)
    # ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15)
    assert correlation(one, np.float32([[2, 1], [3, 4]])) == pytest.approx(0.8)
    assert correlation(one, np.float32([[-9, -5], [3, 4]])) == pytest.approx(
        correlation(one, np.float32([[0, 0], [3, 4]]))
    )
    assert correlation(one, np.zeros((2, 2), np.float32)) is None
    assert correlation(-one, one) is None
