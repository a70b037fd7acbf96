"""Which slide was a patch cut from? The community's table of ids and slides."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from ..disk.whole import StrPath
from ..errors import InputError
from ..recipe import Recipe
from .opened import Dataset
from .tables import id_array, read_ids, table_file

TABLE = "slides.csv"  # in the data folder, as `hcd import pcam` writes it


def read_slides(
    path: StrPath | None, dataset: Dataset, recipe: Recipe = Recipe()
) -> pd.DataFrame | None:
    """Read which slide each patch of a data set was cut from.

    Args:
        path: CSV file, columns id and wsi (the slide's name); None or "" takes slides.csv of the
            data folder, where it is there; one that does not fit is left out with a warning,
            unless the split needs it.
        dataset: the whole of it, before patches are left out.
        recipe: one that splits by slides needs the table.
    Returns:
        DataFrame, columns id and wsi; None where no table was named and none is there.
    Raises:
        FileNotFoundError: no such file. InputError: no such table, an id that is unknown, missing
            or doubled, a slide without a name, or no table to split by. It may leave out the test
            patches, all of them.
    """
    own = table_file(dataset.root, TABLE)
    if path:
        return _read(Path(path).expanduser(), dataset)
    if recipe.split == "slides":
        if not own.exists():
            raise InputError(
                f"split='slides' needs the slide of each patch, and {dataset.root} holds no"
                f" {TABLE}; give --slides FILE with the columns id,wsi, or take split='islands'"
            )
        return _read(own, dataset)
    try:
        return _read(own, dataset) if own.exists() else None
    except InputError as error:  # nobody asked for it, and islands of tissue do as well
        warnings.warn(f"slides are not told apart: {error}", UserWarning, stacklevel=2)
        return None


def _read(path, dataset):
    table = read_ids(path, "wsi")
    nameless = table["wsi"].str.strip() == ""
    if nameless.any():
        raise InputError(
            f"{path}: id {table['id'][nameless].iloc[0]} has no wsi ({nameless.sum()} such row(s));"
            " name its slide"
        )
    listed, train = id_array(table["id"]), id_array(dataset.labels["id"])
    test = id_array(dataset.test_ids)
    unknown = np.flatnonzero(~np.isin(listed, np.concatenate([train, test])))
    if len(unknown):
        raise InputError(
            f"{path}: id {table['id'].iat[unknown[0]]} is none of {dataset.root} ({len(unknown)}"
            " such row(s)); remove what is of another data set"
        )
    for side, ids in (("labelled", train), ("test", test)):
        missing = ids[~np.isin(ids, listed)]
        if len(missing) and not (side == "test" and len(missing) == len(ids)):
            raise InputError(
                f"{path}: the {side} id {missing[0].decode()} is missing ({len(missing)} of"
                f" {len(ids)} are); add its row"
            )
    return table


def slides_of(table: pd.DataFrame, ids) -> np.ndarray:
    """Return the slide of each id, (N,) of Python's texts, from a table that holds them all."""
    # numpy's own would give every row the room of the longest name
    return table.set_index("id")["wsi"].reindex(list(ids)).to_numpy(object)
