"""Averaged augmented predictions and the submission file."""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.basic_data import DeviceDataLoader
from fastai.core import listify
from torch.utils.data import BatchSampler, Dataset, SequentialSampler, Subset

from .disk.shown import progress_bar
from .disk.whole import StrPath, whole_write
from .engine.compat import DataLoader
from .engine.given import (
    class_names,
    probabilities_of,
    require_crops,
    require_learner,
    require_negative_then_tumour,
    require_probabilities,
    require_same_place,
    require_width,
)
from .engine.graphs import recorded
from .engine.ranks import gathered
from .engine.resident import ResidentItems
from .engine.saving import Learner
from .engine.sharded import shared
from .errors import InputError
from .reader import apply_draw, draw_augmentation, draw_size, read_patch
from .runs.checkpoint import Checkpoints, NoCheckpoints, names_digest, weights_digest


def predict_tta(
    learner: Learner,
    passes: int = 12,
    progress: bool = True,
    checkpoints: Checkpoints | None = None,
) -> np.ndarray:
    """Predict the test set several times, each time with fresh augmentation, and average (test-time
    augmentation).

    CHANGED C20: all augmentations are drawn at the start, from Python's `random`, pass by pass;
    then each patch is read once for all passes, where the walkthrough reads it in each.

    Args:
        learner: its databunch holds the test set.
        passes: number of passes. progress: show a bar. checkpoints: see `Checkpoints`; a resumed
            run skips finished patches.
    Returns:
        (N, classes) float64 mean probabilities in the order of the databunch's classes, such as
        (N, 2) of negative and tumour, in test-set order.
    Raises:
        InputError: fewer than one pass, no test set, one that is not read by a recipe alone, or a
            loss whose activation is not known.

    Source: In 39.
    """
    if passes < 1:
        raise InputError(f"passes={passes} averages nothing; give 1 or more, 12 in the walkthrough")
    require_learner(learner)
    test_dl = learner.data.test_dl
    if test_dl is None:
        raise InputError(
            "the learner's databunch has no test set to predict; build it with make_databunch from"
            " a data folder that has test/ and sample_submission.csv"
        )
    require_crops(learner.data.test_ds, "the test set")
    classes, activation = class_names(learner.data), probabilities_of(learner)
    step = (checkpoints or NoCheckpoints()).step(
        "tta",
        learner.data,
        lambda: {
            "passes": passes,
            "weights": weights_digest(learner.model),
            "test items": names_digest(learner.data.test_ds.items),
            "test recipe": asdict(require_crops(learner.data.test_ds, "the test set")),
            "batch transforms": [_described(transform) for transform in listify(test_dl.tfms)],
            "activation": getattr(activation, "__qualname__", type(activation).__name__),
        },
        redraws=True,
    )
    done = step.load(lambda kept: kept["means"].reshape(-1, len(classes)).double())
    means = [] if done is None else [done]
    crops = DrawnCrops(learner.data.test_ds, passes)
    waiting = Subset(crops, range(0 if done is None else len(done), len(crops)))
    learner.model.eval()
    left = len(waiting)
    bar = progress_bar(len(crops), f"{passes} averaged passes", progress, initial=len(crops) - left)
    with torch.no_grad(), bar, recorded(learner.model, learner.data.device):
        for images, _ in _batches(waiting, passes, test_dl):
            probabilities = _predict(learner.model, images, classes, activation)
            own = probabilities.reshape(-1, passes, len(classes)).mean(1).cpu()
            means.append(gathered(own)[:left])  # without what a last share repeats
            left -= len(means[-1])
            bar.update(len(means[-1]))
            step.save_now_and_then(lambda: {"means": torch.cat(means)})
    step.tell(f"{len(crops)} test patches predicted {passes} times")
    return torch.cat(means).numpy()


def _described(transform) -> list:
    """Return a batch transform's name and its numbers."""
    numbers = {
        name: np.asarray(value).tolist()
        for name, value in sorted(getattr(transform, "keywords", {}).items())
    }
    function = getattr(transform, "func", transform)
    return [getattr(function, "__name__", type(function).__name__), numbers]


def _predict(model, images, classes, activation):
    """Return a batch's float64 probabilities, (crops, classes)."""
    require_same_place(model, images)
    outputs = model(images)
    require_width(outputs.shape[1], classes)
    # at least float32, for 16 bits make coarse probabilities
    probabilities = activation(outputs.to(torch.promote_types(outputs.dtype, torch.float32)))
    require_probabilities(probabilities, "the averaged predictions", sums=False)
    return probabilities.double()


def _batches(waiting, passes, test_dl):
    """Return what yields all crops of a few patches at a time, as many crops as training takes."""
    count = max(1, test_dl.batch_size // passes)
    items, mine = test_dl.dl.dataset, shared(SequentialSampler(waiting), count)
    if isinstance(items, ResidentItems) and items.unchanged():
        return _resident_batches(waiting, BatchSampler(mine, count, False), test_dl)
    loader = DataLoader(
        waiting,
        batch_size=count,
        sampler=mine,
        collate_fn=_join,
        num_workers=test_dl.num_workers,
        pin_memory=test_dl.pin_memory,
        generator=torch.Generator(),
    )
    return DeviceDataLoader(loader, test_dl.device, test_dl.tfms, _join)


def _resident_batches(waiting, batches, test_dl):
    """Yield the crops of a few patches at a time, cut on the device that holds them."""
    rows, draws = torch.from_numpy(test_dl.dl.dataset.rows), waiting.dataset.draws
    for batch in batches:
        chosen = [waiting.indices[place] for place in batch]
        drawn = torch.from_numpy(draws[:, chosen].swapaxes(0, 1)).flatten(0, 1)
        crops = test_dl.dl.patches.crops(rows[chosen].repeat_interleave(len(draws)), drawn)
        yield test_dl.proc_batch((crops, torch.zeros(0)))


class DrawnCrops(Dataset):
    """Items of a CroppedImageList in a set of fastai's, each as (passes, 3, crop_size, crop_size)
    float32 crops that were drawn beforehand."""

    def __init__(self, dataset, passes):
        self.items = dataset.x
        size = draw_size(self.items.recipe)
        self.draws = np.empty((passes, len(self.items), size), np.int16)
        for drawn in self.draws.reshape(-1, size):
            drawn[:] = draw_augmentation(self.items.recipe)
            if dataset.tfmargs:
                random.random()  # as `Crop.apply_tfms` does after each read

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        recipe = self.items.recipe
        patch = read_patch(self.items.find(self.items.items[i]), recipe, proven=True)
        crops = np.stack([apply_draw(patch, draw.tolist(), recipe) for draw in self.draws[:, i]])
        return torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())


def _join(items):
    """Join loader items to the (images, labels) that fastai's normalisation takes."""
    return torch.cat(items), torch.zeros(0)


def write_validation(
    path: StrPath, learner: Learner, probabilities: Any, losses: Any
) -> pd.DataFrame:
    """Write what a model says of its validation patches, for a report that comes later.

    CHANGED C30: the walkthrough keeps no validation predictions.

    Args:
        path: CSV file to write, whole or not at all.
        learner: its validation set gives ids, labels and the order of `probabilities`.
        probabilities, losses: (N, 2) of negative and tumour and (N,), as
            `learner.get_preds(with_loss=True)` returns them. A loss can be told where a
            probability is 0 in float32.
    Returns:
        DataFrame with the columns id, label (0 or 1), probability (of tumour) and loss, as written.
    Raises:
        InputError: other classes than negative and tumour, or another number of predictions.

    Source: In 30.
    """
    require_learner(learner)
    require_negative_then_tumour(learner.data)
    patches, probabilities = learner.data.valid_ds, np.asarray(probabilities)
    if probabilities.shape != (len(patches), 2) or np.shape(losses) != (len(patches),):
        raise InputError(
            f"probabilities have shape {probabilities.shape} and losses {np.shape(losses)} for"
            f" {len(patches)} validation patches; give ({len(patches)}, 2) and ({len(patches)},)"
        )
    table = pd.DataFrame(
        {
            "id": [Path(str(item)).stem for item in patches.items],
            "label": [int(label) for label in patches.y.items],
            "probability": probabilities[:, 1].astype(float),
            "loss": np.asarray(losses, float) + 0.0,  # a sure model's is -0.0
        }
    )
    with whole_write(path, "w", newline="") as file:
        table.to_csv(file, index=False)
    return table


def write_submission(
    path: StrPath, dataset: Dataset, learner: Learner, probabilities: Any
) -> pd.DataFrame:
    """Write the tumour probabilities in the order of sample_submission.csv.

    Args:
        path: CSV file to write, whole or not at all.
        dataset: see `open_dataset`. learner: its test set gives the order of `probabilities`.
        probabilities: (N, 2), see `predict_tta`.
    Returns:
        DataFrame with the columns id and label (tumour probability), as written.
    Raises:
        InputError: a shape, id or value that a submission may not have, or other classes than
            negative and tumour in that order; nothing is written then.

    CHANGED C6: predictions find their id by the file's stem; the walkthrough's look-up by path
        fails.

    Source: In 41.
    """
    require_learner(learner)
    require_negative_then_tumour(learner.data)
    if learner.data.test_dl is None:
        raise InputError(
            "the learner's databunch has no test set to give the order of the probabilities; build"
            " it with make_databunch from a data folder that has test/ and sample_submission.csv"
        )
    probabilities = np.asarray(probabilities)
    ids = [Path(item).stem for item in learner.data.test_ds.items]
    if probabilities.shape != (len(ids), 2):
        raise InputError(
            f"probabilities have shape {probabilities.shape} for {len(ids)} test patches; give"
            f" ({len(ids)}, 2)"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError(
            "a probability is outside [0, 1] or not a number; no submission was written, check the"
            " model"
        )
    if len(set(ids)) != len(ids) or sorted(ids) != sorted(dataset.sample_ids):
        raise InputError(
            f"the {len(set(ids))} predicted ids are not the {len(dataset.sample_ids)} of"
            " sample_submission.csv; predict the test set of this very data set"
        )
    tumour = dict(zip(ids, probabilities[:, 1]))
    table = pd.DataFrame(
        {"id": dataset.sample_ids, "label": [tumour[patch_id] for patch_id in dataset.sample_ids]}
    )
    with whole_write(path, "w", newline="") as file:
        table.to_csv(file, index=False)
    return table
