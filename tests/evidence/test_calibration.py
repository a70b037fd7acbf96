"""Calibration against probabilities whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from hcd import InputError, calibration, fit_temperature, plot_reliability, with_temperature


@pytest.fixture(scope="module")
def known():
    """Logits and labels that were drawn by them: as calibrated as can be."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, 40_000)
    return logits, (rng.random(len(logits)) < expit(logits)).astype(int)


def test_scores_are_scikit_learns(known):
    logits, labels = known
    probabilities = expit(logits)
    found = calibration(probabilities, labels)
    assert abs(found.brier - brier_score_loss(labels, probabilities)) < 1e-12
    assert abs(found.log_loss - log_loss(labels, probabilities)) < 1e-9
    assert found.counts.sum() == len(labels) and len(found.counts) == 15


def test_what_is_calibrated_is_called_so(known):
    logits, labels = known
    found = calibration(expit(logits), labels)
    assert found.expected_error < 0.01
    assert abs(found.slope - 1) < 0.03 and abs(found.intercept) < 0.05
    np.testing.assert_allclose(found.predicted, found.observed, atol=0.04)


@pytest.mark.parametrize("factor, shift", [(2, 0), (0.5, 0), (1, 1.5), (1, -1.5)])
def test_slope_and_intercept_say_what_is_wrong(known, factor, shift):
    logits, labels = known
    found = calibration(expit(factor * logits + shift), labels)
    assert abs(found.slope - 1 / factor) < 0.03
    if factor == 1:
        assert abs(found.intercept + shift) < 0.05
    assert found.expected_error > 0.03


def test_the_expected_error_of_two_bins_by_hand():
    probabilities, labels = [0.1, 0.2, 0.3, 0.9, 1.0], [0, 0, 1, 1, 0]
    found = calibration(probabilities, labels, bins=2)
    np.testing.assert_allclose(found.predicted, [0.2, 0.95])
    np.testing.assert_allclose(found.observed, [1 / 3, 0.5])
    assert abs(found.expected_error - (3 * (1 / 3 - 0.2) + 2 * 0.45) / 5) < 1e-12
    assert found.counts.tolist() == [3, 2]


def test_logits_times_2_give_back_2(known):
    logits, labels = known
    single, double = (fit_temperature(expit(k * logits), labels) for k in (1, 2))
    assert abs(double.value / single.value - 2) < 1e-3
    assert abs(single.value - 1) < 0.05
    assert double.after.expected_error < 0.02 < double.before.expected_error
    assert double.after.log_loss < double.before.log_loss
    assert double.after.brier < double.before.brier


@pytest.mark.parametrize("factor", [5, 10])
def test_a_very_sure_model_gets_the_temperature_that_it_needs(known, factor):
    logits, labels = known
    single, sure = (fit_temperature(expit(k * logits), labels).value for k in (1, factor))
    assert abs(sure / single / factor - 1) < 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_a_temperature_at_the_end_of_its_range_is_none(refused, sign):
    """As of a model without a fault, or one that has everything the wrong way round."""
    labels = np.arange(200) % 2
    probabilities = expit(sign * np.where(labels, 1.0, -1.0) + np.linspace(0, 0.1, 200))
    with refused(InputError, "no temperature from 0.05 to 20.0"):
        fit_temperature(probabilities, labels)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_what_is_no_temperature(refused, temperature):
    with refused(InputError, f"temperature={temperature}"):
        with_temperature([0.2, 0.8], temperature)


def test_it_is_judged_on_groups_that_it_was_not_fitted_on():
    """Half of the slides are far too sure of themselves, half are not sure enough: what is fitted
    on one half is of no use to the other, and its judgement must say so."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(2), 5000)
    logits = rng.normal(0, 2, len(group))
    labels = (rng.random(len(group)) < expit(logits)).astype(int)
    given = expit(np.where(group == 0, 4, 0.25) * logits)
    found = fit_temperature(given, labels, group)
    judged = 1 if abs(found.value - 4) < 0.5 else 0
    assert abs(found.value / (0.25 if judged == 0 else 4) - 1) < 0.1
    alone = calibration(given[group == judged], labels[group == judged])
    assert abs(alone.log_loss - found.before.log_loss) < 1e-12
    assert found.after.log_loss > found.before.log_loss


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=30),
    st.floats(0.5, 20),
    st.integers(0, 2**32 - 1),
)
def test_the_auc_stays_the_same_to_the_bit(probabilities, temperature, rng_seed):
    probabilities = np.array([0, 0.5, 1, *probabilities])
    found = with_temperature(probabilities, temperature)
    order = np.argsort(probabilities, kind="stable")
    steps, found_steps = np.diff(probabilities[order]), np.diff(found[order])
    # below float32's normal numbers there is no order to keep: 1e-45 and 2e-45
    normal = probabilities[order][:-1] > 1e-30
    assert ((steps > 0) == (found_steps > 0))[normal].all() and (found_steps >= 0).all()
    assert found[:3].tolist() == [0, 0.5, 1]
    labels = np.r_[0, 1, np.random.default_rng(rng_seed).integers(0, 2, len(probabilities) - 2)]
    kept = probabilities > 1e-30
    if len(set(labels[kept])) == 2:
        before, after = (roc_auc_score(labels[kept], p[kept]) for p in (probabilities, found))
        assert before == after


def test_sure_answers_do_not_end_in_infinity():
    probabilities, labels = [0.0, 0.0, 1.0, 1.0, 0.0], [0, 0, 1, 1, 1]
    found = calibration(probabilities, labels)
    assert np.isfinite([found.log_loss, found.intercept, found.brier]).all()
    assert calibration([0.1, 0.2, 0.8], [0, 0, 1]).slope == found.slope == float("inf")
    assert calibration([0.1, 0.2, 0.8], [1, 1, 0]).slope == float("-inf")
    assert calibration([0.5, 0.5], [0, 1]).slope == 0


def test_the_diagram_shows_the_bins(known):
    found = calibration(expit(known[0]), known[1])
    figure = plot_reliability(found.predicted, found.observed, found.counts, found.expected_error)
    line = figure.axes[0].lines[1]
    np.testing.assert_array_equal(line.get_xdata(), found.predicted)
    np.testing.assert_array_equal(line.get_ydata(), found.observed)
    assert [bar.get_height() for bar in figure.axes[1].patches] == found.counts.tolist()
    assert figure.axes[1].get_xlabel() == "Tumour probability"


@pytest.mark.parametrize(
    "probabilities, labels, words",
    [
        ([0.1, 1.2], [0, 1], "row 1 is 1.2"),
        ([0.1, float("nan")], [0, 1], "row 1 is nan"),
        ([0.1, 0.2], [0, 0], "labels hold [0]"),
        ([0.1, 0.2, 0.3], [0, 1], "(3,)"),
        ([[0.1, 0.9]], [0], "(1, 2)"),
    ],
)
def test_what_cannot_be_judged(refused, probabilities, labels, words):
    for measure in (calibration, fit_temperature):
        with refused(InputError, words):
            measure(probabilities, labels)


def test_one_group_has_no_halves(refused):
    with refused(InputError, "1 group(s)"):
        fit_temperature([0.1, 0.2, 0.7, 0.8], [0, 1, 0, 1], ["a"] * 4)
    with refused(InputError, "2 predicted, 1 observed"):
        plot_reliability([0.1, 0.2], [0.1], [3], 0.1)
