"""A card that was made is read back as it was made, and what could not be is not made."""

import json
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from hcd import InputError, Recipe
from hcd.export.card import (
    INTENDED_USE,
    LIMITS,
    MOST_BYTES,
    RULES,
    SPACING_UM_PX,
    SPLITS,
    SYNTHETIC,
    SYNTHETIC_LIMITS,
    make_card,
    read_card,
)

SHA = "0123456789abcdef" * 4
RECIPES = {
    "the walkthrough's": Recipe(),
    "the sample's": Recipe.sample(),
    "another": Recipe(
        original_size=65535,
        crop_size=1,
        max_rotation=0,
        max_shift=3,
        max_brightness=0,
        max_contrast=100,
        quarter_turns=False,
        flips=False,
        valid_fraction=1 / 3,
        batch_size=2,
        arch="squeezenet1_1",
        head_dropout=0,
        mean=(0, 1e-300, 0.1 + 0.2),
        std=(1, 5e-324, 1e308),
        sweep_weight_decays=(0,),
        weight_decay=0,
        finetune_max_lr=(1e-9, 1e-9),
        rng_seed=2**32 - 1,
        fast=True,
    ),
}


@pytest.fixture
def back(tmp_path):
    """Function (content) that returns the card and recipe read from a card file."""

    def read(content):
        (tmp_path / "card.json").write_bytes(content)
        return read_card(tmp_path / "card.json")

    return read


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def holding_itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe_and_fields_come_back(back, recipe):
    metrics = {"AUC": 0.1 + 0.2, "curve": [1, 0.5, {"x": None}], "note": "grün\n🔬", "ok": True}
    splits = {"AUC": "other slides"}
    made, content = make_card(recipe, SHA, metrics, "ab12", splits, "CC-BY-4.0")
    card, found = back(content)
    assert found == replace(recipe, pretrained=False)
    assert card == json.loads(content) == json.loads(json.dumps(made))
    assert card.keys() == RULES.keys()
    assert (card["metrics"], card["splits"]) == (metrics, splits)
    assert card["weights_sha256"] == SHA
    assert (card["data_fingerprint"], card["license"]) == ("ab12", "CC-BY-4.0")
    assert (card["intended_use"], card["limits"]) == (
        INTENDED_USE,
        LIMITS.format(split=SPLITS["random"]),
    )
    assert time.strptime(card["created"], "%Y-%m-%dT%H:%M:%S%z")


def test_a_card_of_the_least_comes_back(back):
    card, recipe = back(make_card(Recipe.sample(), SHA)[1])
    assert recipe == Recipe.sample() and card["spacing_um_px"] == SPACING_UM_PX
    assert (card["metrics"], card["splits"], card["data_fingerprint"]) == ({}, {}, None)
    assert card["license"] == "unspecified"


def test_every_number_comes_back_to_its_last_digit(back):
    numbers = [1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 10**400, np.float64(1 / 3)]
    card, _ = back(make_card(Recipe(), SHA, {"x": numbers})[1])
    assert card["metrics"]["x"] == numbers
    card, _ = back(make_card(Recipe(), SHA, {"x": np.float32(0.1), "n": np.int64(7)})[1])
    assert card["metrics"] == {"x": float(np.float32(0.1)), "n": 7}


@pytest.mark.parametrize("metrics", [None, {}, {"AUC": 0.5}])
def test_a_split_of_no_metric_is_refused(refused, metrics):
    splits = {**dict.fromkeys(metrics or {}, "random"), "accuracy": "random"}
    with refused(InputError, "'accuracy'", "no metric"):
        make_card(Recipe(), SHA, metrics, splits=splits)


@pytest.mark.parametrize(
    "value",
    [
        np.float32("nan"),
        [{"deep": [-float("inf")]}],
        {1, 2},
        1j,
        b"x",
        "NaN".__len__,
        np.zeros(3),
        {("a", "b"): 1},
        holding_itself(),
        nested(100_000),
        10**5000,
        Fraction(10**400),
    ],
    ids=[
        "numpy's NaN",
        "infinity within",
        "set",
        "complex",
        "bytes",
        "function",
        "array",
        "key of a tuple",
        "list that holds itself",
        "100000 deep",
        "5001 digits",
        "fraction above every float",
    ],
)
def test_metrics_that_json_cannot_hold_are_refused(refused, value):
    with refused(InputError, "metrics", "cannot stand on a card") as caught:
        make_card(Recipe(), SHA, {"x": value})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": {1: 0.5, "1": 0.6}},
        {"metrics": ["AUC"]},
        {"metrics": {"AUC": 0.5}, "splits": {"AUC": 1}},
        {"license": None},
        {"data_fingerprint": 7},
        {"dataset": 7},
    ],
    ids=lambda wrong: ", ".join(wrong),
)
def test_a_card_that_could_not_be_read_back_is_not_made(wrong):
    with pytest.raises(InputError):
        make_card(Recipe(), SHA, **wrong)


def test_the_longest_card_is_read_and_no_longer_one_is_made(back, refused):
    spare = MOST_BYTES - len(make_card(Recipe(), SHA, {"x": ""})[1])
    _, content = make_card(Recipe(), SHA, {"x": "y" * spare})
    assert len(content) == MOST_BYTES and len(back(content)[0]["metrics"]["x"]) == spare
    with refused(InputError, f"a card of {MOST_BYTES + 1} bytes is too long", str(MOST_BYTES)):
        make_card(Recipe(), SHA, {"x": "y" * (spare + 1)})


def test_a_card_of_the_synthetic_sample_says_so_in_its_limits(back):
    card, _ = back(make_card(Recipe(), SHA, dataset=SYNTHETIC)[1])
    assert card["dataset"] == SYNTHETIC and card["limits"].startswith(SYNTHETIC_LIMITS)
    card, _ = back(make_card(Recipe(), SHA, dataset="owner/name")[1])
    assert card["dataset"] == "owner/name" and "synthetic" not in card["limits"]
