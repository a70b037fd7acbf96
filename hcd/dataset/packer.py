"""Write the packed data set: every patch decoded once, in an order that an interrupted run can go
on from."""

import errno
import hashlib
import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from ..disk.locks import take_lock
from ..disk.parallel import map_patches
from ..disk.whole import (
    StrPath,
    refuse_links,
    sweep_parts,
    whole_write,
    writable_folder,
    write_json,
)
from ..errors import InputError
from ..reader import read_patch
from ..recipe import Recipe
from .opened import open_dataset, refuse_data_places, verify_patches, why_no_test
from .pack import (
    FOLDER,
    HASHES,
    HEADER,
    IDS,
    INDEX,
    PATCHES,
    PackedFolder,
    array_header,
    array_shapes,
    index_digest,
    new_index,
)
from .tables import TABLES, id_array, table_file

TITLE = "checking what is packed"
LOCK = ".lock"  # in packed.part/, and gone with it


@dataclass(frozen=True)
class PackReport:
    """What `pack_dataset` did.

    Attributes:
        folder: the pack. patches: how many it holds. size_bytes: of all its files. kept: patches
        that an earlier, interrupted run had packed. new: False where a pack was there and nothing
        was done. replaced: why a pack that was there could not stay, and where it lies now; else
        "". no_test: why it holds no test patches; "" where it does.
    """

    folder: Path
    patches: int
    size_bytes: int
    kept: int
    new: bool
    replaced: str
    no_test: str = ""


def pack_dataset(
    root: StrPath, into: StrPath | None = None, recipe: Recipe = Recipe(), progress: bool = True
) -> PackReport:
    """Decode every patch of a data set once and write all into one array, from which `open_dataset`
    then reads; see `pack`.

    It grows in packed.part/, which becomes packed/ in one step when all is written and flushed. A
    run that was killed or met a full disk leaves packed.part/, and the same call goes on from
    there: the patches in it are hashed again and kept as far as that holds. A pack that is whole
    and of this data set, each patch proven by its hash, is left as it is.

    Args:
        root: folder in the competition's layout. into: another folder, on a fast disk, to get the
            tables and the pack; None packs beside the files. recipe: the size of patches. progress:
            show a bar.
    Returns:
        PackReport.
    Raises:
        FileNotFoundError, InputError: as `open_dataset` and `read_patch`. FileExistsError: `into`
        holds other tables. OSError: no space, or no permission; nothing that existed is lost.
        KeyboardInterrupt: Ctrl-C; its text says how far it came.
    """
    root = Path(root).expanduser()
    target = root if into is None else Path(into).expanduser()
    if target.exists() and root.exists() and target.samefile(root):
        target = root  # whatever it is called
    else:
        refuse_data_places(target, root, "no pack is made there")
    reason = ""
    if os.path.lexists(target / FOLDER):
        try:
            dataset = open_dataset(target)
            verify_patches(dataset.train_paths + dataset.test_paths, recipe, progress)
            _same_tables(root, target)
            if dataset.no_test and (root / "train").is_dir() and not why_no_test(root, None):
                raise InputError(f"it holds no test patches, and {root} has a test set")
            _compare_with_files(dataset, root, recipe, progress)
            return _report(target, 0, False, "", dataset.no_test)
        except (InputError, OSError) as error:
            # it is made anew below where the files are there, and then the report says why
            if not (root / "train").is_dir():
                raise
            reason = str(error)
    dataset = open_dataset(root, packed=False)
    if target != root:
        _same_tables(root, writable_folder(target))
        for name in TABLES:
            table = table_file(root, name)
            if table.is_file():
                with whole_write(target / table.name) as file:
                    file.write(table.read_bytes())
    kept = _pack(
        dataset,
        target / f"{FOLDER}.part",
        recipe,
        progress,
        f"hcd pack {root}" + f" --into {into}" * (into is not None),
    )
    return _report(target, kept, True, _commit(target, reason), dataset.no_test)


def _compare_with_files(dataset, root, recipe, progress):
    """Require each packed patch to be that of its file, where the files are still there.

    Raises:
        InputError: one is not; names the file.
    """
    sides = {"train": dataset.labels["id"].tolist(), "test": list(dataset.test_ids)}
    names = [(side, name) for side, ids in sides.items() if (root / side).is_dir() for name in ids]

    def differs(place):
        side, name = place
        file = root / side / f"{name}.tif"
        return not np.array_equal(read_patch(file, recipe), dataset.locate(side, name).pixels())

    with closing(map_patches(differs, names, "comparing with the files", progress)) as found:
        for (side, name), other in zip(names, found):
            if other:
                raise InputError(
                    f"{root / side / name}.tif has other pixels than were packed from it; pack"
                    " anew, or restore the file"
                )


def _same_tables(root, target):
    """Require the tables of another folder to be those of the data set, where it has any."""
    for name in TABLES:
        theirs, ours = (
            table.read_bytes() if table.is_file() else b""
            for table in (table_file(folder, name) for folder in (target, root))
        )
        if theirs not in (b"", ours):
            raise FileExistsError(
                f"{target / name} is not the table of {root}; name an empty folder to pack into"
            )


def _pack(dataset, part, recipe, progress, command):
    """Fill packed.part/ up to its index; return how many patches an earlier run had packed."""
    ids = [np.sort(id_array(side)) for side in (dataset.labels["id"], dataset.test_ids)]
    index = new_index(
        len(ids[0]), len(ids[1]), recipe.original_size, max(side.itemsize for side in ids)
    )
    ids = np.concatenate(ids)
    refuse_links(part)
    _check_space(part, index, command)
    lock = take_lock(
        writable_folder(part) / LOCK,
        f"{part} is being written by another `hcd pack`; let it finish first, then change nothing"
        " or run it again",
        patience=0,
    )
    try:
        kept = _fill(dataset, part, index, ids, recipe, progress, command)
        digest = index_digest(index, ids, np.fromfile(part / HASHES, np.uint8, offset=HEADER))
        write_json(part / INDEX, {**index, "sha256": digest})
        sweep_parts(part)
    finally:
        lock.release()
    (part / LOCK).unlink(missing_ok=True)
    return kept


def _fill(dataset, part, index, ids, recipe, progress, command):
    """Write the pixels and hashes that are still missing; return how many rows were there."""
    descriptor = os.open(part / PATCHES, os.O_RDWR | os.O_CREAT, 0o666)
    with (
        open(descriptor, "r+b", buffering=0) as pixels,
        open(part / HASHES, "ab+", buffering=0) as hashes,
    ):
        work = _Work(dataset, index, ids, recipe, pixels, hashes)
        kept = work.begin(part, progress)
        try:
            work.write(kept, progress)
        except (OSError, KeyboardInterrupt) as error:
            packed = (os.fstat(hashes.fileno()).st_size - HEADER) // 20
            done = f"{packed:,} of {len(ids):,} patches are packed"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"stopped; {done}, and `{command}` goes on from there"
                ) from None
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(
                    f"{part / PATCHES} has no space left ({error.strerror}): {done}; free"
                    f" {_missing(part, index):.2f} GB and run `{command}` again, it goes on from"
                    " there"
                ) from error
            raise
    return kept


class _Work:
    """The files of one packing run and what goes into them; its rows are numbered as in
    `PackedFolder`."""

    def __init__(self, dataset, index, ids, recipe, pixels, hashes):
        self.dataset, self.index, self.ids, self.recipe = dataset, index, ids, recipe
        self.pixels, self.hashes, self.lock = pixels, hashes, Lock()
        self.bytes = recipe.original_size**2 * 3

    def read(self, row):
        """Decode the patch of a row."""
        side = "train" if row < self.index["train"] else "test"
        return read_patch(self.dataset.locate(side, self.ids[row].decode()), self.recipe)

    def begin(self, part, progress):
        """Keep what an earlier run packed as far as it can be proven, cut off the rest; return the
        number of rows kept."""
        (_, *shape), _, _ = shapes = array_shapes(self.index)
        heads = [array_header(kind, shape) for _, kind, shape in shapes]
        wanted, kept = heads[0] + self.ids.tobytes(), 0
        if (part / IDS).is_file() and (part / IDS).read_bytes() == wanted:
            kept = self.proven_rows(heads, progress)
        else:
            with whole_write(part / IDS) as file:
                file.write(wanted)
        for file, head, width in ((self.hashes, heads[1], 20), (self.pixels, heads[2], self.bytes)):
            file.truncate(HEADER + kept * width if kept else 0)
            if not kept:
                file.seek(0)
                _write_all(file, head)
        return kept

    def proven_rows(self, heads, progress):
        """Count the first rows whose pixels have the hash that was noted; 0 where files have
        changed since then."""
        self.hashes.seek(0)
        noted = self.hashes.read()
        self.pixels.seek(0)
        if noted[:HEADER] != heads[1] or self.pixels.read(HEADER) != heads[2]:
            return 0
        rows = min(
            (len(noted) - HEADER) // 20,
            (os.fstat(self.pixels.fileno()).st_size - HEADER) // self.bytes,
            len(self.ids),
        )
        noted = [noted[start : start + 20] for start in range(HEADER, HEADER + rows * 20, 20)]
        kept = 0
        found = map_patches(self.is_row_proven, list(zip(range(rows), noted)), TITLE, progress)
        with closing(found) as proven:
            for is_proven in proven:
                if not is_proven:
                    break
                kept += 1
        return kept

    def is_row_proven(self, row_and_digest):
        """Say whether a row's pixels, and those of its file, have the hash that was noted."""
        row, digest = row_and_digest
        return digest == self.hash_row(row) == hashlib.sha1(self.read(row)).digest()

    def hash_row(self, row):
        """Return the SHA-1 of a row's pixels as they are in the file."""
        with self.lock:
            self.pixels.seek(HEADER + row * self.bytes)
            content = self.pixels.read(self.bytes)
        return hashlib.sha1(content).digest()

    def write_row(self, row):
        """Decode a patch, write its pixels, return their SHA-1."""
        patch = np.ascontiguousarray(self.read(row))
        # one writer at a time also holds the readers back when the disk is slower than they
        with self.lock:
            self.pixels.seek(HEADER + row * self.bytes)
            _write_all(self.pixels, patch)
        return hashlib.sha1(patch).digest()

    def write(self, kept, progress):
        """Write the rows that are left; a hash is noted only behind its pixels and those of all
        rows before."""
        self.hashes.seek(0, os.SEEK_END)
        with closing(
            map_patches(self.write_row, range(kept, len(self.ids)), "packing patches", progress)
        ) as digests:
            for digest in digests:
                _write_all(self.hashes, digest)
        os.fsync(self.pixels.fileno())
        os.fsync(self.hashes.fileno())


def _write_all(file, content):
    """Write to an unbuffered file, which takes only a part where the disk is full, and raises at
    the next try."""
    content = memoryview(content).cast("B")
    while len(content):
        content = content[file.write(content) :]


def _missing(part, index):
    """Return the GB that are still to be written, plus 50 MB."""
    total = sum(
        HEADER + np.dtype(kind).itemsize * int(np.prod(shape))
        for _, kind, shape in array_shapes(index)
    )
    there = sum(file.stat().st_blocks * 512 for file in part.iterdir()) if part.is_dir() else 0
    return (max(total - there, 0) + 5e7) / 1e9


def _check_space(part, index, command):
    """Require space for all patches before the first is written."""
    free, missing = (
        shutil.disk_usage(part if part.is_dir() else part.parent).free / 1e9,
        _missing(part, index),
    )
    if free < missing:
        raise OSError(
            f"{part.parent} has {free:.2f} GB free and the pack needs {missing:.2f} GB more; free"
            f" space, or name a folder on another disk with `{command.split(' --into ')[0]} --into"
            " FOLDER`"
        )


def _commit(target, reason):
    """Turn packed.part/ into packed/; move a pack that stands in its place aside, and say so."""
    folder, replaced = target / FOLDER, ""
    if os.path.lexists(folder):
        number = 0
        while os.path.lexists(old := target / f"{FOLDER}.old{f'-{number}' if number else ''}"):
            number += 1
        os.rename(folder, old)
        replaced = f"{reason}; it lies in {old} now"
    os.rename(target / f"{FOLDER}.part", folder)
    if os.name == "posix":
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)  # of the renaming
        os.close(descriptor)
    return replaced


def _report(target, kept, new, replaced, no_test):
    pack = PackedFolder(target)
    pack.spot_check()
    size_bytes = sum((pack.folder / name).stat().st_size for name in (INDEX, IDS, HASHES, PATCHES))
    return PackReport(pack.folder, len(pack.ids), size_bytes, kept, new, replaced, no_test)
