"""Play the whole walkthrough in plain fastai 1.0.61 calls and record every number on the way.

One script for two stacks: the period stack of 2019/2020 (Python 3.8, torch 1.4) and today's. It
imports nothing of `hcd`. Everything runs in float64 on the CPU with every draw controlled, so the
stacks must agree to many digits:

    python tests/period/record.py --out tests/period/record.json    record, on the period stack
    python tests/period/record.py --compare tests/period/record.json   again, and compare

`tests/test_period.py` imports the constants and helpers, does the same through hcd's functions and
compares.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import auc, roc_curve
from sklearn.model_selection import train_test_split

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # today's setuptools and Python warn about fastai's own source
    import fastai.basic_train
    import torchvision
    from fastai.basic_data import DatasetType
    from fastai.basic_train import LearnerCallback, load_learner
    from fastai.callback import Callback, CallbackHandler, SmoothenValue
    from fastai.callbacks.hooks import hook_output
    from fastai.metrics import accuracy
    from fastai.torch_core import defaults, to_np
    from fastai.train import ClassificationInterpretation
    from fastai.vision import Image, ImageList, cnn_learner, pil2tensor
    from fastai.vision.learner import model_meta

# 66 to train on (the last 2 make no batch of 8), 8 to validate on
TRAIN_PATCHES, TEST_PATCHES = 74, 6
SIZE, CROP = 96, 90
# places of the extreme patches, none of them validated on
DARK, BRIGHT, NEARLY_DARK, NEARLY_BRIGHT = 10, 25, 40, 55
SPLIT_STATES = (0, 1, 2019)
SPLIT_STATE = 2019  # the split that is trained on
READ_SEEDS, READ_PATCHES = (0, 1, 2, 3), 12
MEAN, STD = (0.702447, 0.546243, 0.696453), (0.238893, 0.282094, 0.216251)
BATCH_SIZE, EPOCHS, FIND_STEPS, TTA_PASSES = 8, 2, 10, 3
SWEEP_DECAYS, WEIGHT_DECAY = (1e-6, 1e-4, 1e-2), 1e-4
HEAD_MAX_LR, FINETUNE_MAX_LR = 2e-2, (4e-5, 4e-4)
HEATMAP_INDICES = (0, 1, 2, 3)
# random.seed(...) comes right before each pass that reads augmented patches
RNG_SEEDS = dict(
    batch=100,
    untrained=101,
    sweep=102,
    stage1=103,
    stage1_interp=104,
    stage1_loaded=105,
    stage2_find=106,
    stage2=107,
    stage2_interp=108,
    validate=109,
    heatmap=110,
    tta=120,
)


# ---- made-up data: integer arithmetic on numpy's frozen RandomState, so that every numpy gives the
# same bytes ------


def draw_patch(rng, label):
    """Return one (96, 96, 3) uint8 RGB patch: pink tissue with dark nuclei; label 1 crowds large
    ones into the centre."""
    tissue = np.array([210, 156, 192]) + rng.randint(-20, 21, 3)
    patch = tissue + rng.randint(-12, 13, (SIZE, SIZE, 1)) + rng.randint(-6, 7, (SIZE, SIZE, 3))
    rows, columns = np.arange(SIZE)[:, None], np.arange(SIZE)[None, :]
    nuclei = [(rng.randint(0, SIZE), rng.randint(0, SIZE), rng.randint(2, 5)) for _ in range(25)]
    if label:
        nuclei += [(rng.randint(34, 62), rng.randint(34, 62), rng.randint(5, 8)) for _ in range(8)]
    for row, column, radius in nuclei:
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        patch[inside] = (
            np.array([96, 52, 134])
            + rng.randint(-20, 21, 3)
            + rng.randint(-8, 9, (inside.sum(), 3))
        )
    return np.clip(patch, 0, 255).astype(np.uint8)


def make_patches():
    """Return (patches, labels, test patches): lists of (96, 96, 3) uint8 RGB arrays and of 0 / 1.

    Every seventh label is wrong, so that no model gets all of them right and losses stay far from
    0. Four labelled patches are extreme: one too dark, one too bright, and one each that just
    reaches the threshold (a grey level of 10, of 245) and must therefore be kept.
    """
    rng = np.random.RandomState(20190405)
    labels = [int(number % 5 in (1, 3)) for number in range(TRAIN_PATCHES)]
    patches = [draw_patch(rng, label) for label in labels]
    labels = [1 - label if number % 7 == 3 else label for number, label in enumerate(labels)]
    for place, low, high in (
        (DARK, 0, 10),
        (BRIGHT, 246, 256),
        (NEARLY_DARK, 0, 10),
        (NEARLY_BRIGHT, 246, 256),
    ):
        patches[place] = rng.randint(low, high, (SIZE, SIZE, 3)).astype(np.uint8)
        labels[place] = 0
    patches[NEARLY_DARK][30, 30, 1], patches[NEARLY_BRIGHT][60, 60, 2] = 10, 245
    tests = [draw_patch(rng, number % 2) for number in range(TEST_PATCHES)]
    return patches, labels, tests


def sha1(*arrays):
    """Return the SHA-1 of the arrays' C-order bytes, as hex digits."""
    digest = hashlib.sha1()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_dataset(root):
    """Write the made-up patches in the competition's layout under `root` and return its Path."""
    root = Path(root)
    patches, labels, tests = make_patches()
    for folder, images in (("train", patches), ("test", tests)):
        (root / folder).mkdir(parents=True)
        for rgb in images:
            bgr = np.ascontiguousarray(rgb[:, :, ::-1])
            # the competition's rule: a patch is named by the SHA-1 of its RGB bytes
            # 1: none
            cv2.imwrite(
                str(root / folder / f"{sha1(rgb)}.tif"), bgr, [cv2.IMWRITE_TIFF_COMPRESSION, 1]
            )
    table = pd.DataFrame({"id": [sha1(rgb) for rgb in patches], "label": labels})
    table.to_csv(root / "train_labels.csv", index=False)
    sample = pd.DataFrame({"id": [sha1(rgb) for rgb in tests], "label": 0})  # not in sorted order
    sample.to_csv(root / "sample_submission.csv", index=False)
    return root


# ---- In 2, In 4: the plain reader
# ----------------------------------------------------------------------------------


def read_whole(path):
    """Return the whole patch as (96, 96, 3) float64 RGB in [0, 1]."""
    return cv2.imread(str(path))[:, :, ::-1] / 255


def read_augmented(path):
    """Return one augmented (90, 90, 3) float64 RGB crop in [0, 1], drawn from Python's `random` in
    the walkthrough's order."""
    angle = random.randint(-3, 3) + 90 * random.randint(-1, 1)
    turn = cv2.getRotationMatrix2D((SIZE // 2, SIZE // 2), angle, 1)
    turned = cv2.warpAffine(
        np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1]), turn, (SIZE, SIZE)
    )
    top, left = (
        (SIZE - CROP) // 2 + random.randint(-2, 2),
        (SIZE - CROP) // 2 + random.randint(-2, 2),
    )
    crop = turned[top : top + CROP, left : left + CROP] / 255
    mirror, upend = random.getrandbits(1), random.getrandbits(1)
    crop = crop[:: -1 if upend else 1, :: -1 if mirror else 1]
    crop = crop + random.randint(-7, 7) / 100
    return np.clip(crop * (1.0 + random.randint(-5, 5) / 100), 0, 1.0)


def read_centre(path):
    """Return the un-augmented centre crop as (90, 90, 3) float64 RGB in [0, 1]."""
    start = (SIZE - CROP) // 2
    return read_whole(path)[start : start + CROP, start : start + CROP]


class PlainList(ImageList):
    """In 13: fastai's image list with the plain reader."""

    def open(self, fn):
        return Image(px=pil2tensor(read_augmented(fn), np.float32))


# ---- the two architectures


def small_densenet(pretrained=False):
    """Return DenseNet-169's own class with 9 dense layers for 82: same parts, cut and layer groups,
    seconds on a CPU."""
    return torchvision.models.DenseNet(
        growth_rate=12, block_config=(2, 2, 3, 2), num_init_features=16
    )


# where fastai cuts and splits it
model_meta[small_densenet] = model_meta[torchvision.models.densenet169]
ARCHS = {"small": small_densenet, "densenet169": torchvision.models.densenet169}


# ---- what makes the measurement sharp: weights, float64, settings of each step
# -------------------------------------


def deterministic_weights(model, rng_seed=3):
    """Turn `model` to float64 in place and fill its state by state-dict order; uniform draws only,
    no libm involved.

    Weights get Kaiming's scale, batch norms values near 1 and 0, running variances values around 1.
    The body's last batch norm gets 4 times the scale, which calms the one parameter that trains on
    rounding noise (README.md, "The last digits").
    """
    rng = np.random.RandomState(rng_seed)
    model.double()
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        draw = 2 * rng.random_sample(tuple(value.shape)) - 1
        if value.dim() > 1:
            draw = draw * sqrt(6 / int(np.prod(value.shape[1:])))
        elif name.endswith("running_var"):
            draw = 1 + 0.25 * draw
        else:
            draw = 0.1 * draw + (1 if name.endswith("weight") else 0)
        state[name] = torch.from_numpy(draw)
    last_norm = [name for name in state if name.startswith("0.") and name.endswith("running_mean")][
        -1
    ]
    state[last_norm.replace("running_mean", "weight")] *= 4
    model.load_state_dict(state)
    return model


def batch_to_double(batch):
    """Cast the inputs of a batch to float64, after fastai has normalised them in float32; for
    `DataBunch.add_tfm`."""
    inputs, targets = batch
    return inputs.double(), targets


class Float64Smoothing(Callback):
    """Smooth the training loss in float64; comes before every other callback."""

    _order = -100

    def __init__(self):
        self.smoother = SmoothenValue(0.98)

    def on_backward_begin(self, last_loss, **kwargs):
        self.smoother.add_value(last_loss.detach().cpu())
        return {"smooth_loss": self.smoother.smooth}


@contextmanager
def float64_throughout():
    """Keep in float64 what fastai 1.0.61 casts to float32: the recorder's losses, and get_preds'
    predictions and losses.

    Without this, float32 rounding (1e-7) would hide any smaller difference. Works for hcd's
    functions too.
    """
    plain_init = CallbackHandler.__post_init__

    def init(self):
        plain_init(self)
        self.callbacks.insert(0, Float64Smoothing())

    def keep(tensor):
        return tensor.double() if tensor.is_floating_point() else tensor

    with (
        mock.patch.object(CallbackHandler, "__post_init__", init),
        mock.patch.object(fastai.basic_train, "to_float", keep),
    ):
        yield


class GroupSettings(LearnerCallback):
    """Note each training step's learning rate of every layer group, and the weight decays."""

    def __init__(self, learn):
        super().__init__(learn)
        self.rates, self.decays = [], []

    def on_batch_begin(self, train, **kwargs):
        if train:
            self.rates.append([float(rate) for rate in self.learn.opt._lr])
            self.decays = [float(decay) for decay in self.learn.opt._wd]


# ---- version shims: the only places that know which stack runs
# -----------------------------------------------------


@contextmanager
def todays_torch():
    """Let fastai's saves load again: torch >= 2.6 unpickles weights only, and a schedule leaves
    numpy numbers in the optimiser."""
    with ExitStack() as stack:
        if hasattr(torch.serialization, "safe_globals"):
            allowed = [np.float64(0).__reduce__()[0], np.dtype, type(np.dtype(np.float64))]
            stack.enter_context(torch.serialization.safe_globals(allowed))
        stack.enter_context(warnings.catch_warnings())
        # `arch(pretrained)`, backward hooks on containers: old calls that still work
        warnings.simplefilter("ignore")
        yield


def load_own_export(folder, file):
    """Load a learner this very script has just exported: a whole pickle, which torch >= 2.6 loads
    only when told to."""
    if not hasattr(torch.serialization, "safe_globals"):
        return load_learner(folder, file)
    with mock.patch.object(torch, "load", partial(torch.load, weights_only=False)):
        return load_learner(folder, file)


# ---- the walkthrough, recorded


def versions():
    """Return the versions of everything that computes."""
    names = (
        "torch",
        "torchvision",
        "fastai",
        "fastprogress",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
    )
    return {
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        **{name: version(name) for name in names},
    }


def split(labels, random_state):
    """In 10: return (training indices, validation indices) of the stratified 90/10 split."""
    names = labels["id"].values
    _, _, train, valid = train_test_split(
        names,
        range(len(names)),
        test_size=0.1,
        stratify=labels["label"].values,
        random_state=random_state,
    )
    return [int(index) for index in train], [int(index) for index in valid]


def record_data(root):
    """In 1 to In 10: bytes, statistics, outliers, splits."""
    labels = pd.read_csv(root / "train_labels.csv")
    files = {name: root / "train" / (name + ".tif") for name in labels["id"]}
    record = {
        "label_counts": [int((labels["label"] == label).sum()) for label in (0, 1)],
        "patch_ids_sha1": hashlib.sha1("".join(labels["id"]).encode()).hexdigest(),
        "decoded_sha1": sha1(*[cv2.imread(str(path)) for path in files.values()]),
        "whole_read_sha1": sha1(*[read_whole(path).astype(np.float32) for path in files.values()]),
    }
    for rng_seed in READ_SEEDS:
        random.seed(rng_seed)
        reads = [
            read_augmented(path).astype(np.float32) for path in list(files.values())[:READ_PATCHES]
        ]
        record[f"augmented_sha1_seed_{rng_seed}"] = [sha1(read) for read in reads]
    record.update(channel_statistics(files))
    for state in SPLIT_STATES:
        record[f"split_{state}_train"], record[f"split_{state}_valid"] = split(labels, state)
    return record


def channel_statistics(files):
    """In 7, In 8: channel mean and std of the un-augmented patches, and the extreme patches left
    out of them."""
    dark, bright, means, squares = [], [], [], []
    for name, path in files.items():
        pixels = read_whole(path).reshape(-1, 3)
        if pixels.max() < 10 / 255:
            dark.append(name)
        elif pixels.min() > 245 / 255:
            bright.append(name)
        else:
            means.append(pixels.mean(axis=0))
            squares.append((pixels**2).mean(axis=0))
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.mean(squares, axis=0) - mean**2)
    return {
        "too_dark": dark,
        "too_bright": bright,
        "counted": len(means),
        "channel_mean": mean.tolist(),
        "channel_std": std.tolist(),
    }


def make_data(root):
    """In 11 to In 14: the databunch, but without shuffling and in float64."""
    labels = pd.read_csv(root / "train_labels.csv")
    names = pd.DataFrame(
        {"name": ["train/" + name for name in labels["id"]], "label": labels["label"]}
    )
    tests = pd.DataFrame(
        {"name": ["test/" + name for name in sorted(os.listdir(str(root / "test")))]}
    )
    data = (
        PlainList.from_df(names, path=root, suffix=".tif")
        .split_by_idx(split(labels, SPLIT_STATE)[1])
        .label_from_df(cols="label")
        .add_test(PlainList.from_df(tests, path=root))
        .transform([[], []], size=CROP)
        .databunch(bs=BATCH_SIZE, num_workers=0)
        .normalize([torch.tensor(MEAN), torch.tensor(STD)])
    )
    return settle_data(data)


def settle_data(data):
    """Take shuffling out of a databunch and make its batches float64; returns it."""
    data.train_dl = data.train_dl.new(shuffle=False)
    data.add_tfm(batch_to_double)
    return data


def make_learner(data, arch, folder):
    """In 16: the learner, without dropout, with deterministic weights, frozen as a pretrained one
    is."""
    learner = cnn_learner(data, arch, pretrained=False, path=folder, metrics=accuracy, ps=0.0)
    deterministic_weights(learner.model)
    learner.freeze()
    return learner


def counts(learner, trainable):
    """Return the parameters in each layer group, all or the trainable ones."""
    return [
        sum(p.numel() for p in group.parameters() if p.requires_grad or not trainable)
        for group in learner.layer_groups
    ]


def numbers(values):
    """Return tensors, arrays or a list of them as (nested lists of) Python floats."""
    return (
        [numbers(value) for value in values]
        if isinstance(values, list)
        else np.asarray(values, float).tolist()
    )


def predict(learner, step):
    """Return predictions, targets and losses of the validation set in one pass."""
    random.seed(RNG_SEEDS[step])
    return learner.get_preds(with_loss=True)


def record_start(data, new_learner):
    """In 15, In 16: the first batch, the parameters, and what the untrained model says."""
    random.seed(RNG_SEEDS["batch"])
    batch = next(iter(data.train_dl))
    learner = new_learner()
    record = {
        "batch_sha1": sha1(to_np(batch[0])),
        "batch_labels": batch[1].tolist(),
        "weights_sha1": sha1(*[to_np(value) for value in learner.model.state_dict().values()]),
        "group_parameters": counts(learner, False),
        "group_trainable_frozen": counts(learner, True),
    }
    learner.unfreeze()
    record["group_trainable_unfrozen"] = counts(learner, True)
    predictions, _, losses = predict(learner, "untrained")
    return {
        **record,
        "untrained_predictions": numbers(predictions),
        "untrained_losses": numbers(losses),
    }


def record_find(learner, name, step, weight_decay):
    """Run one learning-rate finder."""
    random.seed(RNG_SEEDS[step])
    learner.lr_find(wd=weight_decay, num_it=FIND_STEPS)
    return {
        name + "_lrs": numbers(learner.recorder.lrs),
        name + "_losses": numbers(learner.recorder.losses),
    }


def record_fit(learner, stage, max_lr, **options):
    """Run one 1cycle and record its schedule, its losses, the confusion matrix and the predictions
    after it."""
    settings = GroupSettings(learner)
    random.seed(RNG_SEEDS[stage])
    learner.fit_one_cycle(EPOCHS, max_lr, callbacks=[settings], **options)
    recorder = learner.recorder
    random.seed(RNG_SEEDS[stage + "_interp"])
    interp = ClassificationInterpretation.from_learner(learner)
    record = {
        "lrs": numbers(recorder.lrs),
        "group_lrs": settings.rates,
        "momenta": numbers(recorder.moms),
        "weight_decays": settings.decays,
        "losses": numbers(recorder.losses),
        "valid_losses": numbers(recorder.val_losses),
        "accuracy": [float(metrics[0]) for metrics in recorder.metrics],
        "running_means": running_sums(learner, "running_mean"),
        "running_vars": running_sums(learner, "running_var"),
        "confusion": interp.confusion_matrix().tolist(),
        "predictions": numbers(interp.preds),
    }
    return {f"{stage}_{name}": value for name, value in record.items()}


def running_sums(learner, kind):
    """Return the sum of each batch norm's running statistic."""
    return [
        float(value.sum())
        for name, value in learner.model.state_dict().items()
        if name.endswith(kind)
    ]


def frozen_sha1(learner):
    """Return the SHA-1 of all weights that do not train."""
    return sha1(*[to_np(p) for p in learner.model.parameters() if not p.requires_grad])


def record_training(data, new_learner):
    """In 17 to In 29; returns the record and the learner."""
    record = {}
    for weight_decay in SWEEP_DECAYS:
        record.update(record_find(new_learner(), f"sweep_{weight_decay:g}", "sweep", weight_decay))
    learner = new_learner()
    record.update(record_fit(learner, "stage1", HEAD_MAX_LR, wd=WEIGHT_DECAY))
    record["stage1_frozen_sha1"] = frozen_sha1(learner)
    learner.save("stage1")
    fresh = new_learner().load("stage1")  # what was saved is all there, optimiser state included
    record["stage1_loaded_predictions"] = numbers(predict(fresh, "stage1_loaded")[0])
    record["stage1_loaded_steps"] = sorted(
        {int(state["step"]) for state in fresh.opt.opt.state.values()}
    )
    learner.load("stage1")
    learner.unfreeze()
    record.update(record_find(learner, "stage2_find", "stage2_find", WEIGHT_DECAY))
    # no wd, as in In 25: fastai's 1e-2
    record.update(record_fit(learner, "stage2", slice(*FINETUNE_MAX_LR)))
    learner.save("stage2")
    return record, learner


def record_validation(learner):
    """In 30 to In 38."""
    predictions, targets, losses = predict(learner, "validate")
    random.seed(RNG_SEEDS["validate"])
    top = ClassificationInterpretation.from_learner(learner).top_losses()
    maps = [heatmap(learner, index, RNG_SEEDS["heatmap"] + index) for index in HEATMAP_INDICES]
    false_positives, true_positives, _ = roc_curve(targets, np.exp(predictions[:, 1]), pos_label=1)
    return {
        "predictions": numbers(predictions),
        "targets": targets.tolist(),
        "losses": numbers(losses),
        "accuracy": float(accuracy(predictions, targets)),
        "top_losses": numbers(top[0]),
        "top_losses_order": top[1].tolist(),
        "gradcam_maps": [map_ for map_, _ in maps],
        "gradcam_gray_means": [gray for _, gray in maps],
        "roc_fpr": numbers(false_positives),
        "roc_tpr": numbers(true_positives),
        "auc": float(auc(false_positives, true_positives)),
    }


def heatmap(learner, index, rng_seed):
    """In 33, In 34: return one validation patch's Grad-CAM map and its grey picture's mean
    level."""
    model = learner.model.eval()
    random.seed(rng_seed)
    image, label = learner.data.valid_ds[index]
    batch, _ = learner.data.one_item(image)
    gray = cv2.cvtColor(to_np(learner.data.denorm(batch)[0]).transpose(1, 2, 0), cv2.COLOR_RGB2GRAY)
    with hook_output(model[0]) as forward, hook_output(model[0], grad=True) as backward:
        model(batch)[0, int(label)].backward()
    activations, gradients = forward.stored[0], backward.stored[0][0]
    model.zero_grad()
    return numbers((activations * gradients.mean(1).mean(1)[:, None, None]).mean(0)), float(
        gray.mean(dtype=float)
    )


def record_test(root, learner):
    """In 39 to In 42: averaged augmented probabilities, in the order of the test set and of the
    submission."""
    learner.load("stage2")
    random.seed(RNG_SEEDS["tta"])
    total = sum(to_np(learner.get_preds(ds_type=DatasetType.Test)[0]) for _ in range(TTA_PASSES))
    tumour = {
        Path(str(item)).stem: row[1]
        for item, row in zip(learner.data.test_ds.items, total / TTA_PASSES)
    }
    order = list(pd.read_csv(root / "sample_submission.csv")["id"])
    return {
        "tta_ids": list(tumour),
        "tta_probabilities": numbers(total / TTA_PASSES),
        "submission_ids": order,
        "submission_labels": [float(tumour[name]) for name in order],
    }


def record_deployed(root, learner):
    """In 43 to In 45: export, load again, predict single files (here the centre crop the model was
    trained on)."""
    learner.export("export.pkl")
    deployed = load_own_export(learner.path, "export.pkl")
    deployed.data.add_tfm(batch_to_double)
    images = [
        Image(px=pil2tensor(read_centre(path), np.float32))
        for path in sorted((root / "test").iterdir())
    ]
    return {"exported_probabilities": [numbers(deployed.predict(image)[2]) for image in images]}


def record_arch(root, folder, arch):
    """In 11 to In 45 for one architecture; files go to `folder`."""
    data = make_data(root)
    new_learner = partial(make_learner, data, arch, folder)
    record = {"arch": arch.__name__, **record_start(data, new_learner)}
    training, learner = record_training(data, new_learner)
    return {
        **record,
        **training,
        **record_validation(learner),
        **record_test(root, learner),
        **record_deployed(root, learner),
    }


def make_record(names):
    """Return {"versions": ..., "data": ..., architecture's name: ...}, each in the walkthrough's
    order."""
    defaults.device = torch.device("cpu")
    torch.set_num_threads(1)  # the order of a sum must not hang on the number of cores
    with tempfile.TemporaryDirectory() as folder, todays_torch(), float64_throughout():
        root = write_dataset(Path(folder) / "data")
        record = {"versions": versions(), "data": record_data(root)}
        for name in names:
            start = time.time()
            with redirect_stdout(io.StringIO()):  # fastai's progress bars
                record[name] = record_arch(root, Path(folder) / name, ARCHS[name])
            print(f"{name} recorded in {time.time() - start:.0f} s", file=sys.stderr)
    return record


# ---- comparing


def tolerance(name):
    """Return (how, limit) for an entry: "exact", "relative" per number, "absolute", or "scale":
    relative to the largest."""
    if name == "gradcam_maps":
        return "scale", 1e-8
    if name == "gradcam_gray_means":
        return "relative", 1e-6  # OpenCV's float32
    if name.startswith("channel_"):
        return "absolute", 1e-12  # summing 9,216 float64 numbers one by one rounds to about 4e-13
    exact = ("lrs", "momenta", "weight_decays", "accuracy", "roc_fpr", "roc_tpr")
    return ("exact", 0) if name.endswith(exact) else ("relative", 1e-8)


def _short(value):
    text = repr(value)
    return text if len(text) < 50 else text[:47] + "..."


def _shape(value):
    """Return the shape of nested lists, () of a single value; of ragged ones the length and the
    shape of every part."""
    if not isinstance(value, list):
        return ()
    inner = [_shape(part) for part in value]
    return (len(value), *(inner if len(set(inner)) != 1 else inner[0]))


def _flat(value):
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, list) else [value]


def difference(name, want, have):
    """Compare one entry.

    Returns:
        (drifted, text): whether it breaks its tolerance, and the agreement in words.
    """
    if want == have:
        return False, "equal"
    if _shape(want) != _shape(have):
        return True, f"shape {_short(_shape(want))} became {_short(_shape(have))}"
    want_array, have_array = np.asarray(_flat(want)), np.asarray(_flat(have))
    if {want_array.dtype.kind, have_array.dtype.kind} != {"f"}:
        pairs = list(enumerate(zip(_flat(want), _flat(have))))
        (place, (old, new)), *others = [pair for pair in pairs if pair[1][0] != pair[1][1]]
        return (
            True,
            (
                f"{1 + len(others)} of {len(pairs)} differ, first at {place}: {_short(old)} became"
                f" {_short(new)}"
            ),
        )
    gap = np.abs(want_array - have_array)
    absolute, relative = (
        gap.max(),
        (gap / np.maximum(np.maximum(abs(want_array), abs(have_array)), 1e-300)).max(),
    )
    how, limit = tolerance(name)
    measure = {"scale": absolute / abs(want_array).max(), "absolute": absolute}.get(how, relative)
    text = f"relative {relative:.1e}, absolute {absolute:.1e}"
    return not measure <= limit, text + f", of the largest {measure:.1e}" * (how == "scale")


def compare(want, have):
    """Print the agreement of every entry in order and return the first that drifted, in words, or
    None."""
    first = None
    print(
        "\n".join(
            f"{name:12} {value:10} -> {have['versions'][name]}"
            for name, value in want["versions"].items()
        )
    )
    for part in [part for part in want if part in have and part != "versions"]:
        for name, value in want[part].items():
            drifted, text = (
                (True, "missing")
                if name not in have[part]
                else difference(name, value, have[part][name])
            )
            print(f"{part:12} {name:28} {text}" + "   <-- DRIFTED" * drifted)
            if drifted and first is None:
                first = f"{part}.{name}: {text}"
    return first


def write_record(record, path):
    """Write the record as JSON, one entry a line; floats keep all their digits."""
    parts = []
    for part, entries in record.items():
        lines = [
            f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
            for name, value in entries.items()
        ]
        parts.append(json.dumps(part) + ": {\n" + ",\n".join(lines) + "\n}")
    Path(path).write_text("{" + ",\n".join(parts) + "}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", choices=[*ARCHS, "all"], default="all")
    parser.add_argument("--out", metavar="FILE", help="write the record there")
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="compare with the record there; exit 1 if anything drifted",
    )
    parser.add_argument("--use", metavar="FILE", help="compare this record instead of making one")
    options = parser.parse_args()
    names = list(ARCHS) if options.arch == "all" else [options.arch]
    record = json.loads(Path(options.use).read_text()) if options.use else make_record(names)
    if options.out:
        write_record(record, options.out)
    if options.compare:
        drift = compare(json.loads(Path(options.compare).read_text()), record)
        if drift:
            sys.exit(f"first record that drifted: {drift}")


if __name__ == "__main__":
    main()
