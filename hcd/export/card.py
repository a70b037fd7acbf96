"""The card of a model folder: what it says, and how it is checked before anything is built from
it."""

import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

from ..disk.whole import parse_json, read_json, shorten
from ..engine.compat import library_versions
from ..errors import InputError
from ..recipe import Recipe
from .prediction import CLASSES

FORMAT = "hcd-model-4"
SPACING_UM_PX = 0.972  # micrometres a pixel of the competition's patches
# what cards of older formats lack; tests/golden/old holds one, which must load for ever
ADDED: dict[str, dict] = {
    "hcd-model-1": {
        "spacing_um_px": SPACING_UM_PX,
        "license": "unspecified",
        "splits": {},
        "temperature": None,
        "dataset": None,
    },
    "hcd-model-2": {"temperature": None, "dataset": None},
    "hcd-model-3": {"dataset": None},
}
SYNTHETIC = "hcd-synthetic-sample"  # the data set that make_sample draws
MOST_BYTES = 1 << 20
INTENDED_USE = (
    "Research and teaching: the probability that the centre 32 x 32 px of one 96 x 96 px H&E patch"
    " of lymph-node tissue holds tumour."
)
LIMITS = (
    "Not a medical device and not validated for diagnosis. It judges single patches, not slides or"
    " patients. {split}; other scanners, stains and tissues were not tested."
)
SYNTHETIC_LIMITS = (
    "Trained on synthetic patches that hcd drew, so its numbers say nothing about real tissue. "
)
SPLITS = {
    "random": "Validation patches come from the same slides as training patches, so the validation"
    " AUC is higher than on new slides",
    "islands": "Validation patches share no tissue with training patches, but may come from their"
    " slides, so the validation AUC is higher than on new slides",
    "slides": "Validation patches come from other slides than training patches, of the same"
    " laboratories",
}


def _is_text(value):
    return isinstance(value, str)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


RULES = {  # field: what it must be, and whether a value is that
    "format": (f"{FORMAT!r}", lambda value: value == FORMAT),
    "classes": (f"{CLASSES}", lambda value: value == CLASSES),
    "recipe": ("an object of the recipe's fields", lambda value: isinstance(value, dict)),
    "metrics": ("an object", lambda value: isinstance(value, dict)),
    "data_fingerprint": ("a text or null", lambda value: value is None or _is_text(value)),
    "weights_sha256": (
        "64 hexadecimal digits",
        lambda value: _is_text(value) and re.fullmatch("[0-9a-f]{64}", value),
    ),
    "versions": (
        "an object of texts",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
    "spacing_um_px": ("a number above 0", lambda value: _is_number(value) and 0 < value < 1000),
    "license": ("a text", _is_text),
    "splits": (
        "an object of texts, by the names of metrics",
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    ),
    "temperature": (
        "null or a number from 0.01 to 100",
        lambda value: value is None or (_is_number(value) and 0.01 <= value <= 100),
    ),
    "dataset": ("null or a text", lambda value: value is None or _is_text(value)),
    "created": ("a text", _is_text),
    "intended_use": ("a text", _is_text),
    "limits": ("a text", _is_text),
}


def make_card(
    recipe: Recipe,
    weights_sha256: str,
    metrics: dict | None = None,
    data_fingerprint: str | None = None,
    splits: dict | None = None,
    license: str = "unspecified",
    temperature: float | None = None,
    dataset: str | None = None,
) -> tuple[dict, bytes]:
    """Write a model's card.

    Args:
        recipe: what the model was trained by. weights_sha256: hex digest of the weights file.
        metrics: numbers, texts, and lists and dicts of them. "<name>_interval", a pair or a dict
            of low, high and over, is the 95 % interval of <name>, see `Judgement.interval`.
        data_fingerprint: see `Dataset.fingerprint`.
        splits: for each metric that was measured on a split of its own, its kind: see
            `Recipe.split`, or "other slides" for a test set.
        license: of the model, such as "CC-BY-4.0".
        temperature: that calibrates its probabilities, see `fit_temperature`.
        dataset: name of what it was trained on, such as a hub's "owner/name"; SYNTHETIC for the
            synthetic sample.
    Returns:
        card: dict of the fields of RULES; content: its JSON as bytes.
    Raises:
        InputError: metrics that JSON cannot hold, such as NaN, a split of a metric that is not
            there, or too long a card.
    """
    if not isinstance(metrics or {}, dict) or not isinstance(splits or {}, dict):
        raise InputError("metrics and splits are given by name; give each as a dict")
    for name in (splits or {}).keys() - (metrics or {}).keys():
        raise InputError(f"splits names {name!r}, which is no metric; give it for metrics alone")
    card = {
        "format": FORMAT,
        "classes": CLASSES,
        "recipe": asdict(recipe),
        "metrics": metrics or {},
        "data_fingerprint": data_fingerprint,
        "weights_sha256": weights_sha256,
        "versions": library_versions(),
        "spacing_um_px": SPACING_UM_PX,
        "license": license,
        "splits": splits or {},
        "temperature": temperature,
        "dataset": dataset,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "intended_use": INTENDED_USE,
        "limits": (SYNTHETIC_LIMITS if dataset == SYNTHETIC else "")
        + LIMITS.format(split=SPLITS[recipe.split]),
    }
    try:
        # numpy's numbers are floats too
        content = json.dumps(card, indent=1, allow_nan=False, default=float).encode()
        card = parse_json(content.decode())  # as it is read back
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"the metrics cannot stand on a card ({shorten(str(error), 200)}); give finite numbers"
            " and texts"
        ) from error
    _check_rules("the card", card)
    if len(content) > MOST_BYTES:
        raise InputError(
            f"a card of {len(content)} bytes is too long; give fewer metrics, {MOST_BYTES} bytes"
            " are allowed"
        )
    return card, content


def with_temperature(card: dict, temperature: float) -> tuple[dict, bytes]:
    """Return a card, and its JSON as bytes, with another temperature.

    Raises:
        InputError: it is none.
    """
    card = {**card, "temperature": temperature}
    _check_rules("the card", card)
    return card, json.dumps(card, indent=1, allow_nan=False).encode()


def read_card(path: Path) -> tuple[dict, Recipe]:
    """Read a card and check every field; nothing in it is run, whatever it holds.

    Args:
        path: a card.json.
    Returns:
        card: dict, see `make_card`; recipe: the Recipe it names, without pretrained weights.
    Raises:
        InputError: another format, or a field that is missing, unknown or breaks its rule.
    """
    card = read_json(path, MOST_BYTES)
    if not isinstance(card, dict) or card.get("format") not in (FORMAT, *ADDED):
        shown = (
            shorten(repr(card.get("format")))
            if isinstance(card, dict)
            else f"a {type(card).__name__}"
        )
        raise InputError(
            f"{path} has format {shown}; this hcd reads {FORMAT!r}, save the model again or install"
            " the hcd that wrote it"
        )
    added = ADDED.get(card["format"], {})
    _check_names(path, "field", set(card), set(RULES) - set(added))
    card = {**card, **added, "format": FORMAT}
    _check_rules(path, card)
    try:
        return card, replace(Recipe.from_stored(card["recipe"]), pretrained=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {shorten(str(error), 300)}") from error


def _check_rules(path, card):
    for name, (wanted, holds) in RULES.items():
        if not holds(card[name]):
            raise InputError(
                f"{path}: field {name!r} is {shorten(repr(card[name]))} and not {wanted}; restore"
                " the card or give another value"
            )


def _check_names(path, what, found, wanted):
    for name in sorted(found ^ wanted):
        fault = "missing" if name in wanted else "unknown"
        raise InputError(
            f"{path}: {what} {shorten(repr(name))} is {fault}; restore the card or install the hcd"
            " that wrote it"
        )
