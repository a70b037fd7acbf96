"""`hcd predict` on folders, patterns, lists and several processes."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import hcd
from hcd.cli import main
from hcd.engine import ranks
from hcd.engine.ranks import Ranks, launched
from hcd.export.answer import TorchModel


@pytest.fixture(scope="module")
def model(learner, tmp_path_factory):
    return hcd.save_bundle(learner, tmp_path_factory.mktemp("command") / "model")


@pytest.fixture
def patches(sample, tmp_path, monkeypatch):
    """A folder of five patches, the working folder being the one above."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("patches")
    for path in sample.test_paths[:5]:
        shutil.copy(path, "patches")
    return sorted(os.listdir("patches"))


def answered(capfd, *arguments, code=0):
    """Call `hcd predict`; return the first two cells of each line, and what went to stderr."""
    assert main(["predict", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    return [line.split("\t")[:2] for line in out.splitlines()], err


def test_a_pattern_that_the_shell_left_to_us(model, patches, capfd):
    of_folder, _ = answered(capfd, model, "patches")
    assert [name for name, _ in of_folder] == [f"patches/{name}" for name in patches]
    assert answered(capfd, model, "patches/*.tif")[0] == of_folder
    assert answered(capfd, model, "**/*.tif")[0] == of_folder
    assert [row[1] for row in answered(capfd, model, f"patches/[{patches[0][0]}]*")[0]][:1] == [
        of_folder[0][1]
    ]
    os.rename(f"patches/{patches[0]}", "patches/a[1].tif")  # a name that looks like a pattern
    assert answered(capfd, model, "patches/a[1].tif")[0] == [["patches/a[1].tif", of_folder[0][1]]]
    assert answered(capfd, model, "patches/*.png", code=2)[1] == (
        "hcd: patches/*.png matches no file to predict; check the folder and the pattern\n"
    )


def test_names_that_a_spreadsheet_or_a_terminal_would_obey(model, patches, capfd, monkeypatch):
    names = ["=1+1.tif", "+a.tif", "-b.tif", "@c.tif", "a\nb\x1b[2J.tif"]
    for name in names:
        shutil.copy(f"patches/{patches[0]}", name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("-b.tif\n=missing.tif\n"))
    arguments = [*names[:2], *names[3:], "-", "--csv", "answers.csv"]
    rows, err = answered(capfd, model, *arguments, code=1)
    shown = ["./=1+1.tif", "./+a.tif", "./@c.tif", "a\\nb\\x1b[2J.tif", "./-b.tif"]
    assert [name for name, _ in rows] == shown
    assert err.startswith("hcd: ./=missing.tif does not exist") and err.count("\n") == 1
    with open("answers.csv", newline="") as file:
        table = list(csv.reader(file))
    assert [row[0] for row in table[1:]] == [*shown, "./=missing.tif"]
    assert not any(cell[:1] in ("=", "+", "-", "@") for row in table for cell in row if cell)
    assert all(Path(row[0]).is_file() for row in table[1:4])  # the names are still those of files


@pytest.mark.parametrize("images", ["patches", "patches/*", "by the shell"])
def test_a_table_among_the_patches_is_no_image(model, patches, capfd, images):
    """Written by this call, by an earlier one, or by one under another name."""
    for table in ("patches/one.csv", "patches/one.csv", "patches/two.txt"):
        given = [images]
        if images == "by the shell":  # patches/*.tif patches/one.csv, say
            there = sorted(map(str, Path("patches").iterdir()))
            given = [name for name in there if name == table or name.endswith(".tif")]
        rows, err = answered(capfd, model, *given, "--csv", table)
        assert [name for name, _ in rows] == [f"patches/{name}" for name in patches] and not err
        with open(table, newline="") as file:
            assert [row[0] for row in csv.reader(file)][1:] == [f"patches/{n}" for n in patches]


def test_a_table_that_is_named_as_an_image_is_told_and_so_is_another_programs(
    model, patches, capfd
):
    answered(capfd, model, "patches", "--csv", "patches/one.csv")
    for flags in ([], ["--csv", "patches/one.csv"]):
        rows, err = answered(capfd, model, "patches/one.csv", *flags, code=2)
        assert not rows and "patches/one.csv" in err and "cannot be decoded" in err
    Path("patches/notes.csv").write_text("id,label\n")
    os.mkfifo("patches/pipe.csv")
    rows, err = answered(capfd, model, "patches", code=1)
    assert len(rows) == 5 and err.count("\n") == 2 and "one.csv" not in err
    assert "notes.csv" in err and "pipe.csv" in err
    os.mkdir("tables")
    os.rename("patches/one.csv", "tables/one.csv")
    for images in ("tables", "tables/*"):
        rows, err = answered(capfd, model, images, code=2)
        assert not rows and "to predict" in err and err.count("\n") == 1


def test_thousands_of_which_three_are_bad(model, sample, tmp_path, capfd, monkeypatch):
    lines = [str(path) for path in sample.test_paths] * 100
    for place in (0, 500, 1199):
        lines[place] = f"bad_{place}.tif"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    rows, err = answered(capfd, model, "-", "--fast", "--csv", tmp_path / "answers.csv", code=1)
    assert [name for name, _ in rows] == [line for line in lines if not line.startswith("bad_")]
    assert [line.split()[1] for line in err.splitlines()] == [
        "bad_0.tif",
        "bad_500.tif",
        "bad_1199.tif",
    ]
    with open(tmp_path / "answers.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == lines


def test_names_that_no_file_can_have(model, sample, capfd, monkeypatch):
    lines = f"{sample.test_paths[0]}\na\0b.tif\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    rows, err = answered(capfd, model, "-", code=1)
    assert len(rows) == 1 and "null byte" in err and err.count("\n") == 1


def test_ctrl_c_keeps_what_was_answered(model, sample, tmp_path, capfd, monkeypatch):
    def stopped(self, patches):
        if len(patches) < 8:  # the second batch
            raise KeyboardInterrupt
        return right(self, patches)

    right = TorchModel.probabilities
    monkeypatch.setattr(TorchModel, "probabilities", stopped)
    table = tmp_path / "answers.csv"
    command = ["predict", str(model), *map(str, sample.test_paths), "--batch-size", "8"]
    assert main([*command, "--csv", str(table)]) == 130
    assert len(capfd.readouterr().out.splitlines()) == 8
    with open(table, newline="") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    assert names == list(map(str, sample.test_paths[:8]))


def test_heatmaps_in_a_new_folder(model, patches, capfd, tmp_path):
    shutil.copytree("patches", "again")
    (tmp_path / "patches/text.tif").write_text("no image")
    _, err = answered(capfd, model, "patches", f"again/{patches[0]}", "--heatmap", "maps", code=1)
    stems = [Path(name).stem for name in patches]
    assert sorted(os.listdir("maps")) == sorted(f"{s}.png" for s in [*stems, f"{stems[0]}-2"])
    assert err.count("\n") == 1
    picture = cv2.imread(f"maps/{stems[0]}.png")
    assert picture.shape == (360, 360, 3) and picture.std() > 1
    before = sorted(os.listdir("patches"))
    assert "is not empty" in answered(capfd, model, "patches", "--heatmap", "patches", code=2)[1]
    assert sorted(os.listdir("patches")) == before


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--device", "gpu"], "device='gpu'"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--threads", "0"], "threads=0"),
        (["--calibrated"], "no temperature"),
        (["--csv", "/dev/null"], "no table of predictions"),
        (["--csv", "no/answers.csv"], "folder does not exist"),
        (["--heatmap", ""], '--heatmap "" names nothing'),
    ],
)
def test_wrong_settings_answer_nothing(model, patches, capfd, flags, text):
    rows, err = answered(capfd, model, "patches", *flags, code=2)
    assert not rows and text in err and err.count("\n") == 1


def test_one_process_alone(monkeypatch):
    assert launched() == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "4")  # of something else than torchrun
    assert launched() == Ranks()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == Ranks(3, 4, "cpu", 1, 1)


def test_ranks_take_no_list_on_standard_input(model, capfd, monkeypatch):
    monkeypatch.setattr("hcd.export.command.launched", lambda: Ranks(0, 2, "cpu"))
    rows, err = answered(capfd, model, "-", code=2)
    assert not rows and "torchrun does not hand on" in err


def test_ranks_with_other_files_are_told(refused):
    class Group:
        def all_gather_object(self, found, mine):
            found[:] = [mine, (3, "other")]

    with refused(hcd.InputError, "rank 0 sees 2 images and rank 1 3"):
        ranks._require_equal(Group(), Ranks(0, 2, "cpu"), ["a", "b"])


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Function that returns what torchrun shows of a process that has failed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    place = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place))

    def read():
        failure = ProcessFailure(0, 123, 1, str(place))
        assert failure.timestamp > 0 or not place.exists()
        return str(ChildFailedError("hcd.cli", {0: failure})).splitlines()[-2]

    return read


def test_torchrun_is_told_why(model, patches, capfd, told, monkeypatch):
    answered(capfd, model, "patches")
    assert "To enable traceback see" in told()
    Path("patches/a\nb.tif").write_text("no image")
    answered(capfd, model, "patches", code=1)
    assert told() == ("  traceback : hcd: 1 of 6 images could not be answered; each is told above")
    err = answered(capfd, "nowhere", "patches", code=2)[1]
    assert told() == f"  traceback : {err.rstrip()}" and "nowhere/card.json is missing" in err
    monkeypatch.setattr("hcd.export.command.open_model", None)
    answered(capfd, model, "patches", code=1)
    assert "traceback : hcd: a fault of hcd" in told()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/dev/full")
    answered(capfd, "nowhere", "patches", code=1)


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_shares_the_list_and_writes_one_table(model, sample, tmp_path, processes):
    """Four patches a round, so that rounds are many and the last is not full; one is bad."""
    for path in sample.test_paths:
        shutil.copy(path, tmp_path)
    (tmp_path / "5.tif").write_text("no image")
    names = sorted(path.name for path in tmp_path.glob("*.tif"))
    command = ["predict", model, *names, "--batch-size", "4", "--csv", "answers.csv"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found = subprocess.run(
        [*start, f"--nproc-per-node={processes}", "-m", "hcd.cli", *map(str, command)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 1  # for the bad one
    lines = found.stderr.splitlines()  # ours, and the report of torchrun, which ends with ours
    assert "5.tif (8 bytes) cannot be decoded" in lines[0] and lines[-1] == 60 * "="
    reason = f"hcd: 1 of {len(names)} images could not be answered; each is told above"
    assert lines[-2] == f"  traceback : {reason}"
    printed = [line.split("\t") for line in found.stdout.splitlines()]
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == names
    assert [row[0] for row in printed] == [name for name in names if name != "5.tif"]
    bundle = hcd.load_bundle(model)
    for row in rows:
        if row[0] == "5.tif":
            assert row[1:3] == ["", ""] and "cannot be decoded" in row[3]
        else:
            alone = hcd.predict_image(bundle, tmp_path / row[0])
            assert row[1] == alone.label
            assert float(row[2]) == pytest.approx(alone.probability, abs=1e-6)
