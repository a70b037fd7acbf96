"""What model hubs read of a card: YAML front matter, with every result as an entry of its own."""

import json
import math
import re
from typing import Any

import yaml

from ..disk.whole import shorten
from .card import SYNTHETIC

TAGS = ["pathology", "histopathology", "medical", "fastai", "safetensors"]
# identifiers that hubs know; every other licence is "other", with its name
LICENSES = {
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "mpl-2.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "eupl-1.2", "openrail"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "odbl", "pddl"),
}
MEASURES = {"auc": "roc_auc", "accuracy": "accuracy", "loss": "loss"}  # word: the hubs' type
HUB_METRICS = ("roc_auc", "accuracy")
WORDS = {"auc": "AUC", "valid": "validation", "stage1": "stage 1", "stage2": "stage 2"}
KINDS = {
    "random": "random split",
    "islands": "split by islands of tissue",
    "slides": "split by slides",
}
MOST = 300  # characters of a text that somebody gave


def front_matter(card: dict) -> str:
    """Return what hubs read of a card, see `make_card`, as lines of YAML."""
    results, dataset = list_results(card), card["dataset"]
    types = [kind for kind in HUB_METRICS if any(one["type"] == kind for one in results)]
    content: dict[str, Any] = {
        "library_name": "hcd",
        "pipeline_tag": "image-classification",
        **_license(on_one_line(card["license"])),
        "tags": TAGS + ["synthetic"] * (dataset == SYNTHETIC),
    }
    if dataset and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset):
        content["datasets"] = [dataset]
    if types:
        content["metrics"] = types
    if results:
        name = on_one_line(card["recipe"]["arch"])
        content["model-index"] = [{"name": name, "results": _entries(results)}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf)


def list_results(card: dict) -> list[dict]:
    """Return the measures among a card's metrics, those of a stage one by one.

    Returns:
        of each: metric and part, the names it has on the card; type, value; split, in words;
        interval, [low, high] or None, and over, what it counts; dataset, a hub's entry.
    """
    found = []
    for metric, value in card["metrics"].items():
        for part, number in (value if isinstance(value, dict) else {"": value}).items():
            kind = card["splits"].get(metric)
            type_ = _measure(f"{metric} {part}", kind)
            if type_ and is_number(number):
                interval = {} if part else interval_of(card, metric)
                side = _side(metric, kind)
                unknown = "test set" if side == "test" else "split not recorded"
                split = KINDS.get(kind) or on_one_line(kind or "") or unknown
                found.append(
                    {
                        "metric": metric,
                        "part": part,
                        "type": type_,
                        "value": number,
                        "split": split,
                        "over": on_one_line(interval.get("over", "")),
                        "interval": [interval["low"], interval["high"]] if interval else None,
                        "dataset": _dataset(card, side, split),
                    }
                )
    return found


def interval_of(card: dict, metric: str) -> dict:
    """Return the interval of a metric, a dict of low, high and over; an empty one where the card
    has none."""
    found = card["metrics"].get(f"{metric}_interval")
    if isinstance(found, list) and len(found) == 2:
        found = dict(zip(("low", "high"), found))
    whole = isinstance(found, dict) and all(is_number(found.get(end)) for end in ("low", "high"))
    return found if whole and isinstance(found.get("over", ""), str) else {}


def _measure(name, kind):
    """Return the type of a measure by its name; "" of a number that is none, such as a count."""
    words = re.findall(r"[^\W_]+", name.lower())
    if "interval" in words:
        return ""
    known = [MEASURES[word] for word in words if word in MEASURES]
    return known[-1] if known else ("_".join(words) or "number") if kind else ""


def _side(metric, kind):
    """Return which patches a metric is of, by its name: "test", "validation" or ""."""
    words = set(re.findall(r"[^\W_]+", metric.lower()))
    if "test" in words:
        return "test"
    return "validation" if kind in KINDS or words & {"valid", "validation"} else ""


def _dataset(card, side, split):
    """Return a hub's entry of the patches that something was measured on.

    What hubs call config and revision is of a data set that they hold: a configuration's name and a
    git commit. Neither the kind of a split nor a fingerprint is one, so the kind stands in the name
    for people, and the fingerprint below, in the text.
    """
    name = on_one_line(card["dataset"] or "")
    found = {"name": f"{name or 'data set without a name'} ({split})", "type": name or "unnamed"}
    return {**found, "split": side} if side else found


def _entries(results):
    """Return a model-index: an entry for each data set and split."""
    datasets: list = []
    for result in results:
        if result["dataset"] not in datasets:
            datasets.append(result["dataset"])
    task = {"type": "image-classification", "name": "Image Classification"}
    return [
        {
            "task": dict(task),  # one of its own, or YAML would have it once and refer to it
            "dataset": dataset,
            "metrics": [_metric(one) for one in results if one["dataset"] == dataset],
        }
        for dataset in datasets
    ]


def _metric(result):
    name = in_words(f"{result['metric']} {result['part']}")
    found = {"type": result["type"], "value": result["value"], "name": name}
    if result["interval"]:
        over = {"over": result["over"]} if result["over"] else {}
        found["args"] = {"interval_95": result["interval"], **over}
    return found


def _license(given):
    if given.lower() in LICENSES:
        return {"license": given.lower()}
    # hubs want an identifier, such as my-license-1.0
    name = re.sub("[^a-z0-9.]+", "-", given.lower()).strip("-.")
    return {"license": "other", "license_name": name or "unspecified"}


def in_words(name: str) -> str:
    """Return the name of a metric as people say it."""
    return on_one_line(" ".join(WORDS.get(word, word) for word in name.replace("_", " ").split()))


def in_digits(value: Any, between: str = ", ") -> str:
    """Return a number, or a text or a list or dict of them, on one line for people."""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.4g}"
    if isinstance(value, (list, tuple)) and all(map(is_number, value)):
        return on_one_line(between.join(map(in_digits, value)))
    return on_one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def on_one_line(text: str, most: int = MOST) -> str:
    """Return a text that somebody gave on one line, of what UTF-8 can hold."""
    return shorten(" ".join(text.encode("utf-8", "replace").decode().split()), most)


def is_number(value: Any) -> bool:
    """Say whether a value of JSON is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
