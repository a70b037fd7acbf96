"""fastai's ImageDataBunch, with a test set added as the other sets are, and without its pickles."""

from pathlib import Path
from typing import NoReturn

import fastai.data_block
import fastai.vision
from fastai.basic_data import DeviceDataLoader

from ..errors import InputError


class ImageDataBunch(fastai.vision.ImageDataBunch):
    """What `make_databunch` returns.

    CHANGED C24: fastai's `save`, `export` and `load_empty` write and read pickles that `load_data`
    and its like fail to read since torch 2.6; they are refused before anything is written.
    """

    def add_test(self, items, label=None, tfms=None, tfm_y=None) -> None:
        """Add a test set, as fastai does, read by a loader like the validation set's.

        fastai's own loader would ask for pinned memory without a GPU, and would draw from other
        generators than those of the recipe's rng_seed.

        Args:
            items: paths of files, absolute or from the current folder. label, tfms, tfm_y: see
                fastai's `DataBunch.add_test`.
        """
        if not isinstance(items, fastai.data_block.ItemList):
            items = [_absolute(item) for item in items]
        self.label_list.add_test(items, label=label, tfms=tfms, tfm_y=tfm_y)
        valid = self.valid_dl
        loader = type(valid.dl)(self.label_list.test, **valid.dl.init_kwargs)
        self.test_dl = DeviceDataLoader(loader, valid.device, valid.tfms, valid.collate_fn)

    def save(self, file="data_save.pkl") -> None:
        """Refuse fastai's pickle of all items."""
        _refuse(f"save to {file}")

    def export(self, file="export.pkl") -> None:
        """Refuse fastai's pickle of the empty databunch; `Learner.export` holds one."""
        _refuse(f"export to {file}")

    @classmethod
    def load_empty(cls, path, fname="export.pkl") -> NoReturn:
        """Refuse to run the code in a pickle."""
        _refuse(f"load_empty of {fname}")


def _absolute(item):
    """Return a file's path from the root, so that no other folder's item is meant, nor another file
    after a change of folder; "test/<id>.tif" that is no file here stays the data set's own."""
    path = Path(item).expanduser()
    return path.absolute() if isinstance(item, Path) or path.exists() else item


def _refuse(what: str) -> NoReturn:
    raise InputError(
        f"{what}: a databunch is not kept in a file, for torch reads no pickle of one; build it"
        " again with make_databunch from data set, recipe and valid_idx"
    )
