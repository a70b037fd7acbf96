"""An executed notebook's figures and page, made of notebooks as text."""

import base64
import io

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from hcd.runs.page import save_pictures

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (96, 96, 4), dtype=np.uint8)
CURVE = np.full((96, 96, 4), 255, np.uint8)
CURVE[40:42] = [0, 90, 200, 255]


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def figure(pixels):
    data = {"image/png": encoded(pixels), "text/plain": "<Figure>"}
    return new_output("display_data", data)


def saved(folder, *cells):
    folder.mkdir()
    nbformat.write(new_notebook(cells=list(cells)), folder / "walkthrough.ipynb")
    save_pictures(folder / "walkthrough.ipynb")
    page = BeautifulSoup((folder / "walkthrough.html").read_text("utf-8"), "html.parser")
    return {path.name for path in (folder / "figures").iterdir()}, page


def cell(number, figures, *outputs):
    names = [{"name": name, "alt": f'A "{name}" & more'} for name in figures]
    about = {"hcd": {"cell": number, "figures": names} if names else {"cell": number}}
    return new_code_cell(f"# In [{number}]", metadata=about, outputs=list(outputs))


def test_names_texts_and_pixels(tmp_path):
    cells = [
        cell(3, ["patches"], figure(PHOTO), figure(CURVE)),
        cell(38, ["roc", "reliability"], figure(CURVE), figure(PHOTO)),
        cell(7, [], figure(CURVE)),
        new_code_cell("mine", outputs=[figure(CURVE)]),
    ]
    names, page = saved(tmp_path / "a & b", *cells)
    wanted = {"in03_patches.png", "in03-2.png", "in38_roc.png", "in38-2_reliability.png"}
    assert names == {*wanted, "in07.png", "in00.png"}
    for name, pixels in (("in03_patches", PHOTO), ("in38_roc", CURVE)):
        with Image.open(tmp_path / f"a & b/figures/{name}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
    texts = [image["alt"] for image in page.find_all("img")]
    assert texts[0] == 'A "patches" & more' and texts[3] == 'A "reliability" & more'
    assert len(texts) == 6 and all(texts)
    assert page.title.string == "Histopathologic cancer detection: a & b"
    assert page.html["lang"] == "en"
    kept = nbformat.read(tmp_path / "a & b/walkthrough.ipynb", 4).cells[0].outputs[0]
    assert kept.data["image/png"].strip() == encoded(PHOTO)


@pytest.mark.parametrize("pixels, kind, most", [(PHOTO, "jpeg", 10), (CURVE, "png", 0)])
def test_the_pages_pictures_are_smaller_and_look_the_same(tmp_path, pixels, kind, most):
    smooth = np.asarray(Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC))
    shown = smooth if kind == "jpeg" else pixels
    _, page = saved(tmp_path / "run", cell(3, ["x"], figure(shown)))
    head, _, content = page.img["src"].partition(";base64,")
    assert head == f"data:image/{kind}"
    assert len(content) <= len(encoded(shown)) / (4 if kind == "jpeg" else 1)
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    white = np.full((*shown.shape[:2], 3), 255)
    part = shown[..., 3:] / 255
    wanted = shown[..., :3] * part + white * (1 - part)
    assert np.abs(found - wanted).mean() <= most
