"""The card of a model folder: what it says, and how it is checked before anything is built from
it."""

import json
import re
import time
from dataclasses import asdict, fields, replace

from ..disk.whole import read_json, shorten
from ..engine.compat import library_versions
from ..errors import InputError
from ..recipe import Recipe

FORMAT = "hcd-model-1"
CLASSES = ["negative", "tumour"]
MOST_BYTES = 1 << 20
INTENDED_USE = (
    "Research and teaching: the probability that the centre 32 x 32 px of one 96 x 96 px H&E patch"
    " of lymph-node tissue holds tumour."
)
LIMITS = (
    "Not a medical device and not validated for diagnosis. It judges single patches, not slides or"
    " patients. Validation patches come from the same slides as training patches, so the validation"
    " AUC is higher than on new slides; other scanners, stains and tissues were not tested."
)


def _is_text(value):
    return isinstance(value, str)


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
    "created": ("a text", _is_text),
    "intended_use": ("a text", _is_text),
    "limits": ("a text", _is_text),
}


def make_card(recipe, weights_sha256, metrics=None, data_fingerprint=None):
    """Write a model's card.

    Args:
        recipe: what the model was trained by. weights_sha256: hex digest of the weights file.
        metrics: numbers, texts, and lists and dicts of them. data_fingerprint: see
            `Dataset.fingerprint`.
    Returns:
        card: dict of the fields of RULES; content: its JSON as bytes.
    Raises:
        InputError: metrics that JSON cannot hold, such as NaN, or too long a card.
    """
    card = {
        "format": FORMAT,
        "classes": CLASSES,
        "recipe": asdict(recipe),
        "metrics": metrics or {},
        "data_fingerprint": data_fingerprint,
        "weights_sha256": weights_sha256,
        "versions": library_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "intended_use": INTENDED_USE,
        "limits": LIMITS,
    }
    try:
        # numpy's numbers are floats too
        content = json.dumps(card, indent=1, allow_nan=False, default=float).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"metrics={str(metrics)[:120]} cannot stand on a card ({error}); give finite numbers"
            " and texts"
        ) from error
    if len(content) > MOST_BYTES:
        raise InputError(
            f"a card of {len(content)} bytes is too long; give fewer metrics, {MOST_BYTES} bytes"
            " are allowed"
        )
    return card, content


def read_card(path):
    """Read a card and check every field; nothing in it is run, whatever it holds.

    Args:
        path: a card.json.
    Returns:
        card: dict, see `make_card`; recipe: the Recipe it names, without pretrained weights.
    Raises:
        InputError: another format, or a field that is missing, unknown or breaks its rule.
    """
    card = read_json(path, MOST_BYTES)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        shown = (
            shorten(repr(card.get("format")))
            if isinstance(card, dict)
            else f"a {type(card).__name__}"
        )
        raise InputError(
            f"{path} has format {shown}; this hcd reads {FORMAT!r}, save the model again or install"
            " the hcd that wrote it"
        )
    _check_names(path, "field", set(card), set(RULES))
    for name, (wanted, holds) in RULES.items():
        if not holds(card[name]):
            raise InputError(
                f"{path}: field {name!r} is {shorten(repr(card[name]))} and not {wanted}; restore"
                " the card"
            )
    _check_names(
        path, "recipe field", set(card["recipe"]), {field.name for field in fields(Recipe)}
    )
    try:
        return card, replace(Recipe(**card["recipe"]), pretrained=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {shorten(str(error), 300)}") from error


def card_notes(card):
    """Tell a card in Markdown for people to read."""
    metrics = (
        "".join(f"- {name}: {value}\n" for name, value in card["metrics"].items())
        or "- none recorded\n"
    )
    recipe = card["recipe"]
    return (
        f"# {recipe['arch']},"
        f" {' / '.join(card['classes'])}\n\n{card['intended_use']}\n\n**Limits.**"
        f" {card['limits']}\n\n- input: {recipe['original_size']} x {recipe['original_size']} px"
        f" RGB, centre {recipe['crop_size']} px, mean {recipe['mean']}, std {recipe['std']}\n-"
        f" saved: {card['created']}\n- data: {card['data_fingerprint']}\n- weights: SHA-256"
        f" {card['weights_sha256']}\n\n## Metrics\n\n{metrics}\nLoad it with"
        " `hcd.load_bundle(folder)` or `hcd predict <folder> <image>`.\n"
    )


def _check_names(path, what, found, wanted):
    for name in sorted(found ^ wanted):
        fault = "missing" if name in wanted else "unknown"
        raise InputError(
            f"{path}: {what} {shorten(repr(name))} is {fault}; restore the card or install the hcd"
            " that wrote it"
        )
