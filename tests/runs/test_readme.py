"""A run's README.md says what lies there, and takes the place of nobody's own."""

import json
import os
import re

import pytest

from hcd import InputError
from hcd.runs.readme import MARK, write_readme

METRICS = {
    "data_fingerprint": "ab12",
    "patches": 480,
    "split": "islands",
    "final_model": "resnet18_stage2",
    "valid_accuracy": 0.875,
    "valid_auc": 0.95081,
    "valid_auc_interval": {"low": 0.91, "high": 0.9724, "over": "islands of tissue"},
    "test_auc": 0.9,
}
LEFT = ["walkthrough.html", "slide/summary.html", "metrics.json", "validation.csv"]
LEFT += ["resnet18_submission.csv"]


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run, of empty files."""
    folder = tmp_path / "run"
    for name in ("model", "figures", "slide", "data"):
        (folder / name).mkdir(parents=True)
    for name in LEFT:
        (folder / name).touch()
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def links(page):
    return re.findall(r"\]\((.+?)\)", page)


def test_it_says_what_the_run_was(run):
    assert write_readme(run) == run / "README.md"
    page = (run / "README.md").read_text("utf-8")
    assert page.splitlines()[0] == MARK
    for row in (
        "| architecture | resnet18 |",
        "| validation AUC | 0.9508 (islands split, 95 % interval 0.9100 to 0.9724 over islands of"
        " tissue) |",
        "| validation accuracy | 0.8750 |",
        "| test AUC | 0.9000 |",
        "| labelled patches | 480 |",
        "| data | the synthetic sample that hcd drew into `data/` |",
        "| data fingerprint | ab12 |",
    ):
        assert row in page.splitlines()
    assert set(links(page)) == {*LEFT, "model", "figures"}
    assert "\nhcd report .  " in page and "\nhcd predict . patch.tif" in page


def test_it_names_the_data_folder_and_how_to_report_on_it(run, tmp_path):
    write_readme(run, tmp_path / "my data")
    page = (run / "README.md").read_text("utf-8")
    assert f"| data | `{tmp_path}/my data` |" in page
    assert f"hcd report . --data '{tmp_path}/my data'" in page
    (run / "run.json").touch()  # the record of `hcd run` names it
    write_readme(run, tmp_path / "my data")
    assert "hcd report .  " in (run / "README.md").read_text("utf-8")
    write_readme(run, run / "data")
    assert "synthetic sample" in (run / "README.md").read_text("utf-8")


def test_an_older_one_is_brought_up_to_date(run):
    write_readme(run)
    assert "report.html" not in links((run / "README.md").read_text())
    (run / "report.html").touch()
    write_readme(run)
    assert "report.html" in links((run / "README.md").read_text())


@pytest.mark.parametrize("content", [b"", b"mine\n", b"\xff\xfe", b" " + MARK.encode()])
def test_a_page_of_the_users_own_stays(run, content):
    (run / "README.md").write_bytes(content)
    assert write_readme(run) is None
    assert (run / "README.md").read_bytes() == content


def test_neither_links_nor_folders_are_written_to(run, tmp_path):
    target = tmp_path / "target.md"
    target.write_text(MARK)
    os.symlink(target, run / "README.md")
    assert write_readme(run) is None and target.read_text() == MARK
    (run / "README.md").unlink()
    (run / "README.md").mkdir()
    assert write_readme(run) is None and not list((run / "README.md").iterdir())


@pytest.mark.parametrize("metrics", [[], {}, {"valid_auc": "high", "valid_auc_interval": 3}])
def test_numbers_that_are_not_there_are_left_out(run, metrics):
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_readme(run)
    page = (run / "README.md").read_text()
    assert "AUC |" not in page and "| data | " in page


def test_a_strangers_texts_stay_in_their_cells(run):
    text = "a | b\n\n# `x`\n<script>\u2028 \ud800"
    names = ("data_fingerprint", "final_model", "split")
    (run / "metrics.json").write_text(json.dumps({**METRICS, **dict.fromkeys(names, text)}))
    write_readme(run, f"data {text}".replace("\ud800", "\udcff"))
    page = (run / "README.md").read_text("utf-8")
    assert "<script>" not in page and "hcd report . --data DIR " in page
    assert len([line for line in page.splitlines() if line.startswith("#")]) == 1
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def test_metrics_that_cannot_be_read_are_told(run, refused):
    (run / "metrics.json").write_text("{")
    with refused(InputError, "metrics.json", "no JSON"):
        write_readme(run)
    assert not (run / "README.md").exists()
