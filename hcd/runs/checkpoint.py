"""Checkpoints: what a run has finished, so that after an interruption it goes on as if there had
been none."""

import hashlib
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..disk.whole import StrPath, shorten, whole_write, writable_folder
from ..engine.compat import load_tensors
from ..engine.given import require_learner, unwrapped
from ..engine.ranks import is_first, on_first
from ..errors import InputError
from ..recipe import Recipe
from . import events

FORMAT = "hcd-checkpoint-1"
SECONDS_BETWEEN_SAVES = 30


class Step:
    """One step of a run: nothing of it is kept, and whatever it draws is drawn now.

    The step of a run that can be resumed is a `KeptStep`; what uses one need not know which.
    """

    def load(self, read: Callable[[dict], Any]) -> Any:
        """Return what `read` makes of what an earlier process has kept; None where it kept
        nothing."""
        return None

    def save(self, **content: Any) -> None:
        """Keep what the step has done, with the generators as they are now."""

    def save_now_and_then(self, content: Callable[[], dict]) -> None:
        """Keep what `content` returns, where it is half a minute since the last time."""

    def tell(self, text: str) -> None:
        """Tell whoever watches the run."""


class NoCheckpoints:
    """What stands in for `Checkpoints` where nothing is to be kept."""

    def step(self, name: str, data, call=dict, redraws: bool = False) -> Step:
        """Return a step that keeps nothing."""
        return Step()


class Checkpoints:
    """The checkpoints of one run: a file for each step that it has finished or is in, with the
    state of every generator.

    Args:
        folder: where the files lie; made when missing.
        recipe, dataset: what a resumed run must have in common with the interrupted one.
        resume: go on from the files that an earlier process left. False starts afresh and never
            reads a file.
        pixels: see `pixel_digests`, of the training and then the test patches; a resumed run must
            have the same ones. None leaves them unchecked.
    Raises:
        InputError: the files are of another recipe or another data set; says what differs. OSError:
            folder cannot be written.
    """

    def __init__(
        self,
        folder: StrPath,
        recipe: Recipe,
        dataset: Any,
        resume: bool = False,
        pixels: np.ndarray | None = None,
    ) -> None:
        self.folder, self.resume = on_first(lambda: writable_folder(folder)), resume
        self.written: set[str] = set()
        # as JSON has it, so that what was saved compares equal to what is now
        self.identity = _as_json(
            {
                **asdict(recipe),
                "labelled patches": len(dataset.labels),
                "test patches": len(dataset.test_ids),
                "data fingerprint": dataset.fingerprint,
            }
        )
        begun = self.load("start")
        if begun is None:
            kept = {} if pixels is None else {"pixels": torch.from_numpy(pixels.copy())}
            self.save("start", **kept)
        elif pixels is not None and "pixels" in begun:
            with self.reading("start"):
                self._require_pixels(begun["pixels"].numpy(), pixels, dataset)
        events.tell("begun", pixels_sha256=pixels is not None and _sha256(pixels))

    def _require_pixels(self, before, pixels, dataset):
        """Require the patches that the run began with, pixel by pixel."""
        for row in np.flatnonzero((before != pixels).any(1)):
            path = [*dataset.train_paths, *dataset.test_paths][row]
            raise InputError(
                f"{path} has other pixels than when this run began; restore the data set, or start"
                " a new run in another folder"
            )

    def step(self, name: str, data: Any, call: Any = dict, redraws: bool = False) -> "Step":
        """Return the step of a name.

        Args:
            name: of its file. data: the databunch in use. call: function that returns what the
                step was called with, a dict; a resumed one must be called with the same.
            redraws: all that the step draws it draws at its start, and again when it is resumed.
        """
        self.require_recipe(data)
        return KeptStep(self, name, data, call(), redraws)

    def require_recipe(self, data: Any) -> None:
        """Require a databunch that reads and trains by the recipe of these checkpoints.

        Raises:
            InputError: another one; names the field.
        """
        recipe = getattr(getattr(data.train_ds, "x", None), "recipe", None)
        for field, value in _as_json(asdict(recipe) if recipe else {}).items():
            # a databunch may draw without the rng_seed that the run began with
            if field != "rng_seed" and self.identity[field] != value:
                raise InputError(
                    f"the learner's databunch has {field}={shorten(repr(value), 80)} and the"
                    f" checkpoints {shorten(repr(self.identity[field]), 80)}; give both one recipe"
                )

    def save(
        self,
        name: str,
        call: Any = None,
        data: Any = None,
        generators: dict | None = None,
        **content: Any,
    ) -> None:
        """Write the checkpoint of a step, whole.

        Args:
            name: of the step. call: what the step was called with, a dict. data: the databunch in
                use. generators: their states; None takes them as they are now. content: what it
                has done.
        """
        if is_first():
            self._write(name, call or {}, generators or _generator_states(data), content)
        self.written.add(name)

    def _write(self, name, call, generators, content):
        kept = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "identity": self.identity,
                "call": _as_json(call),
                "generators": generators,
                **content,
            },
            kept,
        )
        with whole_write(self.path(name)) as file:
            file.write(kept.getbuffer())

    def load(self, name: str, call: Any = None, data: Any = None) -> Any:
        """Return what an earlier process saved of a step, and set every generator as it was then;
        None where there is nothing.

        Raises:
            InputError: a damaged file, or one of another recipe, data set or call.
        """
        if not self.resume or name in self.written:
            return None
        content = on_first(lambda: self._read(name, call))
        if content is not None:
            with self.reading(name):
                _set_generators(content["generators"], data)
        return content

    def _read(self, name, call):
        """Return what a step's file holds, once it is known to belong to this run."""
        path = self.path(name)
        if not path.is_file():
            return None
        content = load_tensors(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"{path} is no checkpoint of this hcd; start a new run in another folder"
            )
        with self.reading(name):
            identity = {**DEFAULTS, **content["identity"]}
            found = {**identity, **content["call"]}
            unknown = sorted(identity.keys() - self.identity.keys())
        for field in unknown:
            raise InputError(
                f"{path} has the unknown field {field!r}; install the hcd that wrote it, or start a"
                " new run in another folder"
            )
        # an older hcd kept less of the call
        asked = {name: value for name, value in (call or {}).items() if name in found}
        for field, value in {**self.identity, **_as_json(asked)}.items():
            if field not in found or found[field] != value:
                was, now = (shorten(repr(given), 80) for given in (found.get(field), value))
                raise InputError(
                    f"{path} belongs to a run with {field}={was} and this one has {now}; use the"
                    " same recipe, data and call to resume it, or start a new run in another folder"
                )
        return content

    def path(self, name: str) -> Path:
        """Return the file of a step."""
        return self.folder / f"{name}.pth"

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Take every error for a sign that the checkpoint of a step does not hold what it
        should."""
        try:
            yield
        except InputError:
            raise
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
            OverflowError,
        ) as error:
            reason = shorten(" ".join(str(error).split()), 160)
            raise InputError(
                f"{self.path(name)} does not hold what this step saves ({type(error).__name__}:"
                f" {reason}); start a new run in another folder"
            ) from error

    def callback(self, learner: Any, name: str) -> Any:
        """Return a fastai callback for one `fit`: it saves at the end of each epoch, and resumes
        after the last one saved.

        Raises:
            InputError: the learner's databunch was made by another recipe than these checkpoints.
        """
        from .fit import FitCheckpoint  # which needs this module

        require_learner(learner)
        self.require_recipe(learner.data)
        return FitCheckpoint(learner, self, name)


class KeptStep(Step):
    """A step whose work is kept in a checkpoint."""

    def __init__(self, checkpoints: Checkpoints, name: str, data, call: dict, redraws: bool):
        self.checkpoints, self.name, self.data, self.call = checkpoints, name, data, call
        self.redraws = redraws
        self.begun: dict | None = None
        self.saved = time.monotonic()

    def load(self, read):
        """Return what `read` makes of what was kept, every generator as it was then."""
        kept = self.checkpoints.load(self.name, self.call, self.data)
        found = None
        if kept is not None:
            with self.checkpoints.reading(self.name):
                if "random" in kept:  # hcd 0.1.0 kept what averaged passes redraw from by itself
                    random.setstate(kept["random"])
                found = read(kept)
        self.begun = _generator_states(self.data) if self.redraws else None
        return found

    def save(self, **content):
        """Keep what the step has done."""
        self.checkpoints.save(self.name, self.call, self.data, self.begun, **content)
        self.saved = time.monotonic()

    def save_now_and_then(self, content):
        """Keep what `content` returns, where it is half a minute since the last time."""
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            self.save(**content())

    def tell(self, text):
        """Tell whoever watches the run."""
        events.tell("step", text=text)


def _as_json(content):
    return json.loads(
        json.dumps(content, default=lambda value: getattr(value, "__qualname__", repr(value)))
    )


# a checkpoint that was written before a recipe field existed was of that field's default
DEFAULTS = _as_json({field.name: field.default for field in fields(Recipe)})


def split_digest(data):
    """Return a SHA-256 of which patches a databunch trains on and which it validates on, in their
    order."""
    return names_digest([*data.train_ds.items, "", *data.valid_ds.items])


def names_digest(items) -> str:
    """Return a SHA-256 of the names of items, in their order."""
    return hashlib.sha256("\n".join(map(str, items)).encode()).hexdigest()


def weights_digest(model):
    """Return a SHA-256 of a model's weights and running means."""
    digest = hashlib.sha256()
    for name, values in unwrapped(model).state_dict().items():
        digest.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sha256(pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def _generator_states(data):
    numpy_state: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "passes": data.passes.count if getattr(data, "passes", None) else 0,
    }


def _set_generators(states, data):
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if getattr(data, "passes", None):
        data.passes.count = states["passes"]
