"""A model trained on the synthetic patches finds the tumour of painted sections, where it lies."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from slide import painted

import hcd

pytestmark = pytest.mark.long

FORMS = {  # width and height of level 0, and how it is saved
    "large": ((20_000, 15_000), {"mpp": 0.25, "compression": "jpeg", "levels": 4}),
    "SubIFDs": ((6_000, 4_480), {"mpp": 0.25, "sub": True, "levels": 4}),
    "coarser": ((4_800, 3_200), {"mpp": 0.5, "levels": 3}),
    "resampled": ((5_600, 4_000), {"mpp": 0.35, "levels": 3}),
    "alpha": ((4_800, 3_200), {"mpp": 0.5, "levels": 3, "alpha": True}),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small network, trained from nothing on drawn patches until it can tell them apart."""
    folder = tmp_path_factory.mktemp("proof")
    dataset = hcd.make_sample(folder / "data", train=600, test=8)
    recipe = hcd.Recipe.sample(arch="resnet18", pretrained=False, batch_size=32, rng_seed=0)
    hcd.set_rng_seed(0)
    _, valid_idx = hcd.stratified_split(dataset.labels["label"], 0.1, 0)
    data = hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0, device="cpu")
    learner = hcd.get_learner(data, recipe, folder)
    learner.unfreeze()
    learner.fit_one_cycle(5, 2e-3, wd=1e-4)
    assert hcd.score_predictions(*learner.get_preds()).auc > 0.9
    return hcd.load_bundle(hcd.save_bundle(learner, folder / "model"))


def section_of(size, mpp):
    """Paint a section of a size at level 0, with four tumours of 90 to 200 um."""
    width, height = (round(length * mpp / painted.SPACING) for length in size)
    spots = ((0.3, 0.35), (0.62, 0.3), (0.4, 0.7), (0.7, 0.62))
    radii = (140, 110, 170, 120) if width > 2500 else (130, 110, 140, 120)
    places = [(x * width, y * height, r) for (x, y), r in zip(spots, radii)]
    return painted.paint(width, height, places, rng_seed=1)


def centres(answer):
    """Return x and y of the middles of cells in px of the painting, each (rows, columns)."""
    rows, columns = np.indices(answer.probabilities.shape) + 0.5
    x, y = (place * cell for place, cell in zip((columns, rows), answer.cell))
    return x * answer.mpp[0] / painted.SPACING, y * answer.mpp[1] / painted.SPACING


@pytest.mark.parametrize("form", FORMS)
def test_tumour_is_found_where_it_was_painted(bundle, tmp_path, form):
    size, options = FORMS[form]
    options = dict(options)
    section = section_of(size, options["mpp"])
    if options.get("alpha"):
        options["alpha"] = np.where(section.tissue, 255, 0).astype(np.uint8)
    path = painted.save(tmp_path / "slide.tif", section, size=size, **options)
    answer = hcd.predict_slide(bundle, path, progress=False)
    x, y = centres(answer)
    inside = np.zeros(x.shape, bool)
    for place in section.places:
        inside |= np.hypot(x - place[0], y - place[1]) < place[2]
    answered = np.isfinite(answer.probabilities)
    curve = hcd.score_predictions(
        np.stack([1 - answer.probabilities[answered], answer.probabilities[answered]], axis=1),
        inside[answered],
    )
    apart = distances(answer, section, x, y)
    print(f"{form}: {answered.sum()} cells, AUC {curve.auc:.4f}, um apart {np.round(apart, 1)}")
    assert curve.auc > 0.9 and max(apart) < 64
    assert answered[inside].mean() > 0.95
    # nothing outside: not one cell without a painted pixel of tissue
    around = cv2.dilate(section.tissue.astype(np.uint8), np.ones((35, 35), np.uint8))
    rows, columns = (np.rint(at).astype(int) for at in (y, x))
    rows, columns = rows.clip(0, len(around) - 1), columns.clip(0, around.shape[1] - 1)
    assert not answered[around[rows, columns] == 0].any()


def distances(answer, section, x, y):
    """Return how far, in um, the middle of the region found at each place is from the place's."""
    found = np.nan_to_num(answer.probabilities) > 0.5
    _, regions = cv2.connectedComponents(found.astype(np.uint8), connectivity=4)
    apart = []
    for place in section.places:
        here = regions[np.hypot(x - place[0], y - place[1]) < place[2]]
        here = here[here > 0]
        assert len(here), f"nothing was found at {place}"
        region = regions == np.bincount(here).argmax()
        middle = x[region].mean(), y[region].mean()
        apart.append(painted.SPACING * np.hypot(middle[0] - place[0], middle[1] - place[1]))
    return apart


PEAK = """
import sys
sys.path.insert(0, "tests")
from slide.helpers import Darkness, most_memory
from hcd.slide.predict import predict_slide
predict_slide(Darkness(), sys.argv[1], mpp=float(sys.argv[2]), progress=False)
print(most_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("mpp", [0.25, 0.35])
def test_memory_does_not_grow_with_the_slide(tmp_path, mpp):
    """Twelve times the pixels, read as they are and resampled."""
    peaks = []
    for size in ((6_000, 4_480), (20_000, 15_360)):
        section = section_of(size, 0.25)
        path = painted.save(tmp_path / "slide.tif", section, size=size, compression="jpeg")
        command = [sys.executable, "-c", PEAK, str(path), str(mpp)]
        out = subprocess.run(
            command,
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(float(out.stdout))
    print(f"{mpp} um/px: most memory {peaks[0]:.0f} and {peaks[1]:.0f} MiB")
    assert peaks[1] < 1.4 * peaks[0] + 64
