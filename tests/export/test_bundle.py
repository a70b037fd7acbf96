"""A model folder gives back the same model, and nothing but: every other card or weights file is
turned down."""

import hashlib
import json
import pickle
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import hcd
from hcd import (
    InputError,
    get_learner,
    load_bundle,
    load_export,
    predict_image,
    read_cropped_image,
    save_bundle,
)
from hcd.engine.compat import fastai
from hcd.export.card import RULES

PAYLOAD = "payload ran"


class RunsCode:
    """Its pickle writes a file where it is loaded."""

    def __init__(self, folder):
        self.target = Path(folder) / PAYLOAD

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def saved(learner, tmp_path_factory):
    """A model folder to read only."""
    folder = tmp_path_factory.mktemp("bundle") / "model"
    return save_bundle(
        learner,
        folder,
        {"validation AUC": 0.987, "stage1": {"accuracy": 0.5}, "mean": [0.5]},
        "ab12",
    )


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the model folder, to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def short(value):
    return repr(value)[:20]


def read_json(folder):
    return json.loads((folder / "card.json").read_text())


def write_json(folder, card):
    (folder / "card.json").write_text(card if isinstance(card, str) else json.dumps(card))


def put_weights(folder, tensors, metadata=None):
    """Replace the weights and name them on the card, so that what is refused is not their hash."""
    save_file(tensors, folder / "model.safetensors", metadata)
    name_weights(folder)


def name_weights(folder):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    write_json(folder, {**read_json(folder), "weights_sha256": digest})


def refused(folder, text, kind=ValueError):
    with pytest.raises(kind, match=text) as caught:
        load_bundle(folder)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_bundle_predicts_what_the_learner_predicts(saved, learner, sample):
    bundle, recipe = load_bundle(saved), learner.data.train_ds.x.recipe.plain()
    seen = []
    for path in map(Path, sample.test_paths):
        crop = read_cropped_image(path, recipe=recipe)
        image = fastai.vision.Image(torch.from_numpy(crop.transpose(2, 0, 1).copy()))
        _, label, probabilities = learner.predict(image)
        prediction = predict_image(bundle, path)
        assert prediction.probability == pytest.approx(float(probabilities[1]), abs=1e-6)
        assert prediction.label == ("negative", "tumour")[int(label)]
        assert prediction.path == str(path)
        seen.append(prediction.probability)
    assert np.std(seen) > 0.01  # a constant would pass the comparison


def test_loaded_weights_are_equal_and_ready(saved, learner, small_recipe):
    bundle = load_bundle(saved)
    for name, value in learner.model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)
    assert not any(module.training for module in bundle.model.modules())
    assert bundle.recipe == replace(small_recipe, pretrained=False)


def test_batch_and_threads_do_not_matter(saved, sample):
    bundle, threads = load_bundle(saved), torch.get_num_threads()
    one_by_one = [predict_image(bundle, path).probability for path in sample.test_paths[:4]]
    recipe = bundle.recipe.plain()
    crops = np.stack([read_cropped_image(path, recipe=recipe) for path in sample.test_paths[:4]])
    batch = torch.from_numpy(
        ((crops - np.float32(recipe.mean)) / np.float32(recipe.std)).transpose(0, 3, 1, 2).copy()
    )
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                together = torch.softmax(bundle.model(batch).double(), 1)[:, 1].tolist()
            assert together == pytest.approx(one_by_one, abs=1e-6)
    finally:
        torch.set_num_threads(threads)


def test_predicting_leaves_random_generators_alone(saved, sample):
    bundle, state = load_bundle(saved), random.getstate()
    predict_image(bundle, sample.test_paths[0])
    assert random.getstate() == state


def test_card_tells_all(saved, sample):
    card = read_json(saved)
    assert set(card) == set(RULES)
    assert card["format"] == "hcd-model-4" and card["classes"] == ["negative", "tumour"]
    assert card["recipe"]["arch"] == "squeezenet1_1" and card["recipe"]["crop_size"] == 90
    assert card["metrics"] == {"validation AUC": 0.987, "stage1": {"accuracy": 0.5}, "mean": [0.5]}
    assert card["data_fingerprint"] == "ab12"
    assert (
        card["weights_sha256"]
        == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    )
    assert torch.__version__.startswith(card["versions"]["torch"]) and card["versions"][
        "opencv"
    ].startswith("4.")
    assert "Not a medical device" in card["limits"] and "same slides" in card["limits"]
    assert load_bundle(saved).card == card


def test_the_temperature_on_the_card_calibrates(learner, sample, tmp_path, refused):
    plain = load_bundle(save_bundle(learner, tmp_path / "plain"))
    warm = load_bundle(save_bundle(learner, tmp_path / "warm", temperature=2.5))
    assert "temperature that calibrates it: 2.5" in (tmp_path / "warm/README.md").read_text()
    for name in sample.test_ids[:4]:
        path = sample.test_path(name)
        before, after = predict_image(warm, path), predict_image(warm, path, calibrated=True)
        assert before == predict_image(plain, path)
        wanted = hcd.with_temperature([before.probability], 2.5)[0]
        assert abs(after.probability - wanted) < 1e-12 and after.label == before.label
        assert after.probability != before.probability
    with refused(InputError, "no temperature", "hcd report RUN --calibrate"):
        predict_image(plain, path, calibrated=True)
    with refused(InputError, "'temperature' is 0"):
        save_bundle(learner, tmp_path / "cold", temperature=0)
    assert not (tmp_path / "cold").exists()


def test_the_card_says_spacing_licence_and_split(learner, tmp_path, refused):
    numbers, splits = {"validation AUC": 0.987}, {"validation AUC": "random"}
    folder = save_bundle(learner, tmp_path / "a", numbers, splits=splits, license="CC0-1.0")
    card = load_bundle(folder).card
    assert (card["spacing_um_px"], card["license"]) == (0.972, "CC0-1.0")
    assert card["splits"] == splits
    notes = (folder / "README.md").read_text()
    assert "validation AUC 0.9870 (random split)" in notes and "0.972" in notes
    with refused(InputError, "'test AUC'", "no metric"):
        save_bundle(learner, tmp_path / "b", numbers, splits={"test AUC": "other slides"})
    assert not (tmp_path / "b").exists()


def test_notes_are_for_people(saved):
    notes = (saved / "README.md").read_text()
    for text in ("squeezenet1_1", "Not a medical device", "centre 90 px", "validation AUC 0.9870"):
        assert text in notes
    assert read_json(saved)["weights_sha256"] in notes
    assert {path.name for path in saved.iterdir()} == {
        "card.json",
        "model.safetensors",
        "README.md",
    }


def test_the_weights_say_what_they_are_and_are_the_same_bytes_every_time(saved, learner, tmp_path):
    with safetensors.safe_open(saved / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "arch": "squeezenet1_1",
        "classes": '["negative", "tumour"]',
        "hcd": hcd.__version__,
    }
    content = (saved / "model.safetensors").read_bytes()
    for count in range(3):
        again = save_bundle(learner, tmp_path / str(count)) / "model.safetensors"
        assert again.read_bytes() == content
    assert int.from_bytes(content[:8], "little") % 8 == 0  # aligned, as the format asks
    tensors = safetensors.torch.load(content)
    assert tensors.keys() == learner.model.state_dict().keys()
    for name, values in learner.model.state_dict().items():
        assert torch.equal(tensors[name], values)


def test_a_model_of_the_sample_says_that_its_patches_are_drawn(saved, learner, tmp_path):
    card = read_json(saved)
    assert card["dataset"] == "hcd-synthetic-sample"
    assert card["limits"].startswith("Trained on synthetic patches")
    assert read_json(save_bundle(learner, tmp_path, dataset="mine"))["dataset"] == "mine"


def test_numpy_numbers_may_be_metrics(learner, tmp_path):
    save_bundle(
        learner,
        tmp_path,
        {"auc": np.float32(0.5), "count": np.int64(3), "tensor": torch.tensor(0.25)},
    )
    assert load_bundle(tmp_path).card["metrics"] == {"auc": 0.5, "count": 3, "tensor": 0.25}


@pytest.mark.parametrize(
    "metrics, text",
    [
        ({"auc": float("nan")}, "finite numbers"),
        ({"curve": [float("inf")]}, "finite numbers"),
        ({"x": object()}, "finite numbers"),
        ({"x": "y" * 2_000_000}, "too long"),
    ],
)
def test_bad_metrics_write_nothing(learner, tmp_path, metrics, text):
    with pytest.raises(ValueError, match=text):
        save_bundle(learner, tmp_path / "model", metrics)
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_loaded_is_not_saved(learner, databunch, small_recipe, tmp_path):
    resnet = get_learner(databunch, replace(small_recipe, arch="resnet18"), tmp_path)
    with pytest.raises(ValueError, match="not the model that the recipe names"):
        save_bundle(resnet, tmp_path / "model")
    diverged = get_learner(databunch, small_recipe, tmp_path)
    with torch.no_grad():
        diverged.model[1][-1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"tensor '1\.8\.weight' holds infinity or NaN"):
        save_bundle(diverged, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_callable_architecture_has_no_name_to_save(learner, tmp_path, monkeypatch, small_recipe):
    monkeypatch.setattr(
        learner.data.train_ds.x, "recipe", replace(small_recipe, arch=lambda pretrained: None)
    )
    with pytest.raises(ValueError, match="cannot be named on a card"):
        save_bundle(learner, tmp_path / "model")


def test_folder_that_cannot_be_made(learner, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="is a file; name a folder"):
        save_bundle(learner, tmp_path / "file")


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing; a model folder holds", FileNotFoundError)


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "nowhere.card.json is missing", FileNotFoundError)


@pytest.mark.parametrize("field", sorted(RULES))
def test_missing_field(folder, field):
    card = read_json(folder)
    del card[field]
    write_json(folder, card)
    refused(folder, "has format None" if field == "format" else f"field '{field}' is missing")


WRONG = {
    "temperature": [0, -1, 1000, "1.5", True, [1]],
    "dataset": [3, [], {}, True],
    "format": ["hcd-model-5", "hcd-model-0", 1, None, ["hcd-model-4"], "x" * 1000],
    "classes": [["tumour", "negative"], ["negative"], "negative", None, ["cat", "dog"]],
    "recipe": [None, [], "densenet169", {}, 3],
    "metrics": [None, [], "0.99"],
    "data_fingerprint": [3, [], {}],
    "weights_sha256": [None, "", "0" * 63, "G" * 64, 64, "A" * 64],
    "versions": [None, [], {"torch": 2}],
    "created": [None, 2024],
    "intended_use": [None, []],
    "limits": [None, {}],
    "spacing_um_px": [None, 0, -1, 1e9, True, "0.972"],
    "license": [None, 3],
    "splits": [None, [], {"validation AUC": 1}],
}


@pytest.mark.parametrize(
    "field, value",
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=short,
)
def test_wrong_field(folder, field, value):
    write_json(folder, {**read_json(folder), field: value})
    texts = {"format": "has format .* this hcd reads 'hcd-model-4'"}
    if value == {} and field == "recipe":  # all defaults: densenet169
        texts["recipe"] = "bytes where the card's model needs"
    refused(folder, texts.get(field, f"field '{field}' is .* and not "))


def test_every_field_has_its_wrong_values():
    assert set(WRONG) == set(RULES)


def test_unknown_field(folder):
    write_json(folder, {**read_json(folder), "__class__": "os.system"})
    refused(folder, "field '__class__' is unknown")


@pytest.mark.parametrize(
    "change, text",
    [
        ({"crop_size": 97}, "crop_size=97 px does not fit"),
        ({"crop_size": "90"}, "crop_size='90' is not an integer"),
        ({"std": [0, 1, 1]}, "std=.* must be above 0"),
        ({"mean": [1, 2]}, "mean=.* needs one number each"),
        ({"arch": 7}, "arch=7 is not"),
        ({"arch": None}, "arch=None is not"),
        ({"arch": "os.system"}, "is no model of torchvision"),
        ({"arch": "__import__"}, "is no model of torchvision"),
        ({"arch": "vit_h_14"}, "arch='vit_h_14' cannot be"),
        ({"arch": "get_model"}, "is no model of torchvision"),
        ({"flips": "yes"}, "flips='yes' is not True or False"),
        ({"valid_fraction": 10**400}, "valid_fraction="),
        ({"mean": list(range(50_000))}, "mean="),
        ({"arch": "x" * 900_000}, "arch='xxx"),
        ({"max_shift": -1}, "max_shift=-1"),
        ({"rng_seed": 0.5}, "rng_seed=0.5"),
    ],
)
def test_wrong_recipe(folder, change, text):
    card = read_json(folder)
    write_json(folder, {**card, "recipe": {**card["recipe"], **change}})
    refused(folder, text)


def test_absurd_patch_size_builds_nothing_and_fits_no_patch(folder, sample):
    card = read_json(folder)
    write_json(folder, {**card, "recipe": {**card["recipe"], "original_size": 10**400}})
    refused(folder, "original_size=a huge number px is no patch")
    write_json(folder, {**card, "recipe": {**card["recipe"], "original_size": 65535}})
    with pytest.raises(ValueError, match="is 96 x 96 px; the recipe reads patches of 65535"):
        predict_image(load_bundle(folder), sample.test_paths[0])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"hcd-model-4"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ufeff{}",
        "\0",
        '{"format": NaN}',
        '{"format": 1e999}',
        '{"format": ' + "9" * 5000 + "}",
    ],
    ids=short,
)
def test_no_json_or_no_card(folder, content):
    write_json(folder, content)
    refused(folder, "is no JSON|has format")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_on_a_card_are_finite(folder, number):
    text = (folder / "card.json").read_text()
    assert "0.987" in text
    write_json(folder, text.replace("0.987", number))
    refused(folder, "is no finite number")


def test_bytes_that_are_no_text(folder):
    (folder / "card.json").write_bytes(b"\xff\xfe\x00{")
    refused(folder, "is no JSON")


def test_huge_card(folder):
    card = read_json(folder)
    write_json(folder, {**card, "limits": "x" * (1 << 20)})
    refused(folder, "card.json has at most 1048576")


def test_other_weights_than_the_card_names(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["1.8.bias"] += 1e-6
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "SHA-256 differs")


def test_one_flipped_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "SHA-256 differs")


@pytest.mark.parametrize(
    "size, first, then",
    [
        (0, "has 0 bytes where", "has 0 bytes where"),
        (7, "has 7 bytes where", "has 7 bytes where"),
        (-50_000, "bytes where the card's model needs", "bytes where the card's model needs"),
        # less than the header's own length is missing
        (-1, "SHA-256 differs", "is no safetensors file"),
    ],
)
def test_truncated_weights(folder, size, first, then):
    content = (folder / "model.safetensors").read_bytes()[:size]
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, first)
    name_weights(folder)
    refused(folder, then)


def test_grown_weights(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.truncate(file.tell() + (1 << 21))
    refused(folder, "bytes where the card's model needs")


def drop(tensors):
    del tensors["1.8.bias"]


def rename(tensors):
    tensors["1.9.bias"] = tensors.pop("1.8.bias")


def add(tensors):
    tensors["extra"] = torch.zeros(1)


def turn(tensors):
    tensors["1.8.weight"] = tensors["1.8.weight"].T.contiguous()


def halve(tensors):
    tensors["1.8.weight"] = tensors["1.8.weight"].half()
    tensors["1.8.bias"] = torch.zeros(1024, dtype=torch.float16)  # keeps the file's size


def swap_type(tensors):
    tensors["1.8.weight"] = tensors["1.8.weight"].view(torch.int32)


def spoil(tensors):
    tensors["1.8.weight"][0, 3] = float("nan")


def overflow(tensors):
    tensors["0.0.0.bias"][0] = -float("inf")


@pytest.mark.parametrize(
    "change, text",
    [
        (drop, r"tensor '1\.8\.bias' is missing"),
        (rename, r"tensor '1\.8\.bias' is missing"),
        (add, "tensor 'extra' is unknown"),
        (
            turn,
            (
                r"tensor '1\.8\.weight' is torch.float32 \(512, 2\) instead of torch.float32 \(2,"
                r" 512\)"
            ),
        ),
        (halve, r"tensor '1\.8\.\w+' is torch.float16"),
        (swap_type, r"tensor '1\.8\.weight' is torch.int32"),
        (spoil, r"tensor '1\.8\.weight' holds infinity or NaN"),
        (overflow, r"tensor '0\.0\.0\.bias' holds infinity or NaN"),
    ],
)
def test_weights_of_another_kind(folder, change, text):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    put_weights(folder, tensors)
    refused(folder, text)


def test_honest_change_of_weights_is_accepted(folder, saved, sample):
    """Shows that the helpers above make files that are refused for their one fault alone."""
    tensors = load_file(folder / "model.safetensors")
    tensors["1.8.bias"] += torch.tensor([0.0, 1.0])
    put_weights(folder, tensors, {"format": "pt"})
    changed, as_saved = (
        predict_image(load_bundle(path), sample.test_paths[0]).probability
        for path in (folder, saved)
    )
    assert np.log(changed / (1 - changed)) == pytest.approx(
        np.log(as_saved / (1 - as_saved)) + 1, abs=1e-4
    )


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b'{"a":',
        b"[]",
        b'{"__metadata__": {"a": 3}}',
        b'{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_damaged_header_of_the_weights(folder, header):
    size = (folder / "model.safetensors").stat().st_size
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content.ljust(size, b"\0"))
    name_weights(folder)
    refused(folder, "is no safetensors file")


def test_header_longer_than_the_file(folder):
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little").ljust(size, b"{"))
    name_weights(folder)
    refused(folder, "is no safetensors file")


def test_answer_that_is_no_number(folder, sample):
    card = read_json(folder)
    write_json(folder, {**card, "recipe": {**card["recipe"], "std": [1e-300] * 3}})
    bundle = load_bundle(folder)
    with pytest.raises(ValueError, match="answer is not a number"):
        predict_image(bundle, sample.test_paths[0])


@pytest.mark.parametrize("arch", ["convnext_large", "vgg19"])
def test_card_cannot_ask_for_memory(folder, arch):
    """Both would take more than the 400 MB allowed here; the card of a 5 MB weights file names them
    in vain."""
    card = read_json(folder)
    write_json(folder, {**card, "recipe": {**card["recipe"], "arch": arch}})
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("needs Linux to bound this process's memory")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 400_000_000, hard))
    try:
        refused(folder, "bytes where the card's model needs")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
@pytest.mark.parametrize("dump", [lambda thing: pickle.dumps(thing), lambda thing: b"torch"])
def test_pickle_under_another_name_runs_nothing(folder, tmp_path, name, dump):
    payload = dump(RunsCode(tmp_path))
    if payload == b"torch":
        torch.save(RunsCode(tmp_path), tmp_path / "saved")
        payload = (tmp_path / "saved").read_bytes()
    size = (folder / name).stat().st_size
    (folder / name).write_bytes(payload.ljust(size, b"\0"))
    if name == "model.safetensors":
        name_weights(folder)
    refused(folder, "is no JSON|is no safetensors file")
    assert not (tmp_path / PAYLOAD).exists()


@pytest.fixture(scope="module")
def exported(learner):
    # fastai does not close one that it is given by name
    with open(learner.path / "export.pkl", "wb") as file:
        learner.export(file)
    return learner.path / "export.pkl"


def test_export_loads_only_when_trusted(exported, tmp_path):
    for trust in ({}, {"trust": False}, {"trust": None}, {"trust": 1}, {"trust": "yes"}):
        with pytest.raises(
            ValueError, match="runs the code in it; pass trust=True only for a file of your own"
        ):
            load_export(exported, **trust)


def test_export_predicts_what_the_learner_predicts(exported, learner, sample):
    loaded = load_export(exported, trust=True)
    recipe = learner.data.train_ds.x.recipe.plain()
    for path in sample.test_paths[:3]:
        crop = read_cropped_image(path, recipe=recipe).transpose(2, 0, 1).copy()
        here, there = (
            it.predict(fastai.vision.Image(torch.from_numpy(crop)))[2] for it in (learner, loaded)
        )
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
    assert loaded.data.classes == [0, 1]


def test_a_crop_too_small_for_the_network_is_refused_in_one_sentence(
    learner, sample, tmp_path, refused
):
    bundle = load_bundle(save_bundle(learner, tmp_path / "model"))
    small = replace(bundle, recipe=replace(bundle.recipe, crop_size=4))
    with refused(ValueError, "crops of 4 px"):
        predict_image(small, sample.test_paths[0])


def test_predict_image_takes_a_bundle_and_a_path(learner, sample, tmp_path, refused):
    bundle = load_bundle(save_bundle(learner, tmp_path / "model"))
    path = sample.test_paths[0]
    with refused(TypeError, "Learner", "load_bundle"):
        predict_image(learner, path)
    for wrong in (Path(path).read_bytes(), np.zeros((96, 96, 3), np.uint8), torch.zeros(3, 96, 96)):
        with refused(TypeError, type(wrong).__name__, "path"):
            predict_image(bundle, wrong)


def test_export_with_code_runs_it_only_when_trusted(tmp_path):
    torch.save(RunsCode(tmp_path), tmp_path / "export.pkl")
    with pytest.raises(ValueError, match="trust=True"):
        load_export(tmp_path / "export.pkl")
    assert not (tmp_path / PAYLOAD).exists()
    with pytest.raises(Exception):  # noqa: B017  whatever comes of a Path where a learner belongs
        load_export(tmp_path / "export.pkl", trust=True)
    assert (tmp_path / PAYLOAD).exists(), "the payload is a dud, and the tests above show nothing"


def test_export_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_export(tmp_path / "export.pkl", trust=True)


def test_a_model_is_not_saved_through_a_link(learner, saved, folder, tmp_path):
    """`refused` of this file is about loading; a link to a folder may be read from."""
    victim = shutil.copytree(saved, tmp_path / "victim")
    (tmp_path / "link").symlink_to(victim)
    places = [tmp_path / "link"]
    for name in ("model.safetensors", "card.json", "README.md"):
        places.append(shutil.copytree(folder, tmp_path / name / "model") / name)
        places[-1].unlink()
        places[-1].symlink_to(tmp_path / "nowhere" if name == "card.json" else victim / name)
    before = {path: path.read_bytes() for path in victim.iterdir()}
    for link in places:
        there = sorted(link.parent.iterdir())
        with pytest.raises(OSError, match="is a link to .*; name the place itself") as caught:
            save_bundle(learner, link if link.is_dir() else link.parent, {"validation AUC": 0.5})
        assert str(caught.value).startswith(f"{link} is a link")
        assert sorted(link.parent.iterdir()) == there and link.is_symlink()
    assert {path: path.read_bytes() for path in victim.iterdir()} == before
    assert not (tmp_path / "nowhere").exists()
    load_bundle(tmp_path / "link")


@pytest.mark.parametrize("name", ["README.md", "card.json", "model.safetensors"])
def test_nothing_of_the_users_is_written_over(learner, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=f"{tmp_path}.*write over.*name an empty folder"):
        save_bundle(learner, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_notes_of_the_users_beside_a_model_stay(learner, folder):
    (folder / "README.md").write_text("months of notes")
    with pytest.raises(FileExistsError, match="README.md is not of an older model"):
        save_bundle(learner, folder)
    assert (folder / "README.md").read_text() == "months of notes"


def test_an_older_model_is_replaced_even_where_its_notes_are_of_the_one_before(learner, folder):
    notes = (folder / "README.md").read_text()
    digest = read_json(folder)["weights_sha256"]
    (folder / "README.md").write_text(notes.replace(digest, 64 * "0"))  # as a kill leaves it
    save_bundle(learner, folder)
    assert digest in (folder / "README.md").read_text()


def swap_activations(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ReLU):
            setattr(module, name, torch.nn.LeakyReLU(0.3))
        else:
            swap_activations(child)


def test_a_network_of_other_layers_without_weights_is_not_saved_as_the_recipes(
    databunch, small_recipe, tmp_path
):
    learner = get_learner(databunch, small_recipe, tmp_path)
    swap_activations(learner.model)
    learner.model.train()
    with pytest.raises(InputError, match="answers otherwise than squeezenet1_1.*train again"):
        save_bundle(learner, tmp_path / "model")
    assert not (tmp_path / "model").exists() and learner.model.training


def test_a_compiled_model_is_saved_as_what_it_was_compiled_from(learner, saved, tmp_path):
    plain = learner.model
    try:
        learner.model = torch.compile(plain)
        folder = save_bundle(learner, tmp_path / "model")
    finally:
        learner.model = plain
    assert read_json(folder)["weights_sha256"] == read_json(saved)["weights_sha256"]


def test_a_databunch_that_the_learner_was_not_trained_on(databunch, sample, small_recipe, split):
    learner = get_learner(databunch, small_recipe, sample.root.parent)
    learner.trained_on = databunch  # as a fit leaves it
    other = replace(small_recipe, mean=(0.5, 0.5, 0.5))
    learner.data = hcd.make_databunch(sample, other, split[1], num_workers=0, device="cpu")
    with pytest.raises(InputError, match=r"trained on mean=.* now has \(0.5, 0.5, 0.5\)"):
        save_bundle(learner, sample.root.parent / "never")
    assert not (sample.root.parent / "never").exists()


@pytest.mark.parametrize(
    "thing", [None, 3, ["a.tif"], object()], ids=["None", "3", "list", "object"]
)
def test_what_is_no_path_is_no_image(learner, saved, thing):
    bundle = load_bundle(saved)
    for read in (lambda: predict_image(bundle, thing), lambda: hcd.read_image(thing)):
        with pytest.raises(TypeError, match="path"):
            read()


def test_a_model_in_training_mode_is_refused(saved, sample):
    bundle = load_bundle(saved)
    bundle.model.train()
    with pytest.raises(InputError, match=r"training mode.*bundle.model.eval\(\)"):
        predict_image(bundle, sample.test_paths[0])
