"""Whole runs killed with SIGKILL end with the bits of one that was never stopped, and so does a
second run; Ctrl-C stops a run."""

import json
import os
import signal
import sys
import time

import kills
import psutil
import pytest
import torch
from safetensors.torch import save_file

import hcd


@pytest.fixture
def two_runs(tmp_path):
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "models").mkdir()
        (folder / "metrics.json").write_text(json.dumps({"valid_auc": 0.5}))
        save_file({"w": torch.ones(2)}, folder / "model/weights.safetensors")
        torch.save({"model": {"w": torch.ones(2)}, "opt": {}}, folder / "models/stage1.pth")
    return tmp_path / "one", tmp_path / "other"


def test_one_bit_is_noticed(two_runs):
    one, other = two_runs
    assert len(kills.results(one)) == 3 and not kills.differences(
        kills.results(one), kills.results(other)
    )
    torch.save(
        {"model": {"w": torch.ones(2).nextafter(torch.zeros(2))}, "opt": {}},
        other / "models/stage1.pth",
    )
    assert "stage1.pth: w" in kills.differences(kills.results(one), kills.results(other))
    (one / "resnet18_submission.csv").write_text("id,label\n")
    assert "in 2 of 4" in kills.differences(kills.results(one), kills.results(other))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL and Linux's process tree")
def test_killed_runs_and_a_second_run_end_with_the_same_bits(capsys):
    assert kills.main(["--kills", "2"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert others and all(line.endswith("the same bits") for line in (first, *others))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGINT to a process group")
def test_ctrl_c_stops_a_run_whole_and_says_how_to_go_on(ctrl_c, tmp_path):
    hcd.make_sample(tmp_path / "data", train=80, test=16)
    # a terminal's Ctrl-C goes to the whole group too
    run = kills.start(tmp_path, "run", start_new_session=True)
    end = time.monotonic() + 300
    while (
        not (tmp_path / "run/checkpoints/stage1.pth").exists()
        and run.poll() is None
        and time.monotonic() < end
    ):
        time.sleep(0.1)
    family = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert (
        output.splitlines()[-1] == "hcd: stopped; go on with: hcd run --resume"
        f" {os.path.relpath(tmp_path / 'run', kills.CHECKOUT)}"
    )
    assert family and not psutil.wait_procs(family, timeout=10)[1]
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"] is None
    assert json.loads((tmp_path / "run/walkthrough.ipynb").read_text())["cells"]
    kills.finish(tmp_path, "run")
