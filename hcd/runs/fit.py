"""A fit that can be resumed: what is kept at each epoch's end, and put back."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..disk.shown import loss_text
from ..disk.whole import whole_write, writable_folder
from ..engine.compat import fastai
from ..engine.given import bare_loss, unwrapped
from ..engine.ranks import is_first, on_first
from ..errors import Diverged, InputError
from . import events
from .checkpoint import split_digest
from .remember import (
    log_starts,
    log_until,
    require_same_settings,
    restore_states,
    stateful_callbacks,
    states_of,
)


class FitCheckpoint(fastai.basic_train.LearnerCallback):
    """Save a fit at every epoch's end, with its history as history_<name>.csv; go on where an
    interrupted one was saved."""

    _order = 100  # after the recorder, the schedule and whatever may end the fit

    def __init__(self, learn, checkpoints, name):
        super().__init__(learn)
        self.checkpoints, self.name = checkpoints, name
        self.call = {
            "split": split_digest(learn.data),
            "batches an epoch": len(learn.data.train_dl),
        }

    def before_fit(self, n_epochs, callbacks, lr, wd):
        """Find out where to begin, before another callback has opened a file or reset itself.

        Args:
            n_epochs: of the fit. callbacks: all of it. lr, wd: as the fit was given them.
        Raises:
            InputError: one of them keeps what cannot be put back; names it. Or no validation set.
        """
        if self.learn.data.empty_val:
            raise InputError(
                "the databunch has no validation set, and a fit with checkpoints keeps its losses;"
                " give it one with split_by_idx, or fit without Checkpoints.callback"
            )
        on_first(lambda: writable_folder(self.learn.path))  # for the history, an epoch from now
        self.others = stateful_callbacks([one for one in callbacks if one is not self])
        self.given, self.resumed = states_of(self.others), False
        self.smoothed = fastai.callback.SmoothenValue(0.98)  # as fastai's own
        self.call["epochs"] = n_epochs
        self.call.update(_rates(self.learn, callbacks, lr, wd))
        self.kept = self.checkpoints.load(self.name, self.call, self.learn.data)
        if self.kept is None:
            self.starts = log_starts(callbacks)
            return
        self.starts = self.kept.get("log starts", [])
        with self.checkpoints.reading(self.name):
            require_same_settings(self.given, self.kept.get("given", []))
        done = self.kept.get("epoch")
        if type(done) is not int or not 0 < done <= n_epochs:
            raise InputError(
                f"{self.checkpoints.path(self.name)} is of epoch {done!r} of {n_epochs}; start a"
                " new run in another folder"
            )
        log_until(callbacks, done, self.starts)

    def on_train_begin(self, n_epochs, pbar, **kwargs):
        """Jump to where the fit was saved; fastai then has every callback jump to that epoch."""
        if "epochs" not in self.call:
            raise InputError(
                "a fit with checkpoints needs the learner that hcd.get_learner builds; build it so,"
                " or fit without Checkpoints.callback"
            )
        if self.kept is None:
            return None
        done = self.kept["epoch"]
        # a fit that had ended early stays ended
        pbar.main_bar.gen = range(n_epochs if self.kept.get("ended") else done, n_epochs)
        pbar.main_bar.total += done  # fastai takes it off, for loops that it shortens itself
        print(f"{self.name}: going on after epoch {done} of {n_epochs}")
        return {"epoch": done, "iteration": done * self.call["batches an epoch"]}

    def jump_to_epoch(self, epoch):
        """Put model, optimiser, history, smoothed loss and the other callbacks back."""
        with self.checkpoints.reading(self.name):
            learn, recorder, kept = self.learn, self.learn.recorder, self.kept["recorder"]
            unwrapped(learn.model).load_state_dict(self.kept["model"])
            learn.opt.load_state_dict(self.kept["opt"])
            # fastai keeps a second copy, which weight decay goes by
            learn.opt.lr = learn.opt.read_val("lr")
            for scaler, state in zip(self._scalers(), self.kept["scalers"]):
                scaler.load_state_dict(state)
            recorder.losses = list(kept["losses"].unbind())
            recorder.val_losses = [np.float32(loss) for loss in kept["val_losses"]]
            for name in ("lrs", "moms", "metrics", "nb_batches"):
                setattr(recorder, name, kept[name])
            self.smoothed.n, self.smoothed.mov_avg = self.kept["smoothed"]
            restore_states(self.others, self.kept.get("callbacks", []))
        # a second model and optimiser state would stay in memory for the rest of the fit
        self.resumed, self.kept = True, None

    def on_epoch_begin(self, **kwargs):
        """Note when the epoch began."""
        self.started = time.monotonic()

    def on_backward_begin(self, last_loss, **kwargs):
        """Follow the smoothed loss; after a resume fastai's own has forgotten the epochs before."""
        self.smoothed.add_value(last_loss.float().detach().cpu())
        if self.resumed:
            self.learn.recorder.losses[-1] = self.smoothed.smooth
            return {"smooth_loss": self.smoothed.smooth}
        return None

    def on_epoch_end(self, epoch, n_epochs, stop_training=False, **kwargs):
        """Save everything, and before it the history as a table: a kill between the two has the
        epoch done again, row and all.

        Raises:
            Diverged: a loss is no number any more; nothing of the epoch is saved.
        """
        learn, recorder = self.learn, self.learn.recorder
        # none where TerminateOnNaN has left the epoch before its validation
        losses = [math.nan if loss is None else float(loss) for loss in recorder.val_losses]
        self._require_finite(epoch, float(recorder.losses[-1]), losses[-1:])
        if is_first():
            self._write_history(recorder, losses)
        self.checkpoints.save(
            self.name,
            self.call,
            learn.data,
            epoch=epoch + 1,
            ended=bool(stop_training),
            model=unwrapped(learn.model).state_dict(),
            opt=learn.opt.state_dict(),
            recorder=_history(recorder, losses),
            smoothed=(self.smoothed.n, self.smoothed.mov_avg),
            scalers=[scaler.state_dict() for scaler in self._scalers()],
            callbacks=states_of(self.others),
            given=self.given,
            **{"log starts": self.starts},
            best={"epoch": int(np.argmin(losses)), "valid_loss": min(losses)} if losses else {},
        )
        self._tell(epoch, n_epochs, losses)

    def _require_finite(self, epoch, train, valid):
        """Stop a training that has lost its numbers."""
        if np.isfinite([train, *valid]).all():
            return
        highest = max(self.learn.recorder.lrs)
        raise Diverged(
            f"{self.name} diverged in epoch {epoch + 1}: its training loss is {train} and its"
            f" validation loss {valid[0] if valid else None} at a learning rate of up to"
            f" {highest:g}; start a new run with a lower one, for going on with this one mends"
            " nothing"
        )

    def _write_history(self, recorder, losses):
        ends = np.cumsum(recorder.nb_batches) - 1
        path = Path(self.learn.path) / f"history_{self.name}.csv"
        with whole_write(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "train_loss", "valid_loss", *recorder.metrics_names])
            for row, end in enumerate(ends[: len(losses)]):
                metrics = recorder.metrics[row] if recorder.metrics else ()
                numbers = [recorder.losses[end], losses[row], *metrics]
                writer.writerow([row, *(f"{loss_text(number, 6)}" for number in numbers)])

    def _tell(self, epoch, n_epochs, losses):
        recorder = self.learn.recorder
        values = recorder.metrics[-1] if recorder.metrics else ()
        events.tell(
            "epoch",
            name=self.name,
            epoch=epoch + 1,
            epochs=n_epochs,
            train=float(recorder.losses[-1]),
            valid=losses[-1] if losses else None,
            metrics={n: float(value) for n, value in zip(recorder.metrics_names, values)},
            seconds=time.monotonic() - self.started,
        )

    def _scalers(self):
        return [callback.scaler for callback in self.learn.callbacks if hasattr(callback, "scaler")]


def _rates(learn, callbacks, lr, wd) -> dict[str, Any]:
    """Return what a fit's learning rates and decay come from, as numbers that JSON can hold."""
    schedules = [one for one in callbacks if type(one).__name__ == "OneCycleScheduler"]
    given = ("lr_max", "div_factor", "pct_start", "final_div")
    lrs = learn.lr_range(lr)
    return {
        "lr": np.asarray(lrs, float).tolist(),
        "wd": learn.wd if wd is None else wd,
        "1cycle": [
            {
                name: np.asarray(getattr(one, name), float).tolist()
                for name in given
                if getattr(one, name, None) is not None
            }
            for one in schedules
        ],
        "loss": type(bare_loss(learn)).__name__,
    }


def _history(recorder, losses) -> dict[str, Any]:
    return {
        "losses": torch.stack(recorder.losses),
        "val_losses": losses,
        "lrs": recorder.lrs,
        "moms": recorder.moms,
        "metrics": recorder.metrics,
        "nb_batches": recorder.nb_batches,
    }
