"""The wheel holds every part, and works where nothing of the checkout is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import CHECKOUT

RECIPE = [
    "--arch=squeezenet1_1",
    "--no-pretrained",
    "--sweep-iterations=3",
    "--head-epochs=1",
    "--finetune-epochs=1",
    "--tta-passes=1",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy of what git has, with the setuptools that are here."""
    source = tmp_path_factory.mktemp("source") / "hcd"
    names = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not names:  # a copy without git, as in CI
        shutil.copytree(CHECKOUT, source, ignore=shutil.ignore_patterns(".venv*", "outputs"))
    for name in names:
        if (CHECKOUT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, source / name)
    out = source.parent / "wheel"
    command = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_wheel('x'))"]
    command[2] = command[2].replace("'x'", repr(str(out)))
    out.mkdir()
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel in it; the libraries are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    # the editable hcd of this environment comes last, and is not what is under test
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (place / "libraries.pth").write_text(f"{here}\n")
    (folder / "share").mkdir()
    (folder / "share/jupyter").symlink_to(Path(sys.prefix, "share/jupyter"))  # its HTML templates
    return folder / "bin/python"


def run(python, folder, *arguments):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), "-m", "hcd.cli", *arguments],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_every_module_and_the_notebook(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "hcd").rglob("*.py")}
    wanted |= {"hcd/py.typed", "hcd/__init__.pyi", "hcd/notebooks/walkthrough.ipynb"}
    wanted |= {"hcd/evidence/report.html", "hcd/deploy/page/index.html", "hcd/deploy/page/page.js"}
    assert not wanted - names
    assert {"hcd/disk/whole.py", "hcd/export/card.py"} <= wanted
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]


def test_it_says_its_version_in_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hcd 0.")
    where = [str(installed), "-c", "import hcd; print(hcd.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed.parents[1]))


def test_it_copies_its_notebook_to_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "notebook")
    assert (done.returncode, done.stderr) == (0, "")
    notebook = CHECKOUT / "notebooks/walkthrough.ipynb"
    assert (tmp_path / "walkthrough.ipynb").read_bytes() == notebook.read_bytes()


@pytest.mark.long
def test_it_runs_the_walkthrough_in_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "run", *RECIPE)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    assert (folder / "metrics.json").is_file() and (folder / "model/card.json").is_file()
