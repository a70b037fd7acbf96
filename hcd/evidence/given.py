"""What judging functions are given, whatever it came in: numbers, and groups of patches."""

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from ..disk.whole import shorten
from ..errors import InputError


def number_groups(groups: Any, count: int) -> tuple[np.ndarray, list]:
    """Number the groups of patches in the order in which they come.

    Args:
        groups: names or numbers, as a list, an array, a Series or a tensor. count: of patches.
    Returns:
        (count,) int64 numbers, and the names of the groups in their order.
    Raises:
        InputError: something else, more or less than one for each patch, or a missing one.
    """
    # equal items of a tensor have other hashes, and each would be a group of its own
    listed = _as_python(groups)
    if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
        raise InputError(
            f"groups are a {type(groups).__name__}; give a list of one name or number for each of"
            f" the {count} patches"
        )
    names = pd.Series([_as_python(name) for name in listed], dtype=object)
    if len(names) != count:
        raise InputError(f"{len(names)} groups were given for {count} patches; give one for each")
    missing = names.isna().to_numpy()
    if missing.any():
        raise InputError(
            f"row {int(missing.argmax())} has no group ({missing.sum()} such row(s)); name the"
            " slide or island of each"
        )
    try:
        numbers, kinds = names.factorize()
    except TypeError as error:
        raise InputError(
            f"the group {_shown(names.iloc[0])} of row 0 is no name; give one name or number for"
            " each patch"
        ) from error
    return numbers, list(kinds)


def as_numbers(values: Any, what: str) -> np.ndarray:
    """Return values as float64 of whatever shape they have.

    Raises:
        InputError: one is no number, or they do not stand in one shape; `what` names them.
    """
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        for row, value in enumerate(values if isinstance(values, Iterable) else [values]):
            try:
                float(value)
            except (TypeError, ValueError):
                raise InputError(
                    f"row {row} of {what} is {_shown(value)}; give one number for each patch"
                ) from error
        raise


def is_number(value: Any) -> bool:
    """Say whether a value is one finite number."""
    return isinstance(value, Real) and math.isfinite(value)


def _as_python(value):
    return value.tolist() if hasattr(value, "tolist") else value


def _shown(value):
    return shorten(" ".join(repr(value).split()))
