"""Draw the README's picture, patches of the synthetic sample under their Grad-CAM heatmaps.

    python notebooks/picture.py notebooks/gradcam.png

A minute or two on two cores; the rng seed is the sample recipe's.
"""

import random
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import hcd
import matplotlib
from hcd.plots import Cell, plot_patch_grid
from matplotlib.figure import Figure
from PIL import Image

COLUMNS = 4  # patches that the model gets right: two without tumour, two with
TITLE = "Synthetic patches, the probability of tumour, and where the model looked"


def trained_learner(folder: Path) -> hcd.Learner:
    """Return a learner of the sample's recipe, trained in both stages."""
    recipe = hcd.Recipe.sample()
    dataset = hcd.make_sample(folder / "data")
    hcd.set_rng_seed(recipe.rng_seed)
    _, valid_idx = hcd.stratified_split(
        dataset.labels["label"], recipe.valid_fraction, recipe.rng_seed
    )
    data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0)
    learner = hcd.get_learner(data, recipe, path=folder)
    learner.fit_one_cycle(recipe.head_epochs, recipe.head_max_lr, wd=recipe.weight_decay)
    learner.unfreeze()
    learner.fit_one_cycle(recipe.finetune_epochs, slice(*recipe.finetune_max_lr))
    return learner


def draw(learner: hcd.Learner) -> Figure:
    """Return the picture: patches as the model reads them, and below each the heatmap of that very
    draw."""
    probabilities, labels = learner.get_preds()
    right = probabilities.argmax(1) == labels
    patches, heatmaps = [], []
    for label, name in enumerate(("no tumour", "tumour")):
        for i in (right & (labels == label)).nonzero().flatten().tolist()[: COLUMNS // 2]:
            state = random.getstate()
            image = learner.data.valid_ds[i][0].data.permute(1, 2, 0).numpy()
            random.setstate(state)  # so that the heatmap is of the same crop
            heatmap, gray = hcd.get_heatmap(learner, i)
            patches.append(Cell(image, f"{name}; the model says {probabilities[i, 1]:.2f}"))
            heatmaps.append(Cell(gray, heatmap=heatmap))
    return plot_patch_grid([("Patch", patches), ("Grad-CAM", heatmaps)], TITLE)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG of 256 colours, a third of the size."""
    whole = BytesIO()
    figure.savefig(whole, dpi=70)
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    with TemporaryDirectory() as folder:
        save(draw(trained_learner(Path(folder))), Path(sys.argv[1]))
