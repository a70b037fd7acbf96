"""The recipe holds the walkthrough's numbers and takes no others than those that can be trained
with."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import fastai.vision
import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from hcd import Recipe
from hcd.reader import augment, tone_table

WALKTHROUGH = {  # written down from the walkthrough's cells, not from hcd
    "original_size": 96,
    "crop_size": 90,
    "max_rotation": 3,
    "max_shift": 2,
    "max_brightness": 7,
    "max_contrast": 5,
    "quarter_turns": True,
    "flips": True,
    "valid_fraction": 0.1,
    "batch_size": 128,
    "arch": "densenet169",
    "pretrained": True,
    "head_dropout": 0.5,
    "mean": (0.702447, 0.546243, 0.696453),
    "std": (0.238893, 0.282094, 0.216251),
    "sweep_weight_decays": (1e-6, 1e-4, 1e-2),
    "sweep_iterations": 600,
    "weight_decay": 1e-4,
    "head_epochs": 8,
    "head_max_lr": 2e-2,
    "finetune_epochs": 12,
    "finetune_max_lr": (4e-5, 4e-4),
    "tta_passes": 12,
    "rng_seed": None,
    "fast": False,  # ours, and off
    "resident": None,  # ours: where the device reads, which changes no number
    "stain_jitter": 0.0,  # ours, and off
    "mean_weights": False,  # ours, and off
    "split": "random",  # what the walkthrough does; the others are ours
}


def test_defaults_are_the_walkthroughs():
    assert asdict(Recipe()) == WALKTHROUGH


def test_plain_turns_off_every_augmentation_and_nothing_else():
    changed = {
        name: value
        for name, value in asdict(Recipe().plain()).items()
        if value != WALKTHROUGH[name]
    }
    assert changed == dict(
        max_rotation=0,
        max_shift=0,
        max_brightness=0,
        max_contrast=0,
        quarter_turns=False,
        flips=False,
    )


def test_sample_is_small_from_scratch_and_repeatable_and_takes_changes():
    recipe = Recipe.sample()
    assert not recipe.pretrained and recipe.rng_seed == 0
    assert recipe.head_epochs + recipe.finetune_epochs <= 8 and recipe.sweep_iterations <= 60
    augmentation = (
        "crop_size",
        "max_rotation",
        "max_shift",
        "max_brightness",
        "max_contrast",
        "quarter_turns",
        "flips",
        "mean",
    )
    assert all(getattr(recipe, name) == WALKTHROUGH[name] for name in augmentation)
    assert Recipe.sample(arch="alexnet", rng_seed=None) == replace(
        recipe, arch="alexnet", rng_seed=None
    )


def test_robust_takes_the_whole_patch_and_mean_weights_and_changes_nothing_else():
    changed = {
        name: value for name, value in asdict(Recipe.robust()).items() if value != WALKTHROUGH[name]
    }
    assert changed == {"crop_size": 96, "max_shift": 0, "max_rotation": 0, "mean_weights": True}
    assert Recipe.robust(arch="alexnet", crop_size=94) == Recipe(
        arch="alexnet", crop_size=94, max_shift=0, max_rotation=0, mean_weights=True
    )
    assert Recipe.robust(original_size=64).crop_size == 64
    patch = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    seen = {
        augment(patch, Recipe.robust(max_brightness=0, max_contrast=0)).tobytes() for _ in range(99)
    }
    assert len(seen) == 12  # three turns and four flips; a quarter turn is half a pixel off (K2)
    assert tone_table(0, 0)[patch].tobytes() in seen


def test_margin():
    assert (
        Recipe().margin == 3
        and Recipe(crop_size=91).margin == 2
        and Recipe(crop_size=96, max_shift=0).margin == 0
    )


def test_a_recipe_cannot_be_changed_and_equal_ones_are_equal():
    with pytest.raises(FrozenInstanceError):
        Recipe().crop_size = 96
    assert Recipe() == Recipe() != Recipe(crop_size=88) and len({Recipe(), Recipe()}) == 1


def test_it_comes_back_from_json_as_it_was():
    for recipe in (Recipe(), Recipe.sample(), Recipe().plain()):
        assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


def test_whole_numbers_pass_where_a_float_is_meant():
    assert (
        Recipe(weight_decay=0, head_dropout=0, finetune_max_lr=(1, 1), std=(1, 1, 1)).weight_decay
        == 0
    )


def test_arch_may_be_callable():
    def arch(pretrained):
        return None

    assert Recipe(arch=arch).arch is arch


def test_a_torchvision_function_is_its_name():
    recipe = Recipe(arch=torchvision.models.resnet18)
    assert recipe == Recipe(arch="resnet18") and recipe.arch == "resnet18"
    assert Recipe(arch=fastai.vision.models.densenet169) == Recipe()

    def resnet18(pretrained):
        return None

    assert Recipe(arch=resnet18).arch is resnet18  # of the same name, and another function


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_every_shift_up_to_the_margin_is_taken_and_the_next_is_refused(data):
    size = data.draw(st.integers(1, 400))
    crop = data.draw(st.integers(1, size))
    most = (size - crop) // 2
    assert (
        Recipe(original_size=size, crop_size=crop, max_shift=data.draw(st.integers(0, most))).margin
        == most
    )
    with pytest.raises(
        ValueError,
        match=f"max_shift={most + 1} px leaves the patch: crop_size={crop} allows 0 to {most}",
    ):
        Recipe(original_size=size, crop_size=crop, max_shift=most + 1)


LIMITS = [  # field, the last admissible values, the first that are not
    ("original_size", (90,), (0, -96)),
    ("crop_size", (92, 1), (97, 0, -1)),
    ("max_shift", (0, 3), (4, -1)),
    ("max_rotation", (0, 4), (5, 180, 181, -1)),
    ("max_brightness", (0, 100), (101, -1)),
    ("max_contrast", (0, 100), (101, -1)),
    ("stain_jitter", (0, 0.2, 0.999), (1, -0.1)),
    ("batch_size", (2,), (1, 0)),
    ("sweep_iterations", (2,), (1,)),
    ("head_epochs", (1,), (0,)),
    ("finetune_epochs", (1,), (0,)),
    ("tta_passes", (1,), (0,)),
    ("valid_fraction", (1e-9, 0.999), (0, 1, -0.1, 1.5)),
    ("split", ("random", "islands", "slides"), ("", "Random", "patients")),
    ("head_dropout", (0, 0.99), (1, -0.1)),
    ("mean", ((0, 0, 0),), ((0.5, 0.5), ())),
    ("std", ((1e-9,) * 3,), ((0, 1, 1), (1, 1, 1, 1))),
    ("sweep_weight_decays", ((0,), (0.1,) * 9), ((), (-1e-9, 0))),
    ("weight_decay", (0,), (-1e-9,)),
    ("head_max_lr", (1e-9,), (0, -1)),
    ("finetune_max_lr", ((1e-3, 1e-3),), ((0, 1), (2, 1), (1,), (1, 2, 3))),
    ("rng_seed", (None, 0, 2**32 - 1), (-1, 2**32)),
]


@pytest.mark.parametrize("name, good, bad", LIMITS, ids=[row[0] for row in LIMITS])
def test_limits(refused, name, good, bad):
    spare = dict(max_shift=0) if name in ("crop_size", "original_size") else {}
    for value in good:
        assert getattr(Recipe(**{**spare, name: value}), name) == value
    for value in bad:
        with refused(ValueError, name, value):
            Recipe(**{**spare, name: value})


def test_limits_names_every_field_with_a_range():
    without = {"quarter_turns", "flips", "pretrained", "arch", "fast", "resident", "mean_weights"}
    assert {field.name for field in fields(Recipe)} - {row[0] for row in LIMITS} == without


@pytest.mark.parametrize(
    "name, value",
    [
        ("original_size", 96.0),
        ("crop_size", "90"),
        ("max_shift", True),
        ("max_rotation", None),
        ("quarter_turns", 1),
        ("flips", "yes"),
        ("pretrained", 0),
        ("fast", 1),
        ("resident", 1),
        ("mean_weights", 0),
        ("valid_fraction", "0.1"),
        ("valid_fraction", float("nan")),
        ("weight_decay", float("inf")),
        ("head_max_lr", 10**400),
        ("head_dropout", False),
        ("mean", 0.5),
        ("mean", (0.5, 0.5, None)),
        ("std", "abc"),
        ("std", (1, 1, float("nan"))),
        ("sweep_weight_decays", 1e-4),
        ("finetune_max_lr", (True, True)),
        ("batch_size", 64.5),
        ("arch", 169),
        ("arch", None),
        ("rng_seed", 0.5),
        ("rng_seed", True),
        ("rng_seed", "0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_of_another_type_is_refused(refused, name, value):
    with refused(TypeError, name, repr(value)):
        Recipe(**{name: value})
