"""Draw the README's picture, patches of the synthetic sample under their Grad-CAM heatmaps.

    python notebooks/picture.py notebooks/gradcam.png

About a minute on two cores; the same rng seed each time.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import hcd
import matplotlib
from hcd.plots import Cell, plot_patch_grid

COLUMNS = 4  # patches: two without tumour, two with


def trained_learner(folder: Path) -> hcd.Learner:
    """Return a learner of the sample's recipe, both stages trained, augmentation off in what it
    shows."""
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


def draw(learner: hcd.Learner) -> matplotlib.figure.Figure:
    """Return the picture: patches as read above, the very same draws under their heatmaps below."""
    probabilities, labels = learner.get_preds()
    right = probabilities.argmax(1) == labels
    chosen = [
        int(i)
        for label in (0, 1)
        for i in (right & (labels == label)).nonzero().flatten()[: COLUMNS // 2]
    ]
    patches, heatmaps = [], []
    for i in chosen:
        state = hcd_random_state()
        image = learner.data.valid_ds[i][0].data.permute(1, 2, 0).numpy()
        restore(state)  # the heatmap's draw is the patch's
        heatmap, gray = hcd.get_heatmap(learner, i)
        name = ("no tumour", "tumour")[int(labels[i])]
        patches.append(Cell(image, f"{name}: model says {probabilities[i, 1]:.2f}"))
        heatmaps.append(Cell(gray, heatmap=heatmap))
    rows = [("Patch", patches), ("Grad-CAM", heatmaps)]
    return plot_patch_grid(
        rows, "Synthetic patches, the probability of tumour, and where the model looked"
    )


def hcd_random_state():
    import random

    return random.getstate()


def restore(state):
    import random

    random.setstate(state)


if __name__ == "__main__":
    matplotlib.use("Agg")
    with TemporaryDirectory() as folder:
        draw(trained_learner(Path(folder))).savefig(sys.argv[1], dpi=70)
