"""Clustered intervals against R's stored covariances, DeLong's formula written out, and simulated
slides whose truth is known."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from hcd import InputError, clustered_auc, clustered_difference, clustered_rates
from hcd.evidence.intervals import auc_covariance

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
pytestmark = pytest.mark.filterwarnings("ignore:.*groups are few")


@pytest.fixture(scope="module")
def readers():
    """155 cells on 4 slides, judged six times: what R's package stores of them, see golden/."""
    table = pd.read_csv(GOLDEN / "clustered_auc.csv")
    stored = json.loads((GOLDEN / "clustered_auc.json").read_text())
    return table[stored["columns"]].to_numpy(), table["label"], table["slide"], stored


def test_every_covariance_is_the_one_that_r_has_stored(readers):
    scores, labels, slides, stored = readers
    aucs, covariance = auc_covariance(scores, labels, slides)
    np.testing.assert_allclose(aucs, stored["auc"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance, stored["covariance_clustered"], rtol=0, atol=1e-12)


def test_without_groups_it_is_delong(readers):
    scores, labels, _, stored = readers
    variances = np.diag(auc_covariance(scores, labels)[1])
    np.testing.assert_allclose(variances, stored["variance_delong"], rtol=0, atol=1e-12)


def test_differences_are_those_of_the_stored_covariances(readers):
    scores, labels, slides, stored = readers
    aucs, covariance = stored["auc"], np.array(stored["covariance_clustered"])
    found = clustered_difference(scores[:, 0], scores[:, 3], labels, slides)
    error = np.sqrt(covariance[0, 0] + covariance[3, 3] - 2 * covariance[0, 3])
    assert abs(found.value - (aucs[0] - aucs[3])) < 1e-12
    assert abs(found.standard_error - error) < 1e-12
    # 97.5 % of the t distribution with 3 degrees of freedom, from its table
    low, high = found.value - 3.182446 * error, found.value + 3.182446 * error
    np.testing.assert_allclose(found.interval, (low, high), atol=1e-6)
    assert found.excludes_0 == (low > 0 or high < 0) and found.groups == 4
    swapped = clustered_difference(scores[:, 3], scores[:, 0], labels, slides)
    assert abs(swapped.value + found.value) < 1e-15
    same = clustered_difference(scores[:, 0], scores[:, 0], labels, slides)
    assert (same.value, same.standard_error, same.excludes_0) == (0, 0, False)


def delong(scores, labels):
    """AUC and variance, written out over all pairs."""
    x, y = scores[labels == 1][:, None], scores[labels == 0][None]
    wins = (x > y) + 0.5 * (x == y)
    return wins.mean(), wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / y.size


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.integers(1, 8))
def test_equals_delong_written_out_with_any_ties(rng_seed, count, levels):
    rng = np.random.default_rng(rng_seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, count)]
    scores = rng.integers(0, levels, len(labels)) / levels
    auc, variance = delong(scores, labels)
    found = clustered_auc(scores, labels)
    assert abs(found.auc - auc) < 1e-12 and abs(found.auc - roc_auc_score(labels, scores)) < 1e-12
    assert abs(found.standard_error**2 - variance) < 1e-12
    assert found.groups == found.patches == len(labels)


def simulated(rng, slides=20, patches=40):
    """Patches of slides that differ in colour, which the model takes for tumour; half the slides
    have much tumour, half little."""
    group = np.repeat(np.arange(slides), patches)
    share = np.where(np.arange(slides) % 2, 0.8, 0.2)[group]
    labels = (rng.random(len(group)) < share).astype(int)
    scores = labels + rng.normal(0, 1.5, slides)[group] + rng.normal(0, 0.5, len(group))
    return scores, labels, group


def test_clustered_intervals_cover_the_truth_where_delongs_do_not():
    rng, runs = np.random.default_rng(0), 400
    truth = ndtr(1 / np.sqrt(2 * (1.5**2 + 0.5**2)))  # of patches of two different slides
    covered = {"clustered": 0, "delong": 0}
    for _ in range(runs):
        scores, labels, group = simulated(rng)
        for name, groups in (("clustered", group), ("delong", None)):
            low, high = clustered_auc(scores, labels, groups).interval
            covered[name] += low <= truth <= high
    assert covered["clustered"] / runs >= 0.85
    assert covered["delong"] / runs < 0.5


def test_one_group_more_or_less():
    rng = np.random.default_rng(1)
    scores, labels, group = simulated(rng, slides=7, patches=12)
    scores = scores.round(1)  # with ties
    names = np.array([f"slide {k}" for k in group])
    found = clustered_auc(scores, labels, names)
    aucs = {
        name: roc_auc_score(labels[names != name], scores[names != name]) for name in set(names)
    }
    np.testing.assert_allclose(found.without, (min(aucs.values()), max(aucs.values())), atol=1e-12)
    assert found.most_influential == max(aucs, key=lambda name: abs(aucs[name] - found.auc))


def test_groups_of_one_class_count_too():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(60), 10)
    labels = (group % 2).astype(int)
    scores = labels + rng.normal(0, 1, 60)[group]
    found = clustered_auc(scores, labels, group)
    # ten copies of each of 60 patches: as sure as DeLong of the 60
    first = np.arange(0, 600, 10)
    alone = clustered_auc(scores[first], labels[first])
    assert abs(found.standard_error - alone.standard_error) < 1e-12
    np.testing.assert_allclose(found.interval, alone.interval, atol=1e-12)


def test_names_order_and_scale_change_nothing():
    rng = np.random.default_rng(3)
    scores, labels, group = simulated(rng)
    wanted = clustered_auc(scores, labels, group)
    order = rng.permutation(len(group))
    names = [f"slide {k}" for k in (19 - group)[order]]
    found = clustered_auc(np.exp(scores[order]), labels[order].tolist(), names)
    np.testing.assert_allclose(found.interval, wanted.interval, atol=1e-12)
    assert clustered_auc(scores, labels, group, confidence=0.5).interval[0] > wanted.interval[0]


def test_rates_are_the_ratio_estimators(readers):
    rng = np.random.default_rng(4)
    scores, labels, group = simulated(rng, slides=60, patches=9)
    found = clustered_rates(scores, labels, group, threshold=0.4)
    right = (scores > 0.4) == labels
    for name, side in (
        ("accuracy", labels >= 0),
        ("sensitivity", labels == 1),
        ("specificity", labels == 0),
    ):
        table = pd.DataFrame({"right": right[side], "group": group[side]}).groupby("group")["right"]
        sums, sizes = table.sum(), table.size()
        share = sums.sum() / sizes.sum()
        residual = sums - share * sizes
        error = np.sqrt(len(sizes) * residual.var(ddof=1) / sizes.sum() ** 2)
        assert abs(found[name].value - share) < 1e-12
        assert abs(found[name].standard_error - error) < 1e-9
        assert found[name].groups == len(sizes)
    single = clustered_rates(scores, labels, threshold=0.4)["accuracy"]
    share = right.mean()
    assert abs(single.standard_error**2 - share * (1 - share) / (len(right) - 1)) < 1e-12


def test_a_sure_model_has_a_sure_interval():
    labels = np.arange(200) % 2
    found = clustered_auc(labels / 2, labels, np.arange(200) // 4)
    assert (found.auc, found.interval, found.without) == (1, (1, 1), (1, 1))
    assert clustered_auc(-labels, labels, np.arange(200) // 4).interval == (0, 0)


def test_few_groups_are_told():
    labels, groups = np.arange(200) % 2, np.arange(200) // 4
    with pytest.warns(UserWarning, match="^49 groups are few: below 50 "):
        clustered_auc(labels, labels, np.minimum(groups, 48))
    with pytest.warns(UserWarning, match="^49 groups are few: below 50 ") as caught:
        clustered_rates(labels, labels, np.minimum(groups, 48))
    assert len(caught) == 1  # and not one for each share
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clustered_auc(labels, labels, groups)
        clustered_rates(labels, labels, groups)


@pytest.mark.parametrize(
    "scores, labels, groups, words",
    [
        ([0.1, 0.2, 0.3], [0, 1], None, "(3,)"),
        ([[0.1, 0.2]], [0], None, "(1, 2)"),
        ([0.1, float("nan"), 0.3, 0.4], [0, 1, 0, 1], None, "row 1"),
        ([0.1, 0.2, float("inf"), 0.4], [0, 1, 0, 1], None, "row 2"),
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], None, "labels hold [0]"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 1], None, "labels hold [0, 1, 2]"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], ["a"] * 4, "one group"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], ["a", "b", "b", "b"], "label 1 lie in one group, 'b'"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], ["a", "b", None, "b"], "row 2 has no group"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], ["a", "b", "c"], "3 groups"),
        ([0.1, 0.2, 0.3], [0, 0, 1], None, "one group"),  # a single positive patch
        ([*"abcd"], [0, 1, 0, 1], None, "row 0 of scores is 'a'"),
        ([[0.1], [0.2, 0.3]], [0, 1], None, "row 0 of scores is [0.1]"),
        ([0.1, 0.2, 0.3, 0.4], [0, None, 0, 1], None, "labels hold [0, None, 1]"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], "aabb", "groups are a str"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], dict(enumerate("aabb")), "groups are a dict"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], 7, "groups are a int"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], [["a"]] * 4, "group ['a']"),
    ],
)
def test_what_has_no_interval(refused, scores, labels, groups, words):
    for compute in (clustered_auc, clustered_rates):
        with refused(InputError, words):
            compute(scores, labels, groups)


def test_two_models_need_the_same_patches(refused):
    with refused(InputError, "(4,) and (3,)"):
        clustered_difference([1, 2, 3, 4], [1, 2, 3], [0, 1, 0, 1])
    with refused(InputError, "row 1 of other_scores is 'x'"):
        clustered_difference([1, 2, 3, 4], [1, "x", 3, 4], [0, 1, 0, 1])


@pytest.mark.parametrize("confidence", [95, 0, 1, float("nan"), "0.95", None])
def test_what_is_no_confidence(refused, confidence):
    for compute in (clustered_auc, clustered_rates):
        with refused(InputError, f"confidence={confidence!r}"):
            compute([1, 2, 3, 4], [0, 1, 0, 1], confidence=confidence)


@pytest.mark.parametrize("threshold", [float("nan"), "0.5", None, [0.5, 0.6]])
def test_what_is_no_threshold(refused, threshold):
    with refused(InputError, f"threshold={threshold!r}"):
        clustered_rates([1, 2, 3, 4], [0, 1, 0, 1], threshold=threshold)


def test_groups_may_be_a_tensor_an_array_or_a_series():
    """Equal items of a tensor have other hashes, and each would be a group of its own."""
    rng = np.random.default_rng(5)
    scores, labels, group = simulated(rng)
    wanted = clustered_auc(scores, labels, group.tolist())
    tensor = torch.from_numpy(group)
    for form in (group, tensor, list(tensor), pd.Series(group, index=group[::-1])):
        found = clustered_auc(torch.from_numpy(scores), torch.from_numpy(labels), form)
        assert found == wanted and type(found.most_influential) is int
