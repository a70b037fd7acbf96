"""The official files of PatchCamelyon: found, opened, and judged before anything is written."""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.whole import shorten
from ..errors import InputError
from .hdf5 import HARM, SPARE, Rows, decompress, import_h5py, no_gzip, open_gzip, open_rows
from .tables import MOST_TABLE_BYTES, _opened, _table_rows

SIDES = ("train", "valid", "test")
FILE = "camelyonpatch_level_2_split_{}_{}"
PATCH, MASK = (96, 96, 3), (96, 96, 1)
TEST, TRAINING = "camelyon16_test_", "camelyon16_train_"  # how slides' names begin
TRUTHS = {"true": 1, "1": 1, "false": 0, "0": 0}
WANTED = "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, each of them plain or as .h5.gz"


@dataclass(frozen=True, eq=False)
class Side:
    """One side of PCam.

    Attributes:
        name: as its files are called. x, y, meta, mask: the files; None for those that are not
            there. labels: (N,) uint8, 0 or 1; None without y. slides: the N slides' names; None
            without meta. role: the side that it is, whatever its files are called.
    """

    name: str
    x: Path
    y: Path | None
    meta: Path | None
    mask: Path | None
    labels: np.ndarray | None = None
    slides: list | None = None
    role: str = ""

    @property
    def files(self) -> list:
        """Its files that are there."""
        return [path for path in (self.x, self.y, self.meta, self.mask) if path]

    @property
    def counted(self) -> Path:
        """The file that says how many patches it must have: y, or else meta."""
        return self.y or self.meta or self.x

    @property
    def rows(self) -> int:
        """How many patches it must have."""
        return len(self.labels if self.labels is not None else self.slides or ())


def find_sides(folder: Path, labelled: bool = True) -> tuple[list[Side], list[str]]:
    """Find PCam's sides in a folder and read all but their pixels.

    Args:
        folder: holds the official files. labelled: require the y of each side.
    Returns:
        sides, in the order of SIDES by their roles; and what the user should know, sentences.
    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, InputError: a file is missing, or
        is not what it must be.
    """
    import_h5py()
    found = [_locate(folder, name) for name in SIDES]
    sides = [_read_small(side) for side in found if side is not None]
    if not sides:
        raise _no_files(folder)
    for side in sides:
        if labelled and side.y is None:
            raise FileNotFoundError(
                f"{folder / FILE.format(side.name, 'y.h5')} is missing although {side.x.name} is"
                " there; get it from where that one came from"
            )
    remarks: list[str] = []
    sides = _tell_roles(sides, remarks)
    absent = [role for role in SIDES if role not in [side.role for side in sides]]
    remarks += [f"the {role} side is not in {folder} and was left out" for role in absent]
    return sorted(sides, key=lambda side: SIDES.index(side.role)), remarks


def _locate(folder, name):
    """Return a side with its files; None where it has no x."""
    places: dict = {}
    for kind in ("x.h5", "y.h5", "mask.h5", "meta.csv"):
        plain = folder / FILE.format(name, kind)
        packed = plain.with_name(f"{plain.name}.gz")
        path = next((path for path in (plain, packed) if path.is_file()), None)
        if path and not os.access(path, os.R_OK):
            raise PermissionError(f"{path} may not be read by you; change its permissions")
        places[kind.split(".")[0]] = path
    return Side(name, **places) if places["x"] else None


def _no_files(folder):
    """Return the error of a folder without any of the files."""
    if folder.is_file():
        return NotADirectoryError(f"{folder} is a file; name the folder that holds {WANTED}")
    if not folder.is_dir():
        return FileNotFoundError(f"{folder} is no folder; name the one that holds {WANTED}")
    inner = [place for place in sorted(folder.iterdir()) if any(_locate(place, s) for s in SIDES)]
    if inner:
        return FileNotFoundError(f"{folder} holds no files of PCam, but {inner[0]} does; name it")
    return FileNotFoundError(f"{folder} holds no x of PCam; it must hold {WANTED}")


def _read_small(side):
    """Read and check a side's labels and slides."""
    labels = _read_labels(side.y) if side.y else None
    slides = None
    if side.meta:
        slides, truths = _read_meta(side.meta)
        if labels is not None:
            _compare(side, labels, slides, truths)
    return replace(side, labels=labels, slides=slides)


def _read_labels(path):
    """Return the labels of a y file, (N,) uint8."""
    with ExitStack() as stack:
        content: Any = path
        if path.suffix == ".gz":
            try:
                with open_gzip(path) as file:
                    content = io.BytesIO(file.read(SPARE + 1))
            except HARM as error:
                raise no_gzip(path, error) from error
            if len(content.getbuffer()) > SPARE:
                raise InputError(f"{path} decompresses to more than {SPARE} bytes; get it again")
        rows = open_rows(stack, content, path, "y", (1, 1, 1))
        labels = rows.read(0, len(rows.data)).reshape(-1)
    wrong = np.flatnonzero(labels > 1)
    if len(wrong):
        raise InputError(
            f"{path}: y of patch {wrong[0]} is {labels[wrong[0]]} and must be 0 or 1"
            f" ({len(wrong)} such patch(es), counted from 0); get the file again"
        )
    return labels


def _read_meta(path):
    """Return (slide, center_tumor_patch) of each row of a _meta.csv, two lists; the second of ints,
    with None for what is neither True nor False."""
    columns = ("wsi", "center_tumor_patch")
    slides, truths = [], []
    try:
        if path.stat().st_size > MOST_TABLE_BYTES:
            raise InputError(f"it has {path.stat().st_size} bytes")
        with _opened(path) as file:
            rows = _table_rows(file)
            header = next(rows)
            missing = [name for name in columns if header.count(name) != 1]
            if missing:
                raise InputError(f"the column {missing[0]} must stand in its header, once")
            wsi, truth = map(header.index, columns)
            for row in rows:
                slides.append(row[wsi])
                truths.append(TRUTHS.get(row[truth].lower()))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is no _meta.csv of PCam ({error}); get it again") from error
    return slides, truths


def _compare(side, labels, slides, truths):
    """Require a meta of one row for each label, that says the same."""
    if len(slides) != len(labels):
        raise InputError(
            f"{side.meta} has {len(slides)} rows and {side.y} {len(labels)} labels; they must"
            " belong together, get both again"
        )
    wrong = [row for row, pair in enumerate(zip(truths, labels.tolist())) if pair[0] != pair[1]]
    if wrong:
        said = {1: "True", 0: "False", None: "neither True nor False"}[truths[wrong[0]]]
        raise InputError(
            f"{side.meta}: row {wrong[0] + 2}, center_tumor_patch is {said} and y of patch"
            f" {wrong[0]} in {side.y.name} is {labels[wrong[0]]} ({len(wrong)} such row(s)); get"
            " the two files that belong together"
        )


def _tell_roles(sides, remarks):
    """Give each side its role, by its slides where it has a meta, else by its files' name."""
    roles: dict = {}
    for side in sides:
        labelled = "valid" if side.name == "test" else side.name
        role = "test" if _is_test(side, remarks) else labelled
        if role in roles:
            raise InputError(
                f"{roles[role].x.name} and {side.x.name} are both the {role} side by their slides"
                " or, without a _meta.csv, by their names; get each side once, with its _meta.csv"
            )
        roles[role] = replace(side, role=role)
        if role != side.name:
            remarks.append(
                f"{side.x.name} holds slides of the {'test' if role == 'test' else 'training'} set"
                f" and was taken for the {role} side (the published checksums of valid and test are"
                " swapped)"
            )
    return list(roles.values())


def _is_test(side, remarks):
    """Say whether a side is PCam's test set."""
    if side.slides is None:
        remarks.append(
            f"{side.x.name} has no _meta.csv: its side is taken from its name, and its patches have"
            " no slide"
        )
        return side.name == "test"
    kinds = Counter(_kind(slide) for slide in side.slides)
    if len(kinds) > 1:
        counts = ", ".join(f"{count} on {kind}" for kind, count in sorted(kinds.items()))
        raise InputError(
            f"{side.meta} mixes slides of more than one side ({counts} slides); get the file again"
        )
    kind = next(iter(kinds), "unknown")
    if kind == "unknown":
        remarks.append(
            f"{side.meta.name} names slides such as {shorten(repr(side.slides[0]))}, which tell no"
            " side: it is taken from the file's name"
        )
    return side.name == "test" if kind == "unknown" else kind == "test"


def _kind(slide):
    if slide.startswith(TEST):
        return "test"
    return "training" if slide.startswith(TRAINING) else "unknown"


def open_side(
    stack: ExitStack, side: Side, scratch: Path, progress: bool = True, masks: bool = True
) -> tuple[Rows, Rows | None]:
    """Open the patches and masks of a side; what is gzipped is first decompressed into `scratch`.

    Args:
        stack: closes the files. side: of `find_sides`. scratch: folder of our own; a file that was
            decompressed there before is used again. progress: show a bar. masks: False passes over
            them.
    Returns:
        patches, (N, 96, 96, 3) uint8; masks, (N, 96, 96, 1) uint8, or None.
    Raises:
        InputError: a file is damaged, or has another shape or length. OSError: no space.
    """
    opened: list = []
    files = [(side.x, "x", PATCH), (side.mask if masks else None, "mask", MASK)]
    for path, name, shape in files:
        if path is None:
            opened.append(None)
            continue
        plain = path
        if path.suffix == ".gz":
            plain = scratch / path.stem
            if not plain.is_file():
                decompress(path, plain, side.rows * int(np.prod(shape)) + SPARE, progress)
        rows = open_rows(stack, plain, path, name, shape)
        if len(rows.data) != side.rows:
            raise InputError(
                f"{path} has {len(rows.data)} rows and {side.counted.name} {side.rows}; they must"
                " belong together, get both again"
            )
        opened.append(rows)
    return opened[0], opened[1]


def stamps(sides: Sequence[Side]) -> dict:
    """Return {file name: [bytes, nanoseconds of its last change]} of all files, to tell whether
    they are those of an earlier call."""
    files = sorted(path for side in sides for path in side.files)
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
