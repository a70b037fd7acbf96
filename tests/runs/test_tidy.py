"""A finished run keeps each set of weights once, and tidying takes nothing that is not its own."""

import shutil

import pytest
import torch

from hcd import InputError
from hcd.engine.compat import load_tensors
from hcd.runs.tidy import tidy_run

PART = ".hcd-0123456789abcdef.part"
FOREIGN = ["notes.txt", "models/notes.txt", "models/.keep", "checkpoints/notes.txt", "data/a.tif"]
FOREIGN += ["model/model.safetensors", "models/.hcd-notes.part", "models/deeper/tmp.pth"]


def saved_weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "0.weight": torch.randn(64, 32, generator=generator),
        "0.bias": torch.full((64,), float("nan")).nan_to_num(1e-30),
        "1.num_batches_tracked": torch.tensor(7),
        "1.half": torch.ones(3, dtype=torch.float16),
    }


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has just come to its end in stage 2."""
    folder, weights = tmp_path / "run", saved_weights()
    moments = {0: {"exp_avg": torch.ones(64, 32), "exp_avg_sq": torch.ones(64, 32), "step": 3}}
    with_opt = {"model": weights, "opt": {"state": moments, "param_groups": [{"lr": 0.1}]}}
    for name in ("models", "checkpoints", "model", "figures", "data"):
        (folder / name).mkdir(parents=True)
    for name in ("resnet18_stage1", "resnet18_stage2", "tmp"):
        torch.save(with_opt, folder / f"models/{name}.pth")
    for name in ("stage1", "stage2", "predictions"):
        torch.save({"kept": torch.ones(5)}, folder / f"checkpoints/{name}.pth")
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(path, content=b"mine"):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("final, other", [("stage1", "stage2"), ("stage2", "stage1")])
def test_only_the_other_stages_weights_stay_and_stay_equal(run, final, other):
    before = (run / f"models/resnet18_{other}.pth").stat().st_size
    tidy_run(run, f"resnet18_{final}")
    assert list(contents(run)) == [f"models/resnet18_{other}.pth"]
    file = run / f"models/resnet18_{other}.pth"
    found, weights = load_tensors(file), saved_weights()
    assert list(found) == list(weights)
    for name, value in weights.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype
    assert file.stat().st_size < before / 2


def test_it_may_be_called_again_and_changes_nothing(run):
    tidy_run(str(run), "resnet18_stage2")
    before = contents(run)
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    tidy_run(run, "resnet18_stage2")
    assert contents(run) == before
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == stamps


@pytest.mark.parametrize("stopped_at", range(6))
def test_stopped_at_any_moment_it_ends_the_same_when_called_again(run, monkeypatch, stopped_at):
    whole = shutil.copytree(run, run.with_name("whole"))
    tidy_run(whole, "resnet18_stage2")
    left, unlink, save = [stopped_at], type(run).unlink, torch.save

    def step(do):
        def stops(*arguments, **named):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return do(*arguments, **named)

        return stops

    with monkeypatch.context() as patched:
        patched.setattr(type(run), "unlink", step(unlink))
        patched.setattr(torch, "save", step(save))
        with pytest.raises(KeyboardInterrupt):
            tidy_run(run, "resnet18_stage2")
    tidy_run(run, "resnet18_stage2")
    assert contents(run).keys() == contents(whole).keys()
    file = "models/resnet18_stage1.pth"
    found, expected = load_tensors(run / file), load_tensors(whole / file)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("place", [".", "models", "checkpoints", "figures", "slide"])
def test_parts_that_killed_writers_left_are_gone(run, place):
    put(run / place / PART)
    tidy_run(run, "resnet18_stage2")
    assert not (run / place / PART).exists()


def test_weights_that_a_killed_save_of_the_model_folder_left_are_gone(run):
    put(run / "model/model.safetensors")
    put(run / "model/.model-x1y2z3w4/model.safetensors")  # see save_bundle
    tidy_run(run, "resnet18_stage2")
    assert {name for name in contents(run) if name.endswith(".safetensors")} == {
        "model/model.safetensors"
    }


def test_foreign_files_stay(run):
    for name in FOREIGN:
        put(run / name)
    tidy_run(run, "resnet18_stage2")
    assert contents(run).keys() == {*FOREIGN, "models/resnet18_stage1.pth"}
    assert all((run / name).read_bytes() == b"mine" for name in FOREIGN)


def test_weights_of_somebody_else_stay_as_they_are(run):
    torch.save(saved_weights(), run / "models/other.pth")
    torch.save({**saved_weights(), "model": torch.ones(1)}, run / "models/more.pth")
    torch.save(torch.ones(3), run / "models/tensor.pth")
    names = [f"models/{name}.pth" for name in ("other", "more", "tensor")]
    before = {name: contents(run)[name] for name in names}
    tidy_run(run, "resnet18_stage2")
    assert {name: contents(run)[name] for name in names} == before


def test_a_run_without_these_folders_has_nothing_to_tidy(tmp_path):
    put(tmp_path / "metrics.json")
    tidy_run(tmp_path, "resnet18_stage2")
    assert contents(tmp_path) == {"metrics.json": b"mine"}


@pytest.mark.parametrize(
    "name",
    [
        "../x_stage1",
        "/etc/x_stage1",
        "a/../../x_stage2",
        "x_stage3",
        "_stage1",
        "stage1",
        "",
        "x_stage1\n",
        "x_stage1/",
        "*_stage1",
        "x\0_stage1",
        "../" * 1000 + "x_stage1",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_a_strangers_name_is_refused_and_nothing_is_removed(run, refused, name):
    put(run / "x_stage1.pth")  # what ../x_stage1 would take
    put(run / "models" / PART)
    before = contents(run)
    with refused(InputError, "final_model=", "metrics.json") as caught:
        tidy_run(run, name)
    assert len(str(caught.value)) < 200
    assert contents(run) == before
