"""How sure is an AUC, where patches of one slide are alike? Standard errors and intervals that
count slides, or islands of tissue, instead of patches."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ..errors import InputError
from .given import as_numbers, is_number, number_groups

FEW_GROUPS = 50


@dataclass(frozen=True)
class Estimate:
    """A share, or the difference of two, and how sure it is.

    Attributes:
        value: the share. standard_error: of it.
        interval: (low, high), at `confidence`, from the t distribution with groups - 1 degrees of
            freedom.
        groups: how many groups count towards it. patches: how many patches do.
        confidence: such as 0.95.
    """

    value: float
    standard_error: float
    interval: tuple
    groups: int
    patches: int
    confidence: float

    @property
    def excludes_0(self) -> bool:
        """True where the interval lies on one side of 0, as that of a real difference does."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ClusteredAUC(Estimate):
    """An AUC, how sure it is, and how far it hangs on one group.

    Attributes:
        without: (lowest, highest) AUC of all that are left when one group is taken away.
        most_influential: the group that moves the AUC most when it is taken away.
    """

    without: tuple
    most_influential: Any

    @property
    def auc(self) -> float:
        """The area under the ROC curve."""
        return self.value


def clustered_auc(
    scores: Any, labels: Any, groups: Any = None, confidence: float = 0.95
) -> ClusteredAUC:
    """Compute the AUC of patches that come in groups, with Obuchowski's (1997) standard error.

    Args:
        scores: (N,) higher for tumour: probabilities or logits.
        labels: (N,) of 0 and 1.
        groups: (N,) names or numbers of slides, patients or islands of tissue; None takes each
            patch for a group of its own, which is DeLong's (1988) standard error.
        confidence: of the interval.
    Returns:
        ClusteredAUC. Below 50 groups it comes with a warning.
    Raises:
        InputError: lengths that differ, a score that is not finite, labels other than 0 and 1 or
        only one of them, a missing group, or a label that only one group holds.
    """
    scores = as_numbers(scores, "scores")[..., None]
    scores, labels, group, names = _checked(scores, labels, groups)
    aucs, covariance = _auc_covariance(scores, labels, group)
    _warn_of_few(len(names))
    without, most = _leave_one_out(scores[:, 0], labels, group, aucs[0])
    found = _estimate(aucs[0], covariance[0, 0], len(names), len(labels), confidence, 0)
    return ClusteredAUC(**vars(found), without=without, most_influential=names[most])


def clustered_difference(
    scores: Any, other_scores: Any, labels: Any, groups: Any = None, confidence: float = 0.95
) -> Estimate:
    """Compute by how much one model's AUC is above another's, on the same patches.

    Args:
        scores, other_scores: (N,) each, see `clustered_auc`.
        labels, groups, confidence: see `clustered_auc`.
    Returns:
        Estimate of the first AUC less the second.
    Raises:
        InputError: as `clustered_auc`.
    """
    one, other = as_numbers(scores, "scores"), as_numbers(other_scores, "other_scores")
    if one.shape != other.shape:
        raise InputError(
            f"the two models have scores of shapes {one.shape} and {other.shape}; give both for"
            " the same patches"
        )
    both = np.stack([one, other], -1)
    both, labels, group, names = _checked(both, labels, groups)
    aucs, covariance = _auc_covariance(both, labels, group)
    _warn_of_few(len(names))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return _estimate(aucs[0] - aucs[1], variance, len(names), len(labels), confidence, -1)


def auc_covariance(scores: Any, labels: Any, groups: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the AUCs of several models on the same patches, with their clustered covariance.

    Args:
        scores: (N, M), a column a model. labels, groups: see `clustered_auc`.
    Returns:
        AUCs (M,) and covariances (M, M), float64.
    Raises:
        InputError: as `clustered_auc`.
    """
    scores, labels, group, _ = _checked(as_numbers(scores, "scores"), labels, groups)
    return _auc_covariance(scores, labels, group)


def clustered_rates(
    scores: Any,
    labels: Any,
    groups: Any = None,
    threshold: float = 0.5,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Compute accuracy, sensitivity and specificity at a threshold for patches that come in groups.

    The standard error is that of a ratio of two sums over groups (Rao & Scott 1992).

    Args:
        scores, labels, groups, confidence: see `clustered_auc`.
        threshold: a score above it is called tumour.
    Returns:
        dict of "accuracy", "sensitivity" and "specificity", an Estimate each; groups without a
        patch that a share is of do not count towards it. Below 50 groups they come with a warning.
    Raises:
        InputError: as `clustered_auc`, or a threshold that is no number.
    """
    scores = as_numbers(scores, "scores")[..., None]
    scores, labels, group, names = _checked(scores, labels, groups)
    if not is_number(threshold):
        raise InputError(f"threshold={threshold!r} is no number; give one such as 0.5")
    _warn_of_few(len(names))
    right = (scores[:, 0] > threshold) == labels
    sides = {"accuracy": labels >= 0, "sensitivity": labels == 1, "specificity": labels == 0}
    return {name: _rate(right[side], group[side], confidence) for name, side in sides.items()}


def _rate(right, group, confidence):
    sizes = np.bincount(group)
    counted = sizes > 0
    sizes, sums = sizes[counted], np.bincount(group, right)[counted]
    share, count = sums.sum() / sizes.sum(), len(sizes)
    variance = count / (count - 1) * ((sums - share * sizes) ** 2).sum() / sizes.sum() ** 2
    return _estimate(share, variance, count, len(right), confidence, 0)


def _checked(scores, labels, groups):
    """Return scores (N, M) float64, labels (N,) int, group (N,) int and the groups' names."""
    labels = np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),):
        raise InputError(
            f"scores have shape {scores.shape[:-1]} and labels {labels.shape}; give one score and"
            " one label for each patch, (N,)"
        )
    if not np.isfinite(scores).all():
        row = int((~np.isfinite(scores)).any(1).argmax())
        raise InputError(f"the score of row {row} is not finite; check the model that gave it")
    kinds = pd.unique(labels)
    if set(kinds) != {0, 1}:
        raise InputError(
            f"labels hold {kinds[:5].tolist()}; an AUC needs both 0 and 1 and nothing else"
        )
    group, names = number_groups(range(len(labels)) if groups is None else groups, len(labels))
    for label in (0, 1):
        held = set(group[labels == label])
        if len(held) == 1:
            raise InputError(
                f"all patches of label {label} lie in one group, {str(names[held.pop()])[:60]!r},"
                " so how far groups differ cannot be told; use patches of more groups"
            )
    return scores, labels.astype(int), group, names


def _auc_covariance(scores, labels, group):
    """Obuchowski (1997), equations 3 to 7, for all pairs of models at once."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    # structural components: the share of negatives below a positive, and the other way round
    above = np.stack([_share_below(a, b) for a, b in zip(positive.T, negative.T)], 1)
    below = 1 - np.stack([_share_below(b, a) for a, b in zip(positive.T, negative.T)], 1)
    aucs, count = above.mean(0), group.max() + 1
    deviations = []
    for values, side in ((above, group[labels == 1]), (below, group[labels == 0])):
        sums = np.zeros((count, len(aucs)))
        np.add.at(sums, side, values - aucs)
        deviations.append(sums / len(values))  # (groups, M)
    first, second = deviations
    groups_1, groups_0 = (len(set(group[labels == label])) for label in (1, 0))
    mixed = first.T @ second
    covariance = (
        groups_1 / (groups_1 - 1) * first.T @ first
        + groups_0 / (groups_0 - 1) * second.T @ second
        + count / (count - 1) * (mixed + mixed.T)
    )
    return aucs, covariance


def _share_below(values, others):
    """Return for each value the share of others that lie below it; equal ones count by half."""
    others = np.sort(others)
    below, up_to = (np.searchsorted(others, values, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(others))


def _leave_one_out(scores, labels, group, auc):
    """Return (lowest, highest) AUC without one group, and the position of the group that moves it
    most."""
    count = group.max() + 1
    positives, negatives = (np.bincount(group[labels == k], minlength=count) for k in (1, 0))
    won = np.where(labels == 1, _share_below(scores, scores[labels == 0]) * (labels == 0).sum(), 0)
    lost = np.where(
        labels == 0, (1 - _share_below(scores, scores[labels == 1])) * (labels == 1).sum(), 0
    )
    pairs = won.sum() - np.bincount(group, won + lost)
    # pairs within a group were taken off twice
    by_group = pd.DataFrame({"group": group, "label": labels, "score": scores})
    mixed = np.flatnonzero((positives > 0) & (negatives > 0))
    for name, part in by_group[by_group["group"].isin(mixed)].groupby("group"):
        one, zero = (part["score"].to_numpy()[part["label"] == k] for k in (1, 0))
        pairs[name] += _share_below(one, zero).sum() * len(zero)
    left = (positives.sum() - positives) * (negatives.sum() - negatives)
    aucs = pairs / left
    return (float(aucs.min()), float(aucs.max())), int(np.abs(aucs - auc).argmax())


def _warn_of_few(groups):
    if groups < FEW_GROUPS:
        warnings.warn(
            f"{groups} groups are few: below {FEW_GROUPS} an interval is often too narrow",
            UserWarning,
            stacklevel=3,
        )


def _estimate(value, variance, groups, patches, confidence, least):
    if not is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r} is no share; give one between 0 and 1")
    error = float(np.sqrt(max(variance, 0)))
    reach = float(student.ppf(0.5 + confidence / 2, groups - 1)) * error
    interval = (max(float(value) - reach, least), min(float(value) + reach, 1))
    return Estimate(float(value), error, interval, groups, patches, confidence)
