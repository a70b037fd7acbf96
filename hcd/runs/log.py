"""The curves of a fit for whoever draws them: TensorBoard, MLflow, Weights & Biases, or a list."""

from collections.abc import Callable
from typing import Any

from ..disk.whole import StrPath, writable_folder
from ..engine.compat import fastai
from ..errors import InputError, InputTypeError


class LogCallback(fastai.basic_train.LearnerCallback):
    """Report a fit to any function `log(values, step)`, as fastai's recorder has it.

    At each batch train_loss (smoothed), learning_rate and momentum; at each epoch's end valid_loss
    and the metrics by name, at the step of its last batch. Steps count the batches of the fit from
    0, and go on after a resume. `lr_find` and what validates outside a fit report nothing. At the
    end of the fit, whatever ends it, `log.close()` is called where there is one.

    Args:
        learn: the learner. log: takes a dict of floats by name, and the step.
    Raises:
        InputTypeError: log cannot be called.
    """

    def __init__(self, learn: Any, log: Callable[[dict[str, float], int], Any]) -> None:
        super().__init__(learn)
        if not callable(log):
            raise InputTypeError(
                f"log={log!r} cannot be called; give a function of (values, step), such as"
                " tensorboard_log returns"
            )
        close = getattr(log, "close", None)
        # plain functions, whatever was given: a checkpoint knows that they are no state to put back
        self.log = lambda values, step: log(values, step)
        self.close = lambda: close() if close else None

    def on_batch_end(self, train: bool, iteration: int, skip_validate: bool, **kwargs: Any) -> None:
        """Report a batch that was trained on; only `lr_find` skips validation."""
        if train and not skip_validate:
            recorder = self.learn.recorder
            values = (recorder.losses[-1], recorder.lrs[-1], recorder.moms[-1])
            names = ("train_loss", "learning_rate", "momentum")
            self.log({name: float(value) for name, value in zip(names, values)}, iteration)

    def on_epoch_end(
        self, iteration: int, num_batch: int, skip_validate: bool, **kwargs: Any
    ) -> None:
        """Report the validation of an epoch; `Learner.validate` has one without batches."""
        recorder = self.learn.recorder
        if not num_batch or skip_validate or self.learn.data.empty_val:
            return
        values = {"valid_loss": float(recorder.val_losses[-1])}
        metrics = recorder.metrics[-1] if recorder.metrics else ()
        values |= {name: float(value) for name, value in zip(recorder.metrics_names, metrics)}
        self.log(values, iteration - 1)

    def on_train_end(self, **kwargs: Any) -> None:
        """Close what was opened, also when the fit has failed."""
        self.close()


class TensorBoardLog:
    """What `tensorboard_log` returns. Its file is opened by the first values, so that a fit which
    reports nothing leaves none."""

    def __init__(self, folder: StrPath, writer: Any):
        self.folder, self.make, self.closed = folder, writer, False
        self.writer: Any = None

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Write the values of a step."""
        if self.closed:
            raise InputError(
                f"{self.folder} has the curves of a fit that is over; give the next one a"
                " tensorboard_log with a folder of its own"
            )
        if self.writer is None:
            # of a fit that goes on, TensorBoard then hides what an interrupted epoch has left
            self.writer = self.make(str(self.folder), purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Bring all that was written to the disk."""
        if self.writer is not None:
            self.writer.close()
            self.writer, self.closed = None, True


def tensorboard_log(folder: StrPath) -> TensorBoardLog:
    """Return a function for `LogCallback` that writes for TensorBoard.

    Args:
        folder: of one fit; made when missing. A fit that is resumed is given the same folder again,
            and its curves go on where they were saved.
    Returns:
        function of (values, step); it serves one fit.
    Raises:
        InputError: tensorboard is not installed, or folder is "". OSError: it cannot be written.
    """
    if not str(folder):
        raise InputError('folder "" names nothing; give a folder of the fit\'s own')
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "curves for TensorBoard need the library tensorboard, which is not installed; install"
            " it with pip install 'hcd[tensorboard]'"
        ) from error
    return TensorBoardLog(writable_folder(folder), SummaryWriter)
