"""How processes meet, agree and do what one alone does; the whole runs are in test_run_ranks.py."""

import random
import socket

import numpy as np
import pytest
import torch
import torch.distributed

from hcd import InputError
from hcd.engine import ranks
from hcd.engine.ranks import Ranks, agree, current, gathered, is_first, joined, on_first


def test_one_process_alone_needs_no_group():
    assert current() == Ranks() and is_first()
    assert on_first(lambda: 7) == 7
    values = torch.ones(3)
    assert gathered(values) is values
    agree(data="whatever")


def test_a_port_in_use_is_told(monkeypatch, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        told = refused(InputError, f"127.0.0.1:{port}", "--master-port", "--standalone")
        with told, joined(Ranks(0, 2)):
            pass
    assert current() == Ranks()


@pytest.fixture
def second_of_two(monkeypatch):
    """Have this process be rank 1 of 2, and hand it what rank 0 has."""
    theirs: list = []

    def all_gather_object(found, mine):
        found[:] = [theirs[0], mine]

    def broadcast_object_list(answer):
        answer[:] = theirs

    monkeypatch.setattr(ranks, "_joined", [Ranks(1, 2)])
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast_object_list)
    return theirs


def test_ranks_that_differ_are_named(second_of_two, refused):
    second_of_two.append({"hcd": "0.1.0", "batch_size": "32", "pixels": "ab"})
    agree(hcd="0.1.0", batch_size="32", pixels=None)  # of another rank of the same machine
    with refused(InputError, "rank 0 has batch size 32 and rank 1 16"):
        agree(hcd="0.1.0", batch_size="16", pixels="ab")
    with refused(InputError, "rank 0 has hcd 0.1.0 and rank 1 0.2.0"):
        agree(hcd="0.2.0", batch_size="32", pixels="ab")


def test_what_rank_0_draws_is_drawn_on_every_rank(second_of_two):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    second_of_two.append(("answer", *states))
    assert on_first(lambda: pytest.fail("rank 1 is not the first")) == "answer"
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
