"""What an executed notebook leaves to look at: its figures as files, and itself as a page."""

import base64
import copy
import html
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from ..disk.whole import whole_write, writable_folder

TITLE = "Histopathologic cancer detection"
# on the page; figures/ keeps every pixel
QUALITY = 85  # of a JPEG
FEW = 4096  # colours of a drawing; patches have ten times as many


def save_pictures(executed: Path) -> None:
    """Write each figure as PNG, named by its cell and by what it shows, and the whole notebook,
    tidied, once more and as HTML."""
    notebook = nbformat.read(executed, 4)
    figures = writable_folder(executed.parent / "figures")
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for name, _, output in _figures(cell):
            with whole_write(figures / f"{name}.png") as file:
                file.write(base64.b64decode(output.data["image/png"]))
        cell.outputs = _merge_streams(cell.outputs)
    with whole_write(executed, "w") as file:
        nbformat.write(notebook, file)
    with whole_write(executed.with_suffix(".html"), "w") as file:
        file.write(_page(notebook, executed.parent))


def _figures(cell) -> Iterator[tuple]:
    """Yield name, text in words and output of each figure of a cell, as the notebook has them in
    the cell's metadata: in36_gradcam, and in38-2_reliability for a second one."""
    about = cell.metadata.get("hcd", {})
    outputs = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    for count, output in enumerate(outputs):
        shown = dict(enumerate(about.get("figures", []))).get(count, {})
        number = f"in{about.get('cell', 0):02}{f'-{count + 1}' if count else ''}"
        name = f"{number}_{shown['name']}" if shown else number
        yield name, shown.get("alt", f"Figure {count + 1} of this cell"), output


def _page(notebook, folder) -> str:
    """Return a notebook as HTML, its figures small enough to be sent and read to who cannot see
    them."""
    notebook = copy.deepcopy(notebook)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for _, alt, output in list(_figures(cell)):
            kind, image = _smaller(base64.b64decode(output.data["image/png"]))
            source = f"data:{kind};base64,{base64.b64encode(image).decode()}"
            # of an image itself nbconvert's template tells no text
            output.data = {"text/html": f'<img alt="{html.escape(alt)}" src="{source}"/>'}
    # a folder's name may be of bytes that are no text
    name = os.fsencode(Path(folder).resolve().name).decode("utf-8", "replace")
    about = {"metadata": {"name": f"{TITLE}: {name}"}}
    return HTMLExporter(language_code="en").from_notebook_node(notebook, about)[0]


def _smaller(png: bytes) -> tuple[str, bytes]:
    """Return a figure as (type, bytes): of few colours, such as curves, a PNG of 256, else, such as
    patches, a JPEG; the PNG itself where that is the smallest."""
    with Image.open(io.BytesIO(png)) as image:
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    buffer, kind = io.BytesIO(), "image/png"
    if flat.getcolors(FEW):
        octree = Image.Quantize.FASTOCTREE
        flat.quantize(256, method=octree).save(buffer, "PNG", optimize=True)
    else:
        kind = "image/jpeg"
        flat.save(buffer, "JPEG", quality=QUALITY)
    found = [("image/png", png), (kind, buffer.getvalue())]
    return min(found, key=lambda pair: len(pair[1]))


def _merge_streams(outputs):
    """Join what a cell printed in pieces, and keep of a progress bar what the screen shows last."""
    merged: list = []
    for output in outputs:
        if "text" in output and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if "text" in output:
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [output for output in merged if output.get("text", "shown").strip()]
