"""The summary of a slide: numbers, and one HTML file with its picture inside, which needs no
network."""

import base64
import os
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader

from .answer import SlideAnswer
from .regions import Regions, cell_areas, grid_lines, longest_extent

FORMAT = "hcd-slide-1"
LISTED = 10  # regions on the page, the largest
CARD = ["weights_sha256", "metrics", "splits", "dataset", "license", "spacing_um_px"]
CARD += ["intended_use", "limits"]


def summarise(answer: SlideAnswer, regions: Regions, threshold: float) -> dict:
    """Return what summary.json holds; lengths in mm, areas in mm2, shares from 0 to 1.

    `share_above` is of the tissue, None where there is none. `regions` has the largest ten.
    """
    areas, tissue = cell_areas(answer), np.isfinite(answer.probabilities)
    above = answer.probabilities > threshold
    found, high = float(areas[tissue].sum()), float(areas[above].sum())
    listed = [_region(answer, regions, number) for number in range(min(len(regions), LISTED))]
    return {
        "format": FORMAT,
        "slide": slide_name(answer),
        "path": _text(answer.path),
        "size_px": [int(side) for side in answer.size],
        "um_per_px": [float(mpp) for mpp in answer.mpp],
        "size_mm": [round(side * mpp / 1000, 6) for side, mpp in zip(answer.size, answer.mpp)],
        "cell_um": [round(cell * mpp, 6) for cell, mpp in zip(answer.cell, answer.mpp)],
        "threshold": float(threshold),
        "tissue_cells": int(tissue.sum()),
        "tissue_mm2": round(found, 6),
        "above_mm2": round(high, 6),
        "share_above": round(high / found, 6) if found else None,
        "region_count": len(regions),
        "largest_region": listed[0] if listed else None,
        "regions": listed,
        "model": {
            "name": answer.card.get("recipe", {}).get("arch"),  # an ONNX file has none
            **{name: answer.card[name] for name in CARD if name in answer.card},
        },
    }


def _region(answer, regions, number):
    """Return the numbers of one region; `from_px` and `to_px` are of the box around it."""
    corners = regions.outlines[number][0]
    box = [
        [float(line[corners[:, axis].min()]), float(line[corners[:, axis].max()])]
        for axis, line in enumerate(grid_lines(answer))
    ]
    return {
        "name": f"Region {number + 1}",
        "area_mm2": round(float(regions.area[number]), 6),
        "longest_mm": round(longest_extent(regions.outlines[number], answer), 4),
        "cells": int(regions.cells[number]),
        "mean_probability": round(float(regions.mean[number]), 4),
        "largest_probability": round(float(regions.most[number]), 4),
        "from_px": [box[0][0], box[1][0]],
        "to_px": [box[0][1], box[1][1]],
    }


def slide_name(answer: SlideAnswer) -> str:
    """Return the name of a slide's file as text."""
    return Path(_text(answer.path)).name


def _text(path) -> str:
    """Return a path as text; it may be of bytes that are none."""
    return os.fsencode(path).decode("utf-8", "replace")


def write_page(numbers: dict, picture: bytes) -> str:
    """Return a summary as HTML; every text in it is escaped, for slide and card are a stranger's.

    Args:
        numbers: see `summarise`. picture: PNG.
    """
    pages = Environment(
        loader=PackageLoader("hcd", "slide"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {"share": _share, "length": _length, "area": _area, "plain": _plain}
    source = "data:image/png;base64," + base64.b64encode(picture).decode()
    return pages.get_template("summary.html").render(**numbers, picture=source) + "\n"


def _share(value):
    return "" if value is None else f"{value:.1%}".replace("%", " %")


def _length(value):
    return f"{value:,.2f} mm" if value >= 0.995 else f"{value * 1000:,.0f} µm"


def _area(value):
    return f"{value:,.2f} mm²" if value >= 0.095 else f"{value * 1e6:,.0f} µm²"


def _plain(metrics):
    """Return the (name, text) of the metrics that are numbers, and their intervals beside them."""
    rows = []
    for name, value in metrics.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            interval = metrics.get(f"{name}_interval")
            ends = interval if isinstance(interval, list) else []
            if isinstance(interval, dict):
                ends = [interval.get("low"), interval.get("high")]
            if len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends):
                shown += f" (95 % interval {ends[0]:.4f} to {ends[1]:.4f})"
            rows.append((name.replace("_", " "), shown))
    return rows
