"""The page in a real browser: many patches, a drop, damaged ones, names that are HTML, a phone."""

import csv
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import hcd

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs pip install 'hcd[serve]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="needs the browser Chromium, as Debian packages it"),
]
WORKER = ThreadPoolExecutor(1)
SHOTS = os.environ.get("HCD_SCREENSHOTS")  # a folder to keep pictures of the page in


@pytest.fixture(scope="module")
def place(learner, tmp_path_factory):
    """Where a server answers."""
    from hcd.deploy.serve import _listen
    from hcd.deploy.web import make_app

    folder = tmp_path_factory.mktemp("browser") / "model"
    model = hcd.save_bundle(learner, folder, {"valid_auc": 0.75}, splits={"valid_auc": "random"})
    with _listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(make_app(hcd.load_bundle(model), WORKER), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(place):
    """The page in a browser that notes what it asked for elsewhere, and what went wrong in it."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.elsewhere, page.faults = [], []
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((place, "blob:", "data:"))
                else page.elsewhere.append(request.url)
            ),
        )
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(place)
        page.get_by_text("Model: squeezenet1_1").wait_for()
        yield page
        assert page.elsewhere == [] and page.faults == []
        browser.close()


@pytest.fixture
def patches(sample, tmp_path):
    """Patches, and files of every wrong kind, one of them with HTML for a name."""
    paths = []
    for number, path in enumerate(sample.test_paths):
        paths.append(shutil.copy(path, tmp_path / f"patch_{number}.tif"))
    html = tmp_path / "<img src=x onerror=alert(1)>.tif"
    shutil.copy(sample.test_paths[0], html)
    (tmp_path / "damaged.tif").write_bytes(Path(sample.test_paths[1]).read_bytes()[:900])
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((50, 50, 3), np.uint8))
    shutil.copy(sample.test_paths[2], tmp_path / "=formula.tif")
    odd = [html, tmp_path / "damaged.tif", tmp_path / "small.png", tmp_path / "=formula.tif"]
    return [*map(str, paths), *map(str, odd)]


def shot(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS, name), full_page=True)


def done(page, count):
    page.get_by_text(f"{count} answered").wait_for(timeout=120_000)
    sync_api.expect(page.locator("#progress")).to_be_hidden(timeout=120_000)


def test_many_patches_of_which_some_are_bad(page, patches, tmp_path):
    page.set_input_files("#choose", patches * 5)
    done(page, 80)
    rows = page.locator("tbody tr")
    assert rows.count() == 80
    assert page.locator("#state").inner_text() == "80 answered, 10 of them could not be read"
    names = page.locator("td.name").all_inner_texts()
    assert names == [Path(path).name for path in patches] * 5
    assert page.locator("td.name img").count() == 0  # the name is text
    errors = page.locator("td .error").all_inner_texts()
    assert "damaged.tif (900 bytes) cannot be decoded" in errors[0] and "50 x 50 px" in errors[1]
    width = "image => image.complete && image.naturalWidth"
    assert page.locator("td img").first.evaluate(width) == 96  # TIFF files are shown too
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert table[0] == ["path", "label", "probability", "error"] and len(table) == 81
    assert table[16][0] == "'=formula.tif" and float(table[16][2]) <= 1
    shot(page, "many.png")
    page.get_by_role("button", name="Clear").click()
    assert rows.count() == 0 and page.locator("#state").inner_text() == ""


def test_where_it_looks_and_a_phones_width(page, patches):
    page.set_viewport_size({"width": 390, "height": 800})
    page.set_input_files("#choose", patches[:2])
    done(page, 2)
    page.get_by_role("button", name="show where the model looks in patch_0.tif").click()
    figure = page.locator("figure")
    figure.wait_for(timeout=60_000)
    assert "LayerCAM for tumour, 11 x 11 map" in figure.inner_text()
    page.wait_for_function("document.querySelector('figure img').naturalWidth === 360")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    shot(page, "phone.png")


def test_a_drop_and_the_drawn_examples(page, patches):
    content = list(Path(patches[0]).read_bytes())
    page.evaluate(
        """content => {
          const held = new DataTransfer();
          held.items.add(new File([new Uint8Array(content)], "dropped.tif"));
          const drop = document.getElementById("drop");
          for (const kind of ["dragover", "drop"]) {
            const event = {dataTransfer: held, bubbles: true, cancelable: true};
            drop.dispatchEvent(new DragEvent(kind, event));
          }
        }""",
        content,
    )
    done(page, 1)
    page.get_by_role("button", name="Try drawn examples").click()
    done(page, 7)
    names = page.locator("td.name").all_inner_texts()
    assert names == ["dropped.tif", *(f"drawn example {i}.png" for i in range(1, 7))]
    assert page.locator("td .error").count() == 0
    shot(page, "examples.png")


def test_a_server_that_is_gone_is_told(page, patches):
    page.route("**/predict**", lambda route: route.abort())
    page.set_input_files("#choose", patches[:1])
    done(page, 1)
    assert "the server does not answer" in page.locator("td .error").inner_text()
    assert len(page.faults) == 1 and "ERR_FAILED" in page.faults.pop()  # the browser's own note


def test_a_file_that_is_gone_is_told_in_its_place(page, patches):
    """A request holds 32 files; the second one's are read once the first has been answered."""
    asked = []

    def then_gone(route):
        asked.append(route)
        if len(asked) == 1:
            os.remove(gone)
        route.continue_()

    gone = shutil.copy(patches[0], Path(patches[0]).with_name("<b>gone.tif"))
    page.route("**/predict**", then_gone)
    good = patches[:12] * 3  # the last of them with the one that is gone
    page.set_input_files("#choose", [*good[:33], str(gone), *good[33:]])
    done(page, 37)
    assert page.locator("#state").inner_text() == "37 answered, 1 of them could not be read"
    error = page.locator("td .error").inner_text()
    assert error.startswith("<b>gone.tif cannot be read (")
    assert error.endswith("); choose it again")
    rows = page.locator("tbody tr")
    assert error in rows.nth(33).inner_text() and rows.nth(34).locator("img").count() == 1
    assert len(asked) == 2
    shot(page, "gone.png")
