"""The house rules that a reader relies on: one-way imports, public names, tags and rows, pins within ranges."""
import ast
import json
import re
from pathlib import Path

from packaging.requirements import Requirement

import hcd

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NOTEBOOK = json.loads((ROOT / "notebooks/walkthrough.ipynb").read_text("utf-8"))
ORDER = re.search(r"imports only those above it: ([^.]+)\.", README)[1].replace("\n", " ").split(", ")
DESIGN_NAMES = [
    "Recipe", "read_image", "read_cropped_image", "make_sample", "open_dataset", "channel_statistics",
    "stratified_split", "CroppedImageList", "make_databunch", "get_learner", "sweep_weight_decay", "plot_sweep",
    "plot_overview", "plot_heatmap_overview", "hooked_backward", "grad_cam", "get_heatmap", "predict_tta",
    "write_submission", "save_bundle", "load_bundle", "predict_image",
]


def imported_modules(path):
    """Return the sibling modules that a module of hcd imports."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {node.module for node in nodes}


def test_readme_names_every_module_in_import_order():
    modules = {path.stem for path in (ROOT / "hcd").glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_imports_point_one_way():
    for place, name in enumerate(ORDER):
        above = set(ORDER[:place])
        assert imported_modules(ROOT / "hcd" / f"{name}.py") <= above, name


def test_only_compat_asks_for_versions_and_plots_stays_free_of_fastai():
    for path in (ROOT / "hcd").glob("*.py"):
        text = path.read_text("utf-8")
        assert path.stem == "compat" or not re.search(r"torch(vision)?\.__version__|version_info|parse_version", text), path
    assert "fastai" not in (ROOT / "hcd/plots.py").read_text("utf-8").split('"""', 2)[2]


def test_public_names():
    assert set(DESIGN_NAMES) <= set(hcd.__all__)
    for name in hcd.__all__:
        assert getattr(hcd, name).__doc__, name
    assert sorted(hcd.__all__) == sorted(set(hcd.__all__))


def test_walkthrough_functions_name_their_cell():
    for name in DESIGN_NAMES:
        if name not in ("make_sample", "Recipe"):
            assert re.search(r"Source: In \d+", getattr(hcd, name).__doc__), name


def test_deviation_tags_and_readme_rows_agree():
    tag = re.compile(r"(?:KEPT|CHANGED|READ) ([KCR]\d+)\b")
    tagged = {match for path in (ROOT / "hcd").glob("*.py") for match in tag.findall(path.read_text("utf-8"))}
    prose = " ".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    tagged |= set(re.findall(r"\(([KCR]\d+)\)", prose))
    rows = re.findall(r"^\| ([KCR]\d+) \|(.*)\|$", README, re.MULTILINE)
    assert {row for row, _ in rows} == tagged
    assert len(rows) == len({row for row, _ in rows})


def test_every_deviation_row_names_a_test_that_exists():
    tests = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    for row, cells in re.findall(r"^\| ([KCR]\d+) \|(.*)\|$", README, re.MULTILINE):
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells)
        assert named, f"{row} names no test"
        for file, test in named:
            assert f"def {test}(" in tests[file], f"{row}: {file}::{test}"


def test_cell_table_covers_every_cell():
    cells = set()
    for numbers in re.findall(r"^\| ([\d, -]+) \| ", README, re.MULTILINE):
        for part in numbers.split(", "):
            first, last = (part.split("-") * 2)[:2]
            cells |= set(range(int(first), int(last) + 1))
    assert cells == set(range(1, 46))


def test_notebook_has_every_cell_in_order_and_no_outputs():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    numbers = [int(re.match(r"# In \[(\d+)\]\n", "".join(cell["source"]))[1]) for cell in code]
    assert numbers == list(range(46))
    assert code[0]["metadata"]["tags"] == ["parameters"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_pins_lie_within_the_ranges_of_setup():
    source = (ROOT / "setup.py").read_text("utf-8")
    ranges = {r.name: r for r in map(Requirement, re.findall(r'"([a-z][\w.-]*(?:[<>=]=?)[\w.,<>=]+)"', source))}
    pins = {r.name: r for r in map(Requirement, re.findall(r"^[^#\n]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))}
    assert {"torch", "fastai", "opencv-python", "pytest"} <= set(ranges)
    assert set(ranges) <= set(pins)
    for name, requirement in ranges.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name


def test_no_line_of_the_walkthrough_was_copied(shared):
    """Lines of some length that stand in the source may not stand here; bare library calls may."""
    (source,) = shared.joinpath("seeds").glob("*.txt")
    lines = {" ".join(line.split()) for line in source.read_text("utf-8").splitlines()}
    lines = {line for line in lines if len(line) > 60}
    ours = [path.read_text("utf-8") for path in (ROOT / "hcd").glob("*.py")] + [README]
    ours += ["".join(cell["source"]) for cell in NOTEBOOK["cells"]]
    mine = {" ".join(line.split()) for text in ours for line in text.splitlines()}
    assert not mine & lines
