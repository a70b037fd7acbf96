"""The rows of the table: what each step is in plain calls and in hcd, and that both do the same."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import cv2
import numpy as np
import pandas as pd
import torchvision

from hcd.dataset.pack import copy_patch
from hcd.dataset.packer import pack_dataset

from . import plain

ROWS = ("read", "opencv", "packed", "item", "statistics", "stage1", "stage2", "passes")
TRAIN, TEST = 600, 128  # patches of the small data set that everything but start-up is timed on


@dataclass
class Row:
    """One line of the table: `plain` and `ours` do the same to `patches` patches; `rate` shows
    patches/s, else us a patch."""

    step: str
    reach: str
    plain: Callable
    ours: Callable
    patches: int
    rate: bool = True

    def show(self, seconds):
        """Return a time of one call as it stands in the table."""
        return (
            f"{self.patches / seconds:,.0f} patches/s"
            if self.rate
            else f"{seconds / self.patches * 1e6:.0f} us"
        )


class Bench:
    """The small data set, and a method for each row.

    Args:
        options: those of the command. folder: where to work.
    """

    def __init__(self, options, folder):
        self.options, self.folder, self.root = options, folder, folder / "data"
        if options.data:
            copy_some(options.data, self.root)
            self.dataset = hcd.open_dataset(self.root)
        else:
            self.dataset = hcd.make_sample(self.root, train=options.patches, test=TEST)
        self.ids = self.dataset.labels["id"].tolist()
        self.files = self._paths("train", self.ids)
        self.recipe = hcd.Recipe(arch=options.arch, batch_size=options.batch_size, pretrained=False)

    def read(self):
        """Read from the files themselves."""
        return self._reads("augmented read of a patch, one core, from TIFF", "2.7", self.files)

    def opencv(self):
        """Read from the same patches as OpenCV writes them, tags behind the pixels."""
        (self.folder / "opencv").mkdir()
        files = [str(self.folder / "opencv" / Path(file).name) for file in self.files]
        for file, copy in zip(self.files, files):
            cv2.imwrite(copy, cv2.imread(file), [cv2.IMWRITE_TIFF_COMPRESSION, 1])
        return self._reads("the same from TIFF as OpenCV writes it", "2.7", files, files)

    def packed(self):
        """Read from a pack of the same files."""
        pack_dataset(self.root, into=self.folder / "packed", progress=False)
        return self._reads(
            "the same from a packed data set",
            "2.8",
            hcd.open_dataset(self.folder / "packed").train_paths,
        )

    def _reads(self, step, reach, paths, plain_files=None):
        files = plain_files or self.files
        for number, (file, path) in enumerate(zip(files, paths)):
            require_equal(
                drawn(number, plain.read_crop, file),
                drawn(number, hcd.read_cropped_image, path),
                path,
            )
        return Row(
            step,
            reach,
            lambda: each(plain.read_crop, files),
            lambda: each(hcd.read_cropped_image, paths),
            len(paths),
            rate=False,
        )

    def item(self):
        """Read through fastai."""
        theirs, ours = (data.train_ds for data in self.data)
        count = range(min(len(theirs), len(self.files)))
        for i in count:
            require_equal(
                *(drawn(i, items.__getitem__, i)[0].data.numpy() for items in (theirs, ours)),
                f"item {i}",
            )
        return Row(
            "one item, `data.train_ds[i]`, one core",
            "1.8",
            lambda: each(theirs.__getitem__, count),
            lambda: each(ours.__getitem__, count),
            len(count),
            rate=False,
        )

    def statistics(self):
        """Pass over all files, eight times: once takes 15 ms, a good part of them to start the
        threads."""
        files = self.files * 8
        mean, std, *outliers = plain.channel_statistics(files)
        found = hcd.channel_statistics(files, progress=False)
        np.testing.assert_allclose([found.mean, found.std], [mean, std], rtol=0, atol=1e-12)
        assert [found.too_dark, found.too_bright] == [
            [Path(file).stem for file in paths] for paths in outliers
        ]
        return Row(
            "channel statistics and outliers",
            "10",
            lambda: plain.channel_statistics(files),
            lambda: hcd.channel_statistics(files, progress=False),
            len(files),
        )

    def stage1(self):
        """Train head and batch norms."""
        return self._train("stage 1", "freeze", max_lr=2e-2, wd=1e-4)

    def stage2(self):
        """Train everything."""
        return self._train("stage 2", "unfreeze", max_lr=slice(4e-5, 4e-4))

    def _train(self, stage, prepare, **rates):
        def epoch(learner):
            getattr(learner, prepare)()
            learner.fit_one_cycle(1, **rates)

        theirs, ours = self.learners
        return Row(
            f"training, {self._net}, {stage}, `fast=True`",
            "2",
            lambda: epoch(theirs),
            lambda: epoch(ours),
            self._trained,
        )

    def passes(self):
        """Predict the test set again and again."""
        theirs, ours = self.learners
        passes = 2 if self.options.tiny else 12
        return Row(
            f"{passes} averaged passes, {self._net}, `fast=True`, each pass",
            "2.2",
            lambda: plain.averaged_passes(theirs, passes),
            lambda: hcd.predict_tta(ours, passes, progress=False),
            passes * len(ours.data.test_ds),
        )

    @cached_property
    def data(self):
        """Databunches of a short epoch, plain and ours: patches drawn with repetition, 9 to train
        on for 1 to validate on."""
        rows = self._trained + -(-self._trained // 9)
        table = self.dataset.labels.sample(rows, replace=True, random_state=0, ignore_index=True)
        tests = (
            pd.Series(self.dataset.test_ids)
            .sample(self._trained // 2, replace=True, random_state=0)
            .tolist()
        )
        valid_idx, device = np.arange(self._trained, rows), self.options.device
        theirs = plain.make_data(
            self._paths("train", table["id"]),
            table["label"],
            valid_idx,
            self._paths("test", tests),
            self.recipe.batch_size,
            device,
        )
        dataset = replace(self.dataset, labels=table, test_ids=tuple(tests))
        return theirs, hcd.make_databunch(
            dataset, replace(self.recipe, fast=True), valid_idx, device=device
        )

    @cached_property
    def learners(self):
        """Learners on `data`, plain and ours."""
        theirs = plain.make_learner(
            self.data[0], getattr(torchvision.models, self.options.arch), self.folder
        )
        return theirs, hcd.get_learner(
            self.data[1], replace(self.recipe, fast=True), path=self.folder
        )

    @property
    def _trained(self):
        return self.options.batches * self.options.batch_size

    @property
    def _net(self):
        return f"{self.options.arch}, batch {self.options.batch_size}"

    def _paths(self, part, ids):
        return [f"{self.root}/{part}/{patch_id}.tif" for patch_id in ids]


def copy_some(data, root, train=TRAIN, test=TEST):
    """Copy a random part of a data set, so many patches at most, into a new folder; nothing is
    written into its own."""
    dataset = hcd.open_dataset(data)
    labels = dataset.labels.sample(min(train, len(dataset.labels)), random_state=0)
    tests = list(dataset.test_ids[:test])
    for part, ids in (("train", labels["id"]), ("test", tests)):
        (root / part).mkdir(parents=True)
        for patch_id in ids:
            copy_patch(dataset.locate(part, patch_id), root / part)
    labels.to_csv(root / "train_labels.csv", index=False)
    pd.DataFrame({"id": tests, "label": 0}).to_csv(root / "sample_submission.csv", index=False)


def each(function, arguments):
    """Call a function with one argument after the other and let each result go, so that the next
    finds its memory warm."""
    for argument in arguments:
        function(argument)


def drawn(rng_seed, read, *arguments):
    """Return what `read` gives with these draws."""
    random.seed(rng_seed)
    return read(*arguments)


def require_equal(theirs, ours, what):
    """Require the plain read, rounded to float32, and ours to have the same bits."""
    theirs = np.ascontiguousarray(theirs, np.float32)
    if ours.dtype != np.float32 or theirs.shape != ours.shape or theirs.tobytes() != ours.tobytes():
        raise ValueError(
            f"{what}: hcd reads other values than the plain version does with the same draws;"
            " correct one of them"
        )
