"""Each piece of compat is needed, works, and touches nothing outside hcd."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import fastai.basic_train
import fastai.vision
import pytest
import torch
from fastai.basic_data import DeviceDataLoader

import hcd
from hcd.engine import compat


class Numbers(torch.utils.data.Dataset):
    note = "of the data set"

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index


@pytest.mark.parametrize(
    "options",
    [
        dict(generator=torch.Generator()),
        dict(num_workers=1, persistent_workers=True),
        dict(num_workers=1, prefetch_factor=3),
    ],
    ids=lambda options: list(options)[-1],
)
def test_torchs_loader_takes_its_options_again_and_so_does_ours(options):
    for kind in (torch.utils.data.DataLoader, compat.DataLoader):
        loader = kind(Numbers(), batch_size=5, **options)
        assert all(getattr(loader, name) == value for name, value in options.items())
        assert len(list(loader)) == 4


def test_fastai_copies_torchs_own_loader_with_all_its_options():
    torchs = torch.utils.data.DataLoader
    batches = [[3, 1], [2]]
    for options in (
        dict(batch_size=6, shuffle=True, drop_last=True),
        dict(batch_size=3, sampler=torch.utils.data.SubsetRandomSampler([1, 2, 3, 4])),
        dict(batch_size=4, num_workers=1, persistent_workers=True, prefetch_factor=3),
        dict(shuffle=True, generator=torch.Generator(), worker_init_fn=print, timeout=0),
        dict(batch_sampler=batches),
    ):
        bound = DeviceDataLoader(torchs(Numbers(), **options), torch.device("cpu"))
        found = bound.dl.init_kwargs
        for name, value in options.items():
            assert found[name] == value, name
        copy = bound.new()
        assert type(copy.dl) is torchs and copy.dl.init_kwargs == found and copy.note
        assert len(copy) == len(bound)
    plain = DeviceDataLoader(torchs(Numbers(), 4, True), torch.device("cpu"))
    plain.batch_size = 10
    assert [len(y) for _, y in plain] == [10, 10] and plain.dl.init_kwargs["shuffle"]
    assert not hasattr(torchs(Numbers()), "no_such_name")
    assert torchs(Numbers()).note == "of the data set"  # as fastai has it


def test_a_cpu_is_not_warned_about_pinned_memory(sample):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy, of fastai's transforms
        warnings.simplefilter("error", UserWarning)
        data = fastai.vision.ImageDataBunch.from_df(
            sample.root,
            sample.labels,
            folder="train",
            suffix=".tif",
            size=32,
            bs=8,
            num_workers=0,
            fn_col="id",
            label_col="label",
            ds_tfms=fastai.vision.get_transforms(max_warp=0),
        )
        data.add_test(list(sample.test_paths))
        assert [len(list(loader)) for loader in (data.train_dl, data.valid_dl, data.test_dl)]
        assert data.one_batch()[0].shape == (8, 3, 32, 32)


def test_a_generator_of_its_own_decides_the_order():
    def order(rng_seed):
        loader = compat.DataLoader(
            Numbers(), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(rng_seed)
        )
        return [n for _, y in loader for n in y.tolist()]

    assert order(1) == order(1) != order(2) and sorted(order(1)) == list(range(20))


OLD_END = """
import atexit
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterator
from hcd.engine import compat

def tell(workers):
    print([worker.is_alive() for worker in workers])

def begin(self, loader, first=Iterator.__init__):
    first(self, loader)
    atexit.register(tell, self._workers)  # as torch 2.11 waits for them, if memory is pinned

Iterator.__init__ = begin
loader = compat.DataLoader(range(20), batch_size=5, num_workers=2, persistent_workers=True)
assert len(list(loader)) == len(list(loader)) == 4
"""


def test_at_the_end_persistent_workers_have_stopped_before_torch_waits_for_them():
    done = subprocess.run(
        [sys.executable, "-c", OLD_END], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "[False, False]\n"), done.stderr


def test_persistent_workers_stay_between_passes():
    loader = compat.DataLoader(Numbers(), batch_size=7, num_workers=1, persistent_workers=True)
    passes = []
    for _ in range(2):
        seen = [y.tolist() for _, y in loader]
        passes.append((seen, loader._iterator._workers[0].pid))
    assert passes[0] == passes[1] and sum(passes[0][0], []) == list(range(20))
    loader._iterator._shutdown_workers()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("amid", [False, True], ids=["between passes", "amid a pass"])
def test_after_workers_have_died_a_pass_gives_everything(ctrl_c, monkeypatch, stop, amid):
    # torch raises from a signal handler, which could hit any line of this test; in its passes it
    # finds out all the same
    monkeypatch.setattr(
        torch.utils.data._utils.signal_handling, "_error_if_any_worker_fails", lambda: None
    )
    loader = compat.DataLoader(
        Numbers(), batch_size=1, num_workers=2, persistent_workers=True, timeout=1
    )
    assert len(list(loader)) == 20
    workers = loader._iterator._workers
    running = iter(loader) if amid else iter(())
    next(running, None)
    # Ctrl-C in a notebook goes to all
    for worker in workers if stop == signal.SIGINT else workers[:1]:
        os.kill(worker.pid, stop)
        worker.join()
    with contextlib.suppress(Exception):  # of many kinds, by what was under way
        list(running)
    for _ in range(2):
        assert [n for _, y in loader for n in y.tolist()] == list(range(20))
    # nor is one that was left alive forgotten
    assert not any(worker.is_alive() for worker in workers)
    loader._iterator._shutdown_workers()


def test_fastai_copies_and_uses_it():
    ours = DeviceDataLoader(
        compat.DataLoader(Numbers(), batch_size=4, drop_last=True), torch.device("cpu")
    )
    assert len(list(ours)) == 5 and ours.note == "of the data set"
    copy = ours.new(batch_size=6, shuffle=False)
    assert type(copy.dl) is compat.DataLoader and [len(y) for _, y in copy] == [6, 6, 6]
    ours.batch_size = 10
    assert [len(y) for _, y in ours] == [10, 10]


# what importing hcd does to the rest of the process

STATE = """
def state():
    import json, locale, logging, multiprocessing, os, random, signal, socket, sys, warnings
    import cv2, matplotlib, numpy, pandas, PIL.Image, PIL.ImageFile, torch, torch.utils.data
    return json.dumps({
        "warnings": sorted(map(repr, warnings.filters)), "showwarning": warnings.showwarning.__module__,
        "torch.load": torch.load.__module__, "safe globals": sorted(str(kind).split(" at 0x")[0]
                                                                    for kind in torch.serialization.get_safe_globals()),
        "DataLoader": [torch.utils.data.DataLoader.__init__.__module__, torch.utils.data.DataLoader.__init__.__qualname__],
        "random": repr(random.getstate()), "numpy": repr(numpy.random.get_state()), "torch": torch.get_rng_state().tolist(),
        "rcParams": {name: repr(value) for name, value in matplotlib.rcParams.items()},
        "threads": [cv2.getNumThreads(), torch.get_num_threads(), torch.get_num_interop_threads()],
        "numpy print": repr(numpy.get_printoptions()), "numpy errors": numpy.geterr(),
        "torch print": repr(vars(torch._tensor_str.PRINT_OPTS)),
        "pandas": [pandas.get_option(name) for name in ("display.max_columns", "display.max_colwidth", "display.precision")],
        "torch defaults": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
                           torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark,
                           torch.multiprocessing.get_sharing_strategy()],
        "PIL": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES], "cv2": cv2.useOptimized(),
        "environ": dict(os.environ), "logging": [logging.root.level, repr(logging.root.handlers), logging.root.manager.disable],
        "process": [[path for path in sys.path if "/tmp" not in path],  # torch 2.6 adds a folder of its own
                    sys.excepthook.__qualname__, sys.displayhook.__qualname__, sys.getrecursionlimit(), os.getcwd(), os.umask(0o22),
                    repr(signal.getsignal(signal.SIGINT)), repr(signal.getsignal(signal.SIGTERM)), socket.getdefaulttimeout(),
                    locale.setlocale(locale.LC_ALL), multiprocessing.get_start_method(allow_none=True)],
    })

def seed():
    import random, numpy, torch
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
"""

BESIDE = (
    STATE
    + """
import sys, types, warnings
quiet = ("ignore", None, Warning, None, 0)
warnings.filters.insert(0, quiet)  # not what is under test
import fastai.metrics, fastai.train, fastai.vision, fastai.vision.learner
warnings.filters.remove(quiet)
import cv2, matplotlib.pyplot, pandas, safetensors.torch, sklearn.metrics, sklearn.model_selection, torchvision, tqdm
main = ("__main__", "__mp_main__")
watched = [name for name, module in sys.modules.items() if type(module) is types.ModuleType and name not in main]

def contents():
    found = {}
    for module in watched:
        for name, value in list(vars(sys.modules[module]).items()):
            found[module, name] = value
            if issubclass(type(value), type) and vars(value).get("__module__") == module:
                found.update({(module, name, inner): part for inner, part in list(vars(value).items())})
    return found

seed()
before, state_before = contents(), state()
import hcd, hcd.walkthrough  # which loads all of it but the command
after, state_after = contents(), state()
new = [key for key in after.keys() - before.keys() if type(after[key]) is not types.ModuleType and key[-1] != "__warningregistry__"]
other = [key for key in before if key not in after or before[key] is not after[key]]
print(len(before), sorted(map(str, new)), sorted(map(str, other)), sep="\\n")
print(state_before, state_after, sep="\\n")
"""
)

ALONE = (
    STATE
    + """
import hcd, hcd.walkthrough  # which loads all of it but the command
seed()
print(state())
"""
)


def run_python(code):
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def beside():
    count, new, other, before, after = run_python(BESIDE)[0][-5:]
    return SimpleNamespace(
        count=int(count), new=new, other=other, before=json.loads(before), after=json.loads(after)
    )


@pytest.mark.long
def test_importing_hcd_replaces_nothing_but_what_fastai_has_put_into_torchs_loader(beside):
    assert beside.count > 100_000 and beside.new == "[]"
    assert beside.before["DataLoader"] == ["fastai.basic_data", "intercept_args"]
    changed = [eval(entry) for entry in json.loads(beside.other)]
    torchs = ("torch.utils.data.dataloader", "DataLoader")
    assert changed == [(*torchs, "__getattr__"), (*torchs, "__init__")]


OURS = ("pkg_resources is deprecated", "invalid escape sequence")  # see hcd/__init__.py


TORCHS = ["torch.utils.data.dataloader", "DataLoader.__init__"]  # which fastai had replaced


def without_ours(settings):
    """Return settings without the three filters that keep fastai's import quiet."""
    filters = [text for text in settings["warnings"] if not any(our in text for our in OURS)]
    return {**settings, "warnings": filters}


@pytest.mark.long
def test_importing_hcd_changes_no_setting_and_draws_nothing(beside):
    assert len(beside.after["warnings"]) == len(beside.before["warnings"]) + 3
    after = without_ours(beside.after)
    assert after.pop("DataLoader") == TORCHS
    for name in after:
        assert after[name] == beside.before[name], name


@pytest.mark.long
def test_hcd_alone_leaves_the_settings_that_fastai_and_the_other_libraries_leave(beside):
    (line,), errors = run_python(ALONE)
    assert not errors  # no warning shows
    alone = without_ours(json.loads(line))
    assert alone.pop("DataLoader") == TORCHS
    for name in alone:
        assert alone[name] == beside.before[name], name


TERMINAL = """
import hcd
recipe = hcd.Recipe.sample(arch="squeezenet1_1", batch_size=8)
hcd.make_sample("data", train=24, test=4)
dataset = hcd.open_dataset("data")
train_idx, valid_idx = hcd.stratified_split(dataset.labels["label"], recipe.valid_fraction, recipe.rng_seed)
data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0)
learner = hcd.get_learner(data, recipe)
learner.fit_one_cycle(1, recipe.head_max_lr, wd=recipe.weight_decay)
learner.lr_find(num_it=3)
learner.save("stage1")
learner.load("stage1")
score = hcd.score_predictions(*learner.get_preds())
hcd.write_submission("submission.csv", dataset, learner, hcd.predict_tta(learner, 2))
hcd.save_bundle(learner, "model", {"validation AUC": score.auc})
"""


@pytest.mark.long
def test_in_a_terminal_fastai_prints_its_table_and_nothing_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hcd.__file__).parents[1]))
    printed, errors = run_python(TERMINAL)
    table = printed.index("epoch     train_loss  valid_loss  accuracy  time    ")
    rows = [line for line in printed[table:] if re.match(r"\d", line)]
    assert re.fullmatch(r"0 +\d+\.\d{6} +\d+\.\d{6} +[01]\.\d{6} +\d\d:\d\d +", rows[0]), rows
    assert "Warning" not in errors, errors
    assert all(
        os.path.isfile(name) for name in ("models/stage1.pth", "submission.csv", "model/card.json")
    )


@pytest.mark.long
@pytest.mark.skipif(
    int(version("setuptools").split(".")[0]) < 67, reason="setuptools began to warn with 67"
)
def test_fastai_alone_warns_on_import():
    assert "pkg_resources is deprecated" in run_python("import fastai.vision")[1]
