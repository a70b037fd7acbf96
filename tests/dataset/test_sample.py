"""The synthetic data set: layout, ids, outliers, same bytes for one rng_seed, and a label only the
centre shows."""

import csv
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hcd.dataset.opened import open_dataset
from hcd.dataset.sample import (
    CARD,
    NAMES,
    UNFINISHED,
    _draw_nuclei,
    draw_patch,
    is_sample,
    make_sample,
)

# rows and columns that the label may change: the centre 32 x 32 and 4 px around it
REACH = slice(28, 68)


def read_rgb(path):
    """Read as the competition's own readers do, apart from ours."""
    return np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    make_sample(folder, train=100, test=40, rng_seed=3)
    return folder


@pytest.fixture(scope="module")
def drawn():
    """400 patches and labels that alternate, so that features of one half can be tried on the
    other."""
    rng = np.random.default_rng(11)
    labels = np.arange(400) // 2 % 2
    return np.stack([draw_patch(int(label), rng) for label in labels]) / 255, labels


def held_out_auc(features, labels):
    """AUC on the odd patches of a classifier fitted to the even ones."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(
        features[::2], labels[::2]
    )
    return roc_auc_score(labels[1::2], model.decision_function(features[1::2]))


def colour_features(pixels):
    """(N, P, 3) pixels -> mean, std and 8-bin histogram of each channel."""
    histogram = [((pixels >= k / 8) & (pixels < (k + 1) / 8)).mean(axis=1) for k in range(8)]
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1), *histogram], axis=1)


def scale_features(gray):
    """(N, S, S) -> log energy of four bands of detail: 1 to 2, 2 to 4, 4 to 8 and 8 px up."""
    bands = []
    for image in gray:
        blurred = [image, *(cv2.GaussianBlur(image, (0, 0), sigma) for sigma in (1, 2, 4))]
        details = [*(fine - coarse for fine, coarse in zip(blurred, blurred[1:])), blurred[-1]]
        bands.append([np.log(detail.std() + 1e-3) for detail in details])
    return np.array(bands)


# -- what is drawn
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_rng", [np.random.default_rng, np.random.RandomState])
def test_label_changes_the_centre_and_nothing_else(make_rng):
    for rng_seed in range(20):
        negative, positive = (draw_patch(label, make_rng(rng_seed)).astype(int) for label in (0, 1))
        changed = np.abs(negative - positive).max(axis=2)
        assert changed[32:64, 32:64].max() > 30
        changed[REACH, REACH] = 0
        assert changed.max() == 0


def test_surroundings_do_not_tell_the_label_but_the_centre_does(drawn):
    patches, labels = drawn
    ring = np.ones((96, 96), bool)
    ring[REACH, REACH] = False
    frame = patches.mean(axis=3)
    frame[:, REACH, REACH] = 0.5
    around = np.hstack([colour_features(patches[:, ring]), scale_features(frame)])
    centre = patches[:, 32:64, 32:64]
    within = np.hstack(
        [colour_features(centre.reshape(len(centre), -1, 3)), scale_features(centre.mean(axis=3))]
    )
    assert 0.4 < held_out_auc(around, labels) < 0.6
    assert held_out_auc(within, labels) > 0.85


def test_neither_brightness_nor_colour_of_the_whole_patch_is_the_label(drawn):
    patches, labels = drawn
    for value in (
        patches.mean(axis=(1, 2, 3)),
        (patches[..., 0] - patches[..., 1]).mean(axis=(1, 2)),
    ):
        assert 0.35 < roc_auc_score(labels, value) < 0.65
    darkness = 1 - patches[:, 32:64, 32:64].mean(axis=(1, 2, 3))
    assert roc_auc_score(labels, darkness) < 0.85  # a hint, not the answer


@pytest.mark.parametrize("radius", [4, 7.5])
def test_nucleus_has_its_radius_and_place(radius):
    dye = _draw_nuclei(np.array([[30.25, 60.5]]), radius, 0, 1, False, np.random.default_rng(0))
    area = dye / dye.max()
    # OpenCV's soft edge adds half a px
    assert area.sum() == pytest.approx(np.pi * (radius + 0.5) ** 2, rel=0.05)
    y, x = np.mgrid[:96, :96]
    assert [(area * x).sum() / area.sum(), (area * y).sum() / area.sum()] == pytest.approx(
        [30.25, 60.5], abs=0.15
    )


def test_colours_are_those_of_the_real_patches(drawn):
    patches, _ = drawn
    np.testing.assert_allclose(patches.mean(axis=(0, 1, 2)), (0.702, 0.546, 0.696), atol=0.06)
    np.testing.assert_allclose(patches.std(axis=(0, 1, 2)), (0.239, 0.282, 0.216), atol=0.06)
    assert patches.mean(axis=(1, 2)).std(axis=0).min() > 0.05  # stain differs from patch to patch


def test_patch_is_96_px_rgb_and_every_draw_differs():
    rng = np.random.default_rng(0)
    first, second = draw_patch(1, rng), draw_patch(1, rng)
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert not np.array_equal(first, second)
    assert np.array_equal(first, draw_patch(1, np.random.default_rng(0)))


# -- what is written
# ----------------------------------------------------------------------------------------------


def test_same_rng_seed_same_bytes_other_rng_seed_other_patches(root, tmp_path):
    make_sample(tmp_path / "again", train=100, test=40, rng_seed=3)
    make_sample(tmp_path / "other", train=100, test=40, rng_seed=4)
    assert files_of(tmp_path / "again") == files_of(root)
    names, others = (
        {path.name for path in folder.glob("*/*.tif")} for folder in (root, tmp_path / "other")
    )
    assert not names & others


def test_layout_is_the_competitions(root):
    assert {path.name for path in root.iterdir()} == {
        "train",
        "test",
        "train_labels.csv",
        "sample_submission.csv",
        "test_labels.csv",
        "sample.json",
    }
    for folder, count in (("train", 100), ("test", 40)):
        rows = read_rows(root / f"{folder}_labels.csv")
        assert list(rows[0]) == ["id", "label"]
        assert sorted(row["id"] for row in rows) == sorted(
            path.stem for path in (root / folder).glob("*.tif")
        )
        labels = [row["label"] for row in rows]
        assert labels.count("1") == 0.4 * count and labels.count("0") == 0.6 * count
    assert len({path.stem for path in root.glob("*/*.tif")}) == 140
    sample = read_rows(root / "sample_submission.csv")
    answers = read_rows(root / "test_labels.csv")
    assert {row["label"] for row in sample} == {"0"}
    ids = [row["id"] for row in sample]
    assert ids != sorted(ids) and sorted(ids) == [row["id"] for row in answers]


def test_files_are_uncompressed_8_bit_rgb_named_by_content(root):
    for path in root.glob("*/*.tif"):
        rgb = read_rgb(path)
        assert rgb.shape == (96, 96, 3) and rgb.dtype == np.uint8
        assert hashlib.sha1(rgb.tobytes()).hexdigest() == path.stem
        # the pixels lie in the file as they are, in RGB order
        assert rgb.tobytes() in path.read_bytes()


def test_files_are_laid_out_as_the_competitions(root):
    for path in root.glob("*/*.tif"):
        content = path.read_bytes()
        assert len(content) == 27_935 and content[:10] == b"II*\0\x08\0\0\0\x0f\0"
        assert content[287:] == read_rgb(path).tobytes()


def test_exactly_one_too_dark_and_two_too_bright_all_negative(root):
    labels = {row["id"]: row["label"] for row in read_rows(root / "train_labels.csv")}
    patches = {path.stem: read_rgb(path) for path in root.glob("*/*.tif")}
    for margin in (0, 3):  # the whole patch, and its 90 px crop
        crops = {
            patch_id: rgb[margin : 96 - margin, margin : 96 - margin] / 255
            for patch_id, rgb in patches.items()
        }
        dark = [patch_id for patch_id, rgb in crops.items() if rgb.max() < 10 / 255]
        bright = [patch_id for patch_id, rgb in crops.items() if rgb.min() > 245 / 255]
        assert (len(dark), len(bright)) == (1, 2)
        assert {labels[patch_id] for patch_id in dark + bright} == {"0"}


def test_returns_the_data_set_that_open_dataset_finds(root):
    made, opened = make_sample(root, train=100, test=40, rng_seed=3), open_dataset(root)
    assert (
        made.labels.equals(opened.labels)
        and made.sample_ids == opened.sample_ids
        and made.root == opened.root
    )
    assert len(made.labels) == 100 and made.labels["label"].sum() == 40 and len(made.test_ids) == 40


def test_smallest_sample_has_both_labels_and_the_outliers(tmp_path):
    assert sorted(make_sample(tmp_path, train=8, test=2).labels["label"]) == [0] * 5 + [1] * 3
    assert sorted(row["label"] for row in read_rows(tmp_path / "test_labels.csv")) == ["0", "1"]


# -- calling again, and errors
# ------------------------------------------------------------------------------------


def test_equal_call_reuses_without_writing(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_sample(root, train=100, test=40, rng_seed=3)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("change", [{"train": 101}, {"test": 41}, {"rng_seed": 4}])
def test_another_sample_is_refused(root, change):
    with pytest.raises(FileExistsError, match="name an empty folder"):
        make_sample(root, **{"train": 100, "test": 40, "rng_seed": 3, **change})


def spoil_pixel(root):
    path = next(iter((root / "train").glob("*.tif")))
    content = bytearray(path.read_bytes())
    content[9000] ^= 1
    path.write_bytes(content)


def spoil_label(root):
    path = root / "train_labels.csv"
    path.write_text(path.read_text().replace(",0", ",1", 1))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_pixel,
        spoil_label,
        lambda root: next(iter((root / "test").glob("*.tif"))).unlink(),
        lambda root: (root / "test" / "extra.tif").write_bytes(b"II*\0"),
        lambda root: (root / "sample_submission.csv").unlink(),
        lambda root: (root / "sample.json").unlink(),
    ],
    ids=["pixel", "label", "missing patch", "extra patch", "missing table", "missing card"],
)
def test_altered_sample_is_refused_and_left_alone(root, tmp_path, spoil):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    spoil(copy)
    before = files_of(copy)
    with pytest.raises(FileExistsError, match="holds something other than the sample"):
        make_sample(copy, train=100, test=40, rng_seed=3)
    assert files_of(copy) == before


def test_folder_with_other_things_or_a_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name an empty folder"):
        make_sample(tmp_path, train=8, test=2)
    with pytest.raises(NotADirectoryError, match="is a file"):
        make_sample(tmp_path / "notes.txt", train=8, test=2)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


def test_interrupted_call_leaves_the_folder_empty(tmp_path, monkeypatch):
    calls = []

    def stop(label, rng):
        calls.append(label)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return draw_patch(label, rng)

    monkeypatch.setattr("hcd.dataset.sample.draw_patch", stop)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path, train=20, test=4)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(make_sample(tmp_path, train=20, test=4).labels) == 20


def test_a_link_is_neither_filled_nor_emptied_through(tmp_path, refused):
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with refused(OSError, tmp_path / "link", "is a link to"):
        make_sample(tmp_path / "link", train=8, test=2)
    (tmp_path / "victim/mine").write_text("mine")
    for name in (UNFINISHED, "train"):
        root = tmp_path / f"root of {name}"
        (root / "test").mkdir(parents=True)
        (root / "test/mine.tif").write_text("mine")
        if name == "train":  # as if killed while moving
            (root / UNFINISHED / "test").mkdir(parents=True)
            (root / UNFINISHED / CARD).touch()
        (root / name).symlink_to(tmp_path / "victim")
        before = files_of(root)
        with refused(OSError, root / name, "is a link to"):
            make_sample(root, train=8, test=2)
        assert files_of(root) == before and (root / name).is_symlink()
    assert files_of(tmp_path / "victim") == {"mine": b"mine"}


@pytest.mark.parametrize("name", [".unfinished", UNFINISHED])
def test_somebodys_own_data_beside_a_scratch_folder_stay(tmp_path, name):
    for folder in ("train", name):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.tif").write_text("mine")
    with pytest.raises(FileExistsError, match="name an empty folder"):
        make_sample(tmp_path, train=8, test=2)
    assert files_of(tmp_path)["train/mine.tif"] == b"mine"


MOVES = """
import os, signal, sys
from hcd.dataset.sample import make_sample
replace, left = os.replace, int(sys.argv[2])
def move(source, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(source, target)
os.replace = move
make_sample(sys.argv[1], train=8, test=2)
"""


@pytest.mark.parametrize("moves", [0, 1, len(NAMES) - 1])
def test_a_kill_between_two_moves_leaves_what_the_next_call_clears(tmp_path, moves):
    command = [sys.executable, "-c", MOVES, str(tmp_path / "data"), str(moves)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == -signal.SIGKILL and (tmp_path / "data" / UNFINISHED).is_dir()
    make_sample(tmp_path / "data", train=8, test=2)
    assert sorted(os.listdir(tmp_path / "data")) == sorted(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 7}, "train=7 .* 8 or more"),
        ({"test": 1}, "test=1 .* 2 or more"),
        ({"train": 20.5}, "train=20.5"),
        ({"rng_seed": -1}, "rng_seed=-1 .* whole number"),
        ({"rng_seed": None}, "rng_seed=None"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sample(tmp_path, **arguments)
    assert not any(tmp_path.iterdir())


def test_bad_label_and_generator():
    with pytest.raises(ValueError, match="label=2 .* 0 .* 1"):
        draw_patch(2, np.random.default_rng(0))
    with pytest.raises(TypeError, match="default_rng"):
        draw_patch(1, None)


def test_two_calls_at_once_draw_one_sample(tmp_path):
    code = f"import hcd; hcd.make_sample({str(tmp_path / 'twin')!r}, train=40, test=10)"
    calls = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [call.wait(timeout=120) for call in calls] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "twin").iterdir()) == sorted(NAMES)
    assert len(make_sample(tmp_path / "twin", train=40, test=10).labels) == 40


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert make_sample("~/x", train=8, test=2).root == tmp_path / "home/x"
    assert not (tmp_path / "~").exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hcd.dataset.sample.encode_tiff", full)
    with pytest.raises(OSError, match=f"{tmp_path / 'full'}.*No space left.*free"):
        make_sample(tmp_path / "full", train=8, test=2)
    assert not list((tmp_path / "full").iterdir())


def test_a_sample_is_known_by_what_lies_in_it(copy_of_sample, tmp_path):
    assert is_sample(copy_of_sample) and is_sample(str(copy_of_sample))
    patch = next((copy_of_sample / "train").glob("*.tif"))
    content = patch.read_bytes()
    patch.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_sample(copy_of_sample)
    patch.write_bytes(content)
    assert is_sample(copy_of_sample)
    (copy_of_sample / "train/mine.tif").write_bytes(content)
    assert not is_sample(copy_of_sample) and not is_sample(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{}", b'{"sha1": ""}', b"\xff", b"[" * 999, b" " * 2000]
)
def test_a_strangers_card_is_no_sample(copy_of_sample, content):
    (copy_of_sample / "sample.json").write_bytes(content)
    assert not is_sample(copy_of_sample)
