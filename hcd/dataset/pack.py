"""Packed data set: every patch of a data set in one memory-mapped array, for small files on a slow
disk; `packer` writes it.

<data folder>/packed/ holds patches.npy, (N, size, size, 3) uint8 RGB; ids.npy, (N,) bytes, the
training ids sorted, then the test ids sorted; sha1.npy, (N, 20) uint8, the hash of each patch's
bytes; and index.json, the sizes, the version and a digest of all but the pixels. The arrays are
plain .npy files: numpy.load(..., mmap_mode="r") opens them without hcd.
"""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.images import encode_tiff, read_content
from ..disk.whole import StrPath, whole_write
from ..errors import InputError
from ..reader import read_image

FOLDER, INDEX, IDS, HASHES, PATCHES = "packed", "index.json", "ids.npy", "sha1.npy", "patches.npy"
FORMAT, VERSION, MOST_INDEX_BYTES = "hcd packed patches", 1, 10_000
# above it is no data set, and sums could overflow
MOST = {"train": 10**9, "test": 10**9, "size": 4096, "id_bytes": 255}
HEADER = 128  # bytes before each array


class PackedPatch:
    """One patch of a pack, to be given to the readers in the place of its file's path.

    str() and os.fspath() name the file that it was packed from, which need not be there any more;
    see `copy_patch`.
    """

    __slots__ = ("pack", "row")

    def __init__(self, pack: "PackedFolder", row: int) -> None:
        self.pack, self.row = pack, row

    def __fspath__(self):
        folder = "train" if self.row < self.pack.counts["train"] else "test"
        return os.path.join(self.pack.root, folder, f"{self.stem}.tif")

    __str__ = __fspath__

    def __repr__(self):
        return f"PackedPatch({str(self)!r})"

    def __eq__(self, other):
        return isinstance(other, PackedPatch) and (self.row, self.pack.digest) == (
            other.row,
            other.pack.digest,
        )

    def __hash__(self):
        return hash((self.row, self.pack.digest))

    @property
    def stem(self):
        """The patch's id."""
        return self.pack.ids[self.row].decode()

    @property
    def name(self):
        """Its file's name, <id>.tif."""
        return f"{self.stem}.tif"

    def pixels(self) -> Any:
        """Return the patch: (size, size, 3) uint8 RGB, a read-only view of the memory map."""
        return self.pack.patches[self.row]

    def prove(self) -> None:
        """Hash the pixels.

        Raises:
            InputError: they are not those that were packed.
        """
        if hashlib.sha1(self.pixels()).digest() != self.pack.sha1[self.row].tobytes():
            raise InputError(
                f"{self} has other pixels in {self.pack.folder / PATCHES} than were packed; "
                f"{_remedy(self.pack.folder)}"
            )


class PackedFolder:
    """An opened pack; sent to another process it is opened there anew, no pixels travel.

    Attributes:
        root: the data folder. folder: its packed/. counts: {"train": n, "test": m}. size: px.
            digest: SHA-256 of its index.
        ids: (n + m,) bytes, sorted within train and within test. sha1: (n + m, 20) uint8. patches:
        (n + m, size, size, 3) uint8 RGB. All three are read-only memory maps.
    """

    ids: Any  # arrays; numpy's own types know no bytes of one row
    sha1: Any
    patches: Any

    def __init__(self, root: StrPath, digest: str | None = None) -> None:
        """Open <root>/packed and check all but the pixels; see `PackedPatch.prove` for those.

        Args:
            root: the data folder. digest: when given, the one that the pack must have.
        Raises:
            FileNotFoundError: a file is missing. InputError: unknown version, or a file that breaks
                its rule.
        """
        self.root, self.folder = Path(root), Path(root) / FOLDER
        index = _read_index(self.folder / INDEX)
        self.counts, self.size = {name: index[name] for name in ("train", "test")}, index["size"]
        for (name, kind, shape), key in zip(array_shapes(index), ("ids", "sha1", "patches")):
            setattr(self, key, _open_array(self.folder / name, kind, shape))
        self.digest = index_digest(index, self.ids, self.sha1)
        if self.digest != index["sha256"] or digest not in (None, self.digest):
            raise InputError(
                f"{self.folder / INDEX} is not the index of the {IDS} and {HASHES} beside it (the"
                f" digests differ); {_remedy(self.folder)}"
            )
        split = self.counts["train"]
        self.sides = {"train": (self.ids[:split], 0), "test": (self.ids[split:], split)}

    def __reduce__(self):
        return _reopen, (str(self.root), os.path.abspath(self.root), self.digest)

    def locate(self, side: str, patch_id: str) -> Any:
        """Return the `PackedPatch` of an id of "train" or "test".

        Raises:
            FileNotFoundError: no such id.
        """
        ids, start = self.sides[side]
        key = patch_id.encode()
        if len(key) <= ids.itemsize:  # numpy would widen all ids to compare them with a longer one
            row = int(ids.searchsorted(key))
            if row < len(ids) and ids[row] == key:
                return PackedPatch(self, start + row)
        raise FileNotFoundError(
            f"{self.folder} holds no {side} patch {patch_id!r}; take the ids of the data set's own"
            " tables"
        )

    def check_ids(self, side: str, ids: np.ndarray, table: str) -> None:
        """Require the ids of "train" or "test" to be exactly these.

        Args:
            ids: (n,) sorted bytes, none twice. table: name of the table that lists them.
        Raises:
            InputError: some are not.
        """
        packed = self.sides[side][0]
        if np.array_equal(packed, ids):
            return
        missing, extra = np.setdiff1d(ids, packed), np.setdiff1d(packed, ids)
        if len(missing) + len(extra) == 0:
            raise InputError(
                f"{self.folder / IDS} does not hold the ids of {side} sorted;"
                f" {_remedy(self.folder)}"
            )
        example = ascii(bytes((missing if len(missing) else extra)[0]).decode(errors="replace"))
        raise InputError(
            f"{self.folder / IDS} does not hold the ids of {table} (such as {example}:"
            f" {len(missing)} are not packed, {len(extra)} packed ones are not listed);"
            f" {_remedy(self.folder)}"
        )

    def spot_check(self, count: int = 32) -> None:
        """Hash some patches, other ones each time, and compare them with their files where these
        are there.

        Raises:
            InputError: a patch or a file is not what was packed.
        """
        total = len(self.ids)
        # the caller's generators stay as they are
        rows = random.Random().sample(range(total), min(count, total))
        for patch in (PackedPatch(self, row) for row in {0, total - 1, *rows}):
            patch.prove()
            if os.path.isfile(patch) and not np.array_equal(read_image(str(patch)), patch.pixels()):
                raise InputError(
                    f"{patch} holds other pixels than the patch packed from it in"
                    f" {self.folder / PATCHES}; {_remedy(self.folder)}"
                )


def copy_patch(path: Any, folder: StrPath) -> Path:
    """Copy a patch's file into a folder; of a packed patch, which may have no file any more, an
    uncompressed TIFF is written.

    Args:
        path: the file of a patch or a `PackedPatch`. folder: where to, or the name of the copy.
    Returns:
        Path of the copy.
    Raises:
        OSError: it cannot be written. FileNotFoundError: no such file.
    """
    content = encode_tiff(path.pixels()) if isinstance(path, PackedPatch) else read_content(path)
    target = Path(folder, Path(path).name) if Path(folder).is_dir() else Path(folder)
    with whole_write(target) as file:
        file.write(content)
    return target


def new_index(train, test, size, id_bytes):
    """Return an index, but for its digest."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "size": size,
        "train": train,
        "test": test,
        "id_bytes": id_bytes,
    }


def array_shapes(index):
    """Return name, dtype and shape of each array that an index speaks of."""
    rows, size = index["train"] + index["test"], index["size"]
    return (
        (IDS, f"|S{index['id_bytes']}", (rows,)),
        (HASHES, "|u1", (rows, 20)),
        (PATCHES, "|u1", (rows, size, size, 3)),
    )


def array_header(kind, shape):
    """Return the 128 bytes that begin a .npy file, the same ones whatever numpy's version."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER - 10).to_bytes(2, "little")
        + f"{text:{HEADER - 11}}\n".encode()
    )


def index_digest(index, ids, sha1):
    """Return the SHA-256, in hex, of an index and its two arrays."""
    fields = {name: value for name, value in index.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for array in (ids, sha1):
        digest.update(array)
    return digest.hexdigest()


def _reopen(root, path, digest):
    """Open a pack in another process, which may work in another folder; its patches keep their
    names."""
    pack = PackedFolder(path, digest)
    pack.root = Path(root)
    return pack


def _read_index(path):
    """Return the fields of index.json, each of the right type and size."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing although {path.parent.name}/ is there; {_remedy(path.parent)}"
        )
    with open(path, "rb") as file:
        content = file.read(MOST_INDEX_BYTES + 1)
    try:
        index = json.loads(content) if len(content) <= MOST_INDEX_BYTES else None
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path} is no index of packed patches; {_remedy(path.parent)}")
    if index.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {ascii(index.get('version'))[:40]}, and this hcd reads version"
            f" {VERSION}; {_remedy(path.parent)}"
        )
    for name, most in MOST.items():
        value, least = index.get(name), 0 if name == "test" else 1
        if type(value) is not int or not least <= value <= most:
            raise InputError(
                f"{path}: {name} is {ascii(value)[:40]} instead of a number from {least} to {most};"
                f" {_remedy(path.parent)}"
            )
    if set(index) != {"format", "version", "sha256", *MOST}:
        raise InputError(f"{path} holds other fields than an index does; {_remedy(path.parent)}")
    return index


def _open_array(path, kind, shape):
    """Map a .npy file that has exactly this type, shape and length; nothing in it is parsed."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_remedy(path.parent)}")
    header, kind = array_header(kind, shape), np.dtype(kind)
    wanted, found = HEADER + kind.itemsize * int(np.prod(shape, dtype=object)), path.stat().st_size
    if found != wanted:
        raise InputError(
            f"{path} has {found} bytes where its index needs {wanted}; {_remedy(path.parent)}"
        )
    with open(path, "rb") as file:
        if file.read(HEADER) != header:
            raise InputError(
                f"{path} is no array of {kind} with the shape {shape} that its index names;"
                f" {_remedy(path.parent)}"
            )
    # a memmap's own indexing is ten times slower
    return np.memmap(path, kind, "r", HEADER, shape).view(np.ndarray)


def _remedy(folder):
    return f"run `hcd pack {folder.parent}` again, copy the pack anew, or move {folder} away"
