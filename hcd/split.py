"""Which patches are set aside for validation: at random, or whole groups of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from .dataset.opened import Dataset
from .dataset.slides import slides_of
from .errors import InputError
from .evidence.given import is_number, number_groups
from .evidence.overlap import BLOCK, find_overlaps
from .recipe import Recipe


def split_dataset(
    dataset: Dataset,
    recipe: Recipe = Recipe(),
    slides: pd.DataFrame | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Split a data set into training and validation as the recipe says.

    Args:
        dataset: see `open_dataset`.
        recipe: split, valid_fraction and rng_seed.
        slides: see `read_slides`; a split by slides needs it. progress: show a bar.
    Returns:
        train_idx, valid_idx: see `stratified_split`.
    Raises:
        InputError: as `grouped_split` and `stratified_split`, or no slides to split by.

    CHANGED C29: the walkthrough's random split is the default; two others keep what shows the same
        tissue, or comes from the same slide, on one side.

    Source: In 10.
    """
    labels = dataset.label_values
    if recipe.split == "random":
        return stratified_split(labels, recipe.valid_fraction, recipe.rng_seed)
    groups = split_groups(dataset, recipe, slides, progress)
    return grouped_split(labels, groups, recipe.valid_fraction, recipe.rng_seed)


def split_groups(
    dataset: Dataset,
    recipe: Recipe,
    slides: pd.DataFrame | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Return the group of each labelled patch, (N,): its slide, or else its island of tissue.

    Raises:
        InputError: the recipe splits by slides, and there are none.
    """
    if recipe.split == "slides":
        if slides is None:
            raise InputError(
                "split='slides' needs the slide of each patch; give what read_slides returns, or"
                " take split='islands'"
            )
        return slides_of(slides, dataset.labels["id"])
    return find_overlaps(dataset.train_paths, recipe=recipe, progress=progress).islands


def evidence_groups(
    dataset: Dataset,
    recipe: Recipe = Recipe(),
    slides: pd.DataFrame | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, str]:
    """Return the group that each labelled patch counts with in an interval, whatever the split.

    Args:
        dataset: see `open_dataset`. recipe: the size of patches. slides: see `read_slides`.
            progress: show a bar.
    Returns:
        (N,) slides where they are known, else islands of tissue; and what they are, "slide" or
        "island of tissue".
    """
    if slides is not None:
        return slides_of(slides, dataset.labels["id"]), "slide"
    if recipe.original_size < BLOCK:  # no overlap can be told, and a run must not end here
        return np.arange(len(dataset.labels)), "island of tissue"
    overlaps = find_overlaps(dataset.train_paths, recipe=recipe, progress=progress)
    return overlaps.islands, "island of tissue"


def stratified_split(
    labels: Any, valid_fraction: float = 0.1, rng_seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random into training and validation, with equal shares of each label.

    Args:
        labels: (N,) of 0 and 1.
        valid_fraction: share of the rows that goes to validation, between 0 and 1.
        rng_seed: None draws anew each time, as the walkthrough does; an int or a RandomState
            repeats.
    Returns:
        train_idx, valid_idx: two disjoint (n,) int arrays of row positions, together all rows, in
            random order.
    Raises:
        InputError: a share or a table too small to leave every label on both sides.

    Source: In 10.
    """
    labels = _known_labels(labels)
    _require_share(valid_fraction)
    _generator(rng_seed)
    kinds, counts = np.unique(labels, return_counts=True)
    n_valid = int(np.ceil(valid_fraction * len(labels)))
    sides = ()
    if len(kinds) > 1 and counts.min() > 1 and len(kinds) <= n_valid <= len(labels) - len(kinds):
        sides = train_test_split(
            np.arange(len(labels)), test_size=valid_fraction, stratify=labels, random_state=rng_seed
        )
    # of a rare label, sklearn's rounding can leave one side none
    if not sides or any(len(np.unique(labels[side])) < len(kinds) for side in sides):
        raise InputError(
            f"{len(labels)} labels with counts {dict(zip(kinds.tolist(), counts.tolist()))} cannot"
            f" be split at valid_fraction={valid_fraction}: each side needs both labels; use more"
            " patches or another share"
        )
    train_idx, valid_idx = sides
    return train_idx, valid_idx


def grouped_split(
    labels: Any,
    groups: Sequence | np.ndarray,
    valid_fraction: float = 0.1,
    rng_seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random into training and validation, no group on both sides.

    The groups are gone through in random order, and each that still fits into the validation side's
    share of every label is set aside. So small groups fill up what large ones leave; where all
    are large the shares are as near as these allow.

    Args:
        labels: (N,) of 0 and 1.
        groups: (N,) names or numbers, such as slides or islands of tissue.
        valid_fraction: share of the rows of each label that goes to validation, between 0 and 1.
        rng_seed: None draws anew each time; an int or a RandomState repeats.
    Returns:
        train_idx, valid_idx: two disjoint (n,) int arrays of row positions, together all rows, in
            random order.
    Raises:
        InputError: a share out of range, a row without a group, one group alone, or groups that
            leave a side without one of the labels.
    """
    labels = _known_labels(labels)
    _require_share(valid_fraction)
    group, names = number_groups(groups, len(labels))
    kinds, kind = np.unique(labels, return_inverse=True)
    counts: np.ndarray = np.zeros((len(names), len(kinds)), int)
    np.add.at(counts, (group, kind), 1)
    rng = _generator(rng_seed)
    aside = _choose_groups(counts, valid_fraction, rng)[group]
    sides = [rng.permutation(np.flatnonzero(side)) for side in (~aside, aside)]
    if any(len(np.unique(kind[side])) < max(len(kinds), 2) for side in sides):
        raise InputError(
            f"{len(counts)} group(s) of {len(labels)} labels with counts"
            f" {dict(zip(kinds.tolist(), np.bincount(kind).tolist()))} cannot be split at"
            f" valid_fraction={valid_fraction}: each side needs both labels; use more groups or"
            " another share"
        )
    return sides[0], sides[1]


def _choose_groups(counts, valid_fraction, rng):
    """Say for each group whether it is set aside; counts: (G, labels)."""
    totals = counts.sum(0)
    left = totals * valid_fraction  # what is still missing from the share, of each label
    order = rng.permutation(len(counts))
    chosen: np.ndarray = np.zeros(len(counts), bool)
    for i in order:
        if (counts[i] <= left).all():
            chosen[i], left = True, left - counts[i]
    for i in order[~chosen[order]]:  # and where one too many is nearer than one too few
        after = left - counts[i]
        if (np.abs(after) / totals).sum() < (np.abs(left) / totals).sum():
            chosen[i], left = True, after
    aside = counts[chosen].sum(0)
    if (aside > 0).all() and (aside < totals).all():
        return chosen
    return _choose_two(counts, totals * valid_fraction, order)


def _choose_two(counts, wanted, order):
    """Set aside the one or two groups that come nearest to the wanted counts and leave both sides
    every label; where no two do, no more do either. None where none do."""
    chosen: np.ndarray = np.zeros(len(counts), bool)
    # of many groups the smallest; their pairs alone could be millions
    some = order[np.argsort(counts[order].sum(1), kind="stable")[:300]]
    pairs = counts[some][:, None] + np.where(
        np.eye(len(some), dtype=bool)[..., None], 0, counts[some]
    )
    totals = counts.sum(0)
    distance = (np.abs(pairs - wanted) / totals).sum(2)
    distance[~((pairs > 0) & (pairs < totals)).all(2)] = np.inf
    if np.isfinite(distance).any():
        chosen[some[list(np.unravel_index(distance.argmin(), distance.shape))]] = True
    return chosen


def _known_labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise InputError(f"labels have shape {labels.shape}; give one for each patch, (N,)")
    missing = pd.isna(labels)
    if missing.any():
        raise InputError(
            f"row {int(missing.argmax())} has no label ({missing.sum()} such row(s)); give each 0"
            " or 1"
        )
    return labels


def _generator(rng_seed):
    try:
        return check_random_state(rng_seed)
    except ValueError as error:
        raise InputError(
            f"rng_seed={str(rng_seed)[:60]} seeds nothing; give an integer from 0 to 4294967295, or"
            " None to draw anew"
        ) from error


def _require_share(valid_fraction):
    if not is_number(valid_fraction) or not 0 < valid_fraction < 1:
        raise InputError(
            f"valid_fraction={valid_fraction!r} is no share; give one between 0 and 1, 0.1 in the"
            " walkthrough"
        )
