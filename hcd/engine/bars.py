"""fastai's progress bars in a notebook: none stays that nobody moves any more."""

from typing import Any

from ..disk.shown import loss_text
from .compat import fastai

# what fastai and its bars call on the two bars of a fit
DRAWN = (
    "on_iter_begin",
    "on_iter_end",
    "on_interrupt",
    "add_child",
    "show",
    "write",
    "update_graph",
)


class OneBar(fastai.callback.Callback):
    """One bar that counts a fit's batches, in the place of fastai's two and of their table.

    For a range test, which breaks off and would leave both standing, above a table of nothing that
    was validated.
    """

    _order = -20  # before the recorder, which writes into fastai's bars

    def __init__(self, bar):
        self.bar = bar

    def on_train_begin(self, pbar, **kwargs):
        """Have fastai's bars of this fit draw nothing."""
        for name in DRAWN:
            setattr(pbar, name, lambda *args, **kwargs: None)

    def on_batch_end(self, **kwargs):
        """Count a batch."""
        self.bar.update()

    def on_train_end(self, **kwargs):
        """Close the bar before fastai says below it that the test is complete."""
        self.bar.close()


class FitBar(fastai.callback.Callback):
    """In a notebook, one bar under fastai's table in the place of two, which says of what epoch."""

    _order = -5  # after the recorder, which writes the loss beside the bar

    def on_train_begin(self, pbar, **kwargs):
        """Leave the bar of epochs out; a terminal has none."""
        self.bars = pbar if hasattr(pbar, "order") else None
        if self.bars:
            self.bars.order = ["text", "pb2"]

    def on_batch_begin(self, train, **kwargs):
        """Say that a batch is validated."""
        if not train:
            self._say("validating", **kwargs)

    def on_backward_begin(self, smooth_loss, **kwargs):
        """Say the smoothed loss."""
        self._say(f"loss {loss_text(smooth_loss, 4)}", **kwargs)

    def _say(self, what, epoch, n_epochs, **_):
        bar: Any = getattr(self.bars, "child", None)
        if bar is not None:
            bar.comment = f"epoch {epoch + 1} of {n_epochs}, {what}"


def close_bars(learner) -> None:
    """Close the bars of a fit that was broken off or resumed, as fastai does of one that went
    through: its table and its graph stay."""
    bars = getattr(getattr(learner, "recorder", None), "pbar", None)
    main_bar: Any = getattr(bars, "main_bar", None)
    if getattr(main_bar, "is_active", False):  # only a notebook's ever is
        main_bar.on_iter_end()
