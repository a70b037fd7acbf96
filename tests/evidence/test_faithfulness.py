"""Toys whose truth is known: a network that reads only the centre of a patch and one that reads
only what is around it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from hcd import InputError, Recipe, heatmap_faithfulness, load_bundle, save_bundle
from hcd.evidence.faithfulness import Faithfulness
from hcd.export.bundle import Bundle

COUNT = 24


class Window(nn.Module):
    """Lets through a part of the map."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x):
        return x * self.mask


def toy(part):
    """A network that counts sharp dots of green in a part of the crop, "centre" or "ring": maps of
    90, 30 and 2 px."""
    mask = torch.zeros(90, 90)
    if part == "centre":
        mask[30:60, 30:60] = 1  # a dot's surroundings of 1 px lie within 29 to 60 too
    else:
        mask[:] = 1
        mask[28:62, 28:62] = 0
    dots = nn.Conv2d(3, 1, 3, padding=1)
    with torch.no_grad():
        dots.weight.zero_()
        dots.weight[0, 1] = torch.tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]) / 4
        dots.bias.fill_(-0.21)  # 15 grey levels, which no blurred region reaches
    body = nn.Sequential(dots, nn.ReLU(inplace=True), Window(mask), nn.AvgPool2d(3))
    body.append(nn.AvgPool2d(15))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        head[2].weight.copy_(torch.tensor([[-1.0], [1]]))
        head[2].bias.zero_()
    return Bundle(nn.Sequential(body, head).eval(), Recipe(), {})


@pytest.fixture(scope="module")
def patches():
    """Patches of noise that is strong or weak in the centre and, independently, around it.

    Returns: (N, 96, 96, 3) uint8, and the labels that centre and ring deserve.
    """
    generator = np.random.default_rng(0)
    centre, ring = np.arange(COUNT) % 2, np.arange(COUNT) // 2 % 2
    level = np.where(ring, 40, 15)[:, None, None, None] * np.ones((1, 96, 96, 1))
    level[:, 32:64, 32:64] = np.where(centre, 40, 15)[:, None, None, None]
    noise = generator.normal(128, 1, (COUNT, 96, 96, 3)) - 128
    return (128 + level * noise).clip(0, 255).astype(np.uint8), {"centre": centre, "ring": ring}


def measured(part, patches, **options):
    images, labels = patches
    options = {"progress": False, **options}
    return heatmap_faithfulness(toy(part), images, labels[part], **options)


@pytest.mark.parametrize("method", ["layer_cam", "hires_cam", "grad_cam"])
def test_the_centre_network_and_the_ring_network(patches, method):
    centre, ring = (measured(part, patches, method=method) for part in ("centre", "ring"))
    assert centre.centre_share > 0.9
    assert ring.centre_share < 0.05
    for found in (centre, ring):
        assert found.can_localise and found.empty_maps == 0 and found.patches == COUNT
        assert (found.method, found.layer, found.map_size) == (method, "0.3", (30, 30))
        assert found.centre_chance == pytest.approx((32 / 90) ** 2)
        assert found.centre_share_range[0] == 0 and found.centre_share_range[1] == 1
        assert found.auc == 1
    assert (centre.auc_outside_blurred, centre.auc_centre_blurred) == (1, 0.5)
    assert (ring.auc_outside_blurred, ring.auc_centre_blurred) == (0.5, 1)
    assert centre.blur_sigma == ring.blur_sigma == 10


@pytest.mark.parametrize("part", ["centre", "ring"])
def test_the_toys_read_what_they_are_said_to_read(patches, part):
    inside = torch.zeros(90, 90, dtype=torch.bool)
    inside[29:61, 29:61] = True
    batch = torch.randn(4, 3, 90, 90, generator=torch.Generator().manual_seed(0))
    model = toy(part).model
    with torch.no_grad():
        before = model(batch)
        within, around = (model(batch + 9 * torch.randn_like(batch) * m) for m in (inside, ~inside))
    unmoved, moved = (around, within) if part == "centre" else (within, around)
    assert torch.equal(before, unmoved) and (before - moved).abs().min() > 1e-3


@pytest.mark.parametrize("part", ["centre", "ring"])
def test_the_2_x_2_map_of_either_is_reported_as_unable_to_localise(patches, part):
    found = measured(part, patches, size=None)
    assert found.map_size == (2, 2) and not found.can_localise
    assert found.centre_share == pytest.approx(0.1264, abs=1e-4)
    assert found.centre_share_range == pytest.approx((0.1264, 0.1264), abs=1e-4)
    assert found.auc == 1


def test_masks(patches):
    masks = np.zeros((COUNT, 96, 96), bool)
    masks[:, 32:64, 32:64] = True
    found = measured("centre", patches, masks=masks)
    assert found.mask_share == found.centre_share and found.masked_maps == COUNT
    assert found.mask_chance == pytest.approx(found.centre_chance)
    masks[0] = True  # of all and of nothing there is nothing to tell
    masks[1:5] = False
    masks[5:] = ~masks[5:]
    found = measured("centre", patches, masks=masks)
    assert found.mask_share < 0.1 and found.masked_maps == COUNT - 5
    assert found.mask_chance == pytest.approx(1 - found.centre_chance)
    none = measured("centre", patches)
    assert (none.mask_share, none.mask_chance, none.masked_maps) == (None, None, 0)


def colour_reader():
    """A network whose map is whatever its one convolution picks of the three colours."""
    body = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Softplus(), nn.AvgPool2d(5))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        body[0].weight.copy_(torch.tensor([[[[1.0]], [[0]], [[0]]]]))
        head[2].weight.copy_(torch.tensor([[-1.0], [1]]))
    return Bundle(nn.Sequential(body, head).eval(), Recipe(), {})


def test_maps_that_weights_make_differ_from_those_of_other_weights(patches):
    images, labels = patches
    bundle, found = colour_reader(), []
    for seed in range(8):
        options = {"rng_seed": seed, "progress": False}
        found.append(heatmap_faithfulness(bundle, images[:4], labels["centre"][:4], **options))
    known = [f.randomised_correlation for f in found if f.correlated_maps]
    # a head whose drawn weight is negative has no map that speaks for the tumour
    assert {f.correlated_maps for f in found} == {0, 4} and len(known) >= 2
    assert max(map(abs, known)) < 0.95 and len(set(known)) == len(known)
    assert all(f.randomised_correlation is None for f in found if not f.correlated_maps)


def test_maps_that_no_weight_makes_are_found_out(patches):
    images, labels = patches
    bundle = toy("centre")
    fixed = nn.Sequential(Window(torch.rand(90, 90)), nn.AvgPool2d(5), nn.Softplus())
    positive = nn.Linear(3, 2)
    positive.reset_parameters = lambda: None  # else the sign of the drawn head decides
    with torch.no_grad():
        positive.weight.copy_(torch.tensor([[-1.0] * 3, [1] * 3]))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), positive)
    bundle = replace(bundle, model=nn.Sequential(fixed, head).eval())
    found = heatmap_faithfulness(bundle, images[:4], labels["centre"][:4], progress=False)
    assert found.randomised_correlation == pytest.approx(1) and found.correlated_maps == 4
    assert found.randomised_centre_share == pytest.approx(found.centre_share)


def test_what_the_build_alone_comes_to(patches):
    images, labels = patches
    for part, low, high in (("centre", 0.9, 1), ("ring", 0, 0.05)):
        shares = [
            heatmap_faithfulness(
                toy(part), images[:4], labels[part][:4], rng_seed=seed, progress=False
            ).randomised_centre_share
            for seed in range(6)
        ]
        # the window is no weight and stays; a drawn head may have no map for the tumour
        known = [share for share in shares if share is not None]
        assert known and all(low <= share <= high for share in known)


def test_empty_maps_are_counted_and_left_out(patches):
    images, labels = patches
    images = images.copy()
    images[:3] = 128
    found = heatmap_faithfulness(toy("centre"), images, labels["centre"], progress=False)
    assert found.empty_maps == 3 and found.centre_share > 0.9
    bundle = toy("centre")
    with torch.no_grad():
        bundle.model[1][2].weight.neg_()
    found = heatmap_faithfulness(bundle, images, labels["centre"], progress=False)
    assert found.empty_maps == COUNT and found.centre_share is None
    assert found.randomised_correlation is None and found.correlated_maps == 0


def test_a_learner_a_bundle_files_and_pixels_give_the_same(learner, sample, tmp_path):
    paths = sample.train_paths[:6]
    labels = [0, 1, 0, 1, 1, 0]
    bundle = load_bundle(save_bundle(learner, tmp_path / "model"))
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    modes = [module.training for module in learner.model.modules()]
    found = heatmap_faithfulness(learner, paths, labels, progress=False)
    assert found.map_size == (11, 11) and found.layer == "0.0.7"
    pixels = np.stack([np.asarray(plain_read(path)) for path in paths])
    for given, patches in ((bundle, paths), (bundle, pixels)):
        other = heatmap_faithfulness(given, patches, np.array(labels), progress=False)
        for name, value in asdict(other).items():
            expected = getattr(found, name)
            assert value == expected or value == pytest.approx(expected, rel=1e-4), name
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert set(found.as_dict()) == set(Faithfulness.__dataclass_fields__)
    assert all(torch.equal(v, before[n]) for n, v in learner.model.state_dict().items())
    assert [module.training for module in learner.model.modules()] == modes
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def plain_read(path):
    from PIL import Image

    return Image.open(path)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"labels": [0, 1, 1]}, "(3,)"),
        ({"labels": [1] * COUNT}, "[1]"),
        ({"labels": ["a"] * COUNT}, "['a']"),
        ({"masks": np.zeros((COUNT, 90, 90), bool)}, "(24, 90, 90)"),
        ({"masks": np.zeros((COUNT, 96, 96), np.uint8)}, "uint8"),
        ({"masks": np.zeros((COUNT - 1, 96, 96), bool)}, "(23, 96, 96)"),
        ({"patches": np.zeros((COUNT, 90, 90, 3), np.uint8)}, "(90, 90, 3)"),
        ({"patches": np.zeros((COUNT, 96, 96, 3))}, "float64"),
        ({"method": "cam"}, "method='cam'"),
        ({"size": 100}, "size=100"),
        ({"given": nn.Linear(1, 1)}, "Linear"),
    ],
)
def test_what_cannot_be_measured(patches, refused, change, text):
    images, labels = patches
    options = {"given": toy("centre"), "patches": images, "labels": labels["centre"], **change}
    with refused(InputError, text):
        heatmap_faithfulness(**options, progress=False)


def test_a_missing_file_and_a_model_without_an_answer(patches, tmp_path, refused):
    images, labels = patches
    with refused(FileNotFoundError, "none.tif"):
        missing = [tmp_path / "none.tif"] * COUNT
        heatmap_faithfulness(toy("ring"), missing, labels["ring"], progress=False)
    bundle = toy("ring")
    with torch.no_grad():
        bundle.model[1][2].bias.fill_(float("nan"))
    with refused(InputError, "nan", "finite"):
        heatmap_faithfulness(bundle, images, labels["ring"], progress=False)
    small = replace(toy("ring"), recipe=Recipe(crop_size=30))
    with refused(InputError, "crop_size=30"):
        heatmap_faithfulness(small, images, labels["ring"], progress=False)
