"""What is left of a slide's prediction, read back by other libraries than wrote it."""

import base64
import csv
import errno
import io
import json
import os
import sys
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import tifffile
from pages import Page
from PIL import Image

import hcd.slide.outputs
from hcd import InputError, Recipe
from hcd.export.card import make_card
from hcd.slide.answer import SlideAnswer
from hcd.slide.outputs import write_answer
from hcd.slide.picture import length_text, round_length

NAMES = ["heatmap.ome.tif", "overview.png", "regions.geojson", "cells.csv"]
NAMES += ["summary.html", "summary.json"]
CELL = (62.208, 62.208)  # px of 0.5 um: 32 px of 0.972 um


@pytest.fixture(scope="module")
def card():
    metrics = {"valid_auc": 0.9123, "valid_auc_interval": [0.88, 0.94], "patches": 480}
    return make_card(Recipe.sample(arch="resnet18"), "0" * 64, metrics)[0]


@pytest.fixture
def answer(card):
    """7 x 9 cells, of which the last ones reach beyond the slide; two regions, one with a hole."""
    found = np.full((7, 9), 0.1, np.float32)
    found[1:4, 1:4] = 0.9
    found[2, 2] = 0.2
    found[5:, 7:] = 0.7
    found[0] = found[:, 0] = np.nan
    return make_answer(found, card)


def make_answer(found, card=None, size=None, path="slides/s 1.tif"):
    found = np.asarray(found, np.float32)
    if size is None:
        size = tuple(int((n - 0.4) * c) for n, c in zip(found.shape[::-1], CELL))
    thumbnail = np.full((70, 90, 3), 220, np.uint8)
    return SlideAnswer(path, size, (0.5, 0.5), CELL, found, thumbnail, card or {})


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def features(path):
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


def drawn(polygons, size):
    """Fill polygons with holes by OpenCV, a pixel of the slide each."""
    mask: np.ndarray = np.zeros(size[::-1], np.uint8)
    for polygon in polygons:
        outer, *holes = [np.rint(16 * (np.array(ring) - 0.5)).astype(np.int32) for ring in polygon]
        cv2.fillPoly(mask, [outer], 1, shift=4)
        for hole in holes:
            cv2.fillPoly(mask, [hole], 0, shift=4)
    return mask


def test_files_are_those_that_are_named(answer, tmp_path):
    folder = tmp_path / "new" / "s 1"
    assert write_answer(answer, folder) == [folder / name for name in NAMES]
    assert sorted(os.listdir(folder)) == sorted(NAMES)
    assert [path.name for path in write_answer(answer, folder, cells=True)].count("cells.geojson")
    assert sorted(os.listdir(folder)) == sorted([*NAMES, "cells.geojson"])
    write_answer(answer, str(folder))  # without cells again: none of an older answer stay
    assert sorted(os.listdir(folder)) == sorted(NAMES)


def test_the_same_answer_gives_the_same_bytes(answer, tmp_path, monkeypatch):
    first = write_answer(answer, tmp_path / "a", cells=True)
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = write_answer(answer, tmp_path / "b", cells=True)
    for path, other in zip(first, second):
        assert path.read_bytes() == other.read_bytes(), path.name


def test_the_heatmap_is_an_ome_tiff_of_the_probabilities(answer, tmp_path):
    write_answer(answer, tmp_path)
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as file:
        (series,) = file.series
        assert series.kind == "ome" and len(series.levels) == 1 and len(file.pages) == 1
        np.testing.assert_array_equal(series.asarray(), answer.probabilities)
        xml = ElementTree.fromstring(file.ome_metadata)
        page = file.pages[0]
        assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        above, below = page.tags["XResolution"].value
        assert above / below == pytest.approx(10_000 / 31.104, rel=1e-5)
    (pixels,) = xml.iter("{http://www.openmicroscopy.org/Schemas/OME/2016-06}Pixels")
    assert pixels.get("Type") == "float" and pixels.get("PhysicalSizeXUnit") == "µm"
    assert float(pixels.get("PhysicalSizeX")) == float(pixels.get("PhysicalSizeY")) == 31.104
    assert (pixels.get("SizeX"), pixels.get("SizeY")) == ("9", "7")


def test_levels_are_the_means_of_the_tissue_below(card, tmp_path):
    rng = np.random.default_rng(0)
    found = rng.uniform(size=(301, 700)).astype(np.float32)
    found[rng.uniform(size=found.shape) < 0.4] = np.nan
    found[:90, :90] = np.nan
    write_answer(make_answer(found, card), tmp_path)
    with tifffile.TiffFile(tmp_path / "heatmap.ome.tif") as file:
        shapes = [level.shape for level in file.series[0].levels]
        levels = [level.asarray() for level in file.series[0].levels]
    assert shapes == [(301, 700), (151, 350), (76, 175)]
    np.testing.assert_array_equal(levels[0], found)
    for above, level in zip(levels, levels[1:]):
        for row, column in rng.integers(0, level.shape, (200, 2)):
            block = above[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            block = block[~np.isnan(block)]
            wanted = block.mean() if block.size else np.nan
            assert level[row, column] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert np.isnan(levels[2][:20, :20]).all()


def test_regions_are_annotations_of_qupath_that_cover_the_cells(answer, tmp_path):
    write_answer(answer, tmp_path)
    found = features(tmp_path / "regions.geojson")
    for number, feature in enumerate(found):
        assert set(feature) == {"type", "geometry", "properties"}
        about = feature["properties"]
        assert about["objectType"] == "annotation" and about["name"] == f"Region {number + 1}"
        assert about["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
        assert all(isinstance(value, (int, float)) for value in about["measurements"].values())
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    assert [len(feature["geometry"]["coordinates"]) for feature in found] == [2, 1]
    corner = (534 - 7 * CELL[0]) * (410 - 5 * CELL[1]) * 0.25 / 1e6
    first, second = (feature["properties"]["measurements"] for feature in found)
    assert (first["Cells"], second["Cells"]) == (8, 4)
    assert first["Area mm^2"] == pytest.approx(8 * 0.031104**2, abs=1e-6)
    assert second["Area mm^2"] == pytest.approx(corner, abs=1e-6)
    assert first["Tumor probability: max"] == pytest.approx(0.9)
    mask = drawn([feature["geometry"]["coordinates"] for feature in found], answer.size)
    width, height = answer.size
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    cells = answer.probabilities[(rows // CELL[1]).astype(int)][:, (columns // CELL[0]).astype(int)]
    # OpenCV fills the pixels that an outline passes through too
    inner = cv2.erode((cells > 0.5).astype(np.uint8), np.ones((3, 3)))
    outer = cv2.dilate((cells > 0.5).astype(np.uint8), np.ones((3, 3)))
    assert (mask >= inner).all() and (mask <= outer).all() and mask[:, -1].any()
    every = np.concatenate([r for f in found for r in f["geometry"]["coordinates"]])
    assert (every.max(axis=0) == answer.size).all()


def test_cells_are_tiles_of_qupath(answer, tmp_path):
    write_answer(answer, tmp_path, cells=True)
    found = features(tmp_path / "cells.geojson")
    assert len(found) == np.isfinite(answer.probabilities).sum()
    for feature in found:
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5 and ring[0] == ring[-1]
        x, y = np.array(ring[:4]).mean(axis=0) / CELL
        probability = float(answer.probabilities[int(y), int(x)])
        about = feature["properties"]
        assert about["objectType"] == "tile"
        assert about["measurements"] == {"Tumor probability": pytest.approx(probability, abs=1e-6)}
        assert ("classification" in about) == (probability > 0.5)


def test_the_table_has_each_cell_of_tissue(answer, tmp_path):
    write_answer(answer, tmp_path)
    content = (tmp_path / "cells.csv").read_bytes()
    assert b"\r" not in content
    rows = list(csv.DictReader(io.StringIO(content.decode("ascii"))))
    assert list(rows[0]) == ["row", "column", "x_px", "y_px", "x_um", "y_um", "probability"]
    places = [(int(row["row"]), int(row["column"])) for row in rows]
    assert places == list(map(tuple, np.argwhere(np.isfinite(answer.probabilities)).tolist()))
    for row, (r, c) in zip(rows, places):
        assert float(row["x_px"]) == pytest.approx((c + 0.5) * 62.208, abs=0.006)
        assert float(row["y_um"]) == pytest.approx((r + 0.5) * 31.104, abs=0.006)
        assert float(row["probability"]) == pytest.approx(answer.probabilities[r, c], abs=1e-6)
        assert not set("eE") & set("".join(row.values()))


def test_a_table_of_many_rows_has_one_head(card, tmp_path, monkeypatch):
    write_answer(make_answer(np.full((9, 11), 0.3), card), tmp_path / "a")
    monkeypatch.setattr(hcd.slide.outputs, "ROWS", 7)
    write_answer(make_answer(np.full((9, 11), 0.3), card), tmp_path / "b")
    content = (tmp_path / "b/cells.csv").read_bytes()
    assert content == (tmp_path / "a/cells.csv").read_bytes()
    assert content.count(b"\n") == 100 and content.count(b"row") == 1


def test_the_summary_has_the_numbers(answer, card, tmp_path):
    write_answer(answer, tmp_path)
    numbers = summary(tmp_path)
    assert numbers["slide"] == "s 1.tif" and numbers["path"] == "slides/s 1.tif"
    assert numbers["size_px"] == [534, 410] and numbers["um_per_px"] == [0.5, 0.5]
    assert numbers["size_mm"] == [0.267, 0.205]
    width, height = 534 - CELL[0], 410 - CELL[1]  # without the row and the column of glass
    assert numbers["tissue_mm2"] == pytest.approx(width * height * 0.25 / 1e6, abs=1e-6)
    corner = (534 - 7 * CELL[0]) * (410 - 5 * CELL[1]) * 0.25 / 1e6
    above = 8 * 0.031104**2 + corner
    assert numbers["above_mm2"] == pytest.approx(above, abs=1e-6)
    assert numbers["share_above"] == pytest.approx(above / numbers["tissue_mm2"], abs=1e-5)
    assert numbers["region_count"] == len(numbers["regions"]) == 2
    largest = numbers["largest_region"]
    assert largest["area_mm2"] == pytest.approx(8 * 0.031104**2, abs=1e-6)
    assert largest["longest_mm"] == pytest.approx(3 * 0.031104 * 2**0.5, abs=1e-4)
    assert largest["from_px"] == [62.21, 62.21] and largest["to_px"] == [248.83, 248.83]
    assert numbers["model"]["name"] == "resnet18"
    for name in ("limits", "intended_use", "metrics"):
        assert numbers["model"][name] == card[name]


def page_of(folder):
    page = Page((folder / "summary.html").read_text("utf-8"))
    assert not page.open
    page.text = " ".join(page.text.split())
    return page


def test_the_page_opens_without_a_network_and_says_the_limits(answer, card, tmp_path):
    write_answer(answer, tmp_path)
    page = page_of(tmp_path)
    (picture,) = page.links
    kind, _, content = picture.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "overview.png").read_bytes()
    assert card["limits"] in page.text and card["intended_use"] in page.text
    head = page.text.index("Limits.")
    assert head < page.text.index("Tissue") < page.text.index("Model")
    for shown in (
        "0.9123 (95 % interval 0.8800 to 0.9400)",
        "resnet18",
        "534 x 410 px",
        "480",
        "0" * 16,
    ):
        assert shown in page.text
    assert "Region 2" in page.text and "7,740 µm² longest extent 132 µm" in page.text
    assert all(name in page.text for name in {*NAMES, "cells.geojson"} - {"summary.html"})


@pytest.mark.parametrize(
    "path",
    [
        "<script>alert(1)</script>.tif",
        'a"b&amp;$x$.tif',
        "\udcff\udc80.tif",
        "ü 切片\n\t.svs",
        "n" * 250,
    ],
)
def test_a_strangers_texts_stay_texts(answer, card, tmp_path, path):
    hostile = dict.fromkeys(("limits", "intended_use"), "<img src=x onerror=alert(1)>")
    metrics = {"<b>": 0.5, "a": {"b": [1]}, "c": "<i>", "c_interval": "x", "d": True, "e": 10**30}
    write_answer(replace(answer, path=path, card={**card, **hostile, "metrics": metrics}), tmp_path)
    page = page_of(tmp_path)
    assert not page.tags & {"script", "b", "i"} and len(page.links) == 1
    assert hostile["limits"] in page.text
    assert summary(tmp_path)["slide"] == os.fsencode(path).decode("utf-8", "replace").split("/")[-1]


def test_a_card_with_nothing_on_it_will_do(answer, tmp_path):
    write_answer(replace(answer, card={}), tmp_path)
    assert "Limits." not in page_of(tmp_path).text
    assert summary(tmp_path)["model"] == {"name": None}


@pytest.mark.parametrize(
    "found, regions, share, area",
    [
        (np.full((5, 6), 0.1), 0, 0, 0),
        (np.full((5, 6), 0.9), 1, 1, 30),
        (np.full((5, 6), np.nan), 0, None, 0),
        ([[0.9]], 1, 1, 1),
        ([[np.nan]], 0, None, 0),
    ],
)
def test_slides_with_little_to_say(card, tmp_path, found, regions, share, area):
    found = np.asarray(found)
    size = tuple(int(n * c) for n, c in zip(found.shape[::-1], CELL))
    write_answer(make_answer(found, card, size), tmp_path, cells=True)
    numbers = summary(tmp_path)
    assert (numbers["region_count"], numbers["share_above"]) == (regions, share)
    assert len(features(tmp_path / "regions.geojson")) == regions
    assert numbers["above_mm2"] == pytest.approx(area * 0.031104**2, rel=0.01)
    tissue = int(np.isfinite(found).sum())
    assert len(features(tmp_path / "cells.geojson")) == tissue
    assert (tmp_path / "cells.csv").read_text().count("\n") == tissue + 1
    page = page_of(tmp_path).text
    assert ("No cell is above 0.5" in page) == (regions == 0)
    assert ("no cell of this slide holds tissue" in page) == (tissue == 0)
    assert (numbers["largest_region"] is None) == (regions == 0)


@pytest.mark.parametrize(
    "size, cell", [((1, 1), CELL), ((90_000, 700), (900, 700)), ((700, 90_000), (700, 900))]
)
def test_slides_of_any_shape_have_a_picture(card, tmp_path, size, cell):
    shape = [int(np.ceil(side / length)) for side, length in zip(size, cell)][::-1]
    answer = replace(make_answer(np.full(shape, 0.95), card, size), cell=cell)
    write_answer(answer, tmp_path)
    with Image.open(tmp_path / "overview.png") as image:
        assert min(image.size) >= 150 and max(image.size) <= 1500
        assert "Software" not in image.info
        rgb = np.asarray(image.convert("RGB")).astype(int)
    assert ((rgb[..., 0] - rgb[..., 1]) > 60).any()  # red somewhere
    assert len(features(tmp_path / "regions.geojson")) == 1


def test_the_heatmap_lies_where_its_cells_are(card, tmp_path):
    """Found again in the picture: where it turns red is the cell, glass keeps its own colour."""
    found = np.full((60, 80), np.nan, np.float32)
    found[30:40, 40:60] = 1
    answer = make_answer(found, card, (int(80 * CELL[0]), int(60 * CELL[1])))
    write_answer(answer, tmp_path)
    with Image.open(tmp_path / "overview.png") as image:
        rgb = np.asarray(image.convert("RGB")).astype(int)
    alike = (abs(rgb - 220) <= 1).all(axis=2)  # the thumbnail's one colour
    _, _, boxes, _ = cv2.connectedComponentsWithStats(alike.astype(np.uint8))
    left, top, width, height, _ = boxes[1 + boxes[1:, cv2.CC_STAT_AREA].argmax()]
    part = rgb[top : top + height, left : left + width]
    red = np.argwhere(part[..., 0] - part[..., 1] > 60)
    shares = np.array([red.min(axis=0), red.max(axis=0) + 1]) / part.shape[:2]
    assert shares == pytest.approx(np.array([[30 / 60, 40 / 80], [40 / 60, 60 / 80]]), abs=0.006)


@pytest.mark.parametrize(
    "most, length, text",
    [
        (1, 1, "1 µm"),
        (4.99, 2, "2 µm"),
        (999, 500, "500 µm"),
        (1000, 1000, "1 mm"),
        (49_999, 20_000, "20 mm"),
        (0.3, 0.2, "0.2 µm"),
    ],
)
def test_scale_bars_are_of_round_lengths(most, length, text):
    assert round_length(most) == pytest.approx(length)
    assert length_text(round_length(most)) == text


def test_a_huge_slide(card, tmp_path):
    y, x = np.mgrid[:2000, :2000]
    waves = np.sin(x / 40) * np.sin(y / 55)
    found = np.where(np.hypot(x - 1000, y - 1000) < 300, waves / 2 + 0.5, np.nan)
    found[0, 0] = found[-1, -1] = 1
    write_answer(make_answer(found, card), tmp_path)
    numbers = summary(tmp_path)
    assert len(features(tmp_path / "regions.geojson")) == numbers["region_count"]
    assert numbers["tissue_cells"] == np.isfinite(found).sum()
    assert numbers["regions"][0]["area_mm2"] >= numbers["regions"][9]["area_mm2"]
    assert len(numbers["regions"]) == 10 < numbers["region_count"]


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"threshold": 1}, ["threshold=1", "from 0 to below 1"]),
        ({"threshold": -0.1}, ["threshold=-0.1"]),
        ({"threshold": float("nan")}, ["threshold=nan"]),
        ({"probabilities": [[0.5]]}, ["SlideAnswer.probabilities is no ndarray"]),
        ({"card": None}, ["SlideAnswer.card is no dict"]),
        ({"mpp": 0.5}, ["SlideAnswer.mpp is no tuple"]),
        ({"threshold": "0.5"}, ["threshold='0.5'"]),
        ({"probabilities": np.zeros((7, 9), int)}, ["int64", "(rows, columns)"]),
        ({"probabilities": np.zeros(9, np.float32)}, ["(9,)"]),
        ({"probabilities": np.zeros((0, 9), np.float32)}, ["(0, 9)"]),
        ({"probabilities": np.full((7, 9), 1.5, np.float32)}, ["1.5", "softmax"]),
        ({"probabilities": np.full((7, 9), np.inf, np.float32)}, ["inf", "softmax"]),
        ({"probabilities": np.full((7, 10), 0.5, np.float32)}, ["10 cells", "534 px in x"]),
        ({"probabilities": np.full((6, 9), 0.5, np.float32)}, ["6 cells", "410 px in y"]),
        ({"mpp": (0.5, 0)}, ["mpp=(0.5, 0)"]),
        ({"mpp": (None, None)}, ["mpp=(None, None)"]),
        ({"cell": (float("nan"), 62.0)}, ["cell=(nan, 62.0)"]),
        ({"size": (0, 410)}, ["size=(0, 410)"]),
        ({"thumbnail": np.zeros((5, 5), np.uint8)}, ["(5, 5)", "(H, W, 3) uint8"]),
        ({"thumbnail": np.zeros((0, 5, 3), np.uint8)}, ["(0, 5, 3)", "(H, W, 3) uint8"]),
        ({"thumbnail": np.zeros((5, 5, 3))}, ["float64", "(H, W, 3) uint8"]),
    ],
)
def test_what_is_no_answer_is_refused(answer, tmp_path, refused, change, parts):
    change = dict(change)
    threshold = change.pop("threshold", 0.5)
    with refused(InputError, *parts):
        write_answer(replace(answer, **change), tmp_path / "new", threshold)
    assert not (tmp_path / "new").exists()


def test_a_path_is_no_answer(tmp_path, refused):
    with refused(InputError, "str.probabilities", "predict_slide"):
        write_answer("slide.tif", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_tifffile_it_says_what_to_install(answer, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with refused(InputError, "tifffile", "pip install 'hcd[slide]'"):
        write_answer(answer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def failing(call, count):
    """The function `os.call` that fails as on a full disk when called for the count-th time."""
    original, calls = getattr(os, call), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    return fail


@pytest.mark.parametrize("count", range(1, 7))
def test_a_full_disk_leaves_the_older_answer(answer, tmp_path, monkeypatch, refused, count):
    write_answer(answer, tmp_path)
    older = {name: (tmp_path / name).read_bytes() for name in NAMES}
    newer = replace(answer, probabilities=1 - answer.probabilities)
    monkeypatch.setattr(os, "fsync", failing("fsync", count))
    with refused(OSError, tmp_path, "No space left on device", "nothing was changed") as caught:
        write_answer(newer, tmp_path)
    assert caught.value.errno == errno.ENOSPC and ".model-" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == older
    with refused(OSError, "No space left on device"):
        monkeypatch.setattr(os, "fsync", failing("fsync", count))
        write_answer(newer, tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("count", [7, 10, 13, 14, 16, 19])
@pytest.mark.parametrize("error", [PermissionError(errno.EPERM, "no"), KeyboardInterrupt()])
def test_files_that_cannot_be_moved_leave_the_older_answer(
    answer, tmp_path, monkeypatch, count, error
):
    """The first six moves are those of the new files within the scratch folder."""
    write_answer(answer, tmp_path / "a", cells=True)
    older = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    newer = replace(answer, probabilities=1 - answer.probabilities)
    original, calls = os.replace, []

    def fail(source, target):
        calls.append(source)
        if len(calls) == count:
            raise error
        original(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_answer(newer, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == older
    if count < 13:
        calls.clear()
        with pytest.raises(type(error)):
            write_answer(newer, tmp_path / "new")
        assert os.listdir(tmp_path / "new") == []


def test_ctrl_c_leaves_the_older_answer(answer, tmp_path, monkeypatch):
    write_answer(answer, tmp_path)
    older = {name: (tmp_path / name).read_bytes() for name in NAMES}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hcd.slide.outputs, "write_page", stop)
    with pytest.raises(KeyboardInterrupt):
        write_answer(replace(answer, probabilities=1 - answer.probabilities), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == older


@pytest.mark.parametrize("name", [*NAMES, "cells.geojson"])
def test_nothing_of_somebody_else_is_written_over(answer, tmp_path, refused, name):
    (tmp_path / name).write_text("{}")
    with refused(FileExistsError, tmp_path / name, "no answer for s 1.tif"):
        write_answer(answer, tmp_path)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "{}"


def test_another_slides_answer_is_not_written_over(answer, tmp_path, refused):
    write_answer(answer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(answer, path="slides/s 2.tif")
    resized = replace(answer, size=(533, 410))
    for changed in (other, resized):
        with refused(FileExistsError, "no answer for", "name an empty folder"):
            write_answer(changed, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert write_answer(replace(answer, path="elsewhere/s 1.tif"), tmp_path)


@pytest.mark.parametrize("name", [*NAMES, "cells.geojson", ""])
def test_nothing_is_written_through_links(answer, tmp_path, refused, name):
    target = tmp_path / "target"
    folder = tmp_path / "folder"
    if name:
        folder.mkdir()
        (folder / name).symlink_to(target)
    else:
        target.mkdir()
        folder.symlink_to(target)
    with refused(OSError, folder / name, "is a link"):
        write_answer(answer, folder)
    assert not target.exists() or os.listdir(target) == []


def test_a_folder_that_is_a_file(answer, tmp_path, refused):
    (tmp_path / "file").write_text("kept")
    with refused(NotADirectoryError, tmp_path / "file", "name a folder"):
        write_answer(answer, tmp_path / "file")


def test_pyplot_is_left_alone(answer, tmp_path):
    import matplotlib.pyplot as plt

    plt.figure()
    write_answer(answer, tmp_path)
    assert len(plt.get_fignums()) == 1
