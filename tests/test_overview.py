"""Which patches the overviews show, what stands above them, and that caption and picture belong
together."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hcd import (
    choose_patches,
    get_heatmap,
    get_learner,
    make_databunch,
    plot_heatmap_overview,
    plot_overview,
    read_cropped_image,
)
from hcd.engine.compat import fastai
from hcd.overview import _caption

LOSSES = [0.3, 2.5, 0.01, 1.1, 0.7, 0.02, 4.0]
LARGEST_FIRST = [6, 1, 3, 4, 0, 5, 2]


class Last:
    """A random generator that always gives the last number it may."""

    def randrange(self, stop):
        return stop - 1

    def randint(self, low, high):
        return high


def made_up(losses=LOSSES):
    losses = torch.tensor(losses)
    return SimpleNamespace(losses=losses, top_losses=lambda: losses.topk(len(losses)))


@pytest.fixture(scope="module")
def interp(sample, small_recipe, split, tmp_path_factory):
    """Interpretation of a learner that reads plain crops, so that a patch looks the same each time
    it is drawn."""
    recipe = small_recipe.plain()
    data = make_databunch(sample, recipe, split[1], num_workers=0, device="cpu")
    torch.manual_seed(2)
    learner = get_learner(data, recipe, tmp_path_factory.mktemp("overview"))
    return fastai.train.ClassificationInterpretation.from_learner(learner)


def test_rows_are_random_largest_and_smallest_losses():
    (first, chosen), *others = choose_patches(made_up(), rng=random.Random(0))
    assert first == "Random\nsamples" and len(chosen) == 4
    assert others == [
        ("Most incorrect\nsamples", LARGEST_FIRST[:4]),
        ("Most correct\nsamples", LARGEST_FIRST[::-1][:4]),
    ]


def test_random_positions_reach_both_ends_and_never_leave():
    assert choose_patches(made_up(), rng=Last())[0][1] == [LARGEST_FIRST[-1]] * 4
    drawn = {i for n in range(100) for i in choose_patches(made_up(), rng=random.Random(n))[0][1]}
    assert drawn == set(range(len(LOSSES)))


def test_count_and_few_patches():
    assert [len(chosen) for _, chosen in choose_patches(made_up(), count=2)] == [2, 2, 2]
    assert choose_patches(made_up([0.5, 0.6]))[1:] == [
        ("Most incorrect\nsamples", [1, 0]),
        ("Most correct\nsamples", [0, 1]),
    ]


def test_same_seed_same_choice():
    assert choose_patches(made_up(), rng=random.Random(5)) == choose_patches(
        made_up(), rng=random.Random(5)
    )
    random.seed(6)
    first = choose_patches(made_up())
    random.seed(6)
    assert choose_patches(made_up()) == first


def expected_caption(interp, position, names):
    """Compute a caption from the model's probabilities alone."""
    probabilities = interp.preds[position].numpy()
    actual = interp.learn.data.valid_ds.y.items[position]
    loss = max(-np.log(probabilities[actual]), 0.0)
    return (
        f"{names[probabilities.argmax()]} / {names[actual]} / {loss:.2f} /"
        f" {probabilities[actual]:.2f}"
    )


def plain_crop(interp, position):
    data = interp.learn.data
    return read_cropped_image(
        data.path / data.valid_ds.x.items[position], recipe=data.valid_ds.x.recipe
    )


@pytest.mark.parametrize("plot", [plot_overview, plot_heatmap_overview])
def test_captions_belong_to_their_patches(interp, plot):
    names = ("Healthy", "Sick")
    figure = plot(interp, names, rng=random.Random(1))
    positions = [i for _, chosen in choose_patches(interp, rng=random.Random(1)) for i in chosen]
    assert len(figure.axes) == len(positions) == 12
    assert len({axis.get_title() for axis in figure.axes}) > 6
    for axis, position in zip(figure.axes, positions):
        assert axis.get_title() == expected_caption(interp, position, names)
        crop = plain_crop(interp, position)
        if plot is plot_heatmap_overview:
            crop = crop @ np.float32([0.299, 0.587, 0.114])
        np.testing.assert_allclose(axis.images[0].get_array(), crop, atol=1e-5)
    labels = [axis.get_ylabel().replace("\n", " ") for axis in figure.axes[::4]]
    assert labels == ["Random samples", "Most incorrect samples", "Most correct samples"]


def test_titles_and_default_names(interp):
    for plot, title in (
        (plot_overview, "Predicted / Actual / Loss / Probability"),
        (plot_heatmap_overview, "Grad-CAM\nPredicted / Actual / Loss / Probability"),
    ):
        figure = plot(interp)
        assert figure.get_suptitle() == title
        assert {word for axis in figure.axes for word in axis.get_title().split(" / ")[:2]} == {
            "Negative",
            "Tumour",
        }


def test_heatmaps_lie_over_their_patches(interp):
    figure = plot_heatmap_overview(interp, rng=random.Random(3))
    positions = [i for _, chosen in choose_patches(interp, rng=random.Random(3)) for i in chosen]
    for axis, position in zip(figure.axes, positions):
        picture, heatmap = axis.images
        expected, _ = get_heatmap(interp.learn, position)
        np.testing.assert_allclose(
            heatmap.get_array(), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
        )
        assert heatmap.get_extent() == picture.get_extent()


def test_the_title_names_the_method_and_the_real_size(interp):
    figure = plot_heatmap_overview(interp, rng=random.Random(3), method="layer_cam", size=10)
    caption = "Predicted / Actual / Loss / Probability"
    assert figure.get_suptitle() == f"LayerCAM (11 x 11 maps)\n{caption}"
    chosen = choose_patches(interp, rng=random.Random(3))[0][1][0]
    expected, _ = get_heatmap(interp.learn, chosen, "layer_cam", 10)
    np.testing.assert_allclose(
        figure.axes[0].images[1].get_array(), expected, rtol=1e-3, atol=1e-5 * expected.max()
    )
    figure = plot_heatmap_overview(interp, method="hires_cam")
    assert figure.get_suptitle() == f"HiResCAM (5 x 5 maps)\n{caption}"


def test_probability_is_that_of_the_actual_class():
    interp = SimpleNamespace(
        pred_class=torch.tensor([1]),
        y_true=torch.tensor([0]),
        losses=torch.tensor([1.6094]),
        preds=torch.tensor([[0.2, 0.8]]),
    )
    assert _caption(interp, 0, ("Negative", "Tumour")) == "Tumour / Negative / 1.61 / 0.20"


def test_a_sure_and_right_answer_has_no_negative_loss():
    interp = SimpleNamespace(
        pred_class=torch.tensor([0]),
        y_true=torch.tensor([0]),
        losses=torch.tensor([-0.0]),
        preds=torch.tensor([[1.0, 0.0]]),
    )
    assert _caption(interp, 0, ("Negative", "Tumour")) == "Negative / Negative / 0.00 / 1.00"


def test_every_patch_is_drawn_anew(learner):
    interp = fastai.train.ClassificationInterpretation.from_learner(learner)
    one, two = (
        plot_overview(interp, rng=random.Random(4)).axes[4].images[0].get_array() for _ in range(2)
    )
    assert not np.allclose(one, two)
