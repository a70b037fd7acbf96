"""PatchCamelyon's official HDF5 files -> the competition's layout, and the slide of each patch."""

import errno
import os
import shutil
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..disk.locks import take_lock
from ..disk.whole import (
    StrPath,
    read_json,
    refuse_link,
    refuse_links,
    sweep_parts,
    unwritable,
    whole_write,
    writable_folder,
    write_json,
)
from ..errors import InputError
from .opened import open_dataset
from .pcam_files import Side, find_sides, open_side, stamps
from .pcam_patches import hash_patches, judge, tell_copies, write_patches
from .tables import read_ids, table_file

# all is written in a folder of this name, which no user would give, and moved when it is complete
UNFINISHED, SOURCES = ".hcd-pcam-unfinished", "sources.json"
SLIDES, CARD, FORMAT = "slides.csv", "pcam.json", 1
NAMES = (
    "train",
    "test",
    "masks",
    "train_labels.csv",
    "sample_submission.csv",
    "test_labels.csv",
    "sides.csv",
    SLIDES,
    CARD,  # last: where it is, all is there
)
FILE_BYTES, MASK_BYTES = 28_672, 4096  # of one patch and of one mask on the disk
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_CARD = 1 << 20


@dataclass(frozen=True)
class ImportReport:
    """What `import_pcam` did.

    Attributes:
        folder: where. counts: of an import train, label_0, label_1, test (patches written),
            duplicates, in_train_and_test, contradicting (rows of PCam that were dropped), masks
            and slides; they add up, train + test + dropped rows are PCam's. Of a map: found,
            not_found (ids of the folder) and slides. remarks: what the user should know,
            sentences. new: False where an equal call had done all before.
    """

    folder: str
    counts: dict
    remarks: tuple
    new: bool = True

    def as_dict(self) -> dict:
        """Return everything as a dict that JSON can hold."""
        return {**asdict(self), "remarks": list(self.remarks)}

    def text(self) -> str:
        """Return lines for people: the folder, each count, then the remarks."""
        head = self.folder if self.new else f"{self.folder}: imported before, nothing to do"
        counts = [f"{n:9,}  {name.replace('_', ' ')}" for name, n in self.counts.items()]
        return "\n".join([head, *counts, *(f"remark: {remark}" for remark in self.remarks)])


def import_pcam(
    source: StrPath, root: StrPath, map_only: bool = False, progress: bool = True
) -> ImportReport:
    """Write PatchCamelyon's patches in the competition's layout, named by the SHA-1 of their
    pixels.

    PCam's train and valid become train/ and train_labels.csv; its test becomes test/,
    sample_submission.csv and test_labels.csv. sides.csv (id,side) tells train, valid and test,
    slides.csv (id,wsi) the slide of each patch whose side has a _meta.csv; masks/<id>.png are the
    tumour masks, 0 or 255, of patches with at least one such pixel (a side with a _mask.h5 has
    none of the others); pcam.json holds the files and the counts. Sides are told by the slides'
    names.

    One file is kept of patches with equal pixels, with the slide, side and mask of the first, in
    the order train, valid, test. Of those with both labels none is: they serve no training. What is
    in train and in test stays in test alone.

    About 30 kB are needed for each patch, and until all is done as much again where files are
    gzipped. A call that was stopped leaves a hidden folder in `root`; the same call goes on from
    there and ends with the same bytes.

    Args:
        source: folder with PCam's official files, plain or gzipped. root: folder to fill: new,
            empty, or filled by an equal call. map_only: `root` is a folder in the competition's
            layout, of which slides.csv alone is written, for those of its ids that are found in
            `source`; no y is needed. progress: show bars.
    Returns:
        ImportReport.
    Raises:
        FileNotFoundError, InputError: a file of PCam is missing, damaged or contradicts another;
            nothing is left behind. FileExistsError: root holds something else. OSError: no space,
            or no permission.
    """
    source, root = Path(source).expanduser(), Path(root).expanduser()
    sides, remarks = find_sides(source, labelled=not map_only)
    if map_only:
        mapped = [side for side in sides if side.slides]
        if not mapped:
            raise InputError(
                f"{source} has no _meta.csv, which tells slides; get it beside the .h5 files"
            )
        return _locked(root, lambda: _map(mapped, root, remarks, progress))
    labels = {side.role: side.labels for side in sides}
    _require_both_labels(source, [labels[role] for role in labels if role != "test"], True)
    _require_both_labels(source, [labels[role] for role in labels if role == "test"], False)
    made = not os.path.lexists(root)
    writable_folder(root)
    try:
        return _locked(root, lambda: _import_told(sides, root, remarks, progress))
    finally:
        if made:
            with suppress(OSError):  # it is not empty, as after a success
                root.rmdir()


def _locked(root, work):
    """Do the work on a folder; what a refusal leaves unfinished is removed."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name one in the competition's layout")
    busy = f"{root} is being written by another `hcd import`; let it finish, then start again"
    lock = take_lock(root, busy)
    try:
        return work()
    except InputError:
        _remove(root / UNFINISHED)
        raise
    finally:
        lock.release()


def _remove(scratch):
    if os.path.lexists(scratch):
        refuse_link(scratch)
        shutil.rmtree(scratch)


def _require_both_labels(source, labels, training):
    """Require what `open_dataset` will: both labels to train with, and to test with both or
    nothing."""
    held = sorted({label for some in labels for label in np.unique(some).tolist()})
    if len(held) == 1 or training and not held:
        raise InputError(
            f"{source} has {f'only label {held[0]}' if held else 'no patches'} to"
            f" {'train' if training else 'test'} with, and both labels must be there; get the rest"
            " of PCam"
        )


# -- the whole import
# ------------------------------------------------------------------------------------------------


def _import_told(sides, root, remarks, progress):
    """Import, and say of a full disk how to go on."""
    try:
        return _import(sides, root, remarks, progress)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                f"{root} has no space left ({os.strerror(error.errno)}), and what is written stays"
                f" in {UNFINISHED}; free space and start the same again, it goes on from there"
            ) from error
        raise


def _import(sides, root, remarks, progress):
    """Import into a locked folder, go on with an import, or find that all is done."""
    scratch, sources = root / UNFINISHED, stamps(sides)
    _finish_moves(root, scratch)
    if (root / CARD).is_file():
        return _earlier(root, sources)
    others = [path for path in root.iterdir() if path != scratch]
    if others:
        raise FileExistsError(
            f"{root} holds {others[0].name} and is not empty; name an empty folder or one that does"
            " not exist yet"
        )
    resumed = _begin(scratch, sources)
    _require_room(root, scratch, sides)
    with ExitStack() as stack:
        opened = {side.role: open_side(stack, side, scratch, progress) for side in sides}
        table = hash_patches(sides, opened, progress)
        table["fate"] = judge(table)
        kept = table[table["fate"] == "kept"].sort_values("id")
        for training in (True, False):
            some = kept.loc[(kept["side"] != "test") == training, "label"]
            _require_both_labels(sides[0].x.parent, [some], training)
        remarks = [*remarks, *tell_copies(table)]
        masks, odd = write_patches(table, opened, scratch, resumed, progress)
    if odd:
        remarks.append(f"{odd} mask(s) say something else of the centre 32 x 32 px than the label")
    counts = _counts(table, kept, masks)
    _write_tables(scratch, kept)
    card = {"format": FORMAT, "sources": sources, "counts": counts, "remarks": remarks}
    write_json(scratch / CARD, card)
    _finish_moves(root, scratch)
    return ImportReport(str(root), counts, tuple(remarks))


def _finish_moves(root, scratch):
    """Move what is complete to its place, where an earlier call may have begun to do so."""
    if not os.path.lexists(scratch):
        return
    refuse_links(scratch)
    if (scratch / CARD).is_file():
        for name in NAMES:
            if os.path.lexists(scratch / name):
                if os.path.lexists(root / name):
                    raise FileExistsError(
                        f"{root / name} has come to stand where the import would put its own; move"
                        " or remove it first"
                    )
                try:
                    os.replace(scratch / name, root / name)
                except OSError as error:
                    raise unwritable(root / name, error) from error
        shutil.rmtree(scratch)
    elif (root / CARD).is_file():  # it was stopped behind the last move
        shutil.rmtree(scratch)


def _earlier(root, sources):
    """Return the report of an import that is complete; require it to be of these files."""
    card = read_json(root / CARD, MOST_CARD)
    if not isinstance(card, dict) or (card.get("format"), card.get("sources")) != (FORMAT, sources):
        raise FileExistsError(
            f"{root} holds an import of other files; name an empty folder, or remove this one"
        )
    open_dataset(root)
    return ImportReport(str(root), card["counts"], tuple(card["remarks"]), new=False)


def _begin(scratch, sources):
    """Make the folder to write in; return whether an earlier call has begun to fill it."""
    content = {"format": FORMAT, "sources": sources}
    if (scratch / SOURCES).is_file():
        sweep_parts(scratch)
        with suppress(InputError):  # cut off by a kill: begun anew below
            if read_json(scratch / SOURCES, MOST_CARD) == content:
                return True
    _remove(scratch)
    writable_folder(scratch)
    write_json(scratch / SOURCES, content)
    return False


def _require_room(root, scratch, sides):
    """Require space for all files before the first is written."""
    needed = 0
    for side in sides:
        needed += side.rows * (FILE_BYTES + (MASK_BYTES if side.mask else 0))
        needed += side.rows * 27_648 * (side.x.suffix == ".gz")
        needed += side.rows * 9216 * (side.mask is not None and side.mask.suffix == ".gz")
    there = sum(path.stat().st_blocks * 512 for path in scratch.rglob("*"))
    missing, free = max(needed - there, 0) / 1e9, shutil.disk_usage(root).free / 1e9
    if free < missing:
        raise OSError(
            f"{root} has {free:.2f} GB free and the import needs {missing:.2f} GB more; free space"
            " or name a folder on another disk"
        )


def _counts(table, kept, masks):
    train = kept[kept["side"] != "test"]
    fates = table["fate"].value_counts()
    dropped = ("duplicates", "in_train_and_test", "contradicting")
    return {
        "train": len(train),
        "label_0": int((train["label"] == 0).sum()),
        "label_1": int((train["label"] == 1).sum()),
        "test": len(kept) - len(train),
        **{fate: int(fates.get(fate, 0)) for fate in dropped},
        "masks": masks,
        "slides": kept.loc[kept["wsi"] != "", "wsi"].nunique(),
    }


def _write_tables(scratch, kept):
    """Write the tables, sorted by id; of slides none where no side has a meta."""
    is_test = kept["side"] == "test"
    _write_table(scratch / "train_labels.csv", kept.loc[~is_test, ["id", "label"]])
    if is_test.any():
        answers = kept.loc[is_test, ["id", "label"]]
        _write_table(scratch / "test_labels.csv", answers)
        _write_table(scratch / "sample_submission.csv", answers.assign(label=0))
    _write_table(scratch / "sides.csv", kept[["id", "side"]])
    known = kept.loc[kept["wsi"] != "", ["id", "wsi"]]
    if len(known):
        _write_table(scratch / SLIDES, known)


def _write_table(path, table):
    with whole_write(path, "w", newline="") as file:
        table.to_csv(file, index=False, lineterminator="\n")


# -- the map alone
# ------------------------------------------------------------------------------------------------


def _map(sides, root, remarks, progress):
    """Write slides.csv for the ids of a data folder."""
    names = ["train_labels.csv"]
    names += [name for name in ["sample_submission.csv"] if table_file(root, name).is_file()]
    ids = pd.concat([read_ids(table_file(root, name))["id"] for name in names]).drop_duplicates()
    scratch = root / UNFINISHED
    _finish_moves(root, scratch)
    _remove(scratch)
    try:
        writable_folder(scratch)
        slides = _slides_by_id(sides, scratch, progress)
    finally:
        _remove(scratch)
    wsi = ids.str.lower().map(slides)
    table = pd.DataFrame({"id": ids, "wsi": wsi}).dropna().sort_values("id")
    if table.empty:
        raise InputError(
            f"none of the {len(ids)} ids of {root} is a patch of {sides[0].x.parent}; check that"
            " the ids are the SHA-1 of the pixels, as the competition's are"
        )
    content = table.to_csv(index=False, lineterminator="\n").encode()
    path = root / SLIDES
    if path.is_file() and path.read_bytes() != content:
        raise FileExistsError(f"{path} is there and says something else; move or remove it first")
    with whole_write(path) as file:
        file.write(content)
    counts = {"found": len(table), "not_found": len(ids) - len(table)}
    counts["slides"] = int(table["wsi"].nunique())
    return ImportReport(str(root), counts, tuple(remarks))


def _slides_by_id(sides: list[Side], scratch: Path, progress: bool) -> dict:
    """Return {id: slide} of all patches of sides that have a meta; of equal ones the first's."""
    with ExitStack() as stack:
        opened = {side.role: open_side(stack, side, scratch, progress, False) for side in sides}
        table = hash_patches(sides, opened, progress)
    return dict(zip(table["id"][::-1], table["wsi"][::-1]))
