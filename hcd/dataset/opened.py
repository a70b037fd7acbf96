"""Folder -> validated table of ids and labels, in the competition's layout."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..disk.parallel import listed_paths, map_patches
from ..disk.whole import StrPath
from ..errors import InputError
from ..reader import read_patch
from ..recipe import Recipe
from .listed import Listed, listed_in, read_listed, texts, when_asked
from .pack import FOLDER, PackedFolder, PackedPatch
from .tables import LAYOUT, id_array, read_labels, table_file

NAMES = 50_000  # of a folder's files that are there at a time


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set in the competition's layout, as `open_dataset` found it.

    Attributes:
        root: its folder. labels: DataFrame, columns id (str) and label (int64, 0 or 1), in file
            order.
        test_ids: ids of the test patches, sorted. sample_ids: the same ids in the order of
            sample_submission.csv.
        test_labels: DataFrame like labels from test_labels.csv, the answers, which the competition
            does not ship; else None.
        packed: PackedFolder that the patches are read from, see `pack_dataset`; None where they are
            read from their files.
        no_test: why there is no test set, a sentence's beginning; "" where there is one.
    """

    root: Path
    labels: pd.DataFrame = when_asked()
    test_ids: tuple = when_asked()
    sample_ids: tuple = when_asked()
    test_labels: pd.DataFrame | None = None
    packed: PackedFolder | None = None
    no_test: str = ""

    def without(self, ids: Any) -> "Dataset":
        """Return the same data set without some of its labelled patches."""
        ids = [ids] if isinstance(ids, str) else ids
        return replace(
            self, labels=self.labels[~self.labels["id"].isin(ids)].reset_index(drop=True)
        )

    def locate(self, folder: str, patch_id: str) -> Any:
        """Return the file of a patch of "train" or "test", or its `PackedPatch`; cheap, for it is
        called at every read."""
        if self.packed is not None:
            return self.packed.locate(folder, patch_id)
        return f"{self.root}{os.sep}{folder}{os.sep}{patch_id}.tif"

    def train_path(self, patch_id: str) -> Any:
        """Return the file of a labelled patch, a Path, or its `PackedPatch`, which takes a file's
        place in the readers."""
        return self._path("train", patch_id)

    def test_path(self, patch_id: str) -> Any:
        """Return the file of a test patch, a Path, or its `PackedPatch`."""
        return self._path("test", patch_id)

    def _path(self, folder, patch_id):
        where = self.locate(folder, patch_id)
        return Path(where) if self.packed is None else where

    @property
    def train_paths(self):
        """Files or packed patches of all labelled patches, in the order of `labels`."""
        return [self.locate("train", patch_id) for patch_id in texts(self.id_bytes("train"))]

    @property
    def test_paths(self):
        """Files or packed patches of all test patches, in the order of `test_ids`."""
        return [self.locate("test", patch_id) for patch_id in texts(self.id_bytes("test"))]

    def id_bytes(self, side: str) -> np.ndarray:
        """Return the ids of "train", in the order of `labels`, or of "test", in that of `test_ids`,
        as an (N,) array of bytes; where the table was never asked for, without making it."""
        listed = listed_in(self, "labels" if side == "train" else "test_ids")
        if listed is not None:
            return listed.ids
        return id_array(self.labels["id"] if side == "train" else self.test_ids)

    @property
    def label_values(self) -> np.ndarray:
        """The labels, (N,), in the order of `labels`; where the table was never asked for, int8
        and without making it."""
        listed = listed_in(self, "labels")
        return np.asarray(self.labels["label"] if listed is None else listed.labels)

    @property
    def row_index(self) -> Any:
        """The index of `labels`; None where the table was never asked for, and it would count from
        0."""
        return None if listed_in(self, "labels") else self.labels.index

    @property
    def fingerprint(self):
        """SHA-256 over the sorted ids and labels; ids name their patches' content, so it stands for
        the pixels too."""
        labels = self.label_values
        if labels.dtype.kind in "biuf":
            ends = np.where(labels, b",1", b",0")
        else:  # a user's own texts, of which every one would count as true
            ends = np.char.encode([f",{label}" for label in labels.tolist()])
        rows = np.char.add(self.id_bytes("train"), ends)
        rows.sort()
        digest = hashlib.sha256()
        # millions of rows as one text would need half a GiB
        for start in range(0, len(rows), 10_000):
            digest.update(b"".join(row + b"\n" for row in rows[start : start + 10_000].tolist()))
        digest.update(b"\n".join(self.id_bytes("test").tolist()))
        return digest.hexdigest()


def open_dataset(root: StrPath, packed: bool | None = None) -> Dataset:
    """Open a data set and check its tables against its files; not every patch is read yet, see
    `verify_patches`.

    Args:
        root: folder with train/<id>.tif, train_labels.csv (id,label), test/<id>.tif and
            sample_submission.csv; a table may be compressed, as <name>.gz. Without test/ or
            without sample_submission.csv it serves training alone. Where it holds packed/,
            the patches are read from there; train/ and test/ may then be absent, see
            `pack_dataset`.
        packed: False reads the files although there is a pack; True requires one.
    Returns:
        Dataset.
    Raises:
        FileNotFoundError: a folder, table or file is missing. InputError: a table breaks its rule,
            a file has no id, or the pack is not of this data set.

    CHANGED C1: the walkthrough trusts its folder; here tables and files must agree before anything
        is trained.

    Source: In 1, In 12, In 41.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name the folder that holds {LAYOUT}")
    _say_where_it_lies(root)
    listed = table_file(root, "train_labels.csv")
    labels, ordered = read_listed(listed)
    if len(kinds := np.unique(labels.labels)) < 2:
        raise InputError(f"{listed} holds only label {kinds[0]}; training needs patches of both")
    pack = None
    # a link into nowhere is no reason to read files in silence
    if packed or packed is None and os.path.lexists(root / FOLDER):
        pack = PackedFolder(root)
    no_test = why_no_test(root, pack)
    tests: Any = ()
    sample_ids: Any = ()
    sides = [("train", ordered, "train_labels.csv")]
    if not no_test:
        sample_ids, ordered = read_listed(table_file(root, "sample_submission.csv"), False)
        tests = Listed(ordered)
        sides.append(("test", ordered, "sample_submission.csv"))
    for folder, ids, table in sides:
        if pack:
            pack.check_ids(folder, ids, table)
        else:
            _match_files(root / folder, ids, table)
    if pack:
        pack.spot_check()
    answers = table_file(root, "test_labels.csv")
    test_labels = _read_answers(answers, sides[1][1]) if answers.is_file() and tests else None
    return Dataset(root, labels, tests, sample_ids, test_labels, pack, no_test)


def why_no_test(root: Path, pack: PackedFolder | None) -> str:
    """Return why a data folder serves training alone, a sentence's beginning; "" where it has a
    test set."""
    table = table_file(root, "sample_submission.csv")
    if not os.path.lexists(table):
        return f"{table} is missing"
    if pack is None and not os.path.lexists(root / "test"):
        return f"{root / 'test'} is missing"
    if pack is not None and not pack.counts["test"]:
        return f"{pack.folder} holds no test patches (`hcd pack {root}` packs those that are there)"
    return ""


def _read_answers(path, ids):
    """Read test_labels.csv: of exactly these sorted ids, and of both labels."""
    answers = read_labels(path)
    if not np.array_equal(np.sort(id_array(answers["id"])), ids):
        raise InputError(
            f"{path} does not answer for the ids of sample_submission.csv; correct it or move it"
            " away"
        )
    if answers["label"].nunique() < 2:
        raise InputError(
            f"{path} holds only label {answers['label'].iloc[0]}, and a ROC curve needs"
            " both; give answers of both labels or move it away"
        )
    return answers


def verify_patches(paths: Sequence, recipe: Recipe = Recipe(), progress: bool = True) -> int:
    """Read every patch once and require 8-bit RGB of the recipe's size, and of a packed one the
    very pixels that were packed.

    Args:
        paths: files of patches, or packed patches. progress: show a bar.
    Returns:
        number of patches read.
    Raises:
        InputError: at least one cannot be used; names the first three and counts all.
    """
    return len(pixel_digests(paths, recipe, progress))


def pixel_digests(paths: Sequence, recipe: Recipe = Recipe(), progress: bool = True) -> np.ndarray:
    """Verify every patch, see `verify_patches`, and hash its pixels, for a run that is resumed.

    Returns:
        (N, 20) uint8, the SHA-1 of each patch's RGB bytes in the order of `paths`.
    Raises:
        InputError: as `verify_patches`.
    """

    paths = listed_paths(paths)

    def digest(path):
        try:
            patch = read_patch(path, recipe)
            if isinstance(path, PackedPatch):
                path.prove()
        except (InputError, OSError) as error:  # collected, and raised together below
            return str(error)
        return hashlib.sha1(np.ascontiguousarray(patch)).digest()

    found = list(map_patches(digest, paths, "verifying patches", progress))
    faults = [text for text in found if isinstance(text, str)]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise InputError(
            f"{len(faults)} of {len(paths)} patches cannot be used: {'; '.join(faults[:3])}{more}"
        )
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 20)


def _say_where_it_lies(root):
    """Name the archive to unpack, or the folder farther in, where a data set is not here itself.

    Raises:
        FileNotFoundError: it lies elsewhere.
    """
    sides = [name for name in ("train", "test") if not (root / name).exists()]
    sides = [] if os.path.lexists(root / FOLDER) else sides
    table = "train_labels.csv"
    tables = [] if table_file(root, table).is_file() else [table]
    sample = "sample_submission.csv"
    sides += [] if table_file(root, sample).exists() else [sample]
    for missing in tables + sides:
        archive = archive_of(root, [missing])
        if archive is not None:
            raise FileNotFoundError(
                f"{root / missing} is missing, but {archive.name} is there; unpack it to get"
                f" {missing} beside it"
            )
    if not tables:
        return
    inner = [folder for folder in sorted(root.iterdir()) if _holds(folder, table)]
    if inner:
        raise FileNotFoundError(
            f"{root / table} is missing, but {inner[0]} holds one; name that folder"
        )
    archives = sorted(root.glob("*.zip"))
    if archives:
        raise FileNotFoundError(
            f"{root / table} is missing, but {archives[0].name} is there; unpack it and name the"
            f" folder that then holds {LAYOUT}"
        )


def refuse_data_places(path: StrPath, root: StrPath, why: str) -> None:
    """Keep what is written out of the folders of a data set, where a link has them lie too.

    Args:
        path: where something would be written. root: of the data set. why: the sentence's middle.
    Raises:
        InputError: it lies in train/, test/ or the pack.
    """
    path, root = Path(path).resolve(), Path(root).resolve()
    own = [root / FOLDER, root / f"{FOLDER}.part"]
    for place in [(root / "train").resolve(), (root / "test").resolve(), *own]:
        if place in (path, *path.parents):
            raise InputError(f"{place} holds the data, and {why}; name another")


def visible_files(folder):
    """Return the names of everything in a folder but hidden files."""
    return {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}


def archive_of(root: Path, names: Sequence[str]) -> Path | None:
    """Return an archive of one of these files or folders; None where there is none."""
    endings = ("zip", "tar", "tar.gz")
    archives = [root / f"{name}.{ending}" for name in names for ending in endings]
    return next((archive for archive in archives if archive.is_file()), None)


def _holds(folder, table):
    try:
        return table_file(folder, table).is_file()
    except OSError:  # a folder of somebody else's
        return False


def _stems(entries, longest):
    """Yield the names of a folder's files without .tif; of another file, or of one with a longer
    name, a dot, which is no id."""
    for entry in entries:
        name = entry.name
        if name[:1] != b".":
            yield name[:-4] if name.endswith(b".tif") and len(name) <= longest + 4 else b"."


def _holds_exactly(folder, ids):
    """Say whether there is one <id>.tif for each of the sorted ids and no file besides; a few
    thousand names are there at a time."""
    seen: np.ndarray = np.zeros(len(ids), bool)
    with os.scandir(os.fsencode(folder)) as entries:
        stems = _stems(entries, ids.itemsize)
        while len(part := np.fromiter(islice(stems, NAMES), ids.dtype)):
            part.sort()
            places = ids.searchsorted(part).clip(max=len(ids) - 1)
            if (ids[places] != part).any():
                return False
            seen[places] = True
    return bool(seen.all())


def _match_files(folder, ids, table):
    """Require one <id>.tif for each of the sorted ids and no file besides; hidden files do not
    count."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; the data folder must hold {LAYOUT}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"{folder} may not be read by you; change its permissions")
    if _holds_exactly(folder, ids):
        return
    wanted = {f"{patch_id.decode()}.tif" for patch_id in ids.tolist()}
    found = visible_files(folder)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    stems = {Path(name).stem for name in missing}
    suffixes = sorted({Path(name).suffix for name in found if Path(name).stem in stems})
    if missing and suffixes:
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(wanted)} are), but the"
            f" folder holds files that end in {' and '.join(suffixes)}; change their names, a"
            " patch's file is <id>.tif"
        )
    others = {name.lower() for name in extra}
    if missing and missing[0].lower() in others:
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing, but the folder holds that name in other letters,"
            f" upper or lower case; change the ids of {table} or the files' names"
        )
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing although {table} lists it ({len(missing)} of"
            f" {len(wanted)} files are missing); finish the download"
        )
    if extra:
        raise InputError(
            f"{folder / extra[0]} has no row in {table} ({len(extra)} such file(s)); add its row or"
            " move it away"
        )
