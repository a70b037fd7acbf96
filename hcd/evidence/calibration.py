"""Does a probability of 0.8 mean eight in ten? Measured, and mended by one number, the
temperature."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ..errors import InputError
from ..split import grouped_split
from .given import as_numbers

BINS = 15
TEMPERATURES = 0.05, 20.0  # searched between these
# float32 softmax gives 0 and 1 where it means less than this away from them
NEAREST = 2**-25


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well probabilities of tumour match the labels.

    Attributes:
        brier: mean squared difference of probability and label; 0 is best.
        log_loss: mean negative logarithm of the probability of the label; 0 is best.
        expected_error: expected calibration error, the mean over patches of how far the share of
            tumour in a bin of 15 equally wide ones lies from the bin's mean probability; 0 is best.
        slope: of the labels' logistic regression on the logit; 1 is best, and below 1 the
            probabilities are too near to 0 and 1. Infinite where the logits part the labels.
        intercept: of the same with the slope held at 1; 0 is best, and below 0 the probabilities
            are too high all in all.
        predicted, observed: (B,) mean probability and share of tumour of each bin that holds
            patches. counts: (B,) how many it holds.
    """

    brier: float
    log_loss: float
    expected_error: float
    slope: float
    intercept: float
    predicted: np.ndarray
    observed: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Temperature:
    """A temperature, fitted on one half of the groups and judged on the other.

    Attributes:
        value: what logits are divided by; above 1 where a model is too sure.
        before, after: Calibration of the other half without it and with it.
    """

    value: float
    before: Calibration
    after: Calibration


def calibration(probabilities: Any, labels: Any, bins: int = BINS) -> Calibration:
    """Measure how well probabilities of tumour match the labels.

    Args:
        probabilities: (N,) of tumour, in [0, 1]. labels: (N,) of 0 and 1.
        bins: equally wide ones for the expected calibration error.
    Returns:
        Calibration.
    Raises:
        InputError: lengths that differ, a probability that is none, or labels other than 0 and 1 or
        only one of them.
    """
    probabilities, labels = _checked(probabilities, labels)
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    held = counts > 0
    predicted, observed = (
        np.bincount(which, values, minlength=bins)[held] / counts[held]
        for values in (probabilities, labels)
    )
    logits = _logits(probabilities)
    far = np.abs(logits).max() + np.log(len(logits)) + 10  # where all are sure of one label
    return Calibration(
        brier=float(np.mean((probabilities - labels) ** 2)),
        log_loss=_log_loss(logits, labels),
        expected_error=float(np.abs(predicted - observed) @ counts[held] / len(labels)),
        slope=_slope(logits, labels),
        intercept=brentq(lambda shift: np.sum(expit(logits + shift) - labels), -far, far),
        predicted=predicted,
        observed=observed,
        counts=counts[held],
    )


def fit_temperature(
    probabilities: Any, labels: Any, groups: Any = None, rng_seed: int | None = 0
) -> Temperature:
    """Fit a temperature (Guo et al., 2017) on one half of the groups and judge it on the other.

    Args:
        probabilities: (N,) of tumour, in [0, 1]. labels: (N,) of 0 and 1.
        groups: (N,) names or numbers of slides or islands of tissue, so that no slide helps to fit
            what it judges; None takes each patch for a group of its own.
        rng_seed: of the halves.
    Returns:
        Temperature, with a value from 0.05 to 20.
    Raises:
        InputError: as `calibration` and `grouped_split`, or the best value lies outside.
    """
    probabilities, labels = _checked(probabilities, labels)
    groups = np.arange(len(labels)) if groups is None else groups
    fitted, judged = grouped_split(labels, groups, 0.5, rng_seed)
    logits = _logits(probabilities[fitted])
    found = minimize_scalar(
        lambda log: _log_loss(logits / np.exp(log), labels[fitted]),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    value = float(np.exp(found.x))
    if not 1.01 * TEMPERATURES[0] < value < TEMPERATURES[1] / 1.01:
        raise InputError(
            f"no temperature from {TEMPERATURES[0]} to {TEMPERATURES[1]} fits these {len(fitted)}"
            " predictions best, as where a model makes no fault or tells nothing; use more patches"
        )
    before = calibration(probabilities[judged], labels[judged])
    return Temperature(
        value,
        before,
        calibration(with_temperature(probabilities[judged], value), labels[judged]),
    )


def with_temperature(probabilities: Any, temperature: float) -> np.ndarray:
    """Return the probabilities that a model gives when its logits are divided by a temperature.

    Args:
        probabilities: (N,) of tumour, in [0, 1]. temperature: above 0.
    Returns:
        (N,) float64 in [0, 1]. Equal ones stay equal, 0, 1/2 and 1 stay what they are, and so does
        the order, and with it the AUC; only below 1/2 can a temperature push probabilities so near
        to 1 that float64 takes them for equal.
    Raises:
        InputError: a temperature that is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature={temperature} divides no logits; give a number above 0")
    probabilities = np.asarray(probabilities, float)
    return expit(logit(probabilities) / temperature)


def _slope(logits, labels):
    positives, negatives = logits[labels == 1], logits[labels == 0]
    if logits.min() == logits.max():
        return 0.0  # they tell nothing
    # where they part the labels, the likelihood grows for ever
    if positives.min() >= negatives.max():
        return float("inf")
    if positives.max() <= negatives.min():
        return float("-inf")
    # so large a C leaves no penalty to speak of
    model = LogisticRegression(C=1e10, tol=1e-8, max_iter=1000)
    return float(model.fit(logits[:, None], labels).coef_[0, 0])


def _logits(probabilities):
    """Return finite logits: those of 0 and 1 are as far out as any other."""
    logits = logit(probabilities)
    known = logits[np.isfinite(logits)]
    most = logit(1 - NEAREST)
    return np.clip(logits, known.min(initial=-most), known.max(initial=most))


def _log_loss(logits, labels):
    return float(np.mean(np.logaddexp(0, np.where(labels, -logits, logits))))


def _checked(probabilities, labels):
    probabilities, labels = as_numbers(probabilities, "probabilities"), np.asarray(labels)
    if probabilities.ndim != 1 or labels.shape != probabilities.shape:
        raise InputError(
            f"probabilities have shape {probabilities.shape} and labels {labels.shape}; give one"
            " probability of tumour and one label for each patch, (N,)"
        )
    wrong = ~((probabilities >= 0) & (probabilities <= 1))
    if wrong.any():
        raise InputError(
            f"the probability of row {int(wrong.argmax())} is {probabilities[wrong][0]}; give"
            " softmax outputs in [0, 1], not logits"
        )
    kinds = pd.unique(labels)
    if set(kinds) != {0, 1}:
        raise InputError(
            f"labels hold {kinds[:5].tolist()}; calibration needs both 0 and 1 and nothing else"
        )
    return probabilities, labels.astype(int)
