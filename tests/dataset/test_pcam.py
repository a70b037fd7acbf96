"""PatchCamelyon's files, made small by hand: what lands in the competition's layout, what is
dropped, and what is refused."""

import csv
import errno
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT

import hcd
from hcd.cli import main
from hcd.dataset.pcam import CARD, NAMES, UNFINISHED
from hcd.dataset.pcam_patches import judge
from hcd.disk.images import encode_tiff

COLUMNS = ["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"]
PLACE = "camelyonpatch_level_2_split_{}_{}"
ROWS = {"train": 20, "valid": 8, "test": 8}


def slide_names(side, rows):
    kind = "test" if side == "test" else "train_tumor" if side == "train" else "train_normal"
    return [f"camelyon16_{kind}_{1 + row // 3:03}" for row in range(rows)]


def random_sides(seed=0):
    """Return {side: {"x": ..., "y": ..., "wsi": ..., "mask": ...}} of patches of noise."""
    rng = np.random.default_rng(seed)
    sides = {}
    for side, rows in ROWS.items():
        labels = np.arange(rows, dtype=np.uint8) % 2
        mask: np.ndarray = np.zeros((rows, 96, 96, 1), np.uint8)
        mask[labels == 1, 40:50, 50:55] = 1
        mask[2, :5, :5] = 1  # tumour outside of the centre, of a negative
        sides[side] = {
            "x": rng.integers(0, 256, (rows, 96, 96, 3), dtype=np.uint8),
            "y": labels,
            "wsi": slide_names(side, rows),
            "mask": mask,
        }
    return sides


def write_sides(folder, sides, packed=(), leave_out=(), **h5):
    """Write sides as PCam's files are; packed, leave_out: "train_x" and the like."""
    folder.mkdir(exist_ok=True)
    for side, parts in sides.items():
        for kind in ("x", "y", "mask"):
            name = f"{side}_{kind}"
            if name in leave_out or kind not in parts:
                continue
            content = parts[kind].reshape(-1, 1, 1, 1) if kind == "y" else parts[kind]
            path = folder / PLACE.format(side, f"{kind}.h5")
            with h5py.File(path, "w") as file:
                file.create_dataset(kind, data=content, **h5)
            if name in packed:
                pack(path)
        if f"{side}_meta" not in leave_out and "wsi" in parts:
            write_meta(folder / PLACE.format(side, "meta.csv"), parts)
    return folder


def write_meta(path, parts, columns=COLUMNS):
    truths = parts.get("truths", [str(bool(label)) for label in parts["y"]])
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for row, (truth, wsi) in enumerate(zip(truths, parts["wsi"])):
            line = dict(zip(COLUMNS, [row, 7 * row, 9 * row, "True", truth, wsi]))
            rows.writerow([line[column] for column in columns])


def pack(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    path.unlink()


def id_of(patch):
    return hashlib.sha1(np.ascontiguousarray(patch).tobytes()).hexdigest()


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def table(path):
    return dict(pd.read_csv(path, dtype=str).itertuples(index=False))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """PCam in small, masks of train alone, as it is published; read it only."""
    sides = random_sides()
    del sides["valid"]["mask"], sides["test"]["mask"]
    return write_sides(tmp_path_factory.mktemp("pcam") / "pcam", sides)


@pytest.fixture(scope="module")
def imported(source):
    """What becomes of `source`; read it only."""
    report = hcd.import_pcam(source, source.parent / "imported", progress=False)
    return source.parent / "imported", report


# -- what is written
# ------------------------------------------------------------------------------------------------


def test_patches_labels_slides_sides_and_masks_are_pcams(imported):
    root, report = imported
    sides = random_sides()
    labels, slides, places, masks = {}, {}, {}, {}
    for side, parts in sides.items():
        for row, patch in enumerate(parts["x"]):
            folder = "test" if side == "test" else "train"
            path = root / folder / f"{id_of(patch)}.tif"
            assert np.array_equal(cv2.imread(str(path))[..., ::-1], patch)
            labels[path.stem] = str(parts["y"][row])
            slides[path.stem] = parts["wsi"][row]
            places[path.stem] = side
            if side == "train" and parts["mask"][row].any():
                masks[path.stem] = parts["mask"][row, ..., 0]
    assert table(root / "train_labels.csv") | table(root / "test_labels.csv") == labels
    assert set(table(root / "sample_submission.csv")) == set(table(root / "test_labels.csv"))
    assert set(table(root / "sample_submission.csv").values()) == {"0"}
    assert table(root / "slides.csv") == slides and table(root / "sides.csv") == places
    assert (root / "slides.csv").read_text().splitlines()[0] == "id,wsi"
    assert {path.stem for path in (root / "masks").iterdir()} == set(masks)
    for patch_id, mask in masks.items():
        stored = cv2.imread(str(root / f"masks/{patch_id}.png"), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint8 and np.array_equal(stored, 255 * mask)
    dropped = {"duplicates": 0, "in_train_and_test": 0, "contradicting": 0}
    kept = {"train": 28, "label_0": 14, "label_1": 14, "test": 8, "masks": 11, "slides": 13}
    assert report.counts == kept | dropped
    assert report.new and not report.remarks
    assert sorted(path.name for path in root.iterdir()) == sorted(NAMES)


def test_it_opens_and_the_check_finds_nothing(imported):
    root, _ = imported
    dataset = hcd.open_dataset(root)
    assert len(dataset.labels) == 28 and len(dataset.test_ids) == 8
    assert dataset.test_labels["label"].sum() == 4
    assert hcd.check_dataset(root, progress=False).clean


def test_files_are_those_that_the_package_writes(imported):
    root, _ = imported
    for side, parts in random_sides().items():
        for patch in parts["x"]:
            path = root / ("test" if side == "test" else "train") / f"{id_of(patch)}.tif"
            assert path.read_bytes() == encode_tiff(patch)


@pytest.mark.parametrize("is_packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("h5", [{}, {"compression": "gzip"}, {"chunks": True}], ids=str)
def test_gzipped_and_chunked_files_give_the_same(imported, tmp_path, h5, is_packed):
    folder, sides = tmp_path / "pcam", random_sides()
    packed = [f"{side}_{kind}" for side in sides for kind in ("x", "y")] if is_packed else []
    no_masks = [f"{side}_mask" for side in sides]
    write_sides(folder, sides, packed, no_masks, **h5)
    hcd.import_pcam(folder, tmp_path / "out", progress=False)
    ours, theirs = files_of(tmp_path / "out"), files_of(imported[0])
    for name in list(theirs):
        if name.startswith("masks/") or name == CARD:
            del theirs[name]
    del ours[CARD]
    assert ours == theirs
    assert not [path for path in tmp_path.rglob("*") if "hcd" in path.name]


def test_more_than_one_batch_gives_the_same(imported, source, tmp_path, monkeypatch):
    monkeypatch.setattr("hcd.dataset.hdf5.FEW_ROWS", 3)
    hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert files_of(tmp_path / "out") == files_of(imported[0])


def test_masks_may_be_gzipped_and_255_and_of_other_sides(tmp_path):
    sides = random_sides()
    for parts in sides.values():
        parts["mask"] *= 255
    source = write_sides(tmp_path / "pcam", sides, packed=["train_mask", "test_mask"])
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert report.counts["masks"] == 18 + 3 and not report.remarks
    masks = [cv2.imread(str(path), -1) for path in (tmp_path / "out/masks").iterdir()]
    assert len(masks) == 21 and {*np.unique(masks)} == {0, 255}


def test_a_mask_that_says_something_else_is_told(tmp_path):
    sides = random_sides()
    sides["train"]["mask"][1] = 0
    source = write_sides(tmp_path / "pcam", sides)
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    (remark,) = report.remarks
    assert remark.startswith("1 mask(s)")


# -- copies
# ------------------------------------------------------------------------------------------------


def judge_slowly(rows):
    """The rules of the docstring, patch by patch."""
    fates = []
    for row, (patch_id, side, _) in enumerate(rows):
        tests = [r for r in rows if r[0] == patch_id and r[1] == "test"]
        asked = tests or [r for r in rows if r[0] == patch_id]
        if len({label for _, _, label in asked}) > 1:
            fates.append("contradicting")
        elif tests and side != "test":
            fates.append("in_train_and_test")
        elif any(r[0] == patch_id and (r[1] == "test") == (side == "test") for r in rows[:row]):
            fates.append("duplicates")
        else:
            fates.append("kept")
    return fates


@pytest.mark.parametrize("seed", range(20))
def test_judging_is_as_the_docstring_says(seed):
    rng = np.random.default_rng(seed)
    sides = sorted(rng.choice(["train", "valid", "test"], 60), key=["train", "valid", "test"].index)
    rows = [(f"{rng.integers(25)}", side, int(rng.random() < 0.2)) for side in sides]
    found = judge(pd.DataFrame(rows, columns=["id", "side", "label"]))
    assert found.tolist() == judge_slowly(rows)


def test_copies_are_dropped_and_counted(tmp_path):
    sides = random_sides()
    train, valid, test = (sides[side]["x"] for side in ("train", "valid", "test"))
    train[4] = train[0]  # same label
    valid[2] = train[0]  # same label, another slide
    train[7] = train[6]  # both labels
    train[8] = test[0]
    valid[3] = test[0]  # whatever its label
    test[4] = test[2]
    source = write_sides(tmp_path / "pcam", sides)
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    dropped = {"duplicates": 3, "contradicting": 2, "in_train_and_test": 2}
    assert dropped.items() <= report.counts.items()
    assert report.counts["train"] + report.counts["test"] + 7 == sum(ROWS.values())
    first, both, across = id_of(train[0]), id_of(train[6]), id_of(test[0])
    slides, places = table(tmp_path / "out/slides.csv"), table(tmp_path / "out/sides.csv")
    assert slides[first] == sides["train"]["wsi"][0] and places[first] == "train"
    assert both not in slides and places[across] == "test" and across in slides
    assert not list((tmp_path / "out").rglob(f"*{both}*"))
    assert not (tmp_path / f"out/train/{across}.tif").exists()
    assert hcd.check_dataset(tmp_path / "out", progress=False).clean
    told = " ".join(report.remarks)
    assert "1 patch(es) have both labels" in told and "2 patch(es) have equal copies" in told


# -- which side is which
# ------------------------------------------------------------------------------------------------


def test_swapped_valid_and_test_are_told_by_their_slides(imported, tmp_path):
    sides = random_sides()
    swapped = {"train": sides["train"], "valid": sides["test"], "test": sides["valid"]}
    for side in ("valid", "test"):
        del swapped[side]["mask"]
    source = write_sides(tmp_path / "pcam", swapped)
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    ours, theirs = files_of(tmp_path / "out"), files_of(imported[0])
    assert ours.pop(CARD) != theirs.pop(CARD) and ours == theirs
    valid, test = sorted(report.remarks, reverse=True)
    assert valid.startswith("camelyonpatch_level_2_split_valid_x.h5 holds slides of the test set")
    assert test.startswith("camelyonpatch_level_2_split_test_x.h5 holds slides of the training set")


def test_without_meta_the_name_tells_the_side_and_there_are_no_slides(source, imported, tmp_path):
    for path in source.glob("*.h5"):
        (tmp_path / "pcam").mkdir(exist_ok=True)
        (tmp_path / "pcam" / path.name).symlink_to(path)
    report = hcd.import_pcam(tmp_path / "pcam", tmp_path / "out", progress=False)
    assert not (tmp_path / "out/slides.csv").exists() and report.counts["slides"] == 0
    assert len(report.remarks) == 3 and all("no _meta.csv" in text for text in report.remarks)
    for name in ("train_labels.csv", "sides.csv", "test_labels.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (imported[0] / name).read_bytes()
    assert hcd.open_dataset(tmp_path / "out").test_labels is not None


def test_slides_only_of_the_sides_that_have_a_meta(tmp_path):
    sides = random_sides()
    source = write_sides(tmp_path / "pcam", sides, leave_out=["test_meta"])
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    slides = table(tmp_path / "out/slides.csv")
    assert set(slides) == set(table(tmp_path / "out/train_labels.csv"))
    assert report.counts["slides"] == len(set(slides.values()))


def test_other_names_of_slides_leave_the_side_to_the_files(tmp_path):
    sides = random_sides()
    for side, parts in sides.items():
        parts["wsi"] = [f"{side} {row}" for row in range(len(parts["y"]))]
    source = write_sides(tmp_path / "pcam", sides)
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert report.counts["test"] == 8 and len(report.remarks) == 3
    assert "'train 0'" in report.remarks[0]


def test_training_alone_opens_without_a_test_set(tmp_path):
    source = write_sides(tmp_path / "pcam", {"train": random_sides()["train"]})
    report = hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert hcd.open_dataset(tmp_path / "out").no_test
    assert [remark.split()[1] for remark in report.remarks] == ["valid", "test"]
    assert hcd.check_dataset(tmp_path / "out", progress=False).clean


# -- again, and after a kill
# ------------------------------------------------------------------------------------------------


def test_an_equal_call_writes_nothing(imported, source):
    root, report = imported
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again = hcd.import_pcam(source, root, progress=False)
    assert not again.new and again.counts == report.counts and again.remarks == report.remarks
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert "nothing to do" in again.text()


KILLED = """
import os, signal, sys
import hcd.dataset.{module} as module
function, left = module.{name}, {left}
def stop(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        {cut}
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
module.{name} = stop
import hcd
hcd.import_pcam(sys.argv[1], sys.argv[2], progress=False)
"""
CUT = "open(args[0], 'wb').write(args[1][:9000])"


@pytest.mark.parametrize(
    "place",
    [
        {"module": "pcam", "name": "hash_patches", "left": 0, "cut": "pass"},
        {"module": "pcam_patches", "name": "_save", "left": 13, "cut": CUT},
        {"module": "pcam", "name": "_write_table", "left": 2, "cut": "pass"},
        {"module": "pcam.os", "name": "replace", "left": 4, "cut": "pass"},
    ],
    ids=["after decompressing", "in a patch", "between tables", "between moves"],
)
def test_a_killed_import_ends_with_the_same_bytes(imported, source, tmp_path, place):
    if place["left"] == 0:
        sides = random_sides()
        del sides["valid"]["mask"], sides["test"]["mask"]
        source = write_sides(tmp_path / "pcam", sides, ["train_x", "test_y", "train_mask"])
    code = KILLED.format(**place)
    if place["module"] == "pcam.os":  # of the moves alone
        code = code.replace("import hcd.dataset.pcam.os as module", "import hcd.dataset.pcam as m")
        code = code.replace("function, left = module.replace", "function, left = os.replace")
        code = code.replace("    left -= 1\n", "    left -= 'unfinished/' in str(args[0])\n")
        code = code.replace("module.replace = stop", "os.replace = stop")
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    assert subprocess.run(command, cwd=CHECKOUT).returncode == -signal.SIGKILL
    assert (tmp_path / "out" / UNFINISHED).is_dir()
    hcd.import_pcam(source, tmp_path / "out", progress=False)
    ours, theirs = files_of(tmp_path / "out"), files_of(imported[0])
    if place["left"] == 0:
        del ours[CARD], theirs[CARD]
    assert ours == theirs


def test_what_was_begun_from_other_files_is_begun_anew(imported, source, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    other = write_sides(tmp_path / "other", random_sides(1))
    with monkeypatch.context() as patch:
        patch.setattr("hcd.dataset.pcam._write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            hcd.import_pcam(other, tmp_path / "out", progress=False)
    assert (tmp_path / "out" / UNFINISHED / "train").is_dir()
    hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert files_of(tmp_path / "out") == files_of(imported[0])


def test_what_is_complete_is_not_written_again(source, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hcd.dataset.pcam._write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            hcd.import_pcam(source, tmp_path / "out", progress=False)
    written = {}
    for path in (tmp_path / "out" / UNFINISHED).rglob("*.tif"):
        written[path.name] = path.stat().st_ino, path.stat().st_mtime_ns
    victim = next(iter(written))
    (tmp_path / "out" / UNFINISHED / "train" / victim).unlink(missing_ok=True)
    (tmp_path / "out" / UNFINISHED / "test" / victim).unlink(missing_ok=True)
    hcd.import_pcam(source, tmp_path / "out", progress=False)
    for path in (tmp_path / "out").rglob("*.tif"):
        same = (path.stat().st_ino, path.stat().st_mtime_ns) == written[path.name]
        assert same == (path.name != victim)


def test_two_at_once_make_one(imported, source, tmp_path):
    code = "import sys, hcd; hcd.import_pcam(*sys.argv[1:], progress=False)"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    calls = [subprocess.Popen(command, cwd=CHECKOUT) for _ in range(2)]
    assert [call.wait(timeout=120) for call in calls] == [0, 0]
    assert files_of(tmp_path / "out") == files_of(imported[0])


# -- the map alone
# ------------------------------------------------------------------------------------------------


def competition(root, sides, extra=2):
    """Write a data folder's tables as the competition ships them: some of PCam's, and some not."""
    root.mkdir()
    known = [id_of(patch) for side in ("train", "valid") for patch in sides[side]["x"][:6]]
    test = [id_of(patch) for patch in sides["test"]["x"]]
    unknown = [f"{number:040}" for number in range(extra)]
    for name, ids in (("train_labels", known + unknown), ("sample_submission", test)):
        pd.DataFrame({"id": ids, "label": [i % 2 for i in range(len(ids))]}).to_csv(
            root / f"{name}.csv", index=False
        )
    return known + test


@pytest.mark.parametrize("packed", [(), ("train_x", "test_x")])
def test_the_map_of_competition_data_needs_no_y_and_writes_slides_alone(tmp_path, packed):
    sides = random_sides()
    known = competition(tmp_path / "data", sides)
    source = write_sides(tmp_path / "pcam", sides, packed, [f"{side}_y" for side in sides])
    before = files_of(tmp_path / "data")
    report = hcd.import_pcam(source, tmp_path / "data", map_only=True, progress=False)
    after = files_of(tmp_path / "data")
    assert set(after) - set(before) == {"slides.csv"} and before.items() <= after.items()
    assert not (tmp_path / "data" / UNFINISHED).exists()
    slides = table(tmp_path / "data/slides.csv")
    expected = {id_of(patch): wsi for s in sides.values() for patch, wsi in zip(s["x"], s["wsi"])}
    assert slides == {patch_id: expected[patch_id] for patch_id in known}
    assert report.counts == {"found": 20, "not_found": 2, "slides": len(set(slides.values()))}
    hcd.import_pcam(source, tmp_path / "data", map_only=True, progress=False)
    assert files_of(tmp_path / "data") == after


def test_the_map_gives_a_copy_its_first_slide(tmp_path):
    sides = random_sides()
    sides["valid"]["x"][7] = sides["train"]["x"][0]
    competition(tmp_path / "data", sides)
    source = write_sides(tmp_path / "pcam", sides)
    hcd.import_pcam(source, tmp_path / "data", map_only=True, progress=False)
    first = sides["train"]["wsi"][0]
    assert table(tmp_path / "data/slides.csv")[id_of(sides["train"]["x"][0])] == first


def test_what_no_map_can_be_made_of(source, tmp_path, refused):
    sides = random_sides()
    competition(tmp_path / "data", random_sides(7))
    call = {"map_only": True, "progress": False}
    before = files_of(tmp_path / "data")
    with refused(hcd.InputError, "none of the 22 ids", tmp_path / "data", source):
        hcd.import_pcam(source, tmp_path / "data", **call)
    blind = write_sides(tmp_path / "blind", sides, (), [f"{side}_meta" for side in sides])
    with refused(hcd.InputError, blind, "no _meta.csv"):
        hcd.import_pcam(blind, tmp_path / "data", **call)
    with refused(FileNotFoundError, tmp_path / "none", "is no folder"):
        hcd.import_pcam(source, tmp_path / "none", **call)
    (tmp_path / "empty").mkdir()
    with refused(FileNotFoundError, "train_labels.csv is missing"):
        hcd.import_pcam(source, tmp_path / "empty", **call)
    assert files_of(tmp_path / "data") == before and not list((tmp_path / "empty").iterdir())
    competition(tmp_path / "mine", sides)
    (tmp_path / "mine/slides.csv").write_text("id,wsi\nmine,mine\n")
    with refused(FileExistsError, tmp_path / "mine/slides.csv"):
        hcd.import_pcam(source, tmp_path / "mine", **call)
    assert (tmp_path / "mine/slides.csv").read_text() == "id,wsi\nmine,mine\n"


# -- what is refused
# ------------------------------------------------------------------------------------------------


def shorten(path, by=4000):
    os.truncate(path, path.stat().st_size - by)


def rewrite(path, name, content, **options):
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=content, **options)


def break_pixels(source):
    """Damage a compressed chunk: only reading it shows."""
    path = source / PLACE.format("valid", "x.h5")
    rewrite(path, "x", random_sides()["valid"]["x"], compression="gzip", chunks=(1, 96, 96, 3))
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(5).byte_offset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 2000)


def spoil_y(source):
    labels = random_sides()["test"]["y"].reshape(-1, 1, 1, 1)
    labels[3] = 2
    rewrite(source / PLACE.format("test", "y.h5"), "y", labels)


def spoil_meta(source, side="train", **change):
    parts = random_sides()[side] | change
    write_meta(source / PLACE.format(side, "meta.csv"), parts)


def other_truths(source, word):
    truths = [str(bool(label)) for label in random_sides()["train"]["y"]]
    spoil_meta(source, truths=truths[:4] + [word] + truths[5:])


def x_elsewhere(source, make):
    path = source / PLACE.format("train", "x.h5")
    path.rename(source / "other.h5")
    with h5py.File(path, "w") as file:
        make(file, source / "other.h5")


def virtual(file, other):
    layout = h5py.VirtualLayout((20, 96, 96, 3), np.uint8)
    layout[:] = h5py.VirtualSource(other, "x", (20, 96, 96, 3))
    file.create_virtual_dataset("x", layout)


def external(file, other):
    place = [(str(other), 0, 20 * 27_648)]
    file.create_dataset("x", (20, 96, 96, 3), np.uint8, external=place)


def link(file, other):
    file["x"] = h5py.ExternalLink(str(other), "x")


def file_of(side, kind):
    return PLACE.format(side, kind)


ZEROS = np.zeros((20, 96, 96, 3), np.uint8)
HARM = {
    "truncated h5": (
        lambda source: shorten(source / file_of("train", "x.h5")),
        [file_of("train", "x.h5"), "truncated", "get it again"],
    ),
    "no h5": (
        lambda source: (source / file_of("train", "y.h5")).write_text("<html>"),
        [file_of("train", "y.h5"), "cannot be read as HDF5"],
    ),
    "damaged pixels": (break_pixels, [file_of("valid", "x.h5"), "get it again"]),
    "truncated x.gz": (
        lambda source: (
            pack(source / file_of("train", "x.h5")),
            shorten(source / f"{file_of('train', 'x.h5')}.gz"),
        ),
        [file_of("train", "x.h5.gz"), "no whole gzip"],
    ),
    "truncated y.gz": (
        lambda source: (
            pack(source / file_of("train", "y.h5")),
            shorten(source / f"{file_of('train', 'y.h5')}.gz", 20),
        ),
        [file_of("train", "y.h5.gz"), "no whole gzip"],
    ),
    "no gz": (
        lambda source: (source / file_of("test", "x.h5")).rename(
            source / file_of("test", "x.h5.gz")
        ),
        [file_of("test", "x.h5.gz"), "no whole gzip"],
    ),
    "x shorter than y": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", ZEROS[:19]),
        [file_of("train", "x.h5"), "19 rows", file_of("train", "y.h5"), "20"],
    ),
    "another shape": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", ZEROS[:, :90]),
        [file_of("train", "x.h5"), "(20, 90, 96, 3)", "(N, 96, 96, 3)"],
    ),
    "another type": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", ZEROS / np.float32(255)),
        [file_of("train", "x.h5"), "float32"],
    ),
    "no rows": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", ZEROS[:0]),
        [file_of("train", "x.h5"), "(0, 96, 96, 3)"],
    ),
    "a number for an array": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", np.uint8(1)),
        [file_of("train", "x.h5"), "shape ()"],
    ),
    "an empty array": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "x", h5py.Empty("u1")),
        [file_of("train", "x.h5"), "shape None"],
    ),
    "another name": (
        lambda source: rewrite(source / file_of("train", "x.h5"), "images", ZEROS),
        [file_of("train", "x.h5"), "'x'"],
    ),
    "a link": (lambda source: x_elsewhere(source, link), [file_of("train", "x.h5"), "of its own"]),
    "pixels in another file": (
        lambda source: x_elsewhere(source, external),
        [file_of("train", "x.h5"), "of its own"],
    ),
    "a virtual array": (
        lambda source: x_elsewhere(source, virtual),
        [file_of("train", "x.h5"), "of its own"],
    ),
    "a mask of another length": (
        lambda source: rewrite(source / file_of("train", "mask.h5"), "mask", ZEROS[:7, ..., :1]),
        [file_of("train", "mask.h5"), "7 rows", file_of("train", "y.h5")],
    ),
    "a mask of another shape": (
        lambda source: rewrite(source / file_of("train", "mask.h5"), "mask", ZEROS),
        [file_of("train", "mask.h5"), "(N, 96, 96, 1)"],
    ),
    "y not 0 or 1": (spoil_y, [file_of("test", "y.h5"), "patch 3 is 2", "0 or 1"]),
    "y contradicts": (
        lambda source: other_truths(source, "True"),
        [file_of("train", "meta.csv"), "row 6, center_tumor_patch is True", "patch 4", "is 0"],
    ),
    "no truth": (
        lambda source: other_truths(source, "maybe"),
        [file_of("train", "meta.csv"), "row 6, center_tumor_patch is neither True nor False"],
    ),
    "meta of another length": (
        lambda source: spoil_meta(source, wsi=slide_names("train", 19)),
        [file_of("train", "meta.csv"), "19 rows", "20 labels"],
    ),
    "meta without a column": (
        lambda source: write_meta(
            source / file_of("train", "meta.csv"), random_sides()["train"], COLUMNS[:-1]
        ),
        [file_of("train", "meta.csv"), "wsi"],
    ),
    "meta that is no table": (
        lambda source: (source / file_of("train", "meta.csv")).write_bytes(b"\xff\0\xfe"),
        [file_of("train", "meta.csv"), "get it again"],
    ),
    "a mixture": (
        lambda source: spoil_meta(
            source, "valid", wsi=slide_names("train", 5) + slide_names("test", 3)
        ),
        [file_of("valid", "meta.csv"), "3 on test, 5 on training slides"],
    ),
    "two test sides": (
        lambda source: spoil_meta(source, "valid", wsi=slide_names("test", 8)),
        [file_of("valid", "x.h5"), file_of("test", "x.h5"), "both the test side"],
    ),
    "two valid sides": (
        lambda source: spoil_meta(source, "test", wsi=slide_names("valid", 8)),
        [file_of("valid", "x.h5"), file_of("test", "x.h5"), "both the valid side"],
    ),
    "test by its slides and test by its name": (
        lambda source: (
            spoil_meta(source, "valid", wsi=slide_names("test", 8)),
            (source / file_of("test", "meta.csv")).unlink(),
        ),
        [file_of("test", "x.h5"), "both the test side", "_meta.csv"],
    ),
    "x without y": (
        lambda source: (source / file_of("valid", "y.h5")).unlink(),
        [file_of("valid", "y.h5"), "is missing", file_of("valid", "x.h5")],
    ),
    "test alone": (
        lambda source: [(source / file_of(side, "x.h5")).unlink() for side in ("train", "valid")],
        ["no patches to train with"],
    ),
    "one label": (
        lambda source: (
            rewrite(source / file_of("test", "y.h5"), "y", np.ones((8, 1, 1, 1), np.uint8)),
            (source / file_of("test", "meta.csv")).unlink(),
        ),
        ["only label 1 to test with"],
    ),
    "one label without the copies": (
        lambda source: rewrite(
            source / file_of("test", "x.h5"),
            "x",
            random_sides()["test"]["x"][[0, 0, 0, 0, 0, 0, 2, 0]],
        ),
        ["only label 0 to test with"],
    ),
}


@pytest.mark.parametrize("harm, parts", HARM.values(), ids=HARM.keys())
def test_bad_files_are_refused_in_one_sentence_and_leave_nothing(tmp_path, refused, harm, parts):
    source = write_sides(tmp_path / "pcam", random_sides())
    harm(source)
    with refused((hcd.InputError, FileNotFoundError), *parts):
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises((hcd.InputError, FileNotFoundError)):
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())


def test_a_gzipped_file_that_never_ends_is_cut_short(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("hcd.dataset.pcam_files.SPARE", 10_000)
    source = write_sides(tmp_path / "pcam", random_sides())
    path = source / file_of("train", "x.h5")
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    pack(path)
    with refused(hcd.InputError, f"{path}.gz", "more bytes"):
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_chunks_that_fill_the_memory_are_refused(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("hcd.dataset.hdf5.MOST_CHUNK", 27_648)
    source = write_sides(tmp_path / "pcam", random_sides())
    rewrite(source / file_of("train", "x.h5"), "x", ZEROS, chunks=(2, 96, 96, 3))
    with refused(hcd.InputError, file_of("train", "x.h5"), "55296 bytes"):
        hcd.import_pcam(source, tmp_path / "out", progress=False)


def test_a_folder_without_the_files_says_which_are_wanted(source, tmp_path, refused):
    wanted = "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5"
    with refused(FileNotFoundError, tmp_path, wanted):
        hcd.import_pcam(tmp_path, tmp_path / "out")
    with refused(FileNotFoundError, tmp_path / "none", "is no folder", wanted):
        hcd.import_pcam(tmp_path / "none", tmp_path / "out")
    (tmp_path / "file").touch()
    with refused(NotADirectoryError, tmp_path / "file", "is a file", wanted):
        hcd.import_pcam(tmp_path / "file", tmp_path / "out")
    with refused(FileNotFoundError, source.parent, f"{source} does"):
        hcd.import_pcam(source.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_out_that_holds_something_else_is_left_alone(imported, source, tmp_path, refused):
    (tmp_path / "mine.txt").write_text("mine")
    with refused(FileExistsError, tmp_path, "mine.txt"):
        hcd.import_pcam(source, tmp_path, progress=False)
    assert files_of(tmp_path) == {"mine.txt": b"mine"}
    with refused(NotADirectoryError, "is a file"):
        hcd.import_pcam(source, tmp_path / "mine.txt", progress=False)
    with refused(FileExistsError, source):
        hcd.import_pcam(source, source, progress=False)
    other = write_sides(tmp_path / "pcam", random_sides(1))
    before = files_of(imported[0])
    with refused(FileExistsError, imported[0], "of other files"):
        hcd.import_pcam(other, imported[0], progress=False)
    assert files_of(imported[0]) == before
    (tmp_path / "link").symlink_to(tmp_path)
    with refused(OSError, tmp_path / "link", "is a link to"):
        hcd.import_pcam(source, tmp_path / "link", progress=False)


def test_out_may_lie_in_dir(imported, tmp_path):
    sides = random_sides()
    source = write_sides(tmp_path / "pcam", sides)
    hcd.import_pcam(source, source / "out", progress=False)
    assert not hcd.import_pcam(source, source / "out", progress=False).new
    assert len(hcd.open_dataset(source / "out").labels) == 28


def test_somebodys_own_file_is_not_moved_over(source, tmp_path, monkeypatch, refused):
    with monkeypatch.context() as patch:
        patch.setattr("hcd.dataset.pcam._finish_moves", lambda *args: None)
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    (tmp_path / "out/slides.csv").write_text("mine")
    with refused(FileExistsError, tmp_path / "out/slides.csv"):
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert (tmp_path / "out/slides.csv").read_text() == "mine"


def test_too_little_room_is_told_before_anything_is_written(source, tmp_path, monkeypatch, refused):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1_000_000))
    with refused(OSError, tmp_path / "out", "0.00 GB free", "free space"):
        hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_a_disk_that_fills_is_told_and_the_import_goes_on(
    imported, source, tmp_path, monkeypatch, refused
):
    from hcd.dataset.pcam_patches import _save

    calls = []

    def full(path, content):
        calls.append(path)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("hcd.dataset.pcam_patches._save", full)
        with refused(OSError, tmp_path / "out", "no space left", "free space"):
            hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UNFINISHED]
    hcd.import_pcam(source, tmp_path / "out", progress=False)
    assert files_of(tmp_path / "out") == files_of(imported[0])


def test_without_h5py_it_says_what_to_install(source, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused(hcd.InputError, "pip install 'hcd[pcam]'"):
        hcd.import_pcam(source, tmp_path / "out")


# -- the command line
# ------------------------------------------------------------------------------------------------


def test_command_line(imported, source, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["import", "pcam", str(source), out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == imported[1].counts and report["folder"] == out
    assert files_of(out) == files_of(imported[0])
    assert main(["import", "pcam", str(source), out]) == 0
    assert "nothing to do" in capsys.readouterr().out
    competition(tmp_path / "data", random_sides())
    assert main(["import", "pcam", str(source), str(tmp_path / "data"), "--map-only"]) == 0
    assert "20  found\n" in capsys.readouterr().out
    assert main(["import", "pcam", str(tmp_path), str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(f"hcd: {tmp_path} holds no")
    for arguments, word in ((["", "x"], "DIR"), (["x", ""], "OUT")):
        assert main(["import", "pcam", *arguments]) == 2
        assert f'{word} "" names nothing' in capsys.readouterr().err
