"""run_walkthrough is the notebook's twin: the same metrics and the same submission, to the bit."""

import json

import pytest

import hcd
from hcd.cli import main

SMALL = [
    "--arch=squeezenet1_1",
    "--no-pretrained",
    "--batch-size=8",
    "--valid-fraction=0.25",
    "--sweep-iterations=4",
    "--head-epochs=1",
    "--finetune-epochs=1",
    "--tta-passes=2",
    "--rng-seed=3",
]


@pytest.fixture(scope="module")
def recipe():
    return hcd.Recipe(
        arch="squeezenet1_1",
        pretrained=False,
        batch_size=8,
        valid_fraction=0.25,
        sweep_iterations=4,
        head_epochs=1,
        finetune_epochs=1,
        tta_passes=2,
        rng_seed=3,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"remove_outliers": True, "back_to_stage1": True}, marks=pytest.mark.long),
    ],
)
def test_notebook_and_twin_come_to_one_result(sample, recipe, tmp_path, options):
    flags = [f"--{name.replace('_', '-')}" for name in options]
    notebook, twin = tmp_path / "notebook", tmp_path / "twin"
    data = ["--data", str(sample.root), "--output", str(notebook), "--device=cpu"]
    assert main(["run", *data, *SMALL, "--workers=0", *flags]) == 0
    metrics = hcd.run_walkthrough(sample.root, recipe, twin, num_workers=0, device="cpu", **options)
    assert json.loads((twin / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    for name in ("metrics.json", "squeezenet1_1_submission.csv", "model/model.safetensors"):
        assert (twin / name).read_bytes() == (notebook / name).read_bytes(), name


def test_a_finished_run_keeps_each_set_of_weights_once(sample, recipe, tmp_path):
    hcd.run_walkthrough(sample.root, recipe, tmp_path / "run", num_workers=0, device="cpu")
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    models = {name for name in left if name.endswith((".pth", ".safetensors"))}
    assert models == {"squeezenet1_1_stage1.pth", "model.safetensors"}
    assert not [name for name in left if name.endswith(".part")]
    assert "opt" not in hcd.engine.compat.load_tensors(
        tmp_path / "run/models/squeezenet1_1_stage1.pth"
    )
