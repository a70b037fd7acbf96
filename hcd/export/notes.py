"""A card as a page: front matter that model hubs read, and below it text for people."""

from .card import SYNTHETIC
from .hub import front_matter, in_digits, in_words, interval_of, list_results, on_one_line


def card_notes(card: dict) -> str:
    """Tell a card in Markdown.

    Args:
        card: see `make_card`; whatever its texts hold, each stays on its line.
    """
    recipe = card["recipe"]
    size = f"{recipe['original_size']} x {recipe['original_size']} px"
    mean, std = in_digits(recipe["mean"]), in_digits(recipe["std"])
    value = card["temperature"]
    temperature = [] if value is None else [f"- temperature that calibrates it: {value:.4g}"]
    others = _others(card)
    return "\n".join(
        [
            f"---\n{front_matter(card)}---\n",
            f"# {on_one_line(recipe['arch'])}, {' / '.join(card['classes'])}\n",
            f"{on_one_line(card['intended_use'], 2000)}\n",
            f"**Limits.** {on_one_line(card['limits'], 2000)}\n",
            f"- input: {size} RGB at {card['spacing_um_px']} micrometres a px, centre"
            f" {recipe['crop_size']} px, mean {mean}, std {std}",
            *temperature,
            f"- licence: {on_one_line(card['license'])}",
            f"- saved: {on_one_line(card['created'])}",
            f"- data: {_data(card)}",
            f"- weights: SHA-256 {card['weights_sha256']}",
            "\n## Metrics\n",
            *(_metrics(card) or ["- none recorded"]),
            *(["\n## Also recorded\n", *others] if others else []),
            "\nLoad it with `hcd.load_bundle(folder)` or `hcd predict <folder> <image>`.\n",
        ]
    )


def _metrics(card) -> list[str]:
    """Return a line for each metric, such as "- validation AUC 0.9508 (random split)"."""
    results, lines = list_results(card), []
    for metric in dict.fromkeys(result["metric"] for result in results):
        these = [result for result in results if result["metric"] == metric]
        numbers = []
        for one in these:
            number = f"{in_words(one['part'] or metric)} {in_digits(one['value'])}"
            if one["interval"]:
                over = f" over {one['over']}" if one["over"] else ""
                number += f", 95 % interval {in_digits(one['interval'], ' to ')}{over}"
            numbers.append(number)
        head = f"{in_words(metric)}: " if these[0]["part"] else ""
        lines.append(f"- {head}{', '.join(numbers)} ({these[0]['split']})")
    return lines


def _others(card) -> list[str]:
    """Return a line for each of the card's metrics that is no measure, such as a count."""
    told = {result["metric"] for result in list_results(card)}
    told |= {f"{metric}_interval" for metric in told if interval_of(card, metric)}
    return [
        f"- {in_words(name)}: {in_digits(value)}"
        for name, value in card["metrics"].items()
        if name not in told
    ]


def _data(card) -> str:
    fingerprint = f"fingerprint {on_one_line(card['data_fingerprint'] or 'not recorded')}"
    name = on_one_line(card["dataset"] or "")
    if name == SYNTHETIC:
        name = "the synthetic sample that hcd draws"
    return f"{name}, {fingerprint}" if name else fingerprint
