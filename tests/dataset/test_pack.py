"""A packed data set gives the same patches as its files, is refused where it is another's, and
survives being killed half-way."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hcd
from hcd import (
    PackedFolder,
    PackedPatch,
    Recipe,
    copy_patch,
    open_dataset,
    pack_dataset,
    verify_patches,
)
from hcd.cli import main
from hcd.dataset import packer
from hcd.dataset.pack import HEADER, array_header, array_shapes, index_digest, new_index
from hcd.dataset.tables import id_array
from hcd.disk import parallel
from hcd.reader import read_cropped_image, read_image, read_patch

ROW = 96 * 96 * 3


@pytest.fixture
def root(packed_root, tmp_path):
    """A packed data set for one test to damage."""
    return shutil.copytree(packed_root, tmp_path / "data")


@pytest.fixture
def without_files(root):
    """A packed data set whose train/ and test/ are gone."""
    for folder in ("train", "test"):
        shutil.rmtree(root / folder)
    return root


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def all_paths(dataset):
    return dataset.train_paths + dataset.test_paths


# the same patches


def test_every_patch_is_that_of_its_file(root, sample):
    dataset = open_dataset(root)
    assert (
        dataset.labels.equals(sample.labels)
        and dataset.test_ids == sample.test_ids
        and dataset.sample_ids == sample.sample_ids
    )
    assert dataset.fingerprint == sample.fingerprint
    for packed, file in zip(all_paths(dataset), all_paths(sample), strict=True):
        assert (
            isinstance(packed, PackedPatch)
            and packed.stem == Path(file).stem
            and packed.name == Path(file).name
        )
        assert str(packed) == os.fspath(packed) == str(root / Path(file).relative_to(sample.root))
        patch = read_image(packed)
        assert (
            np.array_equal(patch, cv2.imread(str(file))[..., ::-1])
            and patch.dtype == np.uint8
            and not patch.flags.writeable
        )
    assert read_patch(dataset.train_paths[0]).shape == (96, 96, 3)
    assert hcd.channel_statistics(dataset.train_paths, progress=False) == hcd.channel_statistics(
        sample.train_paths, progress=False
    )
    assert verify_patches(all_paths(dataset), progress=False) == 72


def test_draws_are_those_of_the_files(packed_root, sample):
    dataset = open_dataset(packed_root)
    for packed, file in zip(dataset.train_paths[:8], sample.train_paths):
        for augmentations in (True, False):
            crops = [
                read_cropped_image(path, augmentations, rng=random.Random(7))
                for path in (packed, file)
            ]
            assert np.array_equal(*crops)


def test_numpy_alone_reads_it(packed_root, sample):
    folder = packed_root / "packed"
    patches, ids, sha1 = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("patches", "ids", "sha1")
    )
    assert patches.shape == (72, 96, 96, 3) and patches.dtype == np.uint8
    assert [name.decode() for name in ids] == [*sorted(sample.labels["id"]), *sample.test_ids]
    # ids are the hash of the pixels here
    assert [row.tobytes().hex() for row in sha1] == [name.decode() for name in ids]
    assert [hashlib.sha1(patch.tobytes()).hexdigest() for patch in patches] == [
        name.decode() for name in ids
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "ids.npy",
        "index.json",
        "patches.npy",
        "sha1.npy",
    ]


@given(
    st.lists(st.text("abc-_0é", min_size=1, max_size=9), min_size=2, max_size=30, unique=True),
    st.integers(1, 29),
)
@settings(max_examples=60, deadline=None)
def test_ids_are_found_and_no_others(tmp_path_factory, ids, split):
    split = min(split, len(ids) - 1)
    root = tmp_path_factory.mktemp("ids")
    sides = [sorted(part, key=str.encode) for part in (ids[:split], ids[split:])]
    write_pack(root, *sides, size=2)
    pack = PackedFolder(root)
    for side, wanted in zip(("train", "test"), sides):
        assert [pack.locate(side, name).stem for name in wanted] == wanted
        pack.check_ids(side, np.sort(id_array(wanted)), "a table")
        for other in {*ids, "", "a" * 300, "é" * 9, "\0"} - {*wanted}:
            with pytest.raises(FileNotFoundError):
                pack.locate(side, other)
    assert [int(pack.locate("train", name).pixels().min()) for name in sides[0]] == list(
        range(split)
    )


def write_pack(root, train, test, size, **changes):
    """Write a pack by hand, row r all of grey level r."""
    folder = root / "packed"
    folder.mkdir()
    ids = id_array([*train, *test])
    pixels = np.broadcast_to(
        np.arange(len(ids), dtype=np.uint8)[:, None, None, None], (len(ids), size, size, 3)
    )
    sha1 = np.stack(
        [np.frombuffer(hashlib.sha1(row.tobytes()).digest(), np.uint8) for row in pixels]
    )
    index = {**new_index(len(train), len(test), size, ids.itemsize), **changes}
    for (name, kind, shape), array in zip(array_shapes(index), (ids, sha1, pixels)):
        (folder / name).write_bytes(array_header(kind, shape) + array.tobytes())
    (folder / "index.json").write_text(
        json.dumps({**index, "sha256": index_digest(index, ids, sha1)})
    )


def test_located_as_files_where_there_is_no_pack(sample, packed_root):
    first = sample.labels["id"][0]
    assert (
        sample.locate("train", first)
        == os.path.join(sample.root, "train", f"{first}.tif")
        == str(sample.train_path(first))
    )
    assert isinstance(sample.test_path("x"), Path) and open_dataset(
        packed_root, packed=False
    ).train_paths[0] == str(packed_root / "train" / f"{first}.tif")
    packed = open_dataset(packed_root)
    assert (
        packed.locate("train", first)
        == packed.train_path(first)
        == packed.train_paths[0]
        != packed.train_paths[1]
    )
    assert len({*packed.train_paths, *packed.train_paths}) == 60
    assert repr(packed.train_paths[0]) == f"PackedPatch('{packed.train_paths[0]}')"
    assert packed.without(packed.labels["id"][:10]).train_paths == packed.train_paths[10:]


def test_tables_and_pack_alone_are_enough(without_files, sample, tmp_path):
    dataset = open_dataset(without_files)
    assert verify_patches(all_paths(dataset), progress=False) == 72
    patch_id = sample.test_ids[3]
    copy = copy_patch(dataset.test_path(patch_id), tmp_path)
    assert copy == tmp_path / f"{patch_id}.tif" and np.array_equal(
        read_image(copy), read_image(sample.test_path(patch_id))
    )
    assert copy.read_bytes() == Path(sample.test_path(patch_id)).read_bytes()
    (tmp_path / "name.tif").symlink_to(tmp_path / "victim")  # replaced, not followed
    other = copy_patch(sample.test_path(patch_id), tmp_path / "name.tif")
    assert not other.is_symlink() and not (tmp_path / "victim").exists()
    assert other == tmp_path / "name.tif" and other.read_bytes() == copy.read_bytes()
    shutil.move(without_files, tmp_path / "fast disk")
    assert np.array_equal(
        read_image(open_dataset(tmp_path / "fast disk").test_path(patch_id)), read_image(copy)
    )


def test_pickled_it_is_small_and_opens_by_path(packed_root, monkeypatch, tmp_path):
    dataset = open_dataset(os.path.relpath(packed_root))
    content = pickle.dumps(dataset)
    assert len(content) < 20_000  # 72 patches have 2 MB
    assert len(pickle.dumps(dataset.train_paths)) < 5_000
    monkeypatch.chdir(tmp_path)  # a process that works elsewhere
    copy = pickle.loads(content)
    assert copy.train_paths == dataset.train_paths and str(copy.train_paths[5]) == str(
        dataset.train_paths[5]
    )
    assert np.array_equal(read_image(copy.train_paths[5]), read_image(dataset.train_paths[5]))


def test_a_spawned_process_reads_it(packed_root):
    dataset = open_dataset(packed_root)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(read_image, (dataset.train_paths[3],))
    assert np.array_equal(found, read_image(dataset.train_paths[3]))


def test_a_pickle_does_not_open_another_pack(root, refused):
    content = pickle.dumps(open_dataset(root).packed)
    flip(root / "packed" / "sha1.npy", HEADER + 5)
    with refused(ValueError, "index.json", "hcd pack"):
        pickle.loads(content)


def test_generators_are_left_alone(packed_root):
    random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist()
    open_dataset(packed_root)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())


# refused


@pytest.mark.parametrize("name", ["index.json", "ids.npy", "sha1.npy", "patches.npy"])
def test_a_missing_file(root, refused, name):
    (root / "packed" / name).unlink()
    with refused(FileNotFoundError, root / "packed" / name, "is missing", "hcd pack"):
        open_dataset(root)


@pytest.mark.parametrize("name", ["ids.npy", "sha1.npy", "patches.npy"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_cut_short_or_with_more(root, refused, name, change):
    path = root / "packed" / name
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size + change)
    with refused(
        ValueError, path, f"has {size + change} bytes where its index needs {size}", "hcd pack"
    ):
        open_dataset(root)


@pytest.mark.parametrize(
    "name, at",
    [("ids.npy", HEADER + 41), ("sha1.npy", HEADER + 41), ("ids.npy", 30), ("patches.npy", 40)],
)
def test_a_flipped_byte_in_the_index(root, refused, name, at):
    flip(root / "packed" / name, at)
    with refused(ValueError, name, "hcd pack"):
        open_dataset(root)


def test_any_flipped_byte_of_index_json(root, refused):
    path = root / "packed" / "index.json"
    content = path.read_bytes()
    for at in range(len(content)):
        if content[at : at + 1].isspace():
            continue
        flip(path, at)
        with refused((ValueError, FileNotFoundError), root / "packed", "hcd pack"):
            open_dataset(root)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"version": 2}, "is of version 2, and this hcd reads version 1"),
        ({"version": "1" * 99}, "is of version"),
        ({"format": "zip"}, "is no index"),
        ({"train": 0}, "train is 0"),
        ({"test": -1}, "test is -1"),
        ({"train": True}, "is True"),
        ({"train": 10**18}, "train is 1000"),
        ({"size": 5000}, "size is 5000"),
        ({"size": 96.0}, "size is 96.0"),
        ({"id_bytes": 10**9}, "id_bytes is"),
        ({"size": 95}, "patches.npy has"),
        ({"train": 10**9}, "bytes where its index needs"),
        ({"train": 59, "test": 13}, "digests differ"),
        ({"more": 1}, "other fields"),
        ({"sha256": 5}, "digests differ"),
    ],
)
def test_an_index_that_says_something_else(root, refused, changes, words):
    path = root / "packed" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with refused(ValueError, words, "hcd pack"):
        open_dataset(root)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 9000, b"{}" + b" " * 20_000, b"1e999"]
)
def test_an_index_that_is_none(root, refused, content):
    (root / "packed" / "index.json").write_bytes(content)
    with refused(
        ValueError, root / "packed" / "index.json", "is no index of packed patches", "hcd pack"
    ):
        open_dataset(root)


def test_an_array_that_would_run_code_runs_nothing(root, refused, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = root / "packed" / "ids.npy"
    size = path.stat().st_size
    for content in (np.array([Harm()], object), None):
        if content is None:
            path.write_bytes(pickle.dumps(Harm()))
        else:
            np.save(path, content, allow_pickle=True)
        with open(path, "r+b") as file:
            file.truncate(size)
        with refused(ValueError, path, "hcd pack"):
            open_dataset(root)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "table, side", [("train_labels.csv", "train"), ("sample_submission.csv", "test")]
)
def test_another_table(root, refused, table, side):
    path = root / table
    (root / "test_labels.csv").unlink()
    lines = path.read_text().splitlines()
    for changed, words in (
        (lines[:-1], "0 are not packed, 1 packed"),
        ([*lines, "new,1"], "1 are not packed, 0 packed"),
    ):
        path.write_text("\n".join(changed) + "\n")
        with refused(ValueError, root / "packed" / "ids.npy", table, words, "hcd pack"):
            open_dataset(root)


def test_the_pack_of_another_folder(root, tmp_path, refused):
    other = hcd.make_sample(tmp_path / "other", train=60, test=12, rng_seed=5).root
    shutil.copytree(root / "packed", other / "packed")
    with refused(
        ValueError, other / "packed" / "ids.npy", "60 are not packed, 60 packed", "hcd pack"
    ):
        open_dataset(other)
    assert open_dataset(other, packed=False).packed is None


def test_ids_out_of_order(root, refused):
    shutil.rmtree(root / "packed")
    labels = open_dataset(root).labels["id"]
    write_pack(
        root, sorted(labels)[::-1], sorted(pd.read_csv(root / "sample_submission.csv")["id"]), 96
    )
    with refused(ValueError, "ids.npy", "sorted", "hcd pack"):
        open_dataset(root)


def test_a_link_into_nowhere_and_a_file_are_no_pack(root, refused):
    shutil.rmtree(root / "packed")
    (root / "packed").symlink_to(root / "unmounted")
    with refused(FileNotFoundError, root / "packed", "hcd pack"):
        open_dataset(root)
    (root / "packed").unlink()
    with refused(FileNotFoundError, root / "packed", "hcd pack"):
        open_dataset(root, packed=True)
    (root / "packed").touch()
    with refused(FileNotFoundError, root / "packed"):
        open_dataset(root)


@pytest.mark.parametrize("row", [0, 17, 71])
def test_a_flipped_byte_of_a_patch_is_found(without_files, refused, row):
    dataset = open_dataset(without_files)
    flip(without_files / "packed" / "patches.npy", HEADER + row * ROW + 12345)
    wrong = [*sorted(dataset.labels["id"]), *dataset.test_ids][row]
    with refused(
        ValueError, "1 of 72 patches", f"{wrong}.tif", "other pixels", "patches.npy", "hcd pack"
    ):
        verify_patches(all_paths(dataset), progress=False)


def test_all_pixels_exchanged_is_found_on_opening(root, refused):
    with open(root / "packed" / "patches.npy", "r+b") as file:
        file.seek(HEADER)
        file.write(bytes(72 * ROW))
    with refused(ValueError, "other pixels", "patches.npy", "hcd pack"):
        open_dataset(root)


def test_files_that_changed_since_are_found_on_opening(root, refused):
    for file in (root / "train").iterdir():
        cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    with refused(
        ValueError, root / "train", "holds other pixels than the patch packed from it", "hcd pack"
    ):
        open_dataset(root)


def test_the_recipes_size_counts(packed_root, refused):
    dataset = open_dataset(packed_root)
    with refused(ValueError, "96 x 96 px", "64 x 64 px"):
        read_cropped_image(dataset.train_paths[0], recipe=Recipe(original_size=64, crop_size=60))
    with refused(ValueError, "72 of 72 patches"):
        verify_patches(all_paths(dataset), Recipe(original_size=64, crop_size=60), progress=False)


def test_an_id_that_is_not_there(packed_root, refused):
    dataset = open_dataset(packed_root)
    for patch_id in ("x", dataset.test_ids[0], "a" * 1000):
        with refused(FileNotFoundError, packed_root / "packed", repr(patch_id)):
            dataset.train_path(patch_id)


# packing


def test_a_whole_pack_is_left_alone(root):
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (root / "packed").iterdir()
    }
    report = pack_dataset(root, progress=False)
    assert (report.new, report.patches, report.kept, report.replaced) == (False, 72, 0, "")
    assert report.size_bytes == sum(path.stat().st_size for path in before)
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (root / "packed").iterdir()
    } == before


def test_a_damaged_pack_is_made_anew_and_kept_aside(root, packed_root):
    flip(root / "packed" / "patches.npy", HEADER + 20 * ROW)
    report = pack_dataset(root, progress=False)
    assert (
        report.new
        and "other pixels" in report.replaced
        and str(root / "packed.old") in report.replaced
    )
    assert (
        contents(root / "packed")
        == contents(packed_root / "packed")
        != contents(root / "packed.old")
    )
    flip(root / "packed" / "sha1.npy", HEADER)
    assert str(root / "packed.old-1") in pack_dataset(root, progress=False).replaced
    assert (root / "packed.old").is_dir() and not (root / "packed.part").exists()


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_damaged_pack_without_files_stays(without_files, refused):
    flip(without_files / "packed" / "patches.npy", HEADER + 20 * ROW)
    before = contents(without_files / "packed")
    with refused(ValueError, "other pixels"):
        pack_dataset(without_files, progress=False)
    assert contents(without_files / "packed") == before and not list(without_files.glob("packed.*"))


def test_a_pack_for_training_alone_is_packed_anew_when_test_patches_come(copy_of_sample):
    shutil.move(copy_of_sample / "test", copy_of_sample.parent / "later")
    assert pack_dataset(copy_of_sample, progress=False).patches == 60
    dataset = open_dataset(copy_of_sample)
    assert dataset.no_test.startswith(f"{copy_of_sample / 'packed'} holds no test patches (`hcd pa")
    assert verify_patches(dataset.train_paths + dataset.test_paths, progress=False) == 60
    assert not pack_dataset(copy_of_sample, progress=False).new
    shutil.move(copy_of_sample.parent / "later", copy_of_sample / "test")
    report = pack_dataset(copy_of_sample, progress=False)
    assert report.patches == 72 and "it holds no test patches" in report.replaced
    assert open_dataset(copy_of_sample).no_test == ""


def test_into_another_folder(sample, packed_root, tmp_path, refused):
    report = pack_dataset(sample.root, tmp_path / "fast", progress=False)
    assert report.folder == tmp_path / "fast" / "packed" and contents(report.folder) == contents(
        packed_root / "packed"
    )
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == [
        "packed",
        "sample_submission.csv",
        "test_labels.csv",
        "train_labels.csv",
    ]
    assert open_dataset(tmp_path / "fast").fingerprint == sample.fingerprint
    assert (
        not pack_dataset(sample.root, tmp_path / "fast", progress=False).new
        and not (sample.root / "packed").exists()
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train_labels.csv").write_text("mine")
    with refused(FileExistsError, tmp_path / "other" / "train_labels.csv", "name an empty folder"):
        pack_dataset(sample.root, tmp_path / "other", progress=False)
    assert (tmp_path / "other" / "train_labels.csv").read_text() == "mine"


def test_a_file_that_is_no_patch_stops_it_and_the_rest_is_kept(copy_of_sample, refused):
    path = sorted((copy_of_sample / "test").iterdir())[-1]
    content = path.read_bytes()
    path.write_bytes(b"nothing")
    with refused(ValueError, path, "cannot be decoded"):
        pack_dataset(copy_of_sample, progress=False)
    assert not (copy_of_sample / "packed").exists() and open_dataset(copy_of_sample).packed is None
    path.write_bytes(content)
    assert pack_dataset(copy_of_sample, progress=False).new
    assert verify_patches(all_paths(open_dataset(copy_of_sample)), progress=False) == 72


@pytest.fixture
def small_chunks(monkeypatch):
    """Let one thread pack, two patches at a time; `sample` has fewer than fit into one part of the
    work."""
    whole = packer.map_patches
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 1)
    monkeypatch.setattr(
        packer,
        "map_patches",
        lambda function, rows, title, bar: whole(function, rows, title, bar, chunk=2),
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_a_part_to_go_on_from(
    copy_of_sample, packed_root, small_chunks, monkeypatch, refused, number
):
    write_all, written = packer._write_all, []

    def full(file, content):
        if len(content) == 96 and len(written) == 40:
            raise OSError(number, os.strerror(number))
        written.extend([0] * (len(content) == 96))
        write_all(file, content)

    monkeypatch.setattr(packer, "_write_all", full)
    words = "no space left", "40 of 72 patches are packed", "free 0.05 GB", "goes on from there"
    with refused(OSError, copy_of_sample / "packed.part", *words):
        pack_dataset(copy_of_sample, progress=False)
    assert not (copy_of_sample / "packed").exists() and open_dataset(copy_of_sample).packed is None
    monkeypatch.setattr(packer, "_write_all", write_all)
    report = pack_dataset(copy_of_sample, progress=False)
    assert report.kept == 40 and contents(copy_of_sample / "packed") == contents(
        packed_root / "packed"
    )


def test_too_little_space_is_found_before_the_start(copy_of_sample, monkeypatch, refused):
    monkeypatch.setattr(
        packer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**7)
    )
    with refused(OSError, copy_of_sample, "0.01 GB free", "needs 0.05 GB more", "--into"):
        pack_dataset(copy_of_sample, progress=False)
    assert not list(copy_of_sample.glob("packed*"))


def test_ctrl_c_says_how_to_go_on(copy_of_sample, packed_root, small_chunks, monkeypatch):
    read = packer.read_patch
    calls = []

    def interrupt(path, recipe):
        calls.append(path)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return read(path, recipe)

    monkeypatch.setattr(packer, "read_patch", interrupt)
    with pytest.raises(
        KeyboardInterrupt,
        match=r"stopped; 48 of 72 patches are packed, and `hcd pack .*` goes on from there",
    ):
        pack_dataset(copy_of_sample, progress=False)
    monkeypatch.setattr(packer, "read_patch", read)
    assert pack_dataset(copy_of_sample, progress=False).kept == 48
    assert contents(copy_of_sample / "packed") == contents(packed_root / "packed")


@pytest.mark.parametrize(
    "damage, kept",
    [
        (lambda part: flip(part / "patches.npy", HEADER + 7 * ROW + 5), 7),
        (lambda part: flip(part / "sha1.npy", HEADER + 7 * 20), 7),
        (lambda part: os.truncate(part / "patches.npy", HEADER + 9 * ROW + 1), 9),
        (lambda part: os.truncate(part / "sha1.npy", HEADER + 219), 10),
        (lambda part: os.truncate(part / "sha1.npy", 5), 0),
        (lambda part: (part / "sha1.npy").unlink(), 0),
        (lambda part: (part / "patches.npy").unlink(), 0),
        (lambda part: flip(part / "patches.npy", 20), 0),
        (lambda part: flip(part / "ids.npy", HEADER), 0),
        (lambda part: os.truncate(part / "patches.npy", HEADER + 90 * ROW), 72),
        (lambda part: (part / "index.json").write_text("{"), 72),
    ],
    ids=[
        "a pixel",
        "a hash",
        "fewer pixels",
        "fewer hashes",
        "no hash",
        "no hashes",
        "no pixels",
        "a header",
        "an id",
        "more",
        "an index",
    ],
)
def test_what_a_part_holds_is_kept_only_as_far_as_it_is_proven(root, packed_root, damage, kept):
    os.rename(root / "packed", root / "packed.part")
    damage(root / "packed.part")
    assert pack_dataset(root, progress=False).kept == kept
    assert contents(root / "packed") == contents(packed_root / "packed")


def test_a_part_of_files_that_have_changed_is_not_kept(root):
    os.rename(root / "packed", root / "packed.part")
    for file in (root / "train").iterdir():
        cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    assert pack_dataset(root, progress=False).kept == 0
    assert verify_patches(all_paths(open_dataset(root)), progress=False) == 72


def test_two_at_once_do_not_meet(copy_of_sample, refused):
    (copy_of_sample / "packed.part").mkdir()
    fcntl = pytest.importorskip("fcntl")
    with open(copy_of_sample / "packed.part" / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with refused(BlockingIOError, copy_of_sample / "packed.part", "another `hcd pack`"):
            pack_dataset(copy_of_sample, progress=False)
    assert pack_dataset(copy_of_sample, progress=False).new


@pytest.mark.parametrize(
    "number", {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}, ids=os.strerror
)
def test_a_file_system_without_locks_takes_a_pack(copy_of_sample, monkeypatch, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", fail)
    assert pack_dataset(copy_of_sample, progress=False).new


SLOWLY = """
import sys, time
from hcd.cli import main
from hcd.dataset import packer
whole, read = packer.map_patches, packer.read_patch
packer.map_patches = lambda *given: whole(*given, chunk=2)
packer.read_patch = lambda path, recipe: (time.sleep(0.02), read(path, recipe))[1]
print("ready", flush=True)
packer.pack_dataset(sys.argv[1], progress=False)
"""


def test_killed_half_way_it_goes_on_from_there(copy_of_sample, packed_root):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(copy_of_sample)], stdout=subprocess.PIPE
    )
    part = copy_of_sample / "packed.part" / "sha1.npy"
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size >= HEADER + 20 * 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (copy_of_sample / "packed").exists() and open_dataset(copy_of_sample).packed is None
    report = pack_dataset(copy_of_sample, progress=False)
    assert 20 <= report.kept < 72 and contents(copy_of_sample / "packed") == contents(
        packed_root / "packed"
    )


def test_a_file_that_changed_after_packing_is_found_among_all(copy_of_sample):
    pack_dataset(copy_of_sample, progress=False)
    first, second, *_ = sorted((copy_of_sample / "train").iterdir())
    first.write_bytes(second.read_bytes())
    report = pack_dataset(copy_of_sample, progress=False)
    assert report.new and str(first) in report.replaced and "other pixels" in report.replaced
    found = open_dataset(copy_of_sample).train_path(first.stem).pixels()
    assert np.array_equal(found, read_image(second))


def test_a_part_is_kept_up_to_the_first_file_that_changed(packed_root, tmp_path):
    root = shutil.copytree(packed_root, tmp_path / "data")
    os.rename(root / "packed", root / "packed.part")
    (root / "packed.part/index.json").unlink()
    files = sorted((root / "train").iterdir())
    files[7].write_bytes(files[8].read_bytes())
    assert pack_dataset(root, progress=False).kept == 7


@pytest.mark.parametrize(
    "name", ["", "patches.npy", "ids.npy", "hashes.npy", "index.json", ".lock"]
)
def test_nothing_is_packed_through_a_link(copy_of_sample, tmp_path, refused, name):
    (tmp_path / "victim").mkdir()
    (tmp_path / "mine").write_bytes(b"mine")
    part = copy_of_sample / "packed.part"
    link, target = (part / name, tmp_path / "mine") if name else (part, tmp_path / "victim")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    with refused(OSError, link, "is a link to", "name the place itself"):
        pack_dataset(copy_of_sample, progress=False)
    (tmp_path / "into").symlink_to(tmp_path / "victim")
    with refused(OSError, tmp_path / "into", "is a link to"):
        pack_dataset(copy_of_sample, tmp_path / "into", progress=False)
    assert (tmp_path / "mine").read_bytes() == b"mine" and link.is_symlink()
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_pack_without_test_patches_says_so(copy_of_sample, tmp_path, capsys):
    (copy_of_sample / "sample_submission.csv").unlink()
    (copy_of_sample / "test_labels.csv").unlink()
    report = pack_dataset(copy_of_sample, tmp_path / "fast", progress=False)
    assert report.no_test == f"{copy_of_sample / 'sample_submission.csv'} is missing"
    assert main(["pack", str(copy_of_sample), "--into", str(tmp_path / "fast")]) == 0
    assert "60 patches" in (said := capsys.readouterr().out) and "none for a test set" in said


@pytest.mark.parametrize("place", ["train/fast", "test", "packed/fast"])
def test_nothing_is_packed_into_the_data(copy_of_sample, tmp_path, refused, place):
    before = set(copy_of_sample.rglob("*"))
    shutil.move(copy_of_sample / "train", tmp_path / "elsewhere")
    (copy_of_sample / "train").symlink_to(tmp_path / "elsewhere")
    with refused(ValueError, "holds the data", "name another"):
        pack_dataset(copy_of_sample, copy_of_sample / place, progress=False)
    assert set(copy_of_sample.rglob("*")) <= before


def test_the_same_folder_under_another_name_is_the_same(copy_of_sample, monkeypatch):
    tables = copy_of_sample.parent / "tables.csv"
    shutil.move(copy_of_sample / "train_labels.csv", tables)
    (copy_of_sample / "train_labels.csv").symlink_to(tables)
    monkeypatch.chdir(copy_of_sample)
    assert pack_dataset(".", copy_of_sample, progress=False).patches == 72
    assert (copy_of_sample / "train_labels.csv").is_symlink()
