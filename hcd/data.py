"""Split data set -> item list -> databunch."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.vision import Image, ImageList, pil2tensor

from .dataset.opened import Dataset
from .disk.names import Names
from .disk.parallel import usable_cpus
from .engine.compat import DataBunch
from .engine.databunch import ImageDataBunch
from .engine.device import find_device, require_room_for_workers
from .engine.draws import leave_inherited, replace_loaders
from .engine.ranks import current
from .engine.resident import is_to_be_resident, make_resident
from .errors import InputError
from .reader import read_cropped_image
from .recipe import Recipe


class CroppedImageList(ImageList):
    """fastai item list whose items are read by `read_cropped_image`, each time with a fresh draw.

    Args:
        items: names of files; "train/<id>.tif" and "test/<id>.tif" where `source` is given.
        source: the Dataset that knows where they are. recipe: how to read them.

    KEPT K3: the reader augments validation and test patches too.

    Source: In 13.
    """

    _bunch = ImageDataBunch
    rng = random

    def __init__(
        self,
        items: Any,
        *args: Any,
        source: Dataset | None = None,
        recipe: Recipe = Recipe(),
        **kwargs: Any,
    ) -> None:
        # fastai would make an array of Python's texts of what is none
        super().__init__(np.empty(0) if isinstance(items, Names) else items, *args, **kwargs)
        if isinstance(items, Names):
            self.items = items
        self.source, self.recipe = source, recipe
        # fastai copies these attributes to each part of a split
        self.copy_new += ["source", "recipe"]

    def open(self, fn: str) -> Any:
        """Read one crop as a fastai Image of (3, crop_size, crop_size) float32 in [0, 1]."""
        # verified before training: a second decoder at every read would cost twice the time
        crop = read_cropped_image(self.find(fn), True, self.recipe, self.rng, proven=True)
        return Crop(pil2tensor(crop, np.float32), self.rng)

    def find(self, fn: str) -> Any:
        """Return the file, or the packed patch, that an item names."""
        folder, _, name = str(fn).rpartition("/")
        if self.source is None or folder not in ("train", "test"):
            return fn  # a file's own path, such as one that fastai's add_test was given
        return self.source.locate(folder, name.removesuffix(".tif"))

    def get(self, i: int) -> Any:
        """Read item `i`; fastai's own would also remember the size of every item, in every
        process."""
        return self.open(self.items[i])


class Crop(Image):
    """A fastai Image that the reader has already cut to size, so that there is nothing left to
    transform."""

    def __init__(self, px, rng=random):
        super().__init__(px)
        self.rng = rng

    def apply_tfms(self, tfms, size=None, **kwargs):
        """Return itself where its own size is all that is asked for; else as fastai's Image."""
        if tfms or size != self.shape[-1]:
            return super().apply_tfms(tfms, size=size, **kwargs)
        self.rng.random()  # fastai would draw a number here, and period parity counts draws
        return self


def make_databunch(
    dataset: Dataset,
    recipe: Recipe,
    valid_idx: Sequence[int] | np.ndarray,
    num_workers: int | None = None,
    device: str | torch.device | None = None,
) -> DataBunch:
    """Build the databunch that all training and prediction reads from.

    Args:
        dataset: see `open_dataset`.
        recipe: crop, augmentation, batch size and normalisation.
        valid_idx: row positions of the validation patches, see `stratified_split`.
        num_workers: processes that read; None takes as many as this process may use CPUs (at most
            16), 0 reads in this process.
        device: "cpu", "cuda", ...; None takes a GPU when there is one.
    Returns:
        fastai ImageDataBunch; batches are (batch_size, 3, crop_size, crop_size) float32,
        normalised. Its test_dl is None where the data set has no test set.
    Raises:
        InputError: fewer training patches than one batch (fastai would drop it and train on
            nothing), valid_idx are no distinct row positions, a side without both labels, or
            workers that this machine has too little shared memory or too few open files for.

    CHANGED C3: ids are joined to the data folder (the walkthrough's path '/' gives items that begin
    with '///'), and test patches stand in sorted order.

    READ R2: the call that passes no transforms is garbled in the source, as are the comments
        between its lines.

    Source: In 12, In 14.
    """
    labels = dataset.label_values
    positions = _row_positions(valid_idx, len(labels))
    held_out = _held_out(labels, positions, recipe.batch_size)
    # fastai would count the CPUs without a container's quota
    cpus = max(1, usable_cpus() // current().neighbours)
    count = min(16, cpus) if num_workers is None else num_workers
    place = find_device(device)
    sizes = (count, recipe.batch_size, recipe.crop_size, 2 if recipe.fast else 1)
    require_room_for_workers(*sizes, resident=is_to_be_resident(recipe, place))
    options: dict[str, Any] = dict(path=dataset.root, source=dataset, recipe=recipe)
    pin_memory = torch.cuda.is_available()  # torch warns where nothing needs pinned memory
    ids = dataset.id_bytes("train")
    train, valid = (
        CroppedImageList(
            Names("train", ids, rows), inner_df=_label_table(dataset, labels, rows), **options
        )
        for rows in (np.flatnonzero(~held_out), positions)
    )
    labelled = train.split_by_list(train, valid).label_from_df(cols="label")
    if len(test := dataset.id_bytes("test")):
        labelled.add_test(CroppedImageList(Names("test", test), **options))
    data = (
        labelled.transform([[], []], size=recipe.crop_size)  # the reader has augmented already
        .databunch(
            bs=recipe.batch_size,
            device=place,
            pin_memory=pin_memory,
            num_workers=count,
            worker_init_fn=leave_inherited,
        )
        .normalize((torch.tensor(recipe.mean), torch.tensor(recipe.std)))
    )
    # fastai passes the option on to every loader but this one
    data.single_dl.dl.pin_memory = pin_memory
    replace_loaders(data, recipe)
    if not make_resident(data, recipe):
        require_room_for_workers(*sizes)
    return data


def _label_table(dataset, labels, rows):
    """Return the labels of some rows under the index that they have in `dataset.labels`, by which
    fastai's users find them there."""
    index = dataset.row_index
    of_rows = pd.Index(rows) if index is None else index[rows]
    # of a small type, people's arithmetic would overflow
    found = labels[rows].astype("int64") if labels.dtype == np.int8 else labels[rows]
    return pd.DataFrame({"label": found}, index=of_rows)


def _row_positions(valid_idx, n_rows):
    """Return row positions as an (n,) int array.

    Raises:
        InputError: they are something else, such as a mask or ids.
    """
    given = valid_idx if hasattr(valid_idx, "__array__") else list(valid_idx)
    try:
        found = np.asarray(given)
    except ValueError as error:  # parts of several lengths
        raise InputError(
            f"valid_idx is a {type(valid_idx).__name__} of {len(given)} lists and must be one list"
            " of row positions; give the second of the two that split_dataset returns"
        ) from error
    if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
        remedy = "give np.flatnonzero(mask)" if found.dtype.kind == "b" else "give whole numbers"
        raise InputError(
            f"valid_idx with {len(found)} entries is a {found.dtype} array of shape {found.shape}"
            f" and must name some of the rows 0 to {n_rows - 1}; {remedy}, as stratified_split"
            " returns them"
        )
    return found


def _held_out(labels, valid_idx, batch_size):
    """Return which rows are validated on, (N,) bool; require distinct rows, a whole batch to train
    on, and both labels on both sides."""
    if labels.dtype.kind == "f":
        raise InputError(
            f"the labels are {labels.dtype}, such as {labels[0]}, of which fastai would train a"
            " regression; convert them with dataset.labels['label'].astype(int)"
        )
    n_rows, n_train = len(labels), len(labels) - len(valid_idx)
    within = (valid_idx >= 0) & (valid_idx < n_rows)
    held_out: np.ndarray = np.zeros(n_rows, bool)
    held_out[valid_idx[within].astype(int)] = True
    if not len(valid_idx) or held_out.sum() < len(valid_idx):
        raise InputError(
            f"valid_idx with {len(valid_idx)} entries must name some of the rows 0 to {n_rows - 1},"
            " none of them twice; take those of stratified_split on this data set"
        )
    if n_train < batch_size:
        raise InputError(
            f"batch_size={batch_size} is more than the {n_train} training patches, and an"
            f" incomplete batch is dropped; give {n_train} or less"
        )
    for side, chosen in (("training", labels[~held_out]), ("validation", labels[held_out])):
        kinds, counts = np.unique(chosen, return_counts=True)
        if len(kinds) < 2:
            raise InputError(
                f"the {side} side has {len(chosen)} patches with label counts"
                f" {dict(zip(kinds.tolist(), counts.tolist()))} and needs both labels; take the"
                " valid_idx of stratified_split"
            )
    return held_out
