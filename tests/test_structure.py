"""The house rules that a reader relies on: one-way imports, public names, tags and rows, pins
within ranges."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hcd

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CELLS = (ROOT / "notebooks/README.md").read_text("utf-8")
NOTEBOOK = json.loads((ROOT / "notebooks/walkthrough.ipynb").read_text("utf-8"))
DESIGN_NAMES = [
    "Recipe",
    "read_image",
    "read_cropped_image",
    "make_sample",
    "open_dataset",
    "channel_statistics",
    "stratified_split",
    "CroppedImageList",
    "make_databunch",
    "get_learner",
    "sweep_weight_decay",
    "plot_sweep",
    "plot_overview",
    "plot_heatmap_overview",
    "hooked_backward",
    "grad_cam",
    "get_heatmap",
    "predict_tta",
    "write_submission",
    "save_bundle",
    "load_bundle",
    "predict_image",
]


# each room may import from the rooms of its own line and of the lines above it
ORDER = [
    "errors disk terminal",
    "corners recipe reader stain stats",
    "engine",
    "runs",
    "learner predict",
    "dataset export sweep",
    "data",
    "deploy evidence slide split",
    "walkthrough run run_ranks",
    "cli",
]
UNPINNED = {"jupyterlab"}  # opens the notebook; no number depends on it, and no test
FREE = ["evaluate", "gradcam", "overview", "plots"]  # of all but what they need
LEVEL = {room: level for level, line in enumerate(ORDER) for room in line.split()}


def imported_rooms(path):
    """Return the rooms, top modules and wings of hcd, that a module of hcd imports, at its head or
    within."""
    package = path.relative_to(ROOT).parent.parts
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [
                (*base, *(node.module or "").split(".")) if node.module else (*base, alias.name)
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        rooms |= {name[1] for name in names if name[0] == "hcd" and len(name) > 1}
    return rooms


def room(path):
    """Return the top module or the wing that a file of hcd lies in."""
    return path.relative_to(ROOT / "hcd").with_suffix("").parts[0]


MODULES = [
    path for path in sorted((ROOT / "hcd").rglob("*.py")) if path != ROOT / "hcd/__init__.py"
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    assert room(path) in LEVEL or room(path) in FREE, "a new room: give it its line in ORDER"
    for other in imported_rooms(path) - {room(path)}:
        if room(path) in LEVEL and other in LEVEL:
            assert LEVEL[other] <= LEVEL[room(path)], f"{room(path)} imports {other}"


def test_disk_knows_neither_torch_nor_the_recipe():
    for path in (ROOT / "hcd/disk").glob("*.py"):
        assert not re.search(
            r"^ *(?:import|from) (torch|fastai)", path.read_text("utf-8"), re.MULTILINE
        ), path
        assert imported_rooms(path) <= {"disk", "errors"}


def test_only_compat_asks_for_versions_and_plots_stays_free_of_fastai():
    for path in MODULES:
        text = path.read_text("utf-8")
        assert path.stem == "compat" or not re.search(
            r"torch(vision)?\.__version__|version_info|parse_version", text
        ), path
    assert "fastai" not in (ROOT / "hcd/plots.py").read_text("utf-8").split('"""', 2)[2]


def test_public_names():
    assert set(DESIGN_NAMES) <= set(hcd.__all__)
    for name in hcd.__all__:
        assert getattr(hcd, name).__doc__, name
    assert sorted(hcd.__all__) == sorted(set(hcd.__all__))


def test_editors_see_every_public_name():
    stub = ast.parse((ROOT / "hcd/__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert seen == {name: (module, name) for name, module in hcd._HOMES.items()}


def public_functions():
    for name in hcd.__all__:
        value = getattr(hcd, name)
        if inspect.isfunction(value):
            yield name, value
        for inner, part in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(part) and not inner.startswith("_"):
                yield f"{name}.{inner}", part


@pytest.mark.parametrize(
    "name, function", [pytest.param(*pair, id=pair[0]) for pair in public_functions()]
)
def test_public_functions_are_typed(name, function):
    signature = inspect.signature(function)
    untyped = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name != "self"
    ]
    assert not untyped and signature.return_annotation is not signature.empty


def test_walkthrough_functions_name_their_cell():
    for name in DESIGN_NAMES:
        if name not in ("make_sample", "Recipe"):
            assert re.search(r"Source: In \d+", getattr(hcd, name).__doc__), name


def test_deviation_tags_and_readme_rows_agree():
    tag = re.compile(r"(?:KEPT|CHANGED|READ) ([KCR]\d+)\b")
    tagged = {
        match
        for path in (ROOT / "hcd").rglob("*.py")
        for match in tag.findall(path.read_text("utf-8"))
    }
    prose = " ".join(
        "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown"
    )
    tagged |= set(re.findall(r"\(([KCR]\d+)\)", prose))
    rows = re.findall(r"^\| ([KCR]\d+) \|(.*)\|$", CELLS, re.MULTILINE)
    assert {row for row, _ in rows} == tagged
    assert len(rows) == len({row for row, _ in rows})


def test_every_deviation_row_names_a_test_that_exists():
    tests = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for row, cells in re.findall(r"^\| ([KCR]\d+) \|(.*)\|$", CELLS, re.MULTILINE):
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells)
        assert named, f"{row} names no test"
        for file, test in named:
            assert f"def {test}(" in tests[file], f"{row}: {file}::{test}"


def test_cell_table_covers_every_cell():
    cells = set()
    for numbers in re.findall(r"^\| ([\d, -]+) \| ", CELLS, re.MULTILINE):
        for part in numbers.split(", "):
            first, last = (part.split("-") * 2)[:2]
            cells |= set(range(int(first), int(last) + 1))
    assert cells == set(range(1, 46))


def test_notebook_has_every_cell_in_order():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    numbers = [int(re.match(r"# In \[(\d+)\]\n", "".join(cell["source"]))[1]) for cell in code]
    assert numbers == list(range(47))
    assert code[0]["metadata"]["tags"] == ["parameters"]


def test_pins_lie_within_the_ranges_of_setup():
    source = (ROOT / "setup.py").read_text("utf-8")
    ranges = {
        r.name: r
        for r in map(Requirement, re.findall(r'"([a-z][\w.-]*(?:[<>=]=?)[\w.,<>=]+)"', source))
    }
    pins = {
        r.name: r
        for r in map(
            Requirement,
            re.findall(r"^[^#\n]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE),
        )
    }
    assert {"torch", "fastai", "opencv-python", "pytest"} <= set(ranges)
    assert set(ranges) - UNPINNED <= set(pins)
    for name, requirement in ranges.items():
        if name in UNPINNED:
            continue
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name


def test_no_line_of_the_walkthrough_was_copied(shared):
    """Lines of some length that stand in the source may not stand here; bare library calls may."""
    (source,) = shared.joinpath("seeds").glob("*.txt")
    lines = {" ".join(line.split()) for line in source.read_text("utf-8").splitlines()}
    lines = {line for line in lines if len(line) > 60}
    ours = [path.read_text("utf-8") for path in (ROOT / "hcd").rglob("*.py")]
    ours += [
        path.read_text("utf-8") for path in ROOT.rglob("README.md") if ".venv" not in str(path)
    ]
    ours += ["".join(cell["source"]) for cell in NOTEBOOK["cells"]]
    mine = {" ".join(line.split()) for text in ours for line in text.splitlines()}
    assert not mine & lines


def test_readme_is_a_door():
    lines = README.splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= 160
    picture, curve = re.findall(r"!\[.+\]\((.+)\)", README)
    assert all((ROOT / file).stat().st_size < 300_000 for file in (picture, curve))
    assert f"`python notebooks/picture.py {picture}`" in README


PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {".venv", "outputs"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file, _, heading = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, target


def test_every_public_name_has_its_line():
    page = (ROOT / "hcd/README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| `(.+)\.py` \|$", page, re.MULTILINE)
    assert dict(rows) == {name: home.replace(".", "/") for name, home in hcd._HOMES.items()}
    assert len(rows) == len(hcd.__all__)


def test_the_ten_lines_run_as_they_stand(tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(lines.splitlines()) <= 14
    monkeypatch.chdir(tmp_path)
    small = "hcd.Recipe.sample(head_epochs=1, tta_passes=2, arch='squeezenet1_1', batch_size=8)"
    smaller = lines.replace("hcd.Recipe.sample()", small).replace("train=240", "train=40")
    exec(compile(smaller, "README.md", "exec"), {})
    assert (tmp_path / "submission.csv").is_file() and (tmp_path / "model/card.json").is_file()
