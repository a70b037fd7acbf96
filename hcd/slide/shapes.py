"""Regions and cells as GeoJSON, as QuPath 0.4 and later imports objects.

A FeatureCollection in pixels of level 0, y down, as QuPath counts them; rings are closed and turn
as RFC 7946 wants in these numbers. `measurements` is an object of numbers by name.
"""

import json
from collections.abc import Iterator

import numpy as np

from .answer import SlideAnswer
from .regions import Regions, grid_lines

TUMOUR = {"name": "Tumor", "color": [200, 0, 0]}  # QuPath's own class, in its own colour
PROBABILITY = "Tumor probability"


def region_lines(answer: SlideAnswer, regions: Regions) -> Iterator[str]:
    """Yield the lines of a GeoJSON file of regions, which QuPath takes as annotations."""
    x, y = grid_lines(answer)
    yield from _collection(
        _feature(
            [np.stack([x[ring[:, 0]], y[ring[:, 1]]], axis=1).tolist() for ring in outline],
            "annotation",
            {
                "name": f"Region {number + 1}",
                "classification": TUMOUR,
                "measurements": {
                    "Cells": int(regions.cells[number]),
                    "Area mm^2": round(float(regions.area[number]), 6),
                    f"{PROBABILITY}: mean": round(float(regions.mean[number]), 6),
                    f"{PROBABILITY}: max": round(float(regions.most[number]), 6),
                },
            },
        )
        for number, outline in enumerate(regions.outlines)
    )


def cell_lines(answer: SlideAnswer, threshold: float) -> Iterator[str]:
    """Yield the lines of a GeoJSON file of the cells with tissue, which QuPath takes as tiles and
    colours by "Measure > Show measurement maps"."""
    x, y = (line.tolist() for line in grid_lines(answer))
    tissue = np.argwhere(np.isfinite(answer.probabilities))
    yield from _collection(
        _feature(
            [[[x[c], y[r]], [x[c + 1], y[r]], [x[c + 1], y[r + 1]], [x[c], y[r + 1]]]],
            "tile",
            ({"classification": TUMOUR} if answer.probabilities[r, c] > threshold else {})
            | {"measurements": {PROBABILITY: round(float(answer.probabilities[r, c]), 6)}},
        )
        for r, c in tissue.tolist()
    )


def _collection(features):
    """Yield the lines of a FeatureCollection, a feature a line."""
    yield '{"type": "FeatureCollection", "features": ['
    before = ""
    for feature in features:
        yield f"{before}\n{json.dumps(feature, allow_nan=False)}"
        before = ","
    yield "\n]}\n"


def _feature(rings, kind, properties):
    """Return a polygon; its rings are closed here."""
    closed = [[*ring, ring[0]] for ring in rings]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": {"objectType": kind, **properties},
    }
