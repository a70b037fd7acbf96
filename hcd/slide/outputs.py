"""What is left of a slide's prediction: heatmap, picture, regions, table and a summary."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from ..disk.whole import (
    SCRATCH,
    StrPath,
    read_json,
    refuse_link,
    unwritable,
    whole_write,
    writable_folder,
)
from .answer import SlideAnswer
from .checks import check_answer
from .heatmap import encode_heatmap, import_tifffile
from .page import FORMAT, slide_name, summarise, write_page
from .picture import draw_answer
from .regions import Regions, find_regions
from .shapes import cell_lines, region_lines

HEATMAP, PICTURE, TABLE = "heatmap.ome.tif", "overview.png", "cells.csv"
REGIONS, CELLS, PAGE, SUMMARY = "regions.geojson", "cells.geojson", "summary.html", "summary.json"
NAMES = (HEATMAP, PICTURE, REGIONS, CELLS, TABLE, PAGE, SUMMARY)
MOST_BYTES = 1 << 24  # of an older summary
ROWS = 1 << 16  # of the table, written at once


def write_answer(
    answer: SlideAnswer, folder: StrPath, threshold: float = 0.5, cells: bool = False
) -> list[Path]:
    """Write what a model says of a slide, as files for QuPath, napari, tables and people.

    heatmap.ome.tif, overview.png, regions.geojson, cells.csv, summary.html and summary.json; the
    same answer gives the same bytes.

    Args:
        answer: see `SlideAnswer`. folder: new, empty, or with an older answer for the same slide,
            which is replaced. threshold: of the probability, from 0 up to, not including, 1; cells
            above it that share a side are a region.
        cells: write cells.geojson too, each cell with tissue as a QuPath tile, some 250 bytes.
    Returns:
        Paths of the files.
    Raises:
        InputError, InputTypeError: not such an answer or threshold, or tifffile is missing.
            FileExistsError: files of these names that are something else's. OSError: the folder
            cannot be written, or is or holds a link. No file is written then.
    """
    check_answer(answer, threshold)
    import_tifffile()
    folder = writable_folder(folder)
    _refuse_others_files(folder, answer)
    names: list[str] = []
    with TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        try:
            for name, content in _files(answer, threshold, cells):
                names.append(name)
                with whole_write(Path(scratch, name)) as file:
                    for part in content:
                        file.write(part)
            _replace(folder, Path(scratch), names)
        except OSError as error:  # it names the scratch folder, which is gone by then
            reason = OSError(error.errno, os.strerror(error.errno or 0))
            raise unwritable(folder, reason) from error
    return [folder / name for name in names]


def _replace(folder, scratch, names):
    """Put the new files in the place of the older ones, or leave those as they were."""
    older = scratch / "older"
    try:
        older.mkdir()
        for name in NAMES:
            if (folder / name).exists():
                os.replace(folder / name, older / name)
        for name in names:
            os.replace(scratch / name, folder / name)
    except BaseException:  # Ctrl-C too
        for name in NAMES:
            if (older / name).exists():
                os.replace(older / name, folder / name)
            elif not (scratch / name).exists() and name in names:
                (folder / name).unlink()
        raise


def _files(answer, threshold, cells) -> Iterator[tuple]:
    """Yield name and content, in parts, of each file."""
    regions: Regions = find_regions(answer, threshold)
    numbers = summarise(answer, regions, threshold)
    picture = draw_answer(answer)
    yield HEATMAP, [encode_heatmap(answer)]
    yield PICTURE, [picture]
    yield REGIONS, (line.encode() for line in region_lines(answer, regions))
    if cells:
        yield CELLS, (line.encode() for line in cell_lines(answer, threshold))
    yield TABLE, (part.encode() for part in _table(answer))
    yield PAGE, [write_page(numbers, picture).encode()]
    yield SUMMARY, [json.dumps(numbers, indent=1, allow_nan=False).encode()]


def _table(answer) -> Iterator[str]:
    """Yield the table of the cells with tissue, row by row; x and y are of a cell's centre, which
    is its patch's, also where the slide ends within the cell."""
    rows, columns = np.nonzero(np.isfinite(answer.probabilities))
    for start in range(0, max(len(rows), 1), ROWS):
        part = slice(start, start + ROWS)
        x, y = (columns[part] + 0.5) * answer.cell[0], (rows[part] + 0.5) * answer.cell[1]
        found = {
            "row": rows[part],
            "column": columns[part],
            "x_px": np.round(x, 2),
            "y_px": np.round(y, 2),
            "x_um": np.round(x * answer.mpp[0], 2),
            "y_um": np.round(y * answer.mpp[1], 2),
            # as float64: the shortest number that is the float32 has up to 9 digits
            "probability": np.round(
                answer.probabilities[rows[part], columns[part]].astype(float), 6
            ),
        }
        yield pd.DataFrame(found).to_csv(index=False, header=not start, lineterminator="\n")


def _refuse_others_files(folder, answer):
    """Require what would be written over to be an older answer for this slide."""
    for name in NAMES:
        refuse_link(folder / name)
    held = [name for name in NAMES if (folder / name).exists()]
    older = read_json(folder / SUMMARY, MOST_BYTES) if (folder / SUMMARY).is_file() else None
    older = older if isinstance(older, dict) else {}
    same = (older.get("slide"), older.get("size_px")) == (slide_name(answer), [*answer.size])
    if held and not (older.get("format") == FORMAT and same):
        raise FileExistsError(
            f"{folder / held[-1]} is no answer for {slide_name(answer)} and would be written over;"
            " name an empty folder"
        )
