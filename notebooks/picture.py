"""Draw the README's picture, patches of the synthetic sample under their Grad-CAM heatmaps.

    python notebooks/picture.py notebooks/gradcam.png

Two minutes or so on two cores; the rng seed is the sample recipe's.
"""

import random
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import hcd
import matplotlib
from hcd import walkthrough
from hcd.plots import Cell, plot_patch_grid
from matplotlib.figure import Figure
from PIL import Image

COLUMNS = 4  # patches that the model gets right: two without tumour, two with
TITLE = "Synthetic patches, the probability of tumour, and where the model looked"


def trained_learner(folder: str) -> hcd.Learner:
    """Return a learner that the walkthrough's chapters have trained by the sample's recipe."""
    run = walkthrough.begin("", hcd.Recipe.sample(), folder)
    walkthrough.split(run)
    walkthrough.train(run)
    return run.learner


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
        save(draw(trained_learner(folder)), Path(sys.argv[1]))
