"""What a run shows while it lives: one live line on a terminal, plain lines in a log."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..disk.shown import loss_text
from ..terminal import stop_printing
from .events import Follower

STAGES = {"stage1": "stage 1", "stage2": "stage 2"}
EVERY = 0.5  # seconds between looks


@contextmanager
def shown_progress(folder) -> Iterator[None]:
    """Print each epoch and step of a run as it ends; those of earlier attempts are not printed."""
    follower, done = Follower(folder, from_end=True), threading.Event()
    shown = sys.stdout  # whatever is put in its place meanwhile
    live = shown.isatty()

    def show():
        for event in follower.new():
            text = describe(event)
            if text:
                say(f"\r\033[K{text}" if live else text, "" if live else "\n", shown)

    def follow():
        while not done.wait(EVERY):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()
        if live:
            say("", file=shown)


def say(text: str, end: str = "\n", file: Any = None) -> None:
    """Print; nobody may be reading any more, such as `head`, and hours of training go on."""
    # a full disk, a name that cannot be encoded
    with suppress(OSError, ValueError):
        try:
            print(text, end=end, file=file, flush=True)
        except BrokenPipeError:
            if file in (None, sys.stdout):
                stop_printing()


def describe(event: dict) -> str:
    """Return an event's line, such as "stage 1, epoch 1 of 8: train 1.34, validation 18.50,
    accuracy 0.600, 1:23"; "" for one that is not shown."""
    try:
        if event["event"] == "epoch":
            return _epoch(**event)
        if event["event"] == "step":
            return str(event["text"])
    # a line of another version, or a damaged one; the run goes on
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return ""
    return ""


def _epoch(name, epoch, epochs, train, valid, metrics, seconds, **_):
    numbers = "".join(f", {metric} {value:.3f}" for metric, value in metrics.items())
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{STAGES.get(name, name)}, epoch {epoch} of {epochs}: train {loss_text(train)}, validation"
        f" {loss_text(valid)}{numbers}, {minutes}:{seconds:02}"
    )
