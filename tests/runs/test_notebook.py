"""The notebook, executed once as `hcd run` does it."""

import json
import re
from fnmatch import fnmatch

import nbformat
import pytest
from bs4 import BeautifulSoup

from hcd import load_bundle, predict_image
from hcd.cli import main
from hcd.runs.folder import LOCKS, NAMES

PICTURES = {
    3: "patches",
    5: "crops",
    6: "draws",
    9: "outliers",
    15: "batch",
    18: "sweep",
    19: "stage1",
    20: "learning_rate",
    21: "losses",
    22: "confusion",
    24: "lr_find",
    25: "stage2",
    26: "losses",
    27: "confusion",
    32: "overview",
    36: "gradcam",
    38: "roc",
    45: "prediction",
    46: "slide",
}


@pytest.mark.long
def test_a_run_of_the_whole_sample_learns_clearly_above_chance(tmp_path):
    folder = tmp_path / "sample"
    assert main(["run", "--output", str(folder)]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["valid_auc"] > 0.75
    assert metrics["test_auc"] > 0.75
    assert (folder / "walkthrough.html").stat().st_size < 3_000_000


def test_every_cell_ran_without_error_or_warning(run_folder):
    notebook = nbformat.read(run_folder / "walkthrough.ipynb", 4)
    code = [cell for cell in notebook.cells if re.match(r"# In \[\d+\]", cell.source)]
    assert len(code) == 47
    for cell in code:
        assert all(output.output_type != "error" for output in cell.outputs), cell.source
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert "Warning" not in printed, printed
        assert "\r" not in printed


@pytest.mark.parametrize("number, field", [(19, "head_epochs"), (25, "finetune_epochs")])
def test_progress_ends_as_a_table_with_a_row_for_each_epoch(run_folder, run_recipe, number, field):
    (cell,) = (
        cell
        for cell in nbformat.read(run_folder / "walkthrough.ipynb", 4).cells
        if cell.source.startswith(f"# In [{number}]\n")
    )
    page = "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)
    rows = re.findall(r"<tr[^>]*>\s*<td>(.*?)</td>", page)
    assert rows == [str(epoch) for epoch in range(getattr(run_recipe, field))]
    assert page.count("<td>") == 5 * len(rows)  # epoch, both losses, accuracy, time
    assert "<progress" not in page


def test_no_bar_stays_and_nothing_is_drawn_red(run_folder):
    """In Jupyter a cell shows the same outputs; it draws those of standard error in red."""
    cells = nbformat.read(run_folder / "walkthrough.ipynb", 4).cells
    shown = {
        cell.metadata.hcd.cell: cell.outputs
        for cell in cells
        if cell.cell_type == "code" and "hcd" in cell.metadata
    }
    for outputs in shown.values():
        assert all(output.get("name") != "stderr" for output in outputs)
        pages = [output.data.get("text/html", "") for output in outputs if "data" in output]
        assert not [page for page in pages if "<progress" in page]
    assert shown[17] == []  # no table of epochs either: a range test validates nothing
    assert not [output for output in shown[24] if "text/html" in output.get("data", {})]


def test_every_figure_is_a_png_of_its_own(run_folder):
    names = {path.name for path in (run_folder / "figures").iterdir()}
    wanted = {f"in{number:02}_{shown}.png" for number, shown in PICTURES.items()}
    assert names == wanted | {"in38-2_reliability.png"}
    assert all((run_folder / "figures" / name).read_bytes()[:4] == b"\x89PNG" for name in names)


def test_the_page_has_a_title_a_language_and_a_text_for_each_figure(run_folder):
    page = BeautifulSoup((run_folder / "walkthrough.html").read_text("utf-8"), "html.parser")
    assert page.html["lang"] == "en"
    assert page.title.string == "Histopathologic cancer detection: notebook"
    texts = [image["alt"] for image in page.find_all("img")]
    assert len(texts) == len(set(texts)) == len(PICTURES) + 1
    assert "Grad-CAM heatmaps over" in " ".join(texts)
    assert all(len(text.split()) > 4 for text in texts)


def test_a_finished_run_has_a_page_about_it(run_folder, sample):
    page = (run_folder / "README.md").read_text("utf-8")
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert f"| validation AUC | {metrics['valid_auc']:.4f} (random split, 95 % interval " in page
    assert f"| data | `{sample.root}` |" in page and metrics["data_fingerprint"] in page
    for name in re.findall(r"\]\((.+?)\)", page):
        assert (run_folder / name).exists(), name


def test_run_leaves_page_models_submission_and_model_folder(run_folder, sample):
    assert "Grad-CAM" in (run_folder / "walkthrough.html").read_text("utf-8")
    assert {path.name for path in (run_folder / "models").iterdir()} == {"squeezenet1_1_stage1.pth"}
    lines = (run_folder / "squeezenet1_1_submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", *sample.sample_ids]
    prediction = predict_image(
        load_bundle(run_folder / "model"), sample.test_path(sample.test_ids[0])
    )
    printed = json.dumps(nbformat.read(run_folder / "walkthrough.ipynb", 4))
    assert f"tumour probability {prediction.probability:.4f}" in printed


def test_the_new_process_says_what_this_one_says(run_folder):
    notebook = nbformat.read(run_folder / "walkthrough.ipynb", 4)
    cells = {
        re.match(r"# In \[(\d+)\]", c.source)[1]: c
        for c in notebook.cells
        if c.source.startswith("# In [")
    }
    other = float("".join(o.get("text", "") for o in cells["44"].outputs).split("\t")[2])
    here = float(
        re.search(r"probability ([\d.]+)", "".join(o.get("text", "") for o in cells["45"].outputs))[
            1
        ].rstrip(".")
    )
    assert other == pytest.approx(here, abs=1e-4)


def test_all_that_a_run_leaves_is_known_as_a_runs(run_folder):
    """Where another run would write over it, that one is refused before it trains."""
    left = {path.name for path in run_folder.iterdir()} - set(LOCKS)
    assert "slide" in left
    assert not [name for name in left if not any(fnmatch(name, own) for own in NAMES)]


def test_a_finished_folder_is_never_written_over(run_folder, capsys):
    before = (run_folder / "metrics.json").read_bytes()
    assert main(["run", "--output", str(run_folder)]) == 2
    assert "which a run writes and which is never written over" in capsys.readouterr().err
    assert (run_folder / "metrics.json").read_bytes() == before
