"""Data set -> split -> item list -> databunch."""
import random

import numpy as np
import pandas as pd
import torch
from fastai.vision import Image, ImageList, pil2tensor
from sklearn.model_selection import train_test_split

from .reader import read_cropped_image
from .recipe import Recipe


def stratified_split(labels, valid_fraction=0.1, rng_seed=None):
    """Split rows at random into training and validation, with equal shares of each label.

    Args:
        labels: (N,) of 0 and 1.
        valid_fraction: share of the rows that goes to validation, between 0 and 1.
        rng_seed: None draws anew each time, as the walkthrough does; an int or a RandomState repeats.
    Returns:
        train_idx, valid_idx: two disjoint (n,) int arrays of row positions, together all rows, in random order.
    Raises:
        ValueError: a share or a table too small to leave every label on both sides.

    Source: In 10.
    """
    labels = np.asarray(labels)
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction={valid_fraction} is no share; give one between 0 and 1, 0.1 in the walkthrough")
    kinds, counts = np.unique(labels, return_counts=True)
    n_valid = int(np.ceil(valid_fraction * len(labels)))
    sides = ()
    if len(kinds) > 1 and counts.min() > 1 and len(kinds) <= n_valid <= len(labels) - len(kinds):
        sides = train_test_split(np.arange(len(labels)), test_size=valid_fraction, stratify=labels, random_state=rng_seed)
    # of a rare label, sklearn's rounding can leave one side none
    if not sides or any(len(np.unique(labels[side])) < len(kinds) for side in sides):
        raise ValueError(f"{len(labels)} labels with counts {dict(zip(kinds.tolist(), counts.tolist()))} cannot be split at "
                         f"valid_fraction={valid_fraction}: each side needs both labels; use more patches or another share")
    train_idx, valid_idx = sides
    return train_idx, valid_idx


class CroppedImageList(ImageList):
    """fastai item list whose items are read by `read_cropped_image`, each time with a fresh draw.

    KEPT K3: the reader augments validation and test patches too.

    Source: In 13.
    """

    def __init__(self, *args, recipe=Recipe(), **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self.copy_new.append("recipe")  # fastai copies these attributes to each part of a split

    def open(self, fn):
        """Read one crop as a fastai Image of (3, crop_size, crop_size) float32 in [0, 1]."""
        return Image(pil2tensor(read_cropped_image(fn, recipe=self.recipe, rng=random), np.float32))


def make_databunch(dataset, recipe, valid_idx, num_workers=None, device=None):
    """Build the databunch that all training and prediction reads from.

    Args:
        dataset: see `open_dataset`.
        recipe: crop, augmentation, batch size and normalisation.
        valid_idx: row positions of the validation patches, see `stratified_split`.
        num_workers: processes that read; None lets fastai count the cores (at most 16), 0 reads in this process.
        device: "cpu", "cuda", ...; None takes a GPU when there is one.
    Returns:
        fastai ImageDataBunch; batches are (batch_size, 3, crop_size, crop_size) float32, normalised.
    Raises:
        ValueError: fewer training patches than one batch (fastai would drop it and train on nothing), or valid_idx are no
            distinct row positions.

    CHANGED C3: ids are joined to the data folder (the walkthrough's path '/' gives items that begin with '///'), and test
    patches stand in sorted order.

    READ R2: the call that passes no transforms is garbled in the source, as are the comments between its lines.

    Source: In 12, In 14.
    """
    n_rows, n_train = len(dataset.labels), len(dataset.labels) - len(valid_idx)
    if not len(valid_idx) or len(np.intersect1d(valid_idx, np.arange(n_rows))) < len(valid_idx):
        raise ValueError(f"valid_idx with {len(valid_idx)} entries must name some of the rows 0 to {n_rows - 1}, none of them "
                         "twice; take those of stratified_split on this data set")
    if n_train < recipe.batch_size:
        raise ValueError(f"batch_size={recipe.batch_size} is more than the {n_train} training patches, and an incomplete batch is "
                         f"dropped; give {n_train} or less")
    options = dict(path=dataset.root, cols="id", suffix=".tif", recipe=recipe)
    workers = {} if num_workers is None else {"num_workers": num_workers}
    test = CroppedImageList.from_df(pd.DataFrame({"id": dataset.test_ids}), folder="test", **options)
    pin_memory = torch.cuda.is_available()  # torch warns where nothing needs pinned memory
    data = (CroppedImageList.from_df(dataset.labels, folder="train", **options)
            .split_by_idx(valid_idx)
            .label_from_df(cols="label")
            .add_test(test)
            .transform([[], []], size=recipe.crop_size)  # the reader has augmented already
            .databunch(bs=recipe.batch_size, device=find_device(device), pin_memory=pin_memory, **workers)
            .normalize((torch.tensor(recipe.mean), torch.tensor(recipe.std))))
    data.single_dl.dl.pin_memory = pin_memory  # fastai passes the option on to every loader but this one
    return data


def find_device(device=None):
    """Return the torch device to use; None takes a GPU when there is one.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:120]
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}); use \"cpu\" or leave it out") from error
    return torch.device(device)


def set_rng_seed(rng_seed):
    """Seed Python's, numpy's and torch's generators, and ask cuDNN for repeatable kernels; None leaves all as they are.

    CHANGED C16: the walkthrough seeds nothing, so no two of its runs agree.
    """
    if rng_seed is None:
        return
    random.seed(rng_seed)
    np.random.seed(rng_seed)
    torch.manual_seed(rng_seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
