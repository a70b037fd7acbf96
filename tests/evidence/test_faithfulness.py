"""Heatmaps of toy networks that are known to read one place alone."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hcd import InputError, Recipe, heatmap_faithfulness
from hcd.disk.images import encode_tiff
from hcd.evidence.faithfulness import _centre_share, _possible_shares
from hcd.export.bundle import Bundle

RECIPE = Recipe.sample(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CENTRE = slice(29, 61)  # of the crop of 90 px


class Reads(nn.Module):
    """Lets one place of the crop through, and nothing else."""

    def __init__(self, centre):
        super().__init__()
        place = torch.zeros(1, 1, 90, 90)
        place[..., CENTRE, CENTRE] = 1
        self.register_buffer("place", place if centre else 1 - place)

    def forward(self, images):
        return images * self.place


def toy(centre):
    """A network that tells by the texture of the centre, or of the ring around it, alone."""
    torch.manual_seed(0)
    edges = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        edges.weight.copy_(edges.weight - edges.weight.mean((2, 3), keepdim=True))
        edges.bias.fill_(-0.3)  # so that what little a blur leaves is nothing
    body = nn.Sequential(edges, nn.ReLU(), Reads(centre), nn.AvgPool2d(2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        head[2].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    return Bundle(nn.Sequential(body, head).eval(), RECIPE, {})


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Files whose centre and whose ring are rough in half of the patches, either for itself."""
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    paths, centres, rings = [], [], []
    for number in range(40):
        centre, ring = number % 2, number // 2 % 2
        smooth = rng.integers(120, 136, (96, 96, 3)).astype(np.uint8)
        rough = rng.integers(30, 226, (96, 96, 3)).astype(np.uint8)
        place = np.zeros((96, 96, 1), bool)
        place[32:64, 32:64] = True
        patch = np.where(place, rough if centre else smooth, rough if ring else smooth)
        path = folder / f"{number}.tif"
        path.write_bytes(encode_tiff(np.ascontiguousarray(patch)))
        paths.append(path)
        centres.append(centre)
        rings.append(ring)
    return paths, np.array(centres), np.array(rings)


@pytest.mark.parametrize("method", ["layer_cam", "hires_cam"])
def test_a_network_that_reads_the_centre_is_found_to(patches, method):
    paths, centres, _ = patches
    found = heatmap_faithfulness(toy(True), paths, centres, method=method, progress=False)
    assert found.centre_share > 0.9 and found.can_localise and found.maps == 20
    assert found.auc == found.auc_centre_only == 1 and found.auc_without_centre < 0.7


@pytest.mark.parametrize("method", ["layer_cam", "hires_cam"])
def test_a_network_that_reads_the_ring_is_found_to(patches, method):
    paths, _, rings = patches
    found = heatmap_faithfulness(toy(False), paths, rings, method=method, progress=False)
    assert found.centre_share < 0.05
    assert found.auc == found.auc_without_centre == 1 and found.auc_centre_only < 0.7


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=4, max_size=4))
def test_no_map_of_2_by_2_can_point_at_the_centre(values):
    """0.126 of every such map lies there, whatever the network does."""
    heatmap = np.array(values, np.float32).reshape(2, 2)
    if heatmap.max() > 1e-20:
        assert abs(_centre_share(heatmap, 90) - (32 / 90) ** 2) < 1e-4
    low, high = _possible_shares((2, 2), 90)
    assert abs(low - 0.1264) < 1e-4 and abs(high - 0.1264) < 1e-4


def test_what_maps_of_other_sizes_can_show():
    for size, most in ((3, 0.4), (5, 0.9), (11, 0.99)):
        low, high = _possible_shares((size, size), 90)
        assert low < 0.05 and high > most
    rng = np.random.default_rng(0)
    for _ in range(50):
        heatmap = rng.random((5, 5)).astype(np.float32) ** 4
        assert low <= _centre_share(heatmap, 90) <= high


def test_shares_are_of_the_map_as_it_is_drawn():
    """OpenCV's bilinear interpolation as the other opinion."""
    heatmap = np.random.default_rng(1).random((11, 11)).astype(np.float32)
    large = cv2.resize(heatmap, (90, 90), interpolation=cv2.INTER_LINEAR)
    wanted = large[CENTRE, CENTRE].sum() / large.sum()
    assert abs(_centre_share(heatmap, 90) - wanted) < 1e-4
    assert _centre_share(np.full((7, 7), 3, np.float32), 90) == pytest.approx((32 / 90) ** 2)
    assert np.isnan(_centre_share(np.full((7, 7), -3, np.float32), 90))


def test_masks_say_where_the_tumour_is(patches):
    paths, centres, _ = patches
    masks = np.zeros((40, 96, 96), bool)
    masks[centres == 1, 32:64, 32:64] = True
    masks[1] = False  # a mask without tumour is left out
    found = heatmap_faithfulness(toy(True), paths, centres, masks, progress=False)
    assert found.mask_share == pytest.approx(found.centre_share, abs=0.01)
    assert found.chance_mask_share == pytest.approx((32 / 90) ** 2)
    assert heatmap_faithfulness(toy(True), paths, centres, progress=False).mask_share is None


def test_a_map_of_the_patch_and_not_of_the_model_is_unmasked(patches):
    """The toy's map is of what it lets through, whatever the weights are: they hardly matter."""
    paths, centres, _ = patches
    found = heatmap_faithfulness(toy(True), paths, centres, progress=False)
    assert found.random_correlation > 0.5
    record = found.as_dict()
    assert record["can_localise"] and record["size"] == (45, 45)


def test_the_same_call_gives_the_same(patches):
    paths, centres, _ = patches
    state = torch.get_rng_state()
    first, second = (
        heatmap_faithfulness(toy(True), paths[:8], centres[:8], progress=False) for _ in range(2)
    )
    assert first == second
    torch.manual_seed(0)
    torch.set_rng_state(state)


def test_what_does_not_fit(patches, refused):
    paths, centres, _ = patches
    with refused(InputError, "for 40 patches"):
        heatmap_faithfulness(toy(True), paths, centres[:-1])
    with refused(InputError, "hold [1]"):
        heatmap_faithfulness(toy(True), paths, np.ones(40, int))
    with refused(InputError, "(39, 96, 96)", "(40, 96, 96)"):
        heatmap_faithfulness(toy(True), paths, centres, np.zeros((39, 96, 96), bool))
    blind = toy(True)
    with torch.no_grad():
        blind.model[1][2].weight.zero_()
    with refused(InputError, "none of the 20 heatmaps"):
        heatmap_faithfulness(blind, paths, centres, progress=False)
