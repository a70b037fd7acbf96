"""What the tests share: a small synthetic data set, a databunch and a learner on it."""

import dataclasses
import hashlib
import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

# before anything imports matplotlib, and for the processes that tests start
# so little work is not worth two threads, which on busy cores wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
import hcd  # noqa: E402
import hcd.engine.compat  # noqa: E402, F401  before a test imports fastai, which warns of its age unless hcd has imported it quietly
from hcd.cli import main  # noqa: E402
from hcd.disk.images import encode_tiff  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[1]
REMEDY = re.compile(
    r"\b(add|ask|build|change|check|compute|convert|copy|correct|did you"
    r" mean|finish|free|freeze|get|give|install"
    r"|leave|load|lower|must|name|needs|pass|pick|put|remove|restore|resume|save|start|stop|take|train|use)\b"
)


@pytest.fixture(scope="session", autouse=True)
def agg():
    """Draw figures without a screen, whatever was imported before."""
    import matplotlib

    matplotlib.use("Agg")


@pytest.fixture(scope="session", autouse=True)
def no_weights_left():
    """A learner without a path saves into the current folder, here the checkout's."""
    before = set((CHECKOUT / "models").glob("*"))
    yield
    assert set((CHECKOUT / "models").glob("*")) == before


@pytest.fixture(autouse=True)
def closed_figures():
    """Close what a test has drawn."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def ctrl_c():
    """Have SIGINT do what it does in a terminal; a test run in the background ignores it, and so
    would the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def refused():
    """`with refused(ValueError, "max_shift=4", ...):` wants that error, in one sentence on one line
    with a remedy."""

    @contextmanager
    def expect(kind, *parts):
        with pytest.raises(kind) as caught:
            yield caught
        text = str(caught.value)
        assert len(text.splitlines()) == 1 and text == text.strip(), repr(text)
        assert not re.search(r"[.!?] +[A-Z][a-z]+ ", text), f"more than one sentence: {text}"
        assert REMEDY.search(text), f"no remedy: {text}"
        for part in parts:
            assert str(part) in text, f"{part} is not named: {text}"

    return expect


@pytest.fixture(scope="session")
def shared():
    """Path of ../shared, which holds real patches and weights that are not part of the project."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not here")
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The synthetic data set, 60 labelled and 12 test patches; read it only, `copy_of_sample` may
    be damaged."""
    return hcd.make_sample(tmp_path_factory.mktemp("sample") / "data", train=60, test=12)


@pytest.fixture(scope="session")
def packed_root(sample, tmp_path_factory):
    """A packed copy of `sample`; read it only."""
    root = shutil.copytree(sample.root, tmp_path_factory.mktemp("packed") / "data")
    hcd.pack_dataset(root, progress=False)
    return root


@pytest.fixture(scope="session")
def cut_slides():
    """Function (root, slides=6, across=False) that writes a data set of overlapping patches, cut
    out of made-up slides, with slides.csv, and returns it with {id: slide}; `across` has the test
    patches cut from the slides of the labelled ones."""
    return _cut_slides


def _cut_slides(root, slides=6, across=False):
    rng = np.random.default_rng(7)
    found: dict = {"train": {}, "test": {}}
    for number in range(slides + 2):
        side = "train" if number < slides else "test"
        if side == "train" or not across:
            tissue = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
        (root / side).mkdir(parents=True, exist_ok=True)
        for y, x in np.unique(rng.integers(0, 19, (12, 2)), axis=0) * 16:
            patch = np.ascontiguousarray(tissue[y : y + 96, x : x + 96])
            patch_id = hashlib.sha1(patch.tobytes()).hexdigest()
            if patch_id not in found["train"]:
                (root / side / f"{patch_id}.tif").write_bytes(encode_tiff(patch))
                found[side][patch_id] = f"slide_{number}"
    tables = {"train_labels.csv": "train", "sample_submission.csv": "test"}
    for table, side in tables.items():
        rows = [f"{patch_id},{int(patch_id[0] in '01234567')}" for patch_id in found[side]]
        (root / table).write_text("\n".join(["id,label", *rows, ""]))
    named = {**found["train"], **found["test"]}
    rows = [f"{patch_id},{slide}" for patch_id, slide in named.items()]
    (root / "slides.csv").write_text("\n".join(["id,wsi", *rows, ""]))
    return hcd.open_dataset(root), named


@pytest.fixture
def float16(monkeypatch):
    """Compute in float16 with a scaled loss, as on a GPU without bfloat16."""
    import torch

    for module in ("engine.fast", "learner"):
        monkeypatch.setattr(f"hcd.{module}.low_precision", lambda device: torch.float16)


@pytest.fixture
def copy_of_sample(sample, tmp_path):
    """Folder of a data set equal to `sample`, for one test to damage."""
    return shutil.copytree(sample.root, tmp_path / "copy_of_sample")


@pytest.fixture(scope="session")
def small_recipe():
    """The recipe of `databunch` and `learner`: the smallest architecture and the shortest of
    everything."""
    return hcd.Recipe.sample(
        arch="squeezenet1_1",
        batch_size=8,
        sweep_iterations=4,
        head_epochs=1,
        finetune_epochs=1,
        tta_passes=2,
    )


@pytest.fixture(scope="session")
def run_recipe(small_recipe):
    """The recipe of whole runs: `small_recipe` with an rng_seed and two epochs in stage 2."""
    return dataclasses.replace(small_recipe, finetune_epochs=2, rng_seed=3)


@pytest.fixture(scope="session")
def run_notebook():
    """Function (data folder, recipe, output folder, *more flags) that calls `hcd run` on one CPU
    core."""

    def run(data, recipe, output, *more):
        flags = ["--data", str(data), "--output", str(output), "--device=cpu", "--workers=0"]
        for field in dataclasses.fields(recipe):
            value, name = getattr(recipe, field.name), field.name.replace("_", "-")
            if value != field.default:
                many = value if isinstance(value, tuple) else [value]
                is_switch = isinstance(value, bool)
                flags += [f"--{'' if value else 'no-'}{name}"] if is_switch else []
                flags += [] if is_switch else [f"--{name}", *map(str, many)]
        assert main(["run", *flags, *more]) == 0
        return output

    return run


@pytest.fixture(scope="session")
def run_folder(sample, run_recipe, run_notebook, tmp_path_factory):
    """The folder of one run of the notebook on `sample`; read it only."""
    folder = tmp_path_factory.mktemp("run") / "notebook"
    return run_notebook(sample.root, run_recipe, folder)


@pytest.fixture(scope="session")
def split(sample, small_recipe):
    """Row positions of the training and of the validation patches of `sample`: 45 and 15."""
    return hcd.stratified_split(
        sample.labels["label"], small_recipe.valid_fraction, small_recipe.rng_seed
    )


@pytest.fixture(scope="session")
def databunch(sample, small_recipe, split):
    """Databunch on `sample`, on the CPU, read in this process."""
    return hcd.make_databunch(sample, small_recipe, split[1], num_workers=0, device="cpu")


@pytest.fixture(scope="session")
def learner(databunch, small_recipe, tmp_path_factory):
    """Untrained learner on `databunch`, always the same weights; build another one to train or to
    change."""
    hcd.set_rng_seed(0)
    return hcd.get_learner(databunch, small_recipe, path=tmp_path_factory.mktemp("learner"))


@pytest.fixture
def darkness():
    """A model whose answer anybody can compute, for slides."""
    from slide.helpers import Darkness

    return Darkness()


@pytest.fixture(scope="session")
def section():
    """A painted section of tissue of 768 x 576 px, with one tumour, ink and a black edge."""
    from slide.helpers import PLACES
    from slide.painted import paint

    return paint(768, 576, PLACES)


@pytest.fixture(scope="session")
def slide_file(section, tmp_path_factory):
    """Function (**options of `painted.save`) -> path of `section` as a slide; read it only."""
    from slide.helpers import SIZE
    from slide.painted import save

    folder, made = tmp_path_factory.mktemp("slides"), {}

    def saved(**options):
        name = "-".join(f"{name}={value}" for name, value in sorted(options.items())) or "plain"
        if name not in made:
            own = dict(options)
            if own.get("alpha"):
                own["alpha"] = np.where(section.tissue, 255, 0).astype(np.uint8)
            path = folder / f"{name}{'.ome' if own.get('ome') else ''}.tif"
            made[name] = save(path, section, **{"size": SIZE, "levels": 4, **own})
        return made[name]

    return saved
