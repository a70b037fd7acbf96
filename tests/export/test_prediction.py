"""Any number of images, of any kind, in order, and each bad one in its place."""

import io
import itertools
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hcd
from hcd.export import answer
from hcd.export.prediction import Prediction, name_of, to_patch


@pytest.fixture(scope="module")
def bundle(learner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "model"
    return hcd.load_bundle(hcd.save_bundle(learner, folder, temperature=2.5))


@pytest.fixture(scope="module")
def paths(sample):
    return [Path(path) for path in sample.test_paths]


@pytest.fixture(scope="module")
def alone(bundle, paths):
    """What `predict_image` says of each test patch."""
    return [hcd.predict_image(bundle, path) for path in paths]


def require_same(found, alone, within=1e-6):
    for one, other in zip(found, alone, strict=True):
        assert (one.label, one.error) == (other.label, "")
        assert one.probability == pytest.approx(other.probability, abs=within)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 64])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_batches_answer_as_one_by_one(bundle, paths, alone, batch_size, threads):
    before = torch.get_num_threads()
    found = list(hcd.predict_images(bundle, paths, batch_size, threads=threads))
    require_same(found, alone)
    assert [one.path for one in found] == [str(path) for path in paths]
    assert torch.get_num_threads() == before


def test_every_kind_of_image(bundle, paths, alone, packed_root):
    packed = {path.name: path for path in hcd.open_dataset(packed_root).test_paths}
    images = [
        str(paths[0]),
        paths[1].read_bytes(),
        hcd.read_image(paths[2]),
        Image.open(paths[3]),
        Image.fromarray(hcd.read_image(paths[4])),
        packed[paths[5].name],
    ]
    found = list(hcd.predict_images(bundle, images, 4))
    require_same(found, alone[:6])
    assert [one.path for one in found][:5] == [
        str(paths[0]),
        "image 1",
        "image 2",
        str(paths[3]),
        "image 4",
    ]
    assert os.path.basename(found[5].path) == paths[5].name
    patches = np.stack([hcd.read_image(path) for path in paths[:6]])
    require_same(hcd.predict_images(bundle, patches), alone[:6])


def test_in_16_bits_and_calibrated(bundle, paths, alone):
    fast = list(hcd.predict_images(bundle, paths, fast=True))
    differences = [abs(a.probability - b.probability) for a, b in zip(fast, alone, strict=True)]
    assert 0 < max(differences) < 0.05
    calibrated = list(hcd.predict_images(bundle, paths, calibrated=True))
    for one, other in zip(calibrated, alone, strict=True):
        odds = math.log(other.probability / (1 - other.probability)) / 2.5
        assert one.probability == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-6)


def test_the_models_and_generators_of_the_caller_stay_as_they_are(bundle, paths):
    strides = [tensor.stride() for tensor in bundle.model.state_dict().values()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(hcd.predict_images(bundle, paths, fast=True))
    assert [tensor.stride() for tensor in bundle.model.state_dict().values()] == strides
    assert not any(parameter.is_meta for parameter in bundle.model.parameters())
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_no_more_than_two_batches_are_taken_ahead(bundle, paths):
    taken = []

    def endless():
        for path in itertools.cycle(paths):
            taken.append(path)
            yield path

    found = hcd.predict_images(bundle, endless(), 3)
    assert not taken  # nothing before it is asked for
    for count in range(1, 8):
        next(found)
        assert len(taken) <= count + 2 * 3
    found.close()


def test_none_at_all(bundle):
    assert list(hcd.predict_images(bundle, [])) == []


def noise(rng_seed):
    return np.random.default_rng(rng_seed).integers(0, 256, (96, 96, 3), np.uint8)


BAD = {
    "text": (lambda path, tmp: _text(tmp / "text.tif"), "text.tif", "cannot be decoded"),
    "nowhere": (lambda path, tmp: tmp / "nowhere.tif", "nowhere.tif", "does not exist"),
    "half bytes": (lambda path, tmp: path.read_bytes()[:900], "image 1", "cannot be decoded"),
    "no bytes": (lambda path, tmp: b"", "image 1", "(0 bytes)"),
    "50 px": (lambda path, tmp: np.zeros((50, 50, 3), np.uint8), "image 1", "(50, 50, 3)"),
    "float": (lambda path, tmp: np.zeros((96, 96, 3)), "image 1", "float64"),
    "grey": (lambda path, tmp: Image.new("L", (96, 96)), "image 1", "mode L"),
    "small": (lambda path, tmp: Image.new("RGB", (95, 96)), "image 1", "95 x 96 px"),
    "none": (lambda path, tmp: None, "image 1", "NoneType"),
    "number": (lambda path, tmp: 7, "image 1", "int"),
    "cut": (lambda path, tmp: _cut(), "image 1", "cannot be decoded by Pillow"),
}


def _text(path):
    path.write_text("no image")
    return path


def _cut():
    content = io.BytesIO()
    Image.fromarray(noise(0)).save(content, "png")
    return Image.open(io.BytesIO(content.getvalue()[:9000]))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_one_is_reported_in_its_place_or_raised(
    bundle, paths, alone, tmp_path, refused, kind
):
    make, name, text = BAD[kind]
    images = [paths[0], make(paths[1], tmp_path), paths[2]]
    first, bad, last = hcd.predict_images(bundle, images, on_error="report")
    require_same([first, last], [alone[0], alone[2]])
    assert name in bad.path and name in bad.error and text in bad.error and "\n" not in bad.error
    assert bad.label == "" and math.isnan(bad.probability)
    images = [paths[0], make(paths[1], tmp_path), paths[2]]
    answers = hcd.predict_images(bundle, images)
    require_same([next(answers)], alone[:1])  # of the same batch, and answered all the same
    with refused((hcd.InputError, OSError, TypeError), text):
        next(answers)


def test_a_photograph_that_lies_on_its_side_is_turned_as_its_file_is(tmp_path):
    pixels = noise(1)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(to_patch(Image.open(tmp_path / "turned.png"), 96), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"threads": 0}, "threads=0"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"on_error": "skip"}, "on_error='skip'"),
    ],
)
def test_settings_are_refused_at_once(bundle, paths, refused, settings, text):
    with refused(hcd.InputError, text):
        hcd.predict_images(bundle, paths, **settings)


@pytest.mark.parametrize("one", ["a.tif", b"bytes", np.zeros((96, 96, 3), np.uint8), 5])
def test_one_image_is_no_list_of_them(bundle, refused, one):
    with refused(TypeError, "give a list", type(one).__name__):
        hcd.predict_images(bundle, one)


def test_one_pillow_image_is_no_list_of_them(bundle, refused):
    with refused(TypeError, "give a list"):
        hcd.predict_images(bundle, Image.new("RGB", (96, 96)))


def test_no_bundle_no_temperature_no_number_and_no_room(
    bundle, learner, paths, refused, monkeypatch
):
    with refused(TypeError, "Learner"):
        hcd.predict_images(learner, paths)
    with refused(hcd.InputError, "no temperature"):
        card = {**bundle.card, "temperature": None}
        hcd.predict_images(replace(bundle, card=card), paths, calibrated=True)
    tiny = replace(bundle, recipe=replace(bundle.recipe, crop_size=4))
    with refused(hcd.InputError, "crops of 4 px"):
        next(hcd.predict_images(tiny, paths, on_error="report"))
    nan = np.full(12, math.nan)
    monkeypatch.setattr(answer, "tumour_probabilities", lambda *args: nan)
    with refused(hcd.InputError, "not a number", paths[0].name):
        next(hcd.predict_images(bundle, paths, on_error="report"))


def test_a_model_that_answers_by_itself_takes_no_settings_of_torch(refused):
    class Own:
        original_size = 96

        def probabilities(self, patches):
            return patches.mean((1, 2, 3)) / 255

    images = [np.full((96, 96, 3), level, np.uint8) for level in (0, 255)]
    expected = [Prediction("image 0", "negative", 0.0), Prediction("image 1", "tumour", 1.0)]
    assert list(hcd.predict_images(Own(), images)) == expected
    assert list(hcd.predict_images(Own(), images, device="cpu")) == expected  # where it is anyway
    for settings in ({"device": "cuda"}, {"fast": True}, {"threads": 2}, {"calibrated": True}):
        with refused(hcd.InputError, next(iter(settings)), "leave"):
            hcd.predict_images(Own(), images, **settings)


def test_names():
    assert name_of("a/b.tif") == "a/b.tif"
    assert name_of(b"bytes", 3) == "image 3"
