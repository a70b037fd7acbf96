"""What is handed in is the truth: own databunches, classes, losses, stats, sizes and precision are
honoured to the last digit or refused in one sentence before anything is written."""

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fastai.basic_data
import numpy as np
import pytest
import torch
from fastai.basic_data import DatasetType
from fastai.data_block import CategoryList, FloatList, MultiCategoryList
from fastai.layers import LabelSmoothingCrossEntropy
from fastai.train import ClassificationInterpretation
from fastai.vision import ImageDataBunch, ImageList, imagenet_stats
from torch import nn

import hcd
from hcd import CroppedImageList, Recipe
from hcd.engine import given

PLAIN = Recipe.sample(arch="squeezenet1_1", batch_size=8, crop_size=48).plain()


def own_databunch(
    sample, column="label", size=48, stats=None, tfms=([], []), table=None, recipe=PLAIN, **options
):
    """The patches of `sample` through fastai's data block API, as people write it themselves."""
    items = CroppedImageList.from_df(
        sample.labels if table is None else table,
        path=sample.root,
        cols="id",
        folder="train",
        suffix=".tif",
        recipe=recipe,
    )
    lists = items.split_by_rand_pct(0.25, seed=0).label_from_df(cols=column, **options)
    lists = lists.add_test([str(path) for path in sample.test_paths])
    data = lists.transform(list(tfms), size=size).databunch(
        bs=8, num_workers=0, device=torch.device("cpu")
    )
    if stats == "none":
        return data
    return data.normalize(stats or (torch.tensor(recipe.mean), torch.tensor(recipe.std)))


def named(sample, *names):
    """The labels of `sample` as texts, or as more classes than two."""
    rows = np.arange(len(sample.labels)) if len(names) > 2 else sample.labels["label"].to_numpy()
    return sample.labels.assign(name=[names[row % len(names)] for row in rows])


def build(data, tmp_path, recipe=PLAIN):
    torch.manual_seed(0)
    return hcd.get_learner(data, recipe, tmp_path)


def own_probabilities(learner):
    return learner.get_preds(DatasetType.Test)[0].numpy()


def saved_probabilities(learner, folder):
    bundle = hcd.load_bundle(hcd.save_bundle(learner, folder))
    return np.array([hcd.predict_image(bundle, p).probability for p in learner.data.test_ds.items])


# classes


@pytest.mark.parametrize(
    "names", [("normal", "malignant"), ("tumour", "zzz"), ("a", "b"), ("1", "0")], ids="-".join
)
def test_c25_classes_that_are_not_negative_then_tumour_write_nothing(
    sample, tmp_path, refused, names
):
    data = own_databunch(sample, "name", table=named(sample, *names))
    learner = build(data, tmp_path / "learner")
    if names == ("1", "0"):  # sort as 0 and 1
        assert data.classes == ["0", "1"]
        return
    with refused(ValueError, data.classes, "column 1 must be the tumour", "[0, 1]"):
        hcd.save_bundle(learner, tmp_path / "model")
    with refused(ValueError, data.classes, "column 1 must be the tumour"):
        hcd.write_submission(tmp_path / "s.csv", sample, learner, own_probabilities(learner))
    assert not (tmp_path / "model").exists() and not (tmp_path / "s.csv").exists()


def test_names_that_sort_negative_first_are_taken(sample, tmp_path):
    data = own_databunch(sample, "name", table=named(sample, "Negative", "Tumour"))
    learner = build(data, tmp_path)
    difference = saved_probabilities(learner, tmp_path / "m") - own_probabilities(learner)[:, 1]
    assert np.abs(difference).max() < 1e-6
    table = hcd.write_submission(tmp_path / "s.csv", sample, learner, own_probabilities(learner))
    assert len(table) == 12


def test_three_classes_are_predicted_and_named_but_not_submitted(sample, tmp_path, refused):
    learner = build(own_databunch(sample, "name", table=named(sample, *"xyz")), tmp_path)
    averaged = hcd.predict_tta(learner, 2, progress=False)
    assert averaged.shape == (12, 3)
    np.testing.assert_allclose(averaged.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(averaged, own_probabilities(learner), atol=1e-6)
    interp = ClassificationInterpretation.from_learner(learner)
    shown = {w for a in hcd.plot_overview(interp).axes for w in a.get_title().split(" / ")[:2]}
    assert shown <= {"x", "y", "z"} and len(shown) > 1
    renamed = hcd.plot_heatmap_overview(interp, ["one", "two", "three"])
    assert all(a.get_title().split(" / ")[0] in ("one", "two", "three") for a in renamed.axes)
    with refused(ValueError, "('a', 'b')", "3 classes", "give 3 names"):
        hcd.plot_overview(interp, ("a", "b"))
    with refused(ValueError, "['x', 'y', 'z']"):
        hcd.save_bundle(learner, tmp_path / "model")


def test_labels_of_another_kind_are_refused(sample, tmp_path, refused):
    for kind, options in ((FloatList, {}), (MultiCategoryList, {"label_delim": " "})):
        table = named(sample, "0", "1") if options else sample.labels
        data = own_databunch(
            sample, "name" if options else "label", table=table, label_cls=kind, **options
        )
        learner = SimpleNamespace(data=data, model=nn.Linear(1, 2), loss_func=nn.CrossEntropyLoss())
        for call in (
            lambda learner: hcd.save_bundle(learner, tmp_path / "m"),
            lambda learner: hcd.predict_tta(learner, 1, progress=False),
            lambda learner: hcd.get_heatmap(learner, 0),
        ):
            with refused(ValueError, kind.__name__, "label_cls=CategoryList"):
                call(learner)


def test_a_databunch_of_other_classes_than_the_heads(sample, tmp_path, refused):
    learner = build(own_databunch(sample), tmp_path)
    interp = ClassificationInterpretation.from_learner(learner)
    learner.data = interp.data = own_databunch(sample, "name", table=named(sample, *"xyz"))
    with refused(ValueError, "2 outputs", "3 classes"):
        hcd.predict_tta(learner, 1, progress=False)
    with refused(ValueError, "2 outputs", "3 classes"):
        hcd.plot_overview(interp)


@pytest.mark.parametrize("thing", [None, "learner", nn.Linear(1, 1), SimpleNamespace(recipe=1)])
def test_no_learner_at_all(sample, tmp_path, refused, thing):
    for call in (
        lambda: hcd.save_bundle(thing, tmp_path / "m"),
        lambda: hcd.predict_tta(thing, 1),
        lambda: hcd.write_submission(tmp_path / "s.csv", sample, thing, np.zeros((12, 2))),
        lambda: hcd.get_heatmap(thing, 0),
        lambda: hcd.Checkpoints(tmp_path / "c", PLAIN, sample).callback(thing, "fit"),
    ):
        with refused(TypeError, type(thing).__name__, "give a fastai Learner"):
            call()
    for call in (hcd.plot_overview, hcd.plot_heatmap_overview):
        with refused(TypeError, type(thing).__name__, "ClassificationInterpretation"):
            call(thing)


# normalisation and size


@pytest.mark.parametrize(
    "stats", [None, imagenet_stats, ([0.5] * 3, [0.25] * 3), ([0.5], [0.25]), "none"], ids=str
)
def test_c26_bundle_and_passes_normalise_as_the_databunch_does(sample, tmp_path, stats):
    learner = build(own_databunch(sample, stats=stats), tmp_path)
    own = own_probabilities(learner)
    assert np.ptp(own[:, 1]) > 1e-3  # an answer that never changes would prove nothing
    np.testing.assert_allclose(saved_probabilities(learner, tmp_path / "m"), own[:, 1], atol=2e-6)
    np.testing.assert_allclose(hcd.predict_tta(learner, 1, progress=False), own, atol=2e-6)
    card = hcd.load_bundle(tmp_path / "m").card["recipe"]
    expected = {None: PLAIN.mean, "none": (0, 0, 0)}.get(stats if stats in (None, "none") else 1)
    if expected is not None:
        assert tuple(card["mean"]) == expected  # the recipe's own digits stay


@pytest.mark.parametrize("size", [None, 48])
def test_a_set_that_is_not_resized(sample, tmp_path, size):
    data = own_databunch(sample)
    for part in (data.train_ds, data.valid_ds, data.test_ds):
        part.tfmargs = {} if size is None else {"size": size}
    learner = build(data, tmp_path)
    own = own_probabilities(learner)
    np.testing.assert_allclose(hcd.predict_tta(learner, 1, progress=False), own, atol=2e-6)
    np.testing.assert_allclose(saved_probabilities(learner, tmp_path / "m"), own[:, 1], atol=2e-6)


def test_one_pass_draws_what_get_preds_draws(sample, tmp_path):
    recipe = Recipe(arch="squeezenet1_1", pretrained=False, crop_size=48)
    for size in (48, None):
        data = own_databunch(sample, recipe=recipe)
        data.test_ds.tfmargs = {} if size is None else {"size": size}
        learner = build(data, tmp_path, recipe)
        random.seed(3)
        own = own_probabilities(learner)
        random.seed(3)
        passed = hcd.predict_tta(learner, 1, progress=False)
        np.testing.assert_allclose(passed, own, atol=2e-6)


def test_other_sizes_and_transforms_are_refused(sample, tmp_path, refused):
    def assert_refused(data, *parts):
        learner = build(data, tmp_path / "learner")
        with refused(ValueError, *parts):
            hcd.predict_tta(learner, 1, progress=False)
        with refused(ValueError, *parts):
            hcd.save_bundle(learner, tmp_path / "model")
        assert not (tmp_path / "model").exists()

    assert_refused(own_databunch(sample, size=96), "size=96", "crop_size=48")
    flips = own_databunch(sample)
    for part in (flips.valid_ds, flips.test_ds):
        part.tfms = fastai.vision.get_transforms(max_warp=0)[0][:2]
    assert_refused(flips, "fastai's transforms", "leave them off")


def test_batch_transforms_are_honoured_by_passes_and_refused_by_a_card(sample, tmp_path, refused):
    data = own_databunch(sample)
    data.add_tfm(lambda batch: (batch[0] * 2, batch[1]))
    learner = build(data, tmp_path)
    np.testing.assert_allclose(
        hcd.predict_tta(learner, 1, progress=False), own_probabilities(learner), atol=2e-6
    )
    with refused(ValueError, "batch transforms", "<lambda>"):
        hcd.save_bundle(learner, tmp_path / "m")


def test_a_plain_databunch_of_fastai(sample, tmp_path, refused):
    data = ImageDataBunch.from_df(
        sample.root,
        sample.labels,
        folder="train",
        suffix=".tif",
        ds_tfms=None,
        size=48,
        bs=8,
        num_workers=0,
        fn_col="id",
        label_col="label",
        device=torch.device("cpu"),
    )
    learner = build(data, tmp_path)
    heatmap, gray = hcd.get_heatmap(learner, 0)
    assert gray.shape == (48, 48) and 0 <= gray.min() < gray.max() <= 1 and heatmap.ndim == 2
    assert hcd.plot_overview(ClassificationInterpretation.from_learner(learner))
    with refused(ValueError, "no test set"):
        hcd.predict_tta(learner, 1, progress=False)
    with refused(ValueError, "no test set"):
        hcd.write_submission(tmp_path / "s.csv", sample, learner, np.zeros((12, 2)))
    data.add_test([Path(path) for path in sample.test_paths])
    for call in (
        lambda: hcd.predict_tta(learner, 1, progress=False),
        lambda: hcd.save_bundle(learner, tmp_path / "m"),
    ):
        with refused(ValueError, "ImageList", "CroppedImageList"):
            call()
    table = hcd.write_submission(tmp_path / "s.csv", sample, learner, own_probabilities(learner))
    assert list(table["id"]) == list(sample.sample_ids)


class OwnReader(CroppedImageList):
    """Reads otherwise than the recipe says."""

    def open(self, fn):
        image = super().open(fn)
        image.px = 1 - image.px
        return image


def test_an_item_list_that_reads_otherwise_is_refused(sample, tmp_path, refused):
    data = own_databunch(sample)
    for part in (data.train_ds, data.valid_ds, data.test_ds):
        part.x.__class__ = OwnReader
    learner = build(data, tmp_path)
    with refused(ValueError, "OwnReader"):
        hcd.predict_tta(learner, 1, progress=False)
    with refused(ValueError, "OwnReader"):
        hcd.save_bundle(learner, tmp_path / "m")


# loss, precision and place


class FocalLoss(nn.Module):
    def forward(self, outputs, labels, reduction="mean"):
        return nn.functional.cross_entropy(outputs, labels, reduction=reduction)


@pytest.mark.parametrize(
    "loss, activation",
    [
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), "softmax"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "softmax"),
        (partial(nn.functional.cross_entropy, reduction="mean"), "softmax"),
        (nn.functional.cross_entropy, "softmax"),
        (LabelSmoothingCrossEntropy(), "softmax"),
        (nn.BCEWithLogitsLoss(), "sigmoid"),
        (nn.MSELoss(), None),
        (FocalLoss(), None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_probabilities_are_those_of_the_loss(sample, tmp_path, refused, loss, activation):
    learner = build(own_databunch(sample), tmp_path)
    logits = learner.get_preds(DatasetType.Test, activ=lambda outputs: outputs)[0]
    learner.loss_func = loss
    if activation is None:
        for call in (
            lambda: hcd.predict_tta(learner, 1, progress=False),
            lambda: hcd.save_bundle(learner, tmp_path / "m"),
        ):
            with refused(ValueError, type(loss).__name__, "CrossEntropyLoss()"):
                call()
        return
    expected = getattr(torch, activation)(logits, *([1] if activation == "softmax" else []))
    averaged = hcd.predict_tta(learner, 1, progress=False)
    np.testing.assert_allclose(averaged, expected.numpy(), atol=2e-6)
    if activation == "softmax":
        hcd.save_bundle(learner, tmp_path / "m")
    else:
        with refused(ValueError, "BCEWithLogitsLoss", "softmax"):
            hcd.save_bundle(learner, tmp_path / "m")


def shown_probabilities(figure):
    return [float(axis.get_title().split(" / ")[3]) for axis in figure.axes]


def test_an_overview_shows_probabilities_or_says_that_there_are_none(sample, tmp_path, refused):
    learner = build(own_databunch(sample), tmp_path)
    learner.loss_func = LabelSmoothingCrossEntropy()
    interp = ClassificationInterpretation.from_learner(learner)
    assert float(interp.preds.min()) < 0  # fastai hands out logits here
    shown = shown_probabilities(hcd.plot_overview(interp, rng=random.Random(0)))
    chosen = [i for _, row in hcd.choose_patches(interp, rng=random.Random(0)) for i in row]
    expected = torch.softmax(interp.preds, 1)
    for i, probability in zip(chosen, shown):
        assert probability == pytest.approx(float(expected[i, interp.y_true[i]]), abs=6e-3)
    learner.loss_func = FocalLoss()
    with refused(ValueError, "no probabilities", "activ="):
        hcd.plot_overview(ClassificationInterpretation.from_learner(learner))


def test_half_precision(sample, tmp_path, refused):
    learner = build(own_databunch(sample), tmp_path)
    learner.model.half()
    with refused(ValueError, "torch.float16", "torch.float32"):
        hcd.predict_tta(learner, 1, progress=False)
    with refused(ValueError, "torch.float16", "torch.float32"):
        hcd.get_heatmap(learner, 0)
    with refused(ValueError, "torch.float16", "learner.to_fp32()"):
        hcd.save_bundle(learner, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    learner.model.float()
    hcd.save_bundle(learner, tmp_path / "m")


def test_a_model_elsewhere_than_its_batches(sample, tmp_path, refused):
    learner = build(own_databunch(sample), tmp_path)
    learner.model = learner.model.to("meta")
    with refused(ValueError, "on meta", "on cpu"):
        hcd.predict_tta(learner, 1, progress=False)


def test_a_wrapped_model_is_the_model_within(sample, tmp_path):
    learner = build(own_databunch(sample), tmp_path)
    heatmap, own = hcd.get_heatmap(learner, 2)[0], own_probabilities(learner)
    learner.model = nn.DataParallel(learner.model)
    np.testing.assert_array_equal(hcd.get_heatmap(learner, 2)[0], heatmap)
    np.testing.assert_allclose(hcd.predict_tta(learner, 1, progress=False), own, atol=2e-6)
    np.testing.assert_allclose(saved_probabilities(learner, tmp_path / "m"), own[:, 1], atol=2e-6)


# which set


@pytest.fixture(scope="module")
def watched(sample, tmp_path_factory):
    """Learner on two sets of unlike labels; read it only."""
    return build(own_databunch(sample), tmp_path_factory.mktemp("watched"))


def read_by(monkeypatch, call):
    seen, find = [], CroppedImageList.find
    with monkeypatch.context() as patch:
        patch.setattr(
            CroppedImageList, "find", lambda items, fn: (seen.append(fn), find(items, fn))[1]
        )
        call()
    return set(map(str, seen))


@pytest.mark.parametrize("plot", [hcd.plot_overview, hcd.plot_heatmap_overview])
def test_the_pictures_are_of_the_set_that_was_interpreted(watched, monkeypatch, refused, plot):
    for kind in (DatasetType.Valid, DatasetType.Fix):
        for forgotten in (False, True):  # as fastai.train's own from_learner does
            interp = ClassificationInterpretation.from_learner(watched, ds_type=kind)
            if forgotten:
                interp.ds_type = DatasetType.Valid
            items = set(map(str, watched.data.dl(kind).dataset.items))
            assert read_by(monkeypatch, lambda interp=interp: plot(interp)) <= items
    test = ClassificationInterpretation.from_learner(watched, ds_type=DatasetType.Test)
    with refused(ValueError, "Test set has no labels"):
        plot(test)
    shuffled = ClassificationInterpretation.from_learner(watched, ds_type=DatasetType.Train)
    with refused(ValueError, "DatasetType.Fix"):
        plot(shuffled)
    with refused(ValueError, "not those of the Fix"):
        plot(ClassificationInterpretation.from_learner(watched), ds_type=DatasetType.Fix)


def test_two_sets_with_the_same_labels_are_told_apart_by_name(watched, refused, monkeypatch):
    interp = ClassificationInterpretation.from_learner(watched, ds_type=DatasetType.Fix)
    interp.ds_type = DatasetType.Valid
    monkeypatch.setattr(watched.data, "test_dl", watched.data.fix_dl)
    with refused(ValueError, "Fix and of the Test", "pass ds_type="):
        hcd.plot_overview(interp)
    assert hcd.plot_overview(interp, ds_type=DatasetType.Fix)


def test_an_interpretation_keeps_the_databunch_it_was_made_of(sample, tmp_path, monkeypatch):
    learner = build(own_databunch(sample), tmp_path)
    interp = ClassificationInterpretation.from_learner(learner)
    items = set(map(str, learner.data.valid_ds.items))
    learner.data = own_databunch(sample, "name", table=named(sample, *"xyz"))
    assert read_by(monkeypatch, lambda: hcd.plot_heatmap_overview(interp)) <= items


def test_losses_that_are_not_one_a_patch(refused):
    for losses in (torch.zeros(3, 2), torch.zeros(0), None):
        with refused(ValueError, "losses of shape"):
            hcd.choose_patches(SimpleNamespace(losses=losses))


# Grad-CAM and checkpoints


def test_hooked_backward_says_what_it_needs(refused):
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    )
    image = torch.zeros(1, 3, 4, 4)
    for batch in (image[0], torch.zeros(2, 3, 4, 4)):
        with refused(ValueError, tuple(batch.shape), "give one image"):
            hcd.hooked_backward(model, batch, 0)
    for category in (-1, 2):
        with refused(ValueError, f"category={category}", "2 classes"):
            hcd.hooked_backward(model, image, category)
    with refused(ValueError, "Linear", "Sequential(body, head)"):
        hcd.hooked_backward(nn.Linear(1, 1), image, 0)
    with refused(ValueError, "torch.float64"):
        hcd.hooked_backward(model, image.double(), 0)


def test_a_heatmaps_image_is_transformed_once(sample, tmp_path):
    class Half(fastai.vision.TfmPixel):
        pass

    halve = Half(lambda x: x * 0.5)()
    data = own_databunch(sample, tfms=([halve], [halve]))
    learner = build(data, tmp_path)
    _, gray = hcd.get_heatmap(learner, 1)
    red, green, blue = data.valid_ds[1][0].data.numpy()
    np.testing.assert_allclose(gray, 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-5)
    image, label = data.valid_ds[1]
    batch, _ = data.valid_dl.proc_batch((image.data[None], torch.zeros(1)))
    expected = hcd.grad_cam(*hcd.hooked_backward(learner.model, batch, label.data))
    np.testing.assert_allclose(hcd.get_heatmap(learner, 1)[0], expected.numpy(), rtol=1e-4)


def test_checkpoints_of_another_recipe_than_the_databunch(sample, tmp_path, refused):
    learner = build(own_databunch(sample), tmp_path)
    other = Recipe.sample(arch="squeezenet1_1", batch_size=8, crop_size=64).plain()
    with refused(ValueError, "crop_size=48", "64", "give both one recipe"):
        hcd.Checkpoints(tmp_path / "kept", other, sample).callback(learner, "fit")


def test_class_names_are_the_databunchs(sample):
    data = own_databunch(sample, label_cls=CategoryList)
    assert given.class_names(data) == [0, 1] and isinstance(data.train_ds.x, ImageList)
