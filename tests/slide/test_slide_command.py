"""`hcd slide`: folders of slides, stops and full disks; the files themselves are another test's."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from slide import painted
from slide.helpers import SIZE, Darkness, drop_tiles

import hcd
from hcd.cli import main
from hcd.slide import command


@pytest.fixture
def written(monkeypatch):
    """Have a small file written in the place of an answer's own; the answers, in order."""
    answers = []

    def write_answer(answer, folder, threshold=0.5, cells=False):
        folder.mkdir()
        (folder / "threshold.txt").write_text(str(threshold))
        np.save(folder / "probabilities.npy", answer.probabilities)
        answers.append(answer)
        return sorted(folder.iterdir())

    stand_in = types.ModuleType("hcd.slide.outputs")
    stand_in.write_answer = write_answer
    monkeypatch.setitem(sys.modules, "hcd.slide.outputs", stand_in)
    return answers


@pytest.fixture
def model(monkeypatch):
    """Have any MODEL be a Darkness, which is returned."""
    darkness = Darkness()
    monkeypatch.setattr(command, "open_model", lambda name, threads=None: darkness)
    return darkness


@pytest.fixture
def slides(slide_file, tmp_path, monkeypatch):
    """A folder of three slides, of which b is cut off, and other files; the working folder is the
    one above."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(slide_file(), folder / "a.tif")
    content = slide_file(compression="jpeg").read_bytes()
    (folder / "b.tif").write_bytes(content[: len(content) // 2])
    shutil.copy(slide_file(ome=True), folder / "c.ome.tif")
    (folder / "notes.txt").write_text("no slide")
    (folder / ".hidden.tif").write_text("no slide")
    return folder


def called(capfd, *arguments, code=0):
    """Call `hcd slide MODEL`; return the lines of stdout, and what the bars leave of stderr."""
    assert main(["slide", "MODEL", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    told = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("hcd: ")]
    return [line.split("\t") for line in out.splitlines()], told


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_with_one_broken_slide(slides, written, model, capfd, tmp_path):
    rows, told = called(capfd, "in", "--threshold", "0.3", code=1)
    assert [row[:2] for row in rows] == [
        ["in/a.tif", "slides/a"],
        ["in/c.ome.tif", "slides/c.ome"],
    ]
    cells = np.isfinite(written[0].probabilities)
    above = (written[0].probabilities[cells] > 0.3).sum()
    assert rows[0][2] == f"{cells.sum()} cells, {above} above 0.3"
    assert len(told) == 1 and "in/b.tif" in told[0] and "get it again" in told[0]
    out = tmp_path / "slides"
    assert sorted(tree(out)) == [
        f"{name}/{file}"
        for name in ("a", "c.ome")
        for file in ("answer.json", "probabilities.npy", "threshold.txt")
    ]
    assert sorted(path.name for path in out.iterdir()) == ["a", "c.ome"]
    assert (out / "a/threshold.txt").read_text() == "0.3"


def test_the_same_call_again_answers_what_is_missing(slides, written, model, capfd, slide_file):
    called(capfd, "in", code=1)
    before = tree(slides.parent / "slides")
    shutil.copy(slide_file(compression="jpeg"), slides / "b.tif")
    rows, told = called(capfd, "in")
    assert [row[2] for row in rows][::2] == ["answered already"] * 2 and not told
    assert len(written) == 3 and rows[1][:2] == ["in/b.tif", "slides/b"]
    after = tree(slides.parent / "slides")
    assert {name: content for name, content in after.items() if name in before} == before


@pytest.mark.parametrize(
    "change, other",
    [
        (["--threshold", "0.4"], "threshold"),
        (["--mpp", "0.26", "--cells"], "mpp and cells"),
        ("another model", "weights_sha256"),
        ("another slide", "sha256_of_pieces"),
    ],
)
def test_an_answer_to_another_question_is_left_alone(
    slides, written, model, capfd, slide_file, change, other
):
    called(capfd, "in/a.tif", "--output", "out")
    before = tree(slides.parent / "out")
    if change == "another model":
        model.card = {**model.card, "weights_sha256": "1" * 64}
    elif change == "another slide":
        shutil.copy(slide_file(compression="jpeg"), slides / "a.tif")
    more = change if isinstance(change, list) else []
    rows, told = called(capfd, "in/a.tif", "--output", "out", *more, code=2)
    assert not rows and len(told) == 1
    assert "out/a is there already" in told[0] and f"another {other};" in told[0]
    assert "remove it or name another" in told[0]
    assert tree(slides.parent / "out") == before


def test_a_folder_of_somebody_elses_is_left_alone(slides, written, model, capfd, tmp_path):
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/mine.txt").write_text("mine")
    (tmp_path / "out/c.ome").symlink_to(tmp_path)
    rows, told = called(capfd, "in/a.tif", "in/c.ome.tif", "--output", "out", code=2)
    assert not rows and "is there already" in told[0] and "is a link" in told[1]
    assert tree(tmp_path / "out") == {"a/mine.txt": b"mine"}
    (tmp_path / "out/a/answer.json").write_text("[" * 50_000)
    rows, told = called(capfd, "in/a.tif", "--output", "out", code=2)
    assert not rows and len(told) == 1 and "is there already" in told[0]


def refused_at_once(capfd, model, tmp_path, *arguments):
    before = sorted(tmp_path.iterdir())
    rows, told = called(capfd, *arguments, code=2)
    assert not rows and len(told) == 1 and not model.calls
    assert sorted(tmp_path.iterdir()) == before
    return told[0]


def test_names_that_cannot_be_used(slides, written, model, capfd, tmp_path, slide_file):
    (tmp_path / "other").mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copy(slide_file(), tmp_path / "other/a.svs")
    for names in (["in/a.tif", "other/a.svs"], ["in", "other"]):
        told = refused_at_once(capfd, model, tmp_path, *names)
        assert "in/a.tif and" in told and "two calls" in told
    assert "empty holds no slides" in refused_at_once(capfd, model, tmp_path, "empty")
    assert 'SLIDE "" names nothing' in refused_at_once(capfd, model, tmp_path, "")
    told = refused_at_once(capfd, model, tmp_path, "in", "--output", "in/a.tif")
    assert "in/a.tif is a file" in told
    assert '--output "" names nothing' in refused_at_once(
        capfd, model, tmp_path, "in", "--output", ""
    )
    rows, told = called(capfd, "in/a.tif", "no.svs", "./in/a.tif", "no.svs", code=1)
    assert len(rows) == len(written) == 1
    assert told == ["hcd: no.svs does not exist; name the file of a slide"]


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--mpp", "0"], "--mpp 0.0 is no spacing"),
        (["--mpp", "-0.25"], "--mpp -0.25"),
        (["--mpp", "nan"], "--mpp nan"),
        (["--mpp", "inf"], "--mpp inf"),
        (["--threshold", "1"], "--threshold 1.0"),
        (["--threshold", "-0.1"], "--threshold -0.1"),
        (["--threshold", "nan"], "--threshold nan"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--fast"], "fast=True"),
        (["--calibrated"], "calibrated=True"),
        (["--device", "cuda"], "device='cuda'"),
    ],
)
def test_flags_that_cannot_be_used(slides, written, model, capfd, tmp_path, flags, part):
    assert part in refused_at_once(capfd, model, tmp_path, "in", *flags)


@pytest.mark.parametrize("library", ["openslide", "tiffslide"])
def test_without_the_extra(slides, written, model, capfd, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    told = refused_at_once(capfd, model, tmp_path, "in")
    assert library in told and "pip install 'hcd[slide]'" in told


def test_every_fault_of_a_slide_is_one_line(slides, written, model, capfd, section, slide_file):
    for path in slides.iterdir():
        path.unlink()
    shutil.copy(slide_file(stated=False), slides / "unstated.tif")
    shutil.copy(slide_file(), slides / "lacking.tif")
    drop_tiles(slides / "lacking.tif", 2)
    glass = painted.Painted(np.full_like(section.rgb, 240), section.tissue, section.places)
    painted.save(slides / "glass.tif", glass, size=SIZE, levels=3)
    painted.save(slides / "dot.tif", glass, size=(1, 1), levels=1)
    painted.save(slides / "inches.tif", section, size=(768, 576), mpp=352.8, levels=1)
    (slides / "text.svs").write_text("no slide")
    rows, told = called(capfd, "in", code=2)
    found = {line.split("in/")[1].split(".")[0]: line for line in told}
    assert not rows and len(found) == len(told) == 6
    parts = {
        "unstated": "--mpp",
        "lacking": "level 2 of in/lacking.tif is missing",
        "glass": "no tissue",
        "dot": "less than one cell",
        "inches": "352.8 x 352.8 um",
        "text": "no slide",
    }
    for name, part in parts.items():
        assert part in found[name], name
    assert not list((slides.parent / "slides").iterdir())


def test_ctrl_c_says_how_to_go_on(slides, written, model, capfd, monkeypatch):
    monkeypatch.setattr("hcd.slide.cells.BLOCK", (4, 6))
    right = Darkness.probabilities

    def stopped(self, patches):
        if len(self.calls) == 3:
            raise KeyboardInterrupt
        return right(self, patches)

    monkeypatch.setattr(Darkness, "probabilities", stopped)
    rows, told = called(capfd, "in/a.tif", "in/c.ome.tif", code=130)
    assert not rows and told == ["hcd: stopped; the same command goes on with in/a.tif"]
    out = slides.parent / "slides"
    assert [path.name for path in out.iterdir()] == ["a.unfinished.npz"]
    monkeypatch.setattr(Darkness, "probabilities", right)
    before = len(model.calls)
    rows, _ = called(capfd, "in/a.tif")
    again = len(model.calls) - before
    assert [path.name for path in out.iterdir()] == ["a"]
    shutil.rmtree(out)
    called(capfd, "in/a.tif")
    assert again == len(model.calls) - before - again - 3
    assert written[0].probabilities.tobytes() == written[1].probabilities.tobytes()


def test_a_failure_to_write_the_answer_costs_no_prediction(
    slides, written, model, capfd, monkeypatch
):
    """As on a full disk: the numbers stay, and the next call has only to write."""
    stand_in = sys.modules["hcd.slide.outputs"]
    right = stand_in.write_answer

    def full(answer, folder, threshold=0.5, cells=False):
        folder.mkdir()
        (folder / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    stand_in.write_answer = full
    rows, told = called(capfd, "in/a.tif", code=2)
    assert not rows and len(told) == 1 and told[0].count("No space left on device") == 1
    assert "slides/a cannot be written" in told[0] and "free space" in told[0]
    out = slides.parent / "slides"
    assert [path.name for path in out.iterdir()] == ["a.unfinished.npz"]
    calls, stand_in.write_answer = len(model.calls), right
    called(capfd, "in/a.tif")
    assert len(model.calls) == calls and [path.name for path in out.iterdir()] == ["a"]


def test_a_full_disk_is_told_before_any_hours(slides, written, model, capfd, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(size, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        room = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize))
        rows, told = called(capfd, "in/a.tif", "--output", folder, code=2)
        assert not rows and len(told) == 1 and "No space left on device" in told[0]
        assert not model.calls and [path.name for path in folder.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_two_processes_in_one_folder(slides, written, model, capfd, monkeypatch):
    from hcd.disk.locks import take_lock

    monkeypatch.setattr("hcd.disk.locks.take_lock.__defaults__", (0.1,))
    (slides.parent / "slides").mkdir()
    lock = take_lock(slides.parent / "slides", "")
    try:
        _, told = called(capfd, "in/a.tif", code=2)
    finally:
        lock.release()
    assert "is being written by another process" in told[0] and not model.calls


BY_COMMAND_LINE = """
import signal, sys
import hcd.slide.cells, hcd.slide.kept
from hcd.cli import main

hcd.slide.cells.BLOCK = (2, 4)
finish = hcd.slide.kept.Kept.finish

def finish_and_stop(self, *block):
    finish(self, *block)
    if self.done.sum() == 3:
        signal.raise_signal(signal.SIGINT)

if sys.argv[1] == "stop":
    hcd.slide.kept.Kept.finish = finish_and_stop
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.long
def test_ctrl_c_and_a_real_model_by_the_command_line(slide_file, learner, tmp_path):
    """A process is stopped amid its slide and another goes on; all files have the same bytes as one
    that was never stopped."""
    model = hcd.save_bundle(learner, tmp_path / "model")
    path = shutil.copy(slide_file(), tmp_path / "a.tif")

    def call(stop, output):
        arguments = ["slide", str(model), str(path), "--output", str(tmp_path / output)]
        arguments += ["--threads", "1", "--cells"]
        command = [sys.executable, "-c", BY_COMMAND_LINE, stop, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert call("go on", "whole").returncode == 0
    cut = call("stop", "cut")
    assert cut.returncode == 130 and "the same command goes on" in cut.stderr
    with np.load(tmp_path / "cut/a.unfinished.npz") as held:
        assert held["done"].sum() == 3 < held["done"].size
    assert call("go on", "cut").returncode == 0
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    assert {"cells.geojson", "heatmap.ome.tif", "summary.html"} <= {
        file.name for file in (tmp_path / "cut/a").iterdir()
    }
    answer = json.loads((tmp_path / "cut/a/answer.json").read_text())
    assert answer["slide"] == "a.tif" and answer["threshold"] == 0.5
