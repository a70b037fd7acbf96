"""The random split equals sklearn's; grouped ones have no group, and no tissue, on both sides."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

import hcd
from hcd import InputError, Recipe, grouped_split, split_dataset, stratified_split


@pytest.mark.parametrize("rng_seed", [0, 1, 77, 2**32 - 1])
def test_split_equals_the_walkthroughs_call(sample, rng_seed):
    labels = sample.labels["label"]
    _, _, train, valid = train_test_split(
        sample.labels["id"],
        range(len(labels)),
        test_size=0.1,
        stratify=labels,
        random_state=rng_seed,
    )
    train_idx, valid_idx = stratified_split(labels, rng_seed=rng_seed)
    assert train_idx.tolist() == train and valid_idx.tolist() == valid
    assert (
        stratified_split(labels.tolist(), 0.1, np.random.RandomState(rng_seed))[1].tolist() == valid
    )


def test_split_without_a_seed_draws_anew_from_numpys_generator():
    labels = np.arange(2000) % 2
    state = np.random.get_state()
    first, second = stratified_split(labels)[1], stratified_split(labels)[1]
    assert first.tolist() != second.tolist()
    np.random.set_state(state)
    assert stratified_split(labels)[1].tolist() == first.tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_split_is_disjoint_complete_and_stratified_within_one_or_refused(
    negatives, positives, fraction, rng_seed
):
    labels = np.random.default_rng(rng_seed).permutation(np.repeat([0, 1], [negatives, positives]))
    n_valid, shares = (
        int(np.ceil(fraction * len(labels))),
        fraction * np.array([negatives, positives]),
    )
    try:
        train, valid = stratified_split(labels, fraction, rng_seed)
    except ValueError as error:
        assert "each side needs both labels" in str(error)
        # then one side's fair share of a label is below about one patch
        assert min(shares) < 1.5 or min(np.array([negatives, positives]) - shares) < 1.5
        return
    assert sorted([*train, *valid]) == list(range(len(labels))) and len(valid) == n_valid
    exact = n_valid * np.array([negatives, positives]) / len(labels)
    assert np.abs(np.bincount(labels[valid], minlength=2) - exact).max() < 1
    assert all(set(labels[side]) == {0, 1} for side in (train, valid))
    assert train.dtype.kind == valid.dtype.kind == "i"
    assert stratified_split(labels, fraction, rng_seed)[1].tolist() == valid.tolist()


@pytest.mark.parametrize(
    "labels, fraction, words",
    [
        ([0, 1] * 20, 0, "valid_fraction=0"),
        ([0, 1] * 20, 1, "valid_fraction=1"),
        ([0, 1] * 20, -0.1, "valid_fraction=-0.1"),
        ([0, 1] * 20, float("nan"), "valid_fraction=nan"),
        ([], 0.1, "0 labels"),
        ([0] * 40, 0.1, "{0: 40}"),
        ([0] * 39 + [1], 0.1, "{0: 39, 1: 1}"),
        ([0, 1] * 5, 0.1, "10 labels"),
        ([0, 1] * 5, 0.95, "10 labels"),
        ([0] * 98 + [1] * 2, 0.1, "{0: 98, 1: 2}"),
        ([0] * 98 + [1] * 2, 0.9, "{0: 98, 1: 2}"),
    ],
)
def test_a_split_that_leaves_a_side_without_a_label_is_refused(refused, labels, fraction, words):
    with refused(ValueError, words):
        stratified_split(labels, fraction, 0)


# grouped


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 1)), min_size=2, max_size=40),
    st.floats(0.05, 0.95),
    st.integers(0, 2**32 - 1),
)
def test_no_group_lies_on_both_sides(rows, fraction, rng_seed):
    groups, labels = np.array(rows).T
    try:
        train, valid = grouped_split(labels, groups, fraction, rng_seed)
    except InputError as error:
        assert "each side needs both labels" in str(error)
        assert not can_be_split(labels, groups)
        return
    assert sorted([*train, *valid]) == list(range(len(labels)))
    assert not set(groups[train]) & set(groups[valid])
    assert all(set(labels[side]) == {0, 1} for side in (train, valid))
    assert grouped_split(labels, groups, fraction, rng_seed)[1].tolist() == valid.tolist()
    names = [f"slide {group}" for group in groups]
    assert grouped_split(labels.tolist(), names, fraction, rng_seed)[1].tolist() == valid.tolist()


def can_be_split(labels, groups):
    """Say whether any set of groups leaves both sides both labels, by trying all."""
    names = sorted(set(groups))
    for count in range(1, len(names)):
        for chosen in itertools.combinations(names, count):
            aside = np.isin(groups, chosen)
            if all(len(set(labels[side])) == 2 for side in (aside, ~aside)):
                return True
    return False


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_of_a_few_large_groups_one_is_set_aside(count):
    """Nearer to a tenth than none would be in counts, but none is no validation side."""
    labels, groups = np.tile([0, 1], 50 * count), np.repeat(range(count), 100)
    for rng_seed in range(5):
        _, valid = grouped_split(labels, groups, 0.1, rng_seed)
        assert len(valid) == 100 and len(set(groups[valid])) == 1


def test_the_nearest_of_few_groups_is_taken():
    groups = np.repeat([0, 1, 2], [400, 60, 40])
    labels = np.arange(500) % 2
    assert set(groups[grouped_split(labels, groups, 0.01, 0)[1]]) == {2}


def islands_like_real_ones(rng_seed, count=5000):
    """Labels and groups as the real patches have them: most alone, a few large, one label each."""
    rng = np.random.default_rng(rng_seed)
    groups = np.repeat(np.arange(count), np.minimum(rng.zipf(1.8, count), 200))
    rate = rng.choice([0.05, 0.95], groups.max() + 1)[groups]
    return (rng.random(len(groups)) < rate).astype(int), groups


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.37])
@pytest.mark.parametrize("rng_seed", range(3))
def test_small_groups_fill_up_the_share_of_each_label(fraction, rng_seed):
    labels, groups = islands_like_real_ones(rng_seed)
    _, valid = grouped_split(labels, groups, fraction, rng_seed)
    shares = np.bincount(labels[valid]) / np.bincount(labels)
    assert np.abs(shares - fraction).max() < 0.005


def test_groups_alone_are_split_by_label():
    labels = np.arange(1000) % 4 == 0
    _, valid = grouped_split(labels.astype(int), np.arange(1000), 0.1, 0)
    assert (len(valid), labels[valid].sum()) == (100, 25)


def test_every_group_can_be_set_aside():
    """Large groups come first in no draw: over many draws each of 20 slides is set aside."""
    groups = np.repeat(np.arange(20), np.arange(20, 40))
    labels = np.arange(len(groups)) % 2
    chosen = [set(groups[grouped_split(labels, groups, 0.2, seed)[1]]) for seed in range(100)]
    assert set.union(*chosen) == set(range(20))
    assert len({tuple(sorted(groups)) for groups in chosen}) > 90


def test_without_a_seed_a_grouped_split_draws_from_numpys_generator():
    labels, groups = islands_like_real_ones(0, 200)
    state = np.random.get_state()
    first, second = (grouped_split(labels, groups, 0.2)[1].tolist() for _ in range(2))
    np.random.set_state(state)
    assert grouped_split(labels, groups, 0.2)[1].tolist() == first != second


@pytest.mark.parametrize(
    "labels, groups, fraction, words",
    [
        ([0, 1] * 20, [1] * 40, 0.1, "1 group(s) of 40 labels"),
        ([0, 1] * 20, [0, 1] * 20, 0.5, "2 group(s)"),  # each of one class
        ([0] * 40, range(40), 0.1, "{0: 40}"),
        ([0, 1] * 20, range(39), 0.1, "39 groups"),
        ([0, 1] * 20, [None, *range(39)], 0.1, "row 0 has no group"),
        ([0, 1] * 20, [*range(39), float("nan")], 0.1, "row 39 has no group"),
        ([0, 1] * 20, range(40), 1, "valid_fraction=1"),
        ([0, 1] * 20, range(40), "0.1", "valid_fraction='0.1'"),
        ([0, 1] * 20, "ab" * 20, 0.1, "groups are a str"),
        ([0, 1] * 20, None, 0.1, "groups are a NoneType"),
        ([0, 1] * 20, [[1]] * 40, 0.1, "group [1]"),
        ([0, 1] * 19 + [0, None], range(40), 0.1, "row 39 has no label"),
        ([0, 1] * 19 + [0, float("nan")], range(40), 0.1, "row 39 has no label"),
        ([], [], 0.1, "0 group(s) of 0 labels"),
    ],
)
def test_groups_that_cannot_be_split(refused, labels, groups, fraction, words):
    with refused(InputError, words):
        grouped_split(labels, groups, fraction, 0)


@pytest.mark.parametrize("rng_seed", [-1, 2**32, "a", 0.5, np.random.default_rng(0)])
def test_what_is_no_seed(refused, rng_seed):
    labels = [0, 1] * 20
    with refused(InputError, "rng_seed="):
        stratified_split(labels, 0.1, rng_seed)
    with refused(InputError, "rng_seed="):
        grouped_split(labels, range(40), 0.1, rng_seed)


def test_equal_items_of_a_tensor_are_one_group():
    labels, groups = np.tile([0, 1], 60), np.repeat(range(12), 10)
    wanted = grouped_split(labels, groups, 0.25, 0)
    for form in (torch.from_numpy(groups), list(torch.from_numpy(groups))):
        found = grouped_split(torch.from_numpy(labels), form, 0.25, 0)
        assert [side.tolist() for side in found] == [side.tolist() for side in wanted]


# of a data set


@pytest.fixture(scope="module")
def cut_dataset(tmp_path_factory, cut_slides):
    return cut_slides(tmp_path_factory.mktemp("cut") / "data")


def test_c29_no_tissue_on_both_sides(cut_dataset):
    dataset, _ = cut_dataset
    recipe = Recipe.sample(split="islands", rng_seed=1)
    overlaps = hcd.find_overlaps(dataset.train_paths, progress=False)
    assert len(overlaps.pairs) > 20
    for split, crosses in (("islands", False), ("random", True)):
        _, valid = split_dataset(dataset, replace(recipe, split=split), progress=False)
        aside = np.isin(np.arange(len(dataset.labels)), valid)
        a, b = overlaps.pairs.T
        assert (aside[a] != aside[b]).any() == crosses


def test_slides_stay_whole(cut_dataset):
    dataset, slides = cut_dataset
    table = hcd.read_slides(None, dataset)  # the data folder's own slides.csv
    train, valid = split_dataset(dataset, Recipe.sample(split="slides"), table, progress=False)
    names = dataset.labels["id"].map(slides)
    assert not set(names.iloc[train]) & set(names.iloc[valid])


def test_the_default_is_the_walkthroughs_split(cut_dataset):
    dataset, _ = cut_dataset
    assert Recipe().split == Recipe.sample().split == "random"
    found = split_dataset(dataset, Recipe(rng_seed=3))
    wanted = stratified_split(dataset.labels["label"], 0.1, 3)
    assert [side.tolist() for side in found] == [side.tolist() for side in wanted]


def test_slides_are_needed_to_split_by_them(refused, cut_dataset):
    with refused(InputError, "split='slides'"):
        split_dataset(cut_dataset[0], Recipe(split="slides"))
    with refused(InputError, "split='patients'", "random, islands, slides"):
        Recipe(split="patients")
