"""What other callbacks remember of a fit, so that a resumed one ends as if it had never stopped.

A callback's numbers, texts and tensors are its state: the best loss so far, how long it has waited.
One that holds anything else cannot be put back and is refused by name before the fit begins.
"""

import types
from typing import Any

import numpy as np
import torch
from fastai.callbacks import TrackerCallback

from ..disk.whole import shorten, whole_write
from ..engine.compat import fastai
from ..errors import InputError

# rebuilt by fastai for every fit, or put back by FitCheckpoint itself
REBUILT = {
    "FitCheckpoint",
    "Recorder",
    "ShowGraph",
    "OneCycleScheduler",
    "LossScaler",
    "RecordedSteps",
    "DecayAtOnce",
    "AverageMetric",
    "AcrossRanks",
}
# what callbacks hold that is no state of theirs: the learner, its parts, and what they were given
NO_STATE = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    np.ufunc,
    type,
    torch.nn.Module,
    fastai.callback.OptimWrapper,
    fastai.basic_train.Learner,
)
# keep a second copy of the weights, which the optimiser updates in the place of the model's
REFUSED = {"MixedPrecision": "to_fp16 keeps a second copy of the weights"}
# where a callback writes, and what `log_until` sees to
NAMED = {"_learn", "learn", "path"}
FILES = {"CSVLogger": {"file", "start_epoch"}}


def stateful_callbacks(callbacks) -> list:
    """Return the callbacks that may remember something.

    Raises:
        InputError: one holds what cannot be kept; names it and the attribute.
    """
    found = [one for one in callbacks if type(one).__name__ not in REBUILT]
    for one in found:
        why = REFUSED.get(type(one).__name__)
        if why:
            raise InputError(
                f"{why}, which a resumed fit could not put back; train with Recipe(fast=True), or"
                " fit without Checkpoints.callback"
            )
        for name, value in _attributes(one).items():
            if not _is_plain(value):
                raise InputError(
                    f"{type(one).__name__} holds {name}={type(value).__name__}, which a resumed fit"
                    " could not put back; leave it out, or fit without Checkpoints.callback"
                )
    return found


def states_of(callbacks) -> list:
    """Return [class name, {attribute: value}] of each callback, for a checkpoint."""
    states = []
    for one in callbacks:
        plain = {name: _plain(value) for name, value in _attributes(one).items()}
        states.append([type(one).__name__, plain])
    return states


def restore_states(callbacks, states) -> None:
    """Put back what `states_of` has returned; a callback that is new, such as one that stops the
    fit for a test, begins afresh.

    Raises:
        ValueError: one that tracks the best loss is new, so it would not know the best so far.
    """
    left = list(states)
    for one in callbacks:
        kept = _take(left, type(one).__name__)
        if kept is None and isinstance(one, TrackerCallback):
            raise ValueError(f"the fit began without {type(one).__name__}")
        if kept is not None:
            vars(one).update({name: _restored(value) for name, value in kept[1].items()})


def require_same_settings(given, kept) -> None:
    """Require the callbacks of a resumed fit to be given as they were when it began.

    Args:
        given: `states_of` the callbacks before the fit begins. kept: the same of the first attempt;
            callbacks that are in one of the two alone pass.
    Raises:
        InputError: one has another setting, such as patience; names both values.
    """
    left = list(kept)
    for name, state in given:
        before = _take(left, name)
        for attribute, value in state.items():
            was = before[1].get(attribute, value) if before else value
            if not _equal(was, value):
                raise InputError(
                    f"{name} began this fit with {attribute}={shorten(repr(was), 80)} and now has"
                    f" {shorten(repr(value), 80)}; give it as before, or start a new run"
                )


def _take(left: list, name: str) -> Any:
    """Take the first state of a class out of those that are left; None where there is none."""
    place = next((place for place, state in enumerate(left) if state[0] == name), None)
    return None if place is None else left.pop(place)


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one.cpu(), other.cpu()))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    # a number that is none yet, such as a best loss of nan, equals itself
    return type(one) is type(other) and (one == other or one != one and other != other)


def log_starts(callbacks) -> list[int]:
    """Return for each CSVLogger how many rows stand before those of its first epoch, at the start
    of a fit that nothing has interrupted."""
    starts = []
    for one in callbacks:
        if type(one).__name__ == "CSVLogger":
            goes_on = one.append and one.path.is_file()
            starts.append(len(_rows(one.path)) if goes_on else 1)
    return starts


def log_until(callbacks, epochs: int, starts: list[int]) -> None:
    """Have each CSVLogger go on behind the rows of the epochs that are done."""
    loggers = [one for one in callbacks if type(one).__name__ == "CSVLogger"]
    for one, start in zip(loggers, starts):
        if one.path.is_file():
            rows = _rows(one.path)
            with whole_write(one.path, "w") as file:
                file.writelines(rows[: start + epochs])
            one.append = True


def _rows(path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True)


def _attributes(callback) -> dict[str, Any]:
    ours = NAMED | FILES.get(type(callback).__name__, set())
    return {
        name: value
        for name, value in vars(callback).items()
        if name not in ours and not isinstance(value, NO_STATE) and not _holds_weights(value)
    }


def _holds_weights(value) -> bool:
    """Say whether a value is the model's own weights, or holds some: they are put back with it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_weights, value))
    return isinstance(value, torch.nn.Parameter)


def _is_plain(value) -> bool:
    # exactly these types: what is derived of one comes back as that one
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (np.generic, np.ndarray)):
        return value.dtype.kind in "biuf"
    return type(value) in (bool, int, float, str, type(None), torch.Tensor)


ARRAY = "hcd: an array of numpy's"


def _plain(value):
    """Return a value as a checkpoint can hold it, which loads no types of numpy's."""
    if isinstance(value, np.ndarray):
        return (ARRAY, torch.from_numpy(value.copy()))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    # a copy, for a callback may change its own in place
    return value.clone() if isinstance(value, torch.Tensor) else value


def _restored(value):
    """Return what `_plain` was given."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] == ARRAY:
        return value[1].numpy().copy()
    if isinstance(value, dict):
        return {_restored(key): _restored(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restored, value))
    return value
