"""Averaged augmented predictions and the submission file."""
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.basic_data import DatasetType
from tqdm import tqdm

from .files import whole_write


def predict_tta(learner, passes=12, progress=True):
    """Predict the test set several times, each with fresh augmentation, and average (test-time augmentation).

    Args:
        learner: its databunch holds the test set.
        passes: number of passes. progress: show a bar.
    Returns:
        (N, 2) float64 mean probabilities of negative and tumour, in test-set order.
    Raises:
        ValueError: fewer than one pass, or no test set.

    Source: In 39.
    """
    if passes < 1:
        raise ValueError(f"passes={passes} averages nothing; give 1 or more, 12 in the walkthrough")
    if learner.data.test_dl is None:
        raise ValueError("the learner's databunch has no test set; build it with make_databunch")
    total = np.zeros((len(learner.data.test_ds), 2))
    for _ in tqdm(range(passes), "averaged passes", disable=not progress):
        probabilities, _ = learner.get_preds(ds_type=DatasetType.Test)
        total += probabilities.numpy()
    return total / passes


def write_submission(path, dataset, learner, probabilities):
    """Write the tumour probabilities in the order of sample_submission.csv.

    Args:
        path: CSV file to write, whole or not at all.
        dataset: see `open_dataset`. learner: its test set gives the order of `probabilities`.
        probabilities: (N, 2), see `predict_tta`.
    Returns:
        DataFrame with the columns id and label (tumour probability), as written.
    Raises:
        ValueError: a shape, id or value that a submission may not have; nothing is written then.

    CHANGED C6: predictions find their id by the file's stem; the walkthrough's look-up by path fails.

    Source: In 41.
    """
    probabilities = np.asarray(probabilities)
    ids = [Path(item).stem for item in learner.data.test_ds.items]
    if probabilities.shape != (len(ids), 2):
        raise ValueError(f"probabilities have shape {probabilities.shape} for {len(ids)} test patches; give ({len(ids)}, 2)")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is outside [0, 1] or not a number; no submission was written, check the model")
    if len(set(ids)) != len(ids) or sorted(ids) != sorted(dataset.sample_ids):
        raise ValueError(f"the {len(set(ids))} predicted ids are not the {len(dataset.sample_ids)} of sample_submission.csv; "
                         "predict the test set of this very data set")
    tumour = dict(zip(ids, probabilities[:, 1]))
    table = pd.DataFrame({"id": dataset.sample_ids, "label": [tumour[patch_id] for patch_id in dataset.sample_ids]})
    with whole_write(path, "w", newline="") as file:
        table.to_csv(file, index=False)
    return table
