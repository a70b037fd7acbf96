"""A judgement holds what its parts compute, and says what it leaves out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import auc as area_below
from sklearn.metrics import roc_auc_score

from hcd import (
    InputError,
    calibration,
    clustered_auc,
    clustered_rates,
    fit_temperature,
    judge_predictions,
    plot_group_aucs,
)


@pytest.fixture(scope="module")
def predictions():
    """Probabilities, labels and groups of 60 slides that differ."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), np.arange(5, 65))
    logits = rng.normal(0, 1.5, len(group)) + rng.normal(0, 1.5, 60)[group]
    labels = (rng.random(len(group)) < expit(0.7 * logits)).astype(int)
    return expit(logits), labels, group


def test_c31_the_interval_over_groups_is_the_wider_one(predictions):
    probabilities, labels, group = predictions
    found = judge_predictions(probabilities, labels, group)
    assert found.auc == clustered_auc(probabilities, labels, group)
    assert found.patch_auc == clustered_auc(probabilities, labels)
    widths = [np.ptp(auc.interval) for auc in (found.auc, found.patch_auc)]
    assert widths[0] > 1.2 * widths[1]
    text = found.text()
    assert "over 60 slides" in text and f"AUC {found.patch_auc.auc:.4f}" in text
    assert "fewer than 50" not in text and "without one of them" in text


def test_its_parts(predictions):
    probabilities, labels, group = predictions
    found = judge_predictions(probabilities, labels, group, "island of tissue")
    assert found.calibration.brier == calibration(probabilities, labels).brier
    assert found.temperature.value == fit_temperature(probabilities, labels, group).value
    rates = clustered_rates(probabilities, labels, group, 0.3)
    row = found.rates[found.rates["threshold"] == 0.3].iloc[0]
    assert row["sensitivity"] == rates["sensitivity"].value
    assert (row["accuracy_low"], row["accuracy_high"]) == rates["accuracy"].interval
    table = found.group_aucs
    assert (table["patches"] >= 10).all() and table["auc"].is_monotonic_increasing
    for name, auc in zip(table["group"], table["auc"]):
        assert auc == roc_auc_score(labels[group == name], probabilities[group == name])
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["groups"] == 60 and record["groups_are"] == "island of tissue"
    assert record["rates"][0]["threshold"] == 0.1
    assert [row["auc"] for row in record["group_aucs"]] == table["auc"].tolist()
    assert record["group_aucs"][0]["group"] == str(table["group"][0])
    text, half = found.text(), clustered_rates(probabilities, labels, group)
    assert f"one island of tissue: {table['auc'][0]:.4f} ({table['group'][0]}, " in text
    assert f"tumour above 0.5: sensitivity {half['sensitivity'].value:.3f} (" in text
    low, high = found.auc.interval
    assert found.interval == {"low": low, "high": high, "over": "islands of tissue"}


def test_the_roc_curve_is_thinned_and_keeps_its_ends_and_its_area(predictions):
    probabilities, labels, group = predictions
    for rows, slack in ((slice(None, None, 20), 1e-12), (slice(None), 1e-3)):
        found = judge_predictions(probabilities[rows], labels[rows], group[rows])
        roc = json.loads(json.dumps(found.as_dict()["roc"], allow_nan=False))
        falsely, truly, thresholds = roc.values()
        assert list(roc) == ["false_positive_rate", "true_positive_rate", "threshold"]
        assert len(falsely) == len(truly) == len(thresholds) <= 201
        assert (falsely[0], truly[0], falsely[-1], truly[-1]) == (0, 0, 1, 1)
        assert area_below(falsely, truly) == pytest.approx(found.value, abs=slack)
        tumour = probabilities[rows][:, None] >= thresholds
        for label, rates in ((0, falsely), (1, truly)):
            assert np.allclose(tumour[labels[rows] == label].mean(0), rates)
    assert len(falsely) > 150  # of some hundreds


def test_what_cannot_be_told_is_left_out_and_said(predictions):
    probabilities, labels, group = predictions
    alone = judge_predictions(probabilities, labels, np.zeros(len(labels)))
    assert alone.auc is None and alone.temperature is None and alone.rates.empty
    assert "one group" in alone.why_not and "no interval over slides" in alone.text()
    assert alone.value == roc_auc_score(labels, probabilities)
    single = judge_predictions([0.2, 0.3, 0.9], [0, 0, 1])
    assert (single.value, single.auc, single.patch_auc) == (1, None, None)
    assert json.loads(json.dumps(single.as_dict(), allow_nan=False))["calibration"]["slope"] is None
    assert "AUC 1.0000" in single.text() and single.as_dict()["interval_over_patches"] is None
    json.dumps(alone.as_dict(), allow_nan=False)
    low, high = alone.patch_auc.interval
    assert alone.interval == {"low": low, "high": high, "over": "patches"}
    assert single.interval is None
    few = judge_predictions(probabilities, labels, group // 6)
    assert "fewer than 50" in few.text()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1e-45, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1 - 2**-24, 1]),
            st.integers(0, 1),
            st.integers(0, 4),
        ),
        min_size=0,
        max_size=12,
    )
)
def test_no_validation_set_ends_a_run_here(rows):
    """However small it is and however sure the model: In 38 comes after hours."""
    probabilities, labels, groups = zip((0.3, 0, 0), (0.6, 1, 0), *rows)
    found = judge_predictions(np.float32(probabilities), labels, groups)
    json.dumps(found.as_dict(), allow_nan=False)
    assert found.text().startswith("AUC ")
    bins = found.calibration
    assert np.isfinite(bins.expected_error) and bins.counts.sum() == len(labels)


def test_what_cannot_be_judged(refused):
    with refused(InputError, "row 0 is 2.0"):
        judge_predictions([2, 0.5], [0, 1])
    with refused(InputError, "labels hold [1]"):
        judge_predictions([0.2, 0.5], [1, 1])
    with refused(InputError, "row 1 of probabilities is 'x'"):
        judge_predictions([0.2, "x"], [0, 1])
    with refused(InputError, "3 groups were given for 4 patches"):
        judge_predictions([0.2, 0.5, 0.3, 0.4], [0, 1, 0, 1], ["a", "b", "a"])
    with refused(InputError, "row 3 has no group"):
        judge_predictions([0.2, 0.5, 0.3, 0.4], [0, 1, 0, 1], ["a", "b", "a", float("nan")])


def test_the_figure_shows_the_lowest_groups():
    aucs = np.linspace(1, 0.6, 40)
    names = [f"slide {k}" for k in range(40)]
    figure = plot_group_aucs(names, aucs, [10] * 40, 0.9)
    (points,) = figure.axes[0].collections
    np.testing.assert_allclose(np.sort(points.get_offsets()[:, 0]), np.sort(aucs)[:25])
    texts = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert texts[0] == "slide 39 (10)" and "25 lowest of 40" in figure.axes[0].get_title()


def test_names_are_no_formulas(tmp_path):
    figure = plot_group_aucs([r"$\bad{0$", "a$b"], [0.5, 0.6], [10, 20], 0.55)
    figure.savefig(tmp_path / "groups.png")
    assert r"\$\bad{0\$ (10)" in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_a_model_without_a_fault_is_not_called_sure():
    labels = np.arange(200) % 2
    found = judge_predictions(0.2 + 0.5 * labels, labels, np.arange(200) // 3)
    assert "so it tells nothing" in found.text() and found.value == 1
    assert found.temperature is None and "no temperature" in found.why_no_temperature
    assert "no temperature from" in found.text()


def test_groups_without_their_numbers(refused):
    with refused(InputError, "1 names, 2 AUCs"):
        plot_group_aucs(["a"], [0.5, 0.6], [1, 2], 0.5)
