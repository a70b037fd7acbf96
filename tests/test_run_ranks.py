"""Whole runs by torchrun: 2 and 3 ranks, one that dies, one that hangs, and ranks that differ."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import hcd
from hcd import run_ranks
from hcd.cli import main
from hcd.engine.ranks import Ranks
from hcd.runs import events
from tests.ranks import CHECKOUT
from tests.ranks import run_ranks as run_together

FLAGS = [
    "--arch=squeezenet1_1",
    "--no-pretrained",
    "--batch-size=6",
    "--valid-fraction=0.25",
    "--sweep-iterations=4",
    "--head-epochs=2",
    "--finetune-epochs=2",
    "--tta-passes=2",
    "--rng-seed=3",
    "--workers=0",
    "--device=cpu",
]


def torchrun(ranks, *arguments):
    """Start `hcd run` on several ranks."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*start, f"--nproc-per-node={ranks}", "-m", "hcd.cli", "run", *map(str, arguments)],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout=300):
    """Return exit code, output and hcd's own lines of the errors, once a run has ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("hcd: ")]


def require_whole(output, sample):
    """Require what a finished run leaves, and that the model gives what validation.csv says."""
    assert 0 <= json.loads((output / "metrics.json").read_text())["valid_auc"] <= 1
    assert json.loads((output / "run.json").read_text())["finished"]
    assert hcd.load_bundle(output / "model")
    submission = pd.read_csv(output / "squeezenet1_1_submission.csv")
    assert list(submission["id"]) == list(sample.sample_ids)
    valid = pd.read_csv(output / "validation.csv")
    assert len(valid) == 15 and valid["id"].is_unique
    for stage, epochs in (("stage1", 2), ("stage2", 2)):
        assert len(pd.read_csv(output / f"history_{stage}.csv")) == epochs


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_run_the_walkthrough(sample, tmp_path, world):
    output = tmp_path / "run"
    code, out, told = ended(torchrun(world, "--data", sample.root, "--output", output, *FLAGS))
    assert (code, told) == (0, [])
    require_whole(output, sample)
    assert out.count("stage 2, epoch 2 of 2") == 1 and "validation AUC" in out  # rank 0 alone
    attempts = [event for event in events.read(output) if event["event"] == "attempt"]
    assert len(attempts) == 1


def when_trained(process, output, epochs):
    """Wait until some epochs are done."""
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if sum(event["event"] == "epoch" for event in events.read(output)) >= epochs:
            return
        time.sleep(0.05)
    pytest.fail(f"no {epochs} epochs: {process.communicate(timeout=60)}")


def ranks_of(process):
    """Return the process ids of a run's ranks, in their order."""
    import psutil

    found = psutil.Process(process.pid).children()
    return [one.pid for one in sorted(found, key=lambda one: int(one.environ()["RANK"]))]


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 2])
def test_a_rank_that_dies_ends_the_run_and_fewer_ranks_go_on(sample, tmp_path, killed):
    output = tmp_path / "run"
    process = torchrun(3, "--data", sample.root, "--output", output, *FLAGS)
    when_trained(process, output, 1)
    os.kill(ranks_of(process)[killed], signal.SIGKILL)
    code, _, (told,) = ended(process, 60)
    assert code == 1 and "a rank has died" in told and "hcd.cli run --resume " in told
    fewer = 1 + killed // 2
    if fewer > 1:
        code, _, told = ended(torchrun(fewer, "--resume", output))
        assert (code, told) == (0, [])
    else:
        assert main(["run", "--resume", str(output)]) == 0  # by the notebook, in one process
    require_whole(output, sample)
    began = [event for event in events.read(output) if event["event"] == "epoch"]
    assert [(one["name"], one["epoch"]) for one in began].count(("stage1", 1)) == 1


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_run(sample, tmp_path):
    output = tmp_path / "run"
    process = torchrun(2, "--data", sample.root, "--output", output, *FLAGS, "--head-epochs=40")
    when_trained(process, output, 1)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    code, _, (told,) = ended(process, 90)  # 20 s, and torchrun's 30 to end the one that hangs
    assert code == 1 and "nothing was heard of rank 1 for 20 s; go on with: torchrun" in told


@pytest.mark.long
@pytest.mark.parametrize(
    "flags, said",
    [
        ([[], ["--batch-size=12"]], "rank 0 has batch size 6 and rank 1 12"),
        ([[], ["--rng-seed=4"]], "rank 0 has rng seed 3 and rank 1 4"),
        ([["--data", "{sample}"], ["--data", "{copy}"]], "rank 0 has data fingerprint"),
        ([["--batch-size=7"]] * 2, "batch_size=7 cannot be shared by 2 ranks"),
    ],
)
def test_ranks_that_differ_are_refused_in_one_sentence(
    sample, copy_of_sample, tmp_path, flags, said
):
    table = copy_of_sample / "train_labels.csv"
    *rows, last = table.read_text().split()
    table.write_text("\n".join([*rows, ""]))
    (copy_of_sample / "train" / f"{last.partition(',')[0]}.tif").unlink()
    places = {"sample": sample.root, "copy": copy_of_sample}
    output = tmp_path / "run"
    commands = [
        ["hcd.cli", "run", "--output", output, *FLAGS, *(f.format(**places) for f in more)]
        for more in flags
    ]
    codes = run_together(commands, tmp_path, 120)
    lines = [(tmp_path / f"err{rank}.txt").read_text() for rank in range(2)]
    assert 0 not in codes and said in "".join(lines)
    assert "".join(lines).count("\n") == 1, lines
    assert not output.exists()


def test_a_device_of_its_own(monkeypatch, refused):
    assert run_ranks.own_device(None, Ranks(1, 2, "cpu")) == "cpu"
    assert run_ranks.own_device("cpu", Ranks(1, 2, "cuda:1", 1, 2)) == "cpu"
    with refused(hcd.InputError, "--device cuda:1"):
        run_ranks.own_device("cuda:1", Ranks(1, 2, "cuda:1", 1, 2))
    chosen = []
    monkeypatch.setattr(run_ranks, "find_device", torch.device)
    gpus = SimpleNamespace(device_count=lambda: 2, set_device=chosen.append)
    monkeypatch.setattr(torch, "cuda", gpus)
    assert run_ranks.own_device(None, Ranks(3, 4, "cuda:1", 1, 2)) == "cuda:1" and chosen == [1]
    with refused(hcd.InputError, "3 ranks have 2 GPUs here", "--nproc-per-node 2"):
        run_ranks.own_device(None, Ranks(0, 3, "cuda:0", 0, 3))
