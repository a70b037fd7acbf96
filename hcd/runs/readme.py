"""A run's own README.md: what lies in its folder, for who finds it a year later."""

import os
import shlex
from pathlib import Path
from typing import Any

from ..disk.whole import StrPath, read_json, shorten, whole_write

NAME, MOST_BYTES = "README.md", 1 << 24
MARK = "<!-- hcd wrote this page; without this line it is yours, and is left as it is. -->"
LINKS = {
    "walkthrough.html": "the executed notebook as a page",
    "report.html": "what the numbers are worth",
    "figures": "each figure of the notebook as PNG",
    "model": "the final model, with a page about it",
    "slide/summary.html": "what the model says of a drawn slide",
    "metrics.json": "the numbers",
    "validation.csv": "what the model says of each validation patch",
}


def write_readme(folder: StrPath, data_folder: StrPath = "") -> Path | None:
    """Write the README.md of a finished run, or bring an older one of hcd's up to date.

    Args:
        folder: of the run, with its metrics.json. data_folder: what it was run on; "" for the
            sample that it drew itself.
    Returns:
        Path of the page; None where somebody else's README.md lies, which stays as it is.
    Raises:
        OSError: it cannot be written. InputError: metrics.json cannot be read.
    """
    folder = Path(folder)
    path = folder / NAME
    if os.path.lexists(path) and not _is_ours(path):
        return None
    metrics = read_json(folder / "metrics.json", MOST_BYTES)
    content = _page(folder, metrics if isinstance(metrics, dict) else {}, data_folder)
    with whole_write(path, "w") as file:
        file.write(content)
    return path


def _is_ours(path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _page(folder, metrics, data_folder) -> str:
    drawn = not data_folder or Path(data_folder).resolve() == (folder / "data").resolve()
    data = "the synthetic sample that hcd drew into `data/`" if drawn else f"`{_cell(data_folder)}`"
    submissions = sorted(file.name for file in folder.glob("*_submission.csv"))
    links = {**LINKS, **dict.fromkeys(submissions, "the submission")}
    rows = {
        "architecture": _cell(str(metrics.get("final_model", "")).rsplit("_stage", 1)[0]),
        "validation AUC": _auc(metrics),
        "validation accuracy": _number(metrics.get("valid_accuracy")),
        "test AUC": _number(metrics.get("test_auc")),
        "labelled patches": _cell(metrics.get("patches", "")),
        "data": data,
        "data fingerprint": _cell(metrics.get("data_fingerprint", "")),
    }
    where = "" if drawn or (folder / "run.json").is_file() else f" --data {_quoted(data_folder)}"
    return "\n".join(
        [
            f"{MARK}\n",
            "# A run of hcd\n",
            "The histopathologic cancer detection walkthrough, trained and validated once. For"
            " research and teaching;\nnot a medical device.\n",
            "| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items() if value),
            "",
            *(f"- [{name}]({name}): {text}" for name, text in links.items() if _is(folder, name)),
            "\nTo go on with it, in this folder:\n",
            "```sh",
            "hcd predict . patch.tif   # class and tumour probability of a patch, or of a folder",
            f"hcd report .{where}   # writes report.html: what the AUC is worth",
            "```\n",
        ]
    )


def _auc(metrics) -> str:
    value, interval = _number(metrics.get("valid_auc")), metrics.get("valid_auc_interval")
    told = [f"{_cell(metrics.get('split', 'random'))} split"]
    if isinstance(interval, dict):
        low, high = _number(interval.get("low")), _number(interval.get("high"))
        told.append(f"95 % interval {low} to {high} over {_cell(interval.get('over', ''))}")
    return f"{value} ({', '.join(told)})" if value else ""


def _is(folder, name) -> bool:
    return (folder / name).exists()


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _cell(value: Any) -> str:
    """Return a value, of a user's or a stranger's, as it can stand in a table."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return shorten(text, 300).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _quoted(path) -> str:
    """Return a path as a shell takes it; DIR for one that does not fit on a page."""
    return shlex.quote(str(path)) if str(path).isprintable() else "DIR"
