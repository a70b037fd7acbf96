"""Everything that is wrong with a data set, file by file, found in one reading; `open_dataset`
stops at the first fault."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..disk.images import decode_image, read_content
from ..disk.parallel import map_patches
from ..disk.whole import StrPath
from ..errors import InputError
from ..reader import read_patch
from ..recipe import Recipe
from ..stats import BRIGHT_ABOVE, DARK_BELOW
from .opened import archive_of, visible_files
from .pack import FOLDER
from .tables import LAYOUT, read_table, row_faults, table_file

FINDINGS = {
    "tables": "faults of the tables",
    "missing": "missing files",
    "extra": "extra files",
    "unreadable": "unreadable files",
    "not_a_patch": "wrong shape or type",
    "wrong_id": "id is not the SHA-1 of the pixels",
    "duplicates_in_train": "same pixels twice in train",
    "duplicates_in_test": "same pixels twice in test",
    "duplicates_across": "same pixels in train and test",
    "conflicting_labels": "same patch, both labels",
}
REMARKS = {
    "too_dark": "too dark",
    "too_bright": "too bright",
    "no_test": "no test set",
    "not_checked": "not checked",
}


@dataclass(frozen=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        root: the folder. counts: ids listed with label_0, with label_1 and for test, and
            files_read.
        findings: for each kind in FINDINGS a list of "<file>" or "<file>: <what>", files relative
            to root; equal files are one entry, "<file> = <file>". remarks: the same for REMARKS,
            which fail nothing: too dark and too bright patches, a folder for training alone, and
            a pack.
    """

    root: str
    counts: dict
    findings: dict
    remarks: dict

    @property
    def clean(self):
        """True when nothing was found. Remarks do not count: the competition's own data hold a few
        such patches."""
        return not any(self.findings.values())

    def as_dict(self) -> dict:
        """Return everything as a dict that JSON can hold."""
        return {"clean": self.clean, **asdict(self)}

    def text(self, examples: int = 3) -> str:
        """Return lines for people: the counts, then for each kind its number and first examples,
        then the verdict."""
        lines = [
            f"{self.root}: "
            + ", ".join(
                f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items()
            )
        ]
        titles = {**FINDINGS, **{kind: f"{title} (remark)" for kind, title in REMARKS.items()}}
        for kind, entries in {**self.findings, **self.remarks}.items():
            # a file's name may hold line breaks
            shown = [repr(entry)[1:-1] for entry in entries[:examples]]
            shown += [f"and {len(entries) - examples:,} more"] * (len(entries) > examples)
            lines.append(f"{len(entries):9,}  {titles[kind]:36}{'; '.join(shown)}".rstrip())
        return "\n".join(
            [
                *lines,
                "clean" if self.clean else f"{sum(map(len, self.findings.values())):,} finding(s)",
            ]
        )


def check_dataset(root: StrPath, recipe: Recipe = Recipe(), progress: bool = True) -> CheckReport:
    """Read every listed file of a data set once, on all cores, and report all that is wrong;
    nothing is changed.

    Each id must be the SHA-1 of its patch's RGB bytes, in hex: by this rule of the competition's
    every file proves to be whole and unaltered. Where a table cannot be read, each .tif of its
    folder is. A table's header is row 1; empty rows do not count. A pack is not read,
    `pack_dataset` proves the one that is there.

    Args:
        root: folder in the competition's layout, complete or not. recipe: the size of patches.
            progress: show a bar.
    Returns:
        CheckReport; the same whatever the order of files, and of rows but for their numbers.
    Raises:
        FileNotFoundError: the folder holds no part of a data set, or a pack without the files.
            OSError: train or test cannot be listed.
    """
    root = Path(root)
    if not any(
        table_file(root, name).exists()
        for name in ("train", "test", "train_labels.csv", "sample_submission.csv")
    ):
        raise FileNotFoundError(
            f"{root} holds no part of a data set; name the folder that holds {LAYOUT}"
        )
    packed = (root / FOLDER).exists()
    if packed and not (root / "train").exists():
        raise FileNotFoundError(
            f"{root} holds patches in {FOLDER}/ and no files to check; prove them with `hcd pack"
            f" {root}`, or name the folder that they were packed from"
        )
    notes: dict[str, list] = {kind: [] for kind in (*FINDINGS, *REMARKS)}
    notes["not_checked"] += [f"{FOLDER}: `hcd pack {root}` proves its patches"] * packed
    train, test, answers = _check_tables(root, notes)
    names = [*_match_files(root, "train", train, notes), *_match_files(root, "test", test, notes)]
    _note_duplicates(
        _read_files(root, names, recipe, progress, notes),
        {"train": train or {}, "test": answers or {}},
        notes,
    )
    first = [labels[:1] for labels in (train or {}).values()]
    counts = {
        "label_0": first.count("0"),
        "label_1": first.count("1"),
        "test": len(test or ()),
        "files_read": len(names),
    }
    return CheckReport(
        str(root),
        counts,
        {kind: notes[kind] for kind in FINDINGS},
        {kind: notes[kind] for kind in REMARKS},
    )


def _check_tables(root, notes):
    """Return {id: its labels, "" to "01"} of train, test and the answers; None for a table that is
    absent or cannot be read."""
    train = _check_table(table_file(root, "train_labels.csv"), True, notes)
    sample = table_file(root, "sample_submission.csv")
    if os.path.lexists(sample) or os.path.lexists(root / "test"):
        test = _check_table(sample, False, notes)
    elif (archive := archive_of(root, ("test", sample.name))) is not None:
        test = {}
        notes["tables"].append(f"{archive.name}: is not unpacked, so there is no test set")
    else:
        test = {}
        notes["no_test"].append(f"{sample.name} and test/ are missing; it serves training alone")
    answers = (
        _check_table(table_file(root, "test_labels.csv"), True, notes)
        if table_file(root, "test_labels.csv").is_file()
        else None
    )
    labels = set("".join((train or {}).values()))
    if len(labels) == 1:
        notes["tables"].append(f"train_labels.csv: holds only label {labels.pop()}")
    for patch_id in sorted({*test} ^ {*answers}) if test and answers else ():
        lacking = "test_labels.csv" if patch_id in test else "sample_submission.csv"
        notes["tables"].append(f"{lacking}: has no row of the test id {patch_id!r}")
    return train, test, answers


def _check_table(path, labelled, notes):
    """Note a table's faults; return {id: its labels} of the rows that can be used."""
    try:
        table = read_table(path)
    except (InputError, OSError) as error:  # one finding among others
        notes["tables"].append(f"{path.name}: {_reason(error, path)}")
        return None
    faults = row_faults(table)
    for fault, (column, rows) in faults.items():
        if labelled or column == "id":
            notes["tables"] += [
                f"{path.name}: row {row + 2}, {column} {repr(table[column].iat[row])[:100]} {fault}"
                for row in np.flatnonzero(rows)
            ]
    usable: dict[str, str] = {}
    for patch_id, label in table[~faults["is no file name"][1]].itertuples(index=False):
        usable[patch_id] = usable.get(patch_id, "") + (
            label if labelled and label in ("0", "1") else ""
        )
    both = sorted(patch_id for patch_id, labels in usable.items() if len(set(labels)) > 1)
    notes["conflicting_labels"] += [f"{path.name}: id {patch_id!r} has both" for patch_id in both]
    return usable


def _match_files(root, folder, ids, notes):
    """Note missing and extra files of a folder; return the names of those to read, sorted."""
    found = visible_files(root / folder) if (root / folder).is_dir() else set()
    wanted = (
        {f"{patch_id}.tif" for patch_id in ids}
        if ids is not None
        else {name for name in found if name.endswith(".tif")}
    )
    notes["missing"] += sorted(f"{folder}/{name}" for name in wanted - found)
    notes["extra"] += sorted(f"{folder}/{name}" for name in found - wanted)
    return sorted(f"{folder}/{name}" for name in wanted & found)


def _read_files(root, names, recipe, progress, notes):
    """Note what is wrong with each file by itself; return {name: SHA-1 of the pixels} of the
    patches."""
    digests = {}
    results = map_patches(
        lambda path: _inspect(path, recipe),
        [f"{root}/{name}" for name in names],
        "checking patches",
        progress,
    )
    for (kind, result), name in zip(results, names):
        if kind in FINDINGS:
            notes[kind].append(f"{name}: {_reason(result, root / name)}")
            continue
        digests[name] = result
        if kind:
            notes[kind].append(name)
        if result.hex() != Path(name).stem:
            notes["wrong_id"].append(f"{name}: its pixels give {result.hex()}")
    return digests


def _inspect(path, recipe):
    """Return (remark or None, SHA-1 of the pixels), or (finding, error) for a file that is no
    patch."""
    try:
        patch = read_patch(path, recipe)
    except (InputError, OSError) as error:
        return "not_a_patch" if _holds_image(path) else "unreadable", error
    kind = (
        "too_dark"
        if patch.max() < DARK_BELOW
        else "too_bright"
        if patch.min() > BRIGHT_ABOVE
        else None
    )
    return kind, hashlib.sha1(patch.data).digest()


def _holds_image(path):
    try:
        return decode_image(read_content(path)) is not None
    except (InputError, OSError):  # the file is already a finding
        return False


def _note_duplicates(digests, labels, notes):
    """Note files with equal pixels, and whether the tables give them both labels; labels: {folder:
    {id: its labels}}."""
    table = pd.Series(digests, dtype=object)
    repeated = table[table.duplicated(keep=False)]
    for _, group in sorted(
        repeated.groupby(repeated, sort=False), key=lambda item: item[1].index[0]
    ):
        folders = {
            folder: [name for name in group.index if name.startswith(f"{folder}/")]
            for folder in ("train", "test")
        }
        for folder, names in folders.items():
            if len(names) > 1:
                notes[f"duplicates_in_{folder}"].append(" = ".join(names))
        if all(folders.values()):
            notes["duplicates_across"].append(" = ".join(group.index))
        given = {
            name: labels[folder].get(Path(name).stem, "")
            for folder, names in folders.items()
            for name in names
        }
        if len(set("".join(given.values()))) > 1:
            notes["conflicting_labels"].append(
                " = ".join(f"{name} ({label or 'no label'})" for name, label in given.items())
            )


def _reason(error, path):
    """Return an error's first clause on one line, without the path that the finding begins with."""
    return " ".join(str(error).removeprefix(f"{path} ").split("; ")[0].split())
