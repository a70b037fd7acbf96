"""The figures hold what their arguments say, and every one of them renders without a warning."""

import io
import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import CHECKOUT
from matplotlib.colors import to_rgba

from hcd import plots

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def patch(side=96):
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def patch_id(number):
    return f"{number:x}" * 40


def visible(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def with_image(figure):
    return [axis for axis in visible(figure) if axis.images]


def limits(axis):
    return (*axis.get_xlim(), *axis.get_ylim())


def sweep_curve(weight_decay, blow_up, count=600, plateau=0.9):
    """Return a noise-free range test: a plateau up to 1e-4, down to about 0.5, up to 40 from
    `blow_up` on."""
    lrs = np.logspace(-7, 1, count)
    losses = (
        plateau
        - (plateau - 0.5) / (1 + (2e-3 / lrs) ** 2)
        + np.minimum(40, 0.05 * (lrs / blow_up) ** 4)
    )
    return SimpleNamespace(weight_decay=weight_decay, lrs=lrs, losses=losses)


def every_figure():
    """Return each function's call by name, with the odd cases among them."""
    few = [(patch_id(1), 0, patch()), (patch_id(2), 1, patch())]
    caption = "Negative / Tumour / 12.34 / 0.02"
    plain = [plots.Cell(patch(90), caption) for _ in range(4)]
    heated = [
        plots.Cell(patch(90)[..., 0] / 255, caption, rng.normal(size=(2, 2))) for _ in range(4)
    ]
    names = ("Random\nsamples", "Most incorrect\nsamples", "Most correct\nsamples")
    curves = [sweep_curve(1e-6, 0.3), sweep_curve(1e-4, 0.2), sweep_curve(1e-2, 0.05)]
    return {
        "patches": lambda: plots.plot_patches(
            [patch()] * 5, [patch()] * 5, "Patches", centre_box=True
        ),
        "one class": lambda: plots.plot_patches([], [patch(90) / 255] * 2, "Crops"),
        "draws": lambda: plots.plot_draws([patch(90) / 255] * 5, "Draws"),
        "no outliers": lambda: plots.plot_outliers([], []),
        "outliers": lambda: plots.plot_outliers(few, few * 4),
        "sweep": lambda: plots.plot_sweep(curves),
        "short sweep": lambda: plots.plot_sweep(
            [SimpleNamespace(weight_decay=0, lrs=[1e-3], losses=[0.7])]
        ),
        "lost sweep": lambda: plots.plot_sweep(
            [SimpleNamespace(weight_decay=1, lrs=[1, 2], losses=[np.nan] * 2)]
        ),
        "overview": lambda: plots.plot_patch_grid(
            [(name, plain) for name in names], "Predicted / actual / loss"
        ),
        "heatmaps": lambda: plots.plot_patch_grid(
            [(name, heated) for name in names], "Grad-CAM\nPredicted / actual"
        ),
        "roc": lambda: plots.plot_roc([0, 0.1, 1], [0, 0.9, 1], 0.9),
        "prediction": lambda: plots.plot_prediction(patch(), "tumour", 0.97),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_every_figure_renders_without_warning_and_within_a_notebook_page(name):
    figure = every_figure()[name]()  # pytest makes errors of warnings
    figure.savefig(stream := io.BytesIO(), format="png", dpi=100)
    assert stream.getvalue().startswith(b"\x89PNG")
    assert all(figure.get_size_inches() <= (16, 12))


@pytest.mark.parametrize("name", list(every_figure()))
def test_no_text_overlaps_another_or_leaves_the_page(name):
    figure = every_figure()[name]()
    figure.canvas.draw()
    boxes = [figure._suptitle] if figure._suptitle else []  # matplotlib < 3.8 has no get_suptitle
    for axis in visible(figure):
        boxes += [axis.title, axis.yaxis.label, axis.xaxis.label, *axis.texts]
    boxes = [(text.get_text(), text.get_window_extent()) for text in boxes if text.get_text()]
    page = figure.bbox
    for number, (text, box) in enumerate(boxes):
        assert (
            page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        ), text
        for other, other_box in boxes[:number]:
            assert not box.overlaps(other_box), (text, other)
    # tick labels too
    panels = [axis.get_tightbbox(figure.canvas.get_renderer()) for axis in visible(figure)]
    assert not any(
        box.overlaps(other) for number, box in enumerate(panels) for other in panels[:number]
    )


# patches and draws


def test_boxes_are_dotted_blue_over_negatives_and_red_over_tumours():
    figure = plots.plot_patches(
        [patch()] * 5, [patch()] * 5, "Lymph node sections", centre_box=True
    )
    assert figure._suptitle.get_text() == "Lymph node sections"
    assert [figure.axes[0].get_ylabel(), figure.axes[5].get_ylabel()] == ["Negative", "Tumour"]
    for number, axis in enumerate(figure.axes):
        (box,) = axis.patches
        assert (*box.get_xy(), box.get_width(), box.get_height()) == (32, 32, 32, 32)
        assert box.get_edgecolor() == to_rgba("blue" if number < 5 else "red")
        assert box.get_linestyle() in (":", "dotted") and box.get_linewidth() == 4
        assert box.get_facecolor()[3] == 0  # see-through
        # edges of pixels, so that the box starts where pixel 32 does
        assert limits(axis) == (0, 96, 96, 0)


def test_box_frames_exactly_the_centre_pixels():
    image = np.full((96, 96, 3), 255, np.uint8)
    image[32:64, 32:64] = 0
    figure = plots.plot_patches([image], [], "", centre_box=True)
    figure.canvas.draw()
    (box,) = figure.axes[0].patches
    inside = box.get_path().transformed(box.get_patch_transform()).contains_points
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    middles = (np.arange(96) + 0.5) / 96  # of the pixels, as shares of a side
    x, y = np.meshgrid(left + middles * (right - left), top + middles * (bottom - top))
    drawn = inside(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(96, 96)
    assert np.array_equal(drawn, image[..., 0] == 0)


def test_box_keeps_its_32_px_in_patches_of_other_and_unequal_sides():
    figure = plots.plot_patches([np.zeros((90, 64, 3))], [patch(32)], "", centre_box=True)
    boxes = [axis.patches[0].get_bbox().bounds for axis in with_image(figure)]
    assert boxes == [(16, 29, 32, 32), (0, 0, 32, 32)]


def test_patches_are_drawn_in_order_without_box_and_the_rest_is_hidden():
    negatives, positives = [patch() for _ in range(3)], [patch() for _ in range(5)]
    figure = plots.plot_patches(np.stack(negatives), positives, "")
    shown = with_image(figure)
    assert len(figure.axes) == 10 and len(visible(figure)) == len(shown) == 8
    for axis, image in zip(shown, negatives + positives):
        assert np.array_equal(axis.images[0].get_array(), image)
        assert not axis.patches


def test_float_patches_show_the_same_values_as_uint8_ones():
    image = patch()
    for one in (image, image / 255, (image / 255).astype(np.float32)):
        axis = plots.plot_draws([one], "").axes[0]
        rgba = axis.images[0].to_rgba(axis.images[0].get_array(), bytes=True, norm=True)
        assert np.abs(rgba[..., :3].astype(int) - image).max() <= 1


def test_a_class_without_patches_says_so():
    figure = plots.plot_patches([], [patch()], "")
    assert [text.get_text() for text in figure.axes[0].texts] == ["none found"]
    assert len(visible(figure)) == 2 and len(with_image(figure)) == 1


@pytest.mark.parametrize("count", [1, 5, 7])
def test_draws_lie_in_one_row(count):
    images = [patch(90) / 255 for _ in range(count)]
    figure = plots.plot_draws(images, "Five draws")
    assert len(visible(figure)) == count and figure._suptitle.get_text() == "Five draws"
    for axis, image in zip(figure.axes, images):
        assert np.array_equal(axis.images[0].get_array(), image)
    figure.canvas.draw()
    assert len({round(axis.get_position().y0, 6) for axis in figure.axes}) == 1


# outliers


def test_outliers_show_the_first_six_and_count_the_rest():
    bright = [(patch_id(number), number % 2, patch()) for number in range(9)]
    figure = plots.plot_outliers([(patch_id(15), 0, patch())], bright)
    assert figure.axes[0].get_ylabel() == "Extremely dark\n1 found"
    assert figure.axes[6].get_ylabel() == "Extremely bright\n6 of 9"
    assert len(figure.axes) == 12 and len(visible(figure)) == 7
    for (name, label, image), axis in zip(bright, figure.axes[6:]):
        # whole id, legible
        assert axis.get_title().split("\n") == [name[:20], name[20:], f"label {label}"]
        assert np.array_equal(axis.images[0].get_array(), image)


@pytest.mark.parametrize("count, words", [(2, "2 found"), (3, "3 found"), (4, "3 of 4")])
def test_outliers_are_cut_beyond_most(count, words):
    figure = plots.plot_outliers([(patch_id(1), 0, patch())] * count, [], most=3)
    assert figure.axes[0].get_ylabel() == f"Extremely dark\n{words}" and len(
        with_image(figure)
    ) == min(count, 3)


def test_no_outliers_say_so_in_both_rows():
    figure = plots.plot_outliers([], [])
    assert not with_image(figure) and len(visible(figure)) == 2
    assert [axis.texts[0].get_text() for axis in visible(figure)] == ["none found"] * 2
    assert [axis.get_ylabel() for axis in visible(figure)] == ["Extremely dark", "Extremely bright"]


@pytest.mark.parametrize("dark, bright", [(0, 0), (1, 0), (0, 1), (2, 1)])
def test_the_outliers_title_stands_over_them(dark, bright):
    """And not over columns that nothing is in."""
    found = [(patch_id(0), 0, patch())]
    figure = plots.plot_outliers(found * dark, found * bright)
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in visible(figure)]
    left, right = min(box.x0 for box in boxes), max(box.x1 for box in boxes)
    title = figure._suptitle.get_window_extent()
    assert left < (title.x0 + title.x1) / 2 < right
    assert title.x0 >= 0 and title.x1 <= figure.bbox.width


# sweep


def test_sweep_draws_every_curve_unchanged_with_its_weight_decay():
    curves = [
        sweep_curve(1e-6, 0.3),
        sweep_curve(1e-4, 0.2),
        sweep_curve(1.5e-2, 0.05),
        sweep_curve(0, 0.05),
    ]
    axis = plots.plot_sweep(curves).axes[0]
    assert (
        axis.get_xscale() == "log"
        and axis.get_xlabel() == "Learning rate"
        and axis.get_ylabel().startswith("Loss")
    )
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "1e-6",
        "1e-4",
        "1.5e-2",
        "0",
    ]
    for line, curve in zip(axis.lines, curves):
        assert np.array_equal(line.get_xdata(), curve.lrs) and np.array_equal(
            line.get_ydata(), curve.losses
        )
    assert (
        len({line.get_color() for line in axis.lines})
        == len({line.get_linestyle() for line in axis.lines})
        == 4
    )


@pytest.mark.parametrize("count", [60, 600])
def test_sweep_limits_hold_descent_and_minimum_but_not_the_divergence(count):
    curves = [sweep_curve(1e-6, 0.3, count), sweep_curve(1e-2, 0.05, count)]
    left, right, bottom, top = limits(plots.plot_sweep(curves).axes[0])
    least = min(curve.losses.min() for curve in curves)
    # the plateau is 0.9, the divergence reaches 40
    assert least - 0.1 < bottom < least and 0.9 < top < 1.1
    assert 1e-5 < left < 5e-4  # the descent passes its middle at 2e-3
    for curve in curves:
        assert left < curve.lrs[curve.losses.argmin()] < right
        assert curve.lrs[curve.losses <= top].max() < right < 5


def test_noise_in_the_first_losses_does_not_move_the_limits():
    noisy = sweep_curve(1e-4, 0.2)
    noisy.losses[:10] += np.array([3, 1, -0.3, 0.5, -0.2, 0.2, -0.1, 0.1, 0, 0.1])
    quiet = limits(plots.plot_sweep([sweep_curve(1e-4, 0.2)]).axes[0])
    assert limits(plots.plot_sweep([noisy]).axes[0]) == pytest.approx(quiet, rel=1e-4)


def test_sweep_leaves_gaps_where_a_loss_is_not_finite():
    curve = sweep_curve(1e-4, 0.2)
    expected = limits(plots.plot_sweep([curve]).axes[0])
    curve.losses[-3:] = np.nan, np.inf, -np.inf
    lost = SimpleNamespace(weight_decay=1, lrs=[1e-3, 1e-2], losses=[np.nan, np.inf])
    axis = plots.plot_sweep([curve, lost]).axes[0]
    assert np.array_equal(np.isfinite(axis.lines[0].get_ydata()), np.arange(600) < 597)
    assert limits(axis) == pytest.approx(expected)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "1e-4",
        "1e0 (no finite loss)",
    ]


def test_sweep_takes_tensors_as_the_recorder_holds_them():
    torch = pytest.importorskip("torch")
    curve = SimpleNamespace(
        weight_decay=1e-4, lrs=[1e-3, 1e-2], losses=[torch.tensor(0.75), torch.tensor(0.5)]
    )
    assert plots.plot_sweep([curve]).axes[0].lines[0].get_ydata().tolist() == [0.75, 0.5]


def test_any_sweep_is_drawn_with_its_minimum_inside():
    for case in range(40):
        draw = np.random.default_rng(case)
        count = draw.integers(1, 30)
        shapes = (
            np.ones(count),
            np.linspace(2, 1, count),
            np.geomspace(1, 1e4, count),
            draw.normal(size=count),
        )
        losses = shapes[case % 4] * draw.choice([1e-6, 1, 1e6])
        if count > 2:
            losses[draw.integers(count)] = np.nan
        lrs = np.logspace(-7, 1, count)
        axis = plots.plot_sweep([SimpleNamespace(weight_decay=1e-4, lrs=lrs, losses=losses)]).axes[
            0
        ]
        left, right, bottom, top = limits(axis)
        assert left < lrs[np.nanargmin(losses)] < right and bottom < np.nanmin(losses) < top, case
        plt.close("all")


def test_a_lone_point_has_a_marker_to_be_seen_by():
    curve = SimpleNamespace(weight_decay=1e-4, lrs=[1e-3, 1e-2], losses=[0.7, np.nan])
    assert plots.plot_sweep([curve]).axes[0].lines[0].get_marker() == "o"


# overview grid


def test_grid_shows_cells_captions_and_row_labels():
    cells = [
        plots.Cell(patch(90), f"Negative / Tumour / 0.0{number} / 0.98") for number in range(6)
    ]
    figure = plots.plot_patch_grid(
        [("Random\nsamples", cells[:4]), ("Most correct", cells[4:])], "Predicted / actual"
    )
    assert (
        len(figure.axes) == 8
        and len(visible(figure)) == 6
        and figure._suptitle.get_text() == "Predicted / actual"
    )
    for axis, cell in zip(with_image(figure), cells):
        assert axis.get_title() == cell.caption and np.array_equal(
            axis.images[0].get_array(), cell.image
        )
        assert len(axis.images) == 1 and not len(axis.get_xticks()) and not len(axis.get_yticks())
    labels = [figure.axes[0].yaxis.label, figure.axes[4].yaxis.label]
    assert [label.get_text() for label in labels] == ["Random\nsamples", "Most correct"]
    assert all(label.get_rotation() == 0 for label in labels)


def test_heatmap_covers_the_whole_image_half_transparent():
    heatmap = np.array([[0.0, 1.0], [2.0, 3.0]])
    gray = np.linspace(0.2, 0.8, 60 * 90).reshape(60, 90)
    (axis,) = visible(plots.plot_patch_grid([("", [plots.Cell(gray, "", heatmap)])], ""))
    under, over = axis.images
    assert under.get_extent() == over.get_extent() == [0, 90, 60, 0]
    assert (over.get_alpha(), over.get_interpolation(), over.get_cmap().name) == (
        0.5,
        "bilinear",
        "inferno",
    )
    assert np.array_equal(over.get_array(), heatmap) and over.get_clim() == (0, 3)
    assert (
        under.get_cmap().name == "gray"
        and under.get_clim() == (0, 1)
        and under.get_alpha() in (None, 1)
    )


def test_blank_gray_image_is_drawn_white_not_stretched():
    for white in (np.ones((8, 8)), np.full((8, 8), 255, np.uint8)):
        image = visible(plots.plot_patch_grid([("", [plots.Cell(white)])], ""))[0].images[0]
        assert (image.to_rgba(image.get_array()) == 1).all()


# ROC and prediction


def test_roc_draws_the_given_points_above_a_dashed_diagonal():
    false, true = np.array([0, 0.1, 0.4, 1]), np.array([0, 0.8, 0.9, 1])
    axis = plots.plot_roc(false, true, 0.99406793).axes[0]
    curve, diagonal = axis.lines
    assert np.array_equal(curve.get_xydata(), np.stack([false, true], axis=1))
    assert curve.get_color() == "darkorange" and diagonal.get_linestyle() == "--"
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert "0.9941" in axis.get_legend().get_texts()[0].get_text()
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("False positive rate", "True positive rate")
    left, right, bottom, top = limits(axis)
    assert left <= 0 < 1 <= right and bottom <= 0 < 1 <= top


def test_prediction_is_titled_with_class_and_probability():
    image = patch()
    (axis,) = visible(plots.plot_prediction(image, "tumour", np.float32(0.9712)))
    assert axis.get_title() == "tumour, tumour probability 0.97" and np.array_equal(
        axis.images[0].get_array(), image
    )


# errors and side effects


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: plots.plot_patches([], [], ""), "0 images"),
        (lambda: plots.plot_patches([], [], "", centre_box=True), "0 images"),
        (lambda: plots.plot_patches([patch()] * 6, [], ""), "row of 6 images .* at most 5"),
        (lambda: plots.plot_patches([patch(31)], [], "", centre_box=True), "31 px is below 32 px"),
        (lambda: plots.plot_draws([], ""), "0 images"),
        (lambda: plots.plot_draws([patch().transpose(2, 0, 1)], ""), r"shape \(3, 96, 96\)"),
        (lambda: plots.plot_draws([np.zeros((4, 0, 3))], ""), r"shape \(4, 0, 3\)"),
        (lambda: plots.plot_draws([np.zeros((4, 4, 4))], ""), r"shape \(4, 4, 4\)"),
        (lambda: plots.plot_draws([patch() / 255 * 2 - 1], ""), "denormalise"),
        (lambda: plots.plot_draws([np.full((4, 4, 3), np.nan)], ""), "from nan to nan"),
        (lambda: plots.plot_draws([patch().astype(int)], ""), "int64"),
        (lambda: plots.plot_outliers([], [], most=0), "most=0"),
        (lambda: plots.plot_sweep([]), "0 curves"),
        (
            lambda: plots.plot_sweep([SimpleNamespace(weight_decay=1e-4, lrs=[1, 2], losses=[1])]),
            "1e-4 has 2 .* and 1",
        ),
        (lambda: plots.plot_patch_grid([], ""), "0 images"),
        (lambda: plots.plot_patch_grid([("Random", [])], ""), "0 images"),
        (
            lambda: plots.plot_patch_grid([("", [plots.Cell(patch())] * 5)], ""),
            "row of 5 images .* at most 4",
        ),
        (
            lambda: plots.plot_patch_grid([("", [plots.Cell(patch(), "", np.zeros(4))])], ""),
            r"heatmap of shape \(4,\)",
        ),
        (
            lambda: plots.plot_patch_grid([("", [plots.Cell(patch(), "", [[np.nan]])])], ""),
            "all finite",
        ),
        (lambda: plots.plot_roc([0, 1], [0, 0.5, 1], 0.5), "2 false and 3 true"),
        (lambda: plots.plot_prediction(patch(), "tumour", 1.2), "probability=1.2"),
        (lambda: plots.plot_prediction(patch(), "tumour", float("nan")), "probability=nan"),
    ],
)
def test_bad_input_is_refused_before_a_figure_is_made(call, words):
    with pytest.raises(ValueError, match=words):
        call()
    assert not plt.get_fignums()


def test_rounding_beyond_one_is_clipped_not_refused():
    image = plots.plot_draws([np.full((4, 4, 3), 1 + 1e-6)], "").axes[0].images[0]
    assert image.get_array().max() == 1


def test_a_figure_is_left_open_and_settings_are_left_alone():
    before = dict(plt.rcParams)
    for number, make in enumerate(every_figure().values(), 1):
        figure = make()
        assert plt.get_fignums() == list(range(1, number + 1)) and plt.gcf() is figure
    assert dict(plt.rcParams) == before


def test_module_needs_neither_fastai_nor_torch():
    code = "import sys, hcd.plots; print(*sorted({'fastai', 'torch', 'pandas'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
