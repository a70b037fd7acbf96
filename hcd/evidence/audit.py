"""How much tissue do patches share, within training, and between training and test?"""

from dataclasses import asdict, dataclass

import numpy as np

from ..dataset.opened import open_dataset
from ..dataset.slides import read_slides, slides_of
from ..disk.whole import StrPath
from ..recipe import Recipe
from .overlap import find_overlaps, leaked_share

EXAMPLES = 3


@dataclass(frozen=True)
class AuditReport:
    """What `audit_dataset` found.

    Attributes:
        root: the folder. patches: how many are labelled and how many are for test.
        pairs: how many pairs of patches overlap: labelled (both are), test, and across; and of the
            labelled ones how many have different labels. Of equal patches one stands for all.
        copies: how many patches have the pixels of an earlier one, on the same three sides, and how
            many of these another label.
        islands: of the labelled patches: how many there are, how many patches the largest has, and
            how many patches are alone on theirs.
        leaked_share: share of the validation patches of a random split that have tissue in
            training, expected over all such splits. valid_fraction: of that split.
        slides: None without a table of slides; else how many there are, labelled, test and both,
            the patches of the smallest and of the largest, how many pairs lie on two slides, and
            leaked_share: the share of validation patches with patches of their slide in training.
        examples: a few pairs of each side, "<file> = <file>, 16 px down, -32 px right".
    """

    root: str
    patches: dict
    pairs: dict
    copies: dict
    islands: dict
    leaked_share: float
    valid_fraction: float
    slides: dict | None
    examples: dict

    @property
    def clean(self) -> bool:
        """True when no patch shares tissue with another one, and no slide has labelled patches and
        test patches."""
        return not self._shares_tissue() and not self._shared_slides()

    def as_dict(self) -> dict:
        """Return everything as a dict that JSON can hold."""
        return {"clean": self.clean, **asdict(self)}

    def text(self) -> str:
        """Return lines for people, the verdict last."""
        pairs, copies, islands = self.pairs, self.copies, self.islands
        share = f"{self.valid_fraction:.0%}"
        rows = [
            (pairs["labelled"], "overlapping pairs of labelled patches", "labelled"),
            (pairs["different_labels"], "of these with different labels", ""),
            (pairs["test"], "overlapping pairs of test patches", "test"),
            (pairs["across"], "overlapping pairs of a labelled and a test patch", "across"),
            (sum(copies[side] for side in ("labelled", "test", "across")), "equal patches", ""),
            (copies["different_labels"], "of these with different labels", ""),
            (islands["count"], "islands of labelled patches", ""),
            (islands["largest"], "patches on the largest", ""),
            (islands["alone"], "patches alone on theirs", ""),
        ]
        lines = [
            f"{self.root}: {self.patches['labelled']:,} labelled patches,"
            f" {self.patches['test']:,} for test"
        ]
        for count, title, side in rows:
            lines.append(
                f"{count:11,}  {title:50}{''.join(self.examples.get(side, [])[:1])}".rstrip()
            )
        lines.append(
            f"{self.leaked_share:11.1%}  of the validation patches of a random {share} split show"
            " tissue that is in training"
        )
        if self.slides:
            lines += _slide_lines(self.slides)
        return "\n".join([*lines, self._verdict()])

    def _shares_tissue(self):
        return any(self.pairs.values()) or any(self.copies.values())

    def _shared_slides(self):
        return self.slides["both"] if self.slides else 0

    def _verdict(self):
        if self.pairs["across"] or self.copies["across"]:
            return "training and test share tissue, so no AUC on this test set can be believed"
        if self._shared_slides():
            return (
                f"training and test share {self._shared_slides():,} slide(s), so an AUC on this"
                " test set says nothing of slides never seen"
            )
        if not self._shares_tissue():
            return "no patch shares tissue with another one on a grid of 16 px"
        if not self.leaked_share:
            return "only test patches share tissue with each other"
        return "a random split flatters the validation AUC; take --split islands or slides"


def audit_dataset(
    root: StrPath,
    slides: StrPath | None = None,
    recipe: Recipe = Recipe(),
    progress: bool = True,
) -> AuditReport:
    """Count the tissue that patches of a data set share, from their pixels alone; see
    `find_overlaps`.

    Args:
        root: folder in the competition's layout, of files or packed.
        slides: table of the slides, see `read_slides`.
        recipe: the size of patches, and the share that its split sets aside. progress: show a bar.
    Returns:
        AuditReport.
    Raises:
        FileNotFoundError, InputError: as `open_dataset`, `read_slides` and `find_overlaps`.
    """
    dataset = open_dataset(root)
    table = read_slides(slides, dataset)
    names = [f"train/{name}.tif" for name in dataset.labels["id"]]
    names += [f"test/{name}.tif" for name in dataset.test_ids]
    found = find_overlaps(dataset.train_paths + dataset.test_paths, names, recipe, progress)
    n_train, n_test = len(dataset.labels), len(dataset.test_ids)
    later = np.flatnonzero(found.copies != np.arange(len(names)))
    equal = np.stack([found.copies[later], later], 1)
    sides, copies = _sides(found.pairs, dataset), _sides(equal, dataset)
    train = found.first(n_train)
    sizes = np.bincount(train.islands)
    return AuditReport(
        root=str(root),
        patches={"labelled": n_train, "test": n_test},
        pairs={side: int(rows.sum()) for side, rows in sides.items()},
        copies={side: int(rows.sum()) for side, rows in copies.items()},
        islands={
            "count": len(sizes),
            "largest": int(sizes.max()),
            "alone": int((sizes == 1).sum()),
        },
        leaked_share=leaked_share(train.neighbours, recipe.valid_fraction),
        valid_fraction=recipe.valid_fraction,
        slides=None if table is None else _slides(table, dataset, train.pairs, recipe),
        examples={side: _examples(found, rows) for side, rows in sides.items()},
    )


def _sides(pairs, dataset):
    """Say for each pair which side it lies on: {side: (P,) bool}."""
    in_test = (pairs >= len(dataset.labels)).sum(1)
    labels: np.ndarray = np.append(dataset.labels["label"], np.zeros(len(dataset.test_ids), int))
    return {
        "labelled": in_test == 0,
        "test": in_test == 2,
        "across": in_test == 1,
        "different_labels": (in_test == 0) & (labels[pairs[:, 0]] != labels[pairs[:, 1]]),
    }


def _slides(table, dataset, pairs, recipe):
    train = slides_of(table, dataset.labels["id"])
    listed = set(table["id"])
    test = slides_of(table, [name for name in dataset.test_ids if name in listed])
    _, slide, sizes = np.unique(train, return_inverse=True, return_counts=True)
    return {
        "labelled": len(sizes),
        "test": len(set(test)),
        "both": len(set(train) & set(test)),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "pairs_on_two": int((slide[pairs[:, 0]] != slide[pairs[:, 1]]).sum()),
        "leaked_share": leaked_share(sizes[slide] - 1, recipe.valid_fraction),
    }


def _slide_lines(slides):
    return [
        f"{slides['labelled']:11,}  slides of labelled patches, of {slides['smallest']:,} to"
        f" {slides['largest']:,} patches; {slides['test']:,} of test patches, {slides['both']:,} of"
        " both",
        f"{slides['pairs_on_two']:11,}  overlapping pairs that lie on two slides by the table",
        f"{slides['leaked_share']:11.1%}  of the validation patches of a random split come from a"
        " slide that is in training",
    ]


def _examples(found, rows):
    shown = np.flatnonzero(rows)[:EXAMPLES]
    return [
        f"{found.ids[a]} = {found.ids[b]}, {down} px down, {right} px right"
        for (a, b), (down, right) in zip(found.pairs[shown], found.offsets[shown])
    ]
