"""Accuracy, ROC and AUC against counting by hand."""

import numpy as np
import pytest
import torch

from hcd import score_predictions


def pairs(tumour):
    """Return (N, 2) probabilities from those of tumour."""
    tumour = np.asarray(tumour, float)
    return np.stack([1 - tumour, tumour], axis=1)


def count_pairs(tumour, labels):
    """Return the share of (positive, negative) pairs in the right order, a tie counting half: what
    the AUC means."""
    won = [
        (p > n) + (p == n) / 2
        for p, y in zip(tumour, labels)
        if y == 1
        for n, z in zip(tumour, labels)
        if z == 0
    ]
    return sum(won) / len(won)


def test_known_answer():
    score = score_predictions(pairs([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1])
    assert score.auc == 0.75  # 3 of 4 pairs in order
    assert score.accuracy == 0.75  # 0.35 is called negative
    np.testing.assert_array_equal(score.false_positive_rate, [0, 0, 0.5, 0.5, 1])
    np.testing.assert_array_equal(score.true_positive_rate, [0, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(score.thresholds[1:], [0.8, 0.4, 0.35, 0.1])


@pytest.mark.parametrize("rng_seed", range(5))
def test_auc_equals_counting_pairs_with_ties(rng_seed):
    rng = np.random.default_rng(rng_seed)
    labels = np.append(rng.integers(0, 2, 60), [0, 1])
    # one decimal: many ties
    tumour = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 1)
    score = score_predictions(pairs(tumour), labels)
    assert score.auc == pytest.approx(count_pairs(tumour, labels), abs=1e-12)
    assert score.accuracy == np.mean([(p > 0.5) == y for p, y in zip(tumour, labels)])


def test_curve_points_are_the_rates_at_their_thresholds():
    rng = np.random.default_rng(7)
    labels, tumour = rng.integers(0, 2, 80), rng.uniform(size=80)
    score = score_predictions(pairs(tumour), labels)
    for threshold, fpr, tpr in zip(
        score.thresholds, score.false_positive_rate, score.true_positive_rate
    ):
        assert fpr == np.mean(tumour[labels == 0] >= threshold)
        assert tpr == np.mean(tumour[labels == 1] >= threshold)


def test_thresholds_are_probabilities_and_exp_would_leave_the_auc():
    rng = np.random.default_rng(1)
    labels, tumour = rng.integers(0, 2, 50), rng.uniform(size=50)
    score = score_predictions(pairs(tumour), labels)
    assert set(score.thresholds[1:]) <= set(tumour)
    assert count_pairs(np.exp(tumour), labels) == pytest.approx(score.auc, abs=1e-12)


def test_best_worst_and_blind():
    labels = [0, 0, 1, 1]
    assert score_predictions(pairs([0, 0.2, 0.7, 1]), labels).auc == 1
    assert score_predictions(pairs([1, 0.7, 0.2, 0]), labels).auc == 0
    assert score_predictions(pairs([0.5] * 4), labels).auc == 0.5


def test_takes_tensors_as_get_preds_returns_them():
    score = score_predictions(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    assert (score.accuracy, score.auc) == (1.0, 1.0)
    assert type(score.accuracy) is type(score.auc) is float  # they go into metrics.json


@pytest.mark.parametrize(
    "probabilities, labels, text",
    [
        (pairs([0.1, 0.2, 0.3]), [0, 1], r"shape \(3, 2\) and labels \(2,\)"),
        ([0.1, 0.9], [0, 1], r"shape \(2,\)"),
        (pairs([0.1, 0.9]), [[0], [1]], r"labels \(2, 1\)"),  # numpy would compare each with each
        (pairs([0.1, np.nan]), [0, 1], "not a number"),
        ([[1.5, -0.5], [0.2, 0.8]], [0, 1], "softmax outputs, not logits"),
        (pairs([0.1, 0.9]), [1, 1], r"labels hold \[1\]"),
        (pairs([0.1, 0.9, 0.5]), [0, 1, 2], r"labels hold \[0, 1, 2\]"),
        (np.zeros((0, 2)), [], r"labels hold \[\]"),
    ],
)
def test_refuses(probabilities, labels, text):
    with pytest.raises(ValueError, match=text):
        score_predictions(probabilities, labels)


def test_rows_that_do_not_sum_to_one(refused):
    probabilities = np.array([[0.3, 0.7], [0.9, 0.9]])
    with refused(ValueError, "row 1 sums to 1.8", "softmax"):
        score_predictions(probabilities, np.array([0, 1]))
