"""The walkthrough's steps in plain OpenCV, numpy and fastai 1.0.61 calls: the yardstick. Imports
nothing of hcd.

Everything is as slow and as simple as there: float64 pixels, one patch after the other, float32
networks.
"""

import hashlib
import os
import random

import cv2
import numpy as np
import pandas as pd
import torch
from fastai.basic_data import DatasetType
from fastai.metrics import accuracy
from fastai.train import ShowGraph
from fastai.vision import Image, ImageList, pil2tensor
from fastai.vision.learner import cnn_config, cnn_learner
from sklearn.model_selection import train_test_split

MEAN, STD = (0.702447, 0.546243, 0.696453), (0.238893, 0.282094, 0.216251)


def read_rgb(path):
    """Read a patch, (96, 96, 3) uint8 RGB. Source: In 2."""
    blue, green, red = cv2.split(cv2.imread(str(path)))
    return cv2.merge((red, green, blue))


def read_crop(path, augment=True):
    """Read a patch and draw a crop of it, (90, 90, 3) float64 RGB in [0, 1]; not augmented, the
    whole patch. Source: In 4."""
    patch = read_rgb(path)
    if not augment:
        return patch / 255
    degrees = random.randint(-3, 3)
    degrees += 90 * random.randint(-1, 1)
    turned = cv2.warpAffine(patch, cv2.getRotationMatrix2D((48, 48), degrees, 1), (96, 96))
    top = 3 + random.randint(-2, 2)
    left = 3 + random.randint(-2, 2)
    crop = turned[top : top + 90, left : left + 90] / 255
    mirror, upend = random.getrandbits(1), random.getrandbits(1)
    if mirror:
        crop = crop[:, ::-1]
    if upend:
        crop = crop[::-1]
    crop = crop + random.randint(-7, 7) / 100
    crop = crop * (1 + random.randint(-5, 5) / 100)
    return np.clip(crop, 0, 1)


def wrong_names(root):
    """Return the files of a folder whose names are not the SHA-1 of their pixels, one file after
    the other."""
    files = [
        os.path.join(root, part, name)
        for part in ("train", "test")
        for name in os.listdir(os.path.join(root, part))
    ]
    return [
        file
        for file in files
        if hashlib.sha1(read_rgb(file)).hexdigest() + ".tif" != os.path.basename(file)
    ]


def channel_statistics(paths):
    """Return mean (3,), std (3,), the too dark and the too bright paths, one patch after the other.
    Source: In 7."""
    sums, squares, counted, dark, bright = np.zeros(3), np.zeros(3), 0, [], []
    for path in paths:
        pixels = read_crop(path, augment=False).reshape(-1, 3)
        if pixels.max() < 10 / 255:
            dark.append(path)
        elif pixels.min() > 245 / 255:
            bright.append(path)
        else:
            sums += pixels.mean(axis=0)
            squares += (pixels**2).mean(axis=0)
            counted += 1
    mean = sums / counted
    return mean, np.sqrt(squares / counted - mean**2), dark, bright


class PatchList(ImageList):
    """Item list whose items are read by `read_crop`. Source: In 13."""

    def open(self, fn):
        return Image(pil2tensor(read_crop(fn), np.float32))


def make_data(train, labels, valid_idx, test, batch_size, device=None):
    """Build a databunch of files. Source: In 12, In 14."""
    cuda = torch.cuda.is_available()
    return (
        PatchList.from_df(pd.DataFrame({"file": train, "label": labels}), path="/", cols="file")
        .split_by_idx(valid_idx)
        .label_from_df(cols="label")
        .add_test(PatchList.from_df(pd.DataFrame({"file": test}), path="/", cols="file"))
        .transform([[], []], size=90)
        .databunch(bs=batch_size, device=device, pin_memory=cuda)
        .normalize([torch.tensor(MEAN), torch.tensor(STD)])
    )


def open_folder(root, batch_size=128):
    """Build the databunch of a whole folder in the competition's layout. Source: In 1, In 10, In
    12."""
    table = pd.read_csv(os.path.join(root, "train_labels.csv"))
    files = [os.path.join(root, "train", patch_id + ".tif") for patch_id in table["id"]]
    rows = range(len(files))
    valid_idx = train_test_split(files, rows, test_size=0.1, stratify=table["label"].values)[3]
    test = [os.path.join(root, "test", name) for name in os.listdir(os.path.join(root, "test"))]
    return make_data(files, table["label"].values, valid_idx, test, batch_size)


def make_learner(data, arch, folder):
    """Build a learner without pretrained weights, ready to be frozen. Source: In 16."""
    # fastai finds it by the builder, and today's builders no longer take `pretrained` by position
    meta = cnn_config(arch)
    return cnn_learner(
        data,
        lambda pretrained: arch(),
        cut=meta["cut"],
        split_on=meta["split"],
        pretrained=False,
        path=folder,
        metrics=accuracy,
        ps=0.5,
        callback_fns=ShowGraph,
    )


def averaged_passes(learner, passes=12):
    """Return the mean probabilities of the test set over several passes, (N, 2). Source: In 39."""
    total = np.zeros((len(learner.data.test_ds), 2))
    for _ in range(passes):
        probabilities, _ = learner.get_preds(ds_type=DatasetType.Test, with_loss=False)
        total = np.sum([total, probabilities.numpy()], axis=0)
    return total / passes
