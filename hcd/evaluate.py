"""Accuracy, ROC and AUC from predicted probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import auc, roc_curve

from .errors import InputError


@dataclass(frozen=True, eq=False)
class Score:
    """How well probabilities match labels: two shares in [0, 1] and the ROC curve's points, (P,)
    float64 each."""

    accuracy: float
    auc: float
    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


def score_predictions(probabilities: Any, labels: Any) -> Score:
    """Score predicted class probabilities against the true labels.

    Args:
        probabilities: (N, 2) of negative and tumour, rows summing to 1.
        labels: (N,) of 0 and 1.
    Returns:
        Score.
    Raises:
        InputError: shapes differ, a probability is not in [0, 1], a row does not sum to 1, or only
            one label is there.

    CHANGED C4: the walkthrough takes exp of the probabilities first, which leaves the AUC as it is
        but not the thresholds.

    Source: In 30, In 37.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if labels.ndim != 1 or probabilities.shape != (len(labels), 2):
        raise InputError(
            f"probabilities have shape {probabilities.shape} and labels {labels.shape}; give (N, 2)"
            " and (N,)"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError(
            "a probability is outside [0, 1] or not a number; give softmax outputs, not logits"
        )
    sums = probabilities.sum(1)
    if (abs(sums - 1) > 1e-2).any():
        raise InputError(
            f"row {int(abs(sums - 1).argmax())} sums to {sums[abs(sums - 1).argmax()]:.3g} and"
            " probabilities of negative and tumour sum to 1; give softmax outputs"
        )
    if set(np.unique(labels)) != {0, 1}:
        raise InputError(
            f"labels hold {np.unique(labels)[:5].tolist()}; a ROC curve needs both 0 and 1 and"
            " nothing else"
        )
    fpr, tpr, thresholds = roc_curve(labels, probabilities[:, 1], pos_label=1)
    return Score(
        float((probabilities.argmax(1) == labels).mean()),
        float(auc(fpr, tpr)),
        fpr,
        tpr,
        thresholds,
    )
