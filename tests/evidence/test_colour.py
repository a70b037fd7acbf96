"""The colour baseline knows colours and nothing of shapes."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hcd import InputError, colour_baseline
from hcd.disk.images import encode_tiff
from hcd.evidence.colour import SHARES, colour_statistics


def write(folder, patches):
    folder.mkdir()
    paths = [folder / f"{number}.tif" for number in range(len(patches))]
    for path, patch in zip(paths, patches):
        path.write_bytes(encode_tiff(np.ascontiguousarray(patch)))
    return paths


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(60, 200, (80, 96, 96, 3), dtype=np.uint8)


def test_statistics_are_numpys(noise, tmp_path):
    found = colour_statistics(write(tmp_path / "a", noise[:3]), progress=False)
    for row, patch in zip(found, noise[:3]):
        pixels = np.dstack([patch, cv2.cvtColor(patch, cv2.COLOR_RGB2HSV)]).reshape(-1, 6)
        quantiles = np.quantile(pixels, SHARES, axis=0, method="inverted_cdf").T.ravel()
        wanted = np.concatenate([*_halves(pixels), quantiles])
        np.testing.assert_allclose(row, wanted, rtol=1e-5)


def _halves(pixels):
    for half in (pixels[:, :3], pixels[:, 3:]):
        yield from (half.mean(0), half.std(0))


def test_it_tells_colours_apart_but_not_shapes(noise, tmp_path):
    labels = np.arange(80) % 2
    redder = noise.copy()
    redder[labels == 1, :, :, 0] += 20
    # the same pixels from the least red to the reddest: all shape and no colour
    sorted_ = noise.reshape(80, -1, 3).copy()
    for number in np.flatnonzero(labels):
        sorted_[number] = sorted_[number][np.argsort(sorted_[number, :, 0])]
    aucs = []
    for name, patches in (("redder", redder), ("sorted", sorted_.reshape(noise.shape))):
        paths = write(tmp_path / name, patches)
        found = colour_baseline(paths[:60], labels[:60], paths[60:], progress=False)
        assert found.shape == (20,)
        again = colour_baseline(paths[:60], labels[:60], paths[60:], progress=False)
        np.testing.assert_array_equal(found, again)
        aucs.append(roc_auc_score(labels[60:], found))
    assert aucs[0] > 0.95 and aucs[1] < 0.8


def test_labels_must_fit(refused, noise, tmp_path):
    paths = write(tmp_path / "a", noise[:4])
    for labels in ([0, 1, 0], [0, 0, 0, 0], [0, 1, 2, 1]):
        with refused(InputError, len(labels), "for 4 patches"):
            colour_baseline(paths, labels, paths)
