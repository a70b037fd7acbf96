"""What an interpretation that is handed in really holds: which set it is of, and probabilities."""

import torch
from fastai.basic_data import DatasetType
from fastai.data_block import EmptyLabelList
from torch.utils.data import RandomSampler

from ..errors import InputError
from .given import bare_loss, is_label_smoothing, require_probabilities


def interpreted_set(interp, ds_type):
    """Return the set that an interpretation is of: the one with its labels in its order.

    Args:
        interp: fastai ClassificationInterpretation. ds_type: the set that the user names, or None.
    Raises:
        InputError: no set has those labels in that order, several have, or none has labels.
    """
    data, labels = interp.data, interp.y_true.tolist()
    kinds = [ds_type or interp.ds_type]
    found = [kind for kind in kinds if _labels(data, kind) == labels]
    if not found and kinds == [DatasetType.Valid] and ds_type is None:
        # what an interpretation says that was made without fastai.vision, whatever it is of
        kinds = [DatasetType.Valid, DatasetType.Fix, DatasetType.Test]
        found = [kind for kind in kinds if _labels(data, kind) == labels]
    if len(found) > 1:
        names = " and of the ".join(kind.name for kind in found)
        raise InputError(
            f"the interpretation's labels are those of the {names} set; pass ds_type= to say which"
            " it is of"
        )
    if not found:
        raise InputError(
            f"the interpretation has {len(labels)} labels that are not those of the"
            f" {' or '.join(kind.name for kind in kinds)} set in order; interpret the databunch as"
            " it is now, and take DatasetType.Fix for training patches, since Train is shuffled"
        )
    if found == [DatasetType.Test] and isinstance(data.test_ds.y, EmptyLabelList):
        raise InputError(
            "the Test set has no labels, so no prediction in it is correct or incorrect; take"
            " DatasetType.Valid"
        )
    return found[0]


def _labels(data, kind):
    """Return the labels of a set in the order in which a pass hands them out; None where there is
    no set or no order."""
    loader = data.dl(kind)
    if loader is None:
        return None
    sampler = loader.dl.sampler
    if isinstance(sampler, RandomSampler) or getattr(sampler, "shuffle", False):
        return None
    labels = data._grab_dataset(loader).y
    if isinstance(labels, EmptyLabelList):
        return [0] * len(labels.items)  # what fastai hands out for them
    return [int(label) for label in labels.items]


class WithProbabilities:
    """An interpretation whose predictions are probabilities."""

    def __init__(self, interp):
        self._interp, self.preds = interp, interp.preds
        loss = bare_loss(interp.learn)
        sums = "bce" not in type(loss).__name__.lower()
        if is_label_smoothing(interp.learn) and not _are_probabilities(self.preds):
            # fastai knows no activation for it
            self.preds = torch.softmax(self.preds.float(), 1)
        require_probabilities(self.preds, "the interpretation's predictions", sums)

    def __getattr__(self, name):
        return getattr(self._interp, name)


def _are_probabilities(values):
    return bool(((values >= 0) & (values <= 1)).all())
