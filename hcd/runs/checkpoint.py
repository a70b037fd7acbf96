"""Checkpoints: what a run has finished, so that after an interruption it goes on as if there had
been none."""

import csv
import hashlib
import io
import json
import random
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..disk.whole import shorten, whole_write, writable_folder
from ..engine.compat import fastai, load_tensors
from ..errors import InputError

FORMAT = "hcd-checkpoint-1"


class Checkpoints:
    """The checkpoints of one run: a file for each step that it has finished or is in, with the
    state of every generator.

    Args:
        folder: where the files lie; made when missing.
        recipe, dataset: what a resumed run must have in common with the interrupted one.
        resume: go on from the files that an earlier process left. False starts afresh and never
            reads a file.
    Raises:
        InputError: the files are of another recipe or another data set; says what differs. OSError:
            folder cannot be written.
    """

    def __init__(self, folder, recipe, dataset, resume=False):
        self.folder, self.resume, self.written = writable_folder(folder), resume, set()
        # as JSON has it, so that what was saved compares equal to what is now
        self.identity = json.loads(
            json.dumps(
                {
                    **asdict(recipe),
                    "labelled patches": len(dataset.labels),
                    "test patches": len(dataset.test_ids),
                    "data fingerprint": dataset.fingerprint,
                },
                default=lambda value: getattr(value, "__qualname__", repr(value)),
            )
        )
        if self.load("start") is None:
            self.save("start")

    def save(self, name, call=None, data=None, **content):
        """Write the checkpoint of a step, whole, with the generators as they are now.

        Args:
            name: of the step. call: what the step was called with, a dict. data: the databunch in
                use. content: what it has done.
        """
        kept = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "identity": self.identity,
                "call": call or {},
                "generators": _generator_states(data),
                **content,
            },
            kept,
        )
        with whole_write(self.path(name)) as file:
            file.write(kept.getbuffer())
        self.written.add(name)

    def load(self, name, call=None, data=None):
        """Return what an earlier process saved of a step, and set every generator as it was then;
        None where there is nothing.

        Raises:
            InputError: a damaged file, or one of another recipe, data set or call.
        """
        path, call = self.path(name), call or {}
        if not self.resume or name in self.written or not path.is_file():
            return None
        content = load_tensors(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"{path} is no checkpoint of this hcd; start a new run in another folder"
            )
        with self.reading(name):
            found = {**content["identity"], **content["call"]}
        for field, value in {**self.identity, **call}.items():
            if field not in found or found[field] != value:
                was, now = (shorten(repr(given), 80) for given in (found.get(field), value))
                raise InputError(
                    f"{path} belongs to a run with {field}={was} and this one has {now}; use the"
                    " same recipe, data and call to resume it, or start a new run in another"
                    " folder"
                )
        with self.reading(name):
            _set_generators(content["generators"], data)
        return content

    def path(self, name):
        """Return the file of a step."""
        return self.folder / f"{name}.pth"

    @contextmanager
    def reading(self, name):
        """Take every error for a sign that the checkpoint of a step does not hold what it
        should."""
        try:
            yield
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

    def callback(self, learner, name):
        """Return a fastai callback for one `fit`: it saves at the end of each epoch, and resumes
        after the last one saved."""
        return FitCheckpoint(learner, self, name)


class FitCheckpoint(fastai.basic_train.LearnerCallback):
    """Save a fit at every epoch's end, with its history as history_<name>.csv; go on where an
    interrupted one was saved."""

    _order = 100  # after the recorder and the schedule

    def __init__(self, learn, checkpoints, name):
        super().__init__(learn)
        # 0.98 is what fastai's own smoothed loss has
        self.checkpoints, self.name, self.smoothed = (
            checkpoints,
            name,
            fastai.callback.SmoothenValue(0.98),
        )
        self.call = {
            "split": split_digest(learn.data),
            "batches an epoch": len(learn.data.train_dl),
        }

    def on_train_begin(self, n_epochs, pbar, **kwargs):
        """Find out where to begin; fastai then has every callback jump to that epoch."""
        self.call["epochs"], self.resumed = n_epochs, False
        self.kept = self.checkpoints.load(self.name, self.call, self.learn.data)
        if self.kept is None:
            return None
        done = self.kept.get("epoch")
        if type(done) is not int or not 0 < done <= n_epochs:
            raise InputError(
                f"{self.checkpoints.path(self.name)} is of epoch {done!r} of {n_epochs}; start a"
                " new run in another folder"
            )
        pbar.main_bar.gen = range(done, n_epochs)
        pbar.main_bar.total += done  # fastai takes it off, for loops that it shortens itself
        print(f"{self.name}: going on after epoch {done} of {n_epochs}")
        return {"epoch": done, "iteration": done * self.call["batches an epoch"]}

    def jump_to_epoch(self, epoch):
        """Put model, optimiser, history and smoothed loss back."""
        with self.checkpoints.reading(self.name):
            learn, recorder, kept = self.learn, self.learn.recorder, self.kept["recorder"]
            learn.model.load_state_dict(self.kept["model"])
            learn.opt.load_state_dict(self.kept["opt"])
            for scaler, state in zip(self._scalers(), self.kept["scalers"]):
                scaler.load_state_dict(state)
            recorder.losses, recorder.val_losses = (
                list(kept["losses"].unbind()),
                [np.float32(loss) for loss in kept["val_losses"]],
            )
            for name in ("lrs", "moms", "metrics", "nb_batches"):
                setattr(recorder, name, kept[name])
            self.smoothed.n, self.smoothed.mov_avg = self.kept["smoothed"]
        # a second model and optimiser state would stay in memory for the rest of the fit
        self.resumed, self.kept = True, None

    def on_backward_begin(self, last_loss, **kwargs):
        """Follow the smoothed loss; after a resume fastai's own has forgotten the epochs before."""
        self.smoothed.add_value(last_loss.float().detach().cpu())
        if self.resumed:
            self.learn.recorder.losses[-1] = self.smoothed.smooth
            return {"smooth_loss": self.smoothed.smooth}
        return None

    def on_epoch_end(self, epoch, **kwargs):
        """Save everything, and before it the history as a table: a kill between the two has the
        epoch done again, row and all."""
        learn, recorder = self.learn, self.learn.recorder
        losses = [float(loss) for loss in recorder.val_losses]
        history = {
            "losses": torch.stack(recorder.losses),
            "val_losses": losses,
            "lrs": recorder.lrs,
            "moms": recorder.moms,
            "metrics": recorder.metrics,
            "nb_batches": recorder.nb_batches,
        }
        ends = np.cumsum(recorder.nb_batches) - 1
        with whole_write(Path(learn.path) / f"history_{self.name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "train_loss", "valid_loss", *recorder.metrics_names])
            for row, end in enumerate(ends):
                numbers = [recorder.losses[end], losses[row], *recorder.metrics[row]]
                writer.writerow([row, *(f"{float(number):.6f}" for number in numbers)])
        self.checkpoints.save(
            self.name,
            self.call,
            learn.data,
            epoch=epoch + 1,
            model=learn.model.state_dict(),
            opt=learn.opt.state_dict(),
            recorder=history,
            smoothed=(self.smoothed.n, self.smoothed.mov_avg),
            scalers=[scaler.state_dict() for scaler in self._scalers()],
            best={"epoch": int(np.argmin(losses)), "valid_loss": min(losses)},
        )

    def _scalers(self):
        return [callback.scaler for callback in self.learn.callbacks if hasattr(callback, "scaler")]


def split_digest(data):
    """Return a SHA-256 of which patches a databunch trains on and which it validates on, in their
    order."""
    ids = "\n".join(map(str, [*data.train_ds.items, "", *data.valid_ds.items]))
    return hashlib.sha256(ids.encode()).hexdigest()


def weights_digest(model):
    """Return a SHA-256 of a model's weights and running means."""
    digest = hashlib.sha256()
    for name, values in model.state_dict().items():
        digest.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _generator_states(data):
    numpy_state = np.random.get_state()
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
