"""What hcd 0.1.0 has written loads for ever: see tests/golden/make_old.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CHECKOUT

import hcd
from hcd.engine.compat import load_tensors
from hcd.engine.fast import FastModel
from hcd.runs.record import resume_record

GOLDEN = CHECKOUT / "tests/golden"
OLD = GOLDEN / "old"
ANSWERS = json.loads((OLD / "answers.json").read_text())
sys.path.append(str(GOLDEN))
from make_old import CHANGES, new_data, new_small_learner  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("old") / "data"
    return hcd.make_sample(root, train=16, test=4, rng_seed=1)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads are added up in another order; the old numbers are of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def without(path, *fields, of="recipe"):
    content = json.loads(path.read_text())
    for field in fields:
        del content[of][field]
    path.write_text(json.dumps(content))


def test_a_model_folder_answers_as_it_did(dataset):
    bundle = hcd.load_bundle(OLD / "model")
    assert bundle.recipe == hcd.Recipe(**CHANGES)
    assert bundle.card["spacing_um_px"] == 0.972 and bundle.card["license"] == "unspecified"
    for name, probability in ANSWERS["probabilities"].items():
        found = hcd.predict_image(bundle, dataset.test_path(name)).probability
        assert found == pytest.approx(probability, abs=1e-6)


def test_a_card_of_format_2_answers_as_it_did(dataset, old):
    """Made at b864281, of the same weights; it has no temperature yet."""
    shutil.copyfile(old / "card_2.json", old / "model/card.json")
    bundle = hcd.load_bundle(old / "model")
    card = bundle.card
    assert (card["temperature"], card["license"]) == (None, "CC0-1.0")
    assert bundle.recipe == hcd.Recipe(**CHANGES) and bundle.recipe.split == "random"
    name, probability = next(iter(ANSWERS["probabilities"].items()))
    found = hcd.predict_image(bundle, dataset.test_path(name)).probability
    assert found == pytest.approx(probability, abs=1e-6)


def test_a_card_of_format_3_answers_as_it_did(dataset, old):
    """Made at cb13cff, of the same weights; it names no data set yet."""
    shutil.copyfile(old / "card_3.json", old / "model/card.json")
    bundle = hcd.load_bundle(old / "model")
    card = bundle.card
    assert (card["dataset"], card["temperature"], card["license"]) == (None, 1.5, "CC0-1.0")
    assert bundle.recipe == hcd.Recipe(**CHANGES)
    name, probability = next(iter(ANSWERS["probabilities"].items()))
    found = hcd.predict_image(bundle, dataset.test_path(name)).probability
    assert found == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize("card", ["model/card.json", "card_2.json", "card_3.json"])
def test_an_old_model_takes_a_temperature_and_gets_notes_that_hubs_read(old, card):
    if card != "model/card.json":
        shutil.copyfile(old / card, old / "model/card.json")
    hcd.write_temperature(old / "model", 2)
    assert hcd.load_bundle(old / "model").card["temperature"] == 2
    notes = (old / "model/README.md").read_text()
    front = yaml.safe_load(notes.split("\n---\n")[0])
    assert front["pipeline_tag"] == "image-classification"
    assert "AUC 0.7500" in notes and "temperature that calibrates it: 2" in notes


def test_a_card_without_a_recipe_field_takes_its_default(old, refused):
    without(old / "model/card.json", "fast", "tta_passes")
    bundle = hcd.load_bundle(old / "model")
    assert bundle.recipe.fast is False and bundle.recipe.tta_passes == 12
    card = json.loads((old / "model/card.json").read_text())
    card["recipe"]["elastic_turns"] = 0.1
    (old / "model/card.json").write_text(json.dumps(card))
    with refused(hcd.InputError, "card.json", "elastic_turns", "unknown"):
        hcd.load_bundle(old / "model")


@pytest.mark.parametrize("format_", ["hcd-model-0", "hcd-model-5", None])
def test_a_card_of_another_format(old, refused, format_):
    card = json.loads((old / "model/card.json").read_text())
    (old / "model/card.json").write_text(json.dumps({**card, "format": format_}))
    with refused(hcd.InputError, "card.json", repr(format_), "hcd-model-4"):
        hcd.load_bundle(old / "model")


def test_a_card_of_the_first_format_has_no_field_of_the_second(old, refused):
    card = json.loads((old / "model/card.json").read_text())
    (old / "model/card.json").write_text(json.dumps({**card, "license": "MIT"}))
    with refused(hcd.InputError, "card.json", "license", "unknown"):
        hcd.load_bundle(old / "model")


def test_a_run_record_is_gone_on_with(old, refused):
    record = resume_record(old, {})
    assert hcd.Recipe.from_stored(record["recipe"]) == hcd.Recipe(**CHANGES)
    without(old / "run.json", "fast", "mean")
    assert resume_record(old, {})["parameters"]["recipe_changes"] == CHANGES
    content = json.loads((old / "run.json").read_text())
    content["recipe"]["elastic_turns"] = 0.1
    (old / "run.json").write_text(json.dumps(content))
    with refused(hcd.InputError, "run.json", "elastic_turns", "unknown"):
        resume_record(old, {})


def resumed(dataset, folder, tmp_path):
    recipe = hcd.Recipe(**CHANGES)
    learner = new_small_learner(new_data(dataset, recipe), tmp_path)
    kept = hcd.Checkpoints(folder, recipe, dataset, resume=True)
    learner.fit_one_cycle(2, 1e-2, callbacks=[kept.callback(learner, "stage1")])
    return learner


def require_whole(learner):
    losses = [float(loss) for loss in learner.recorder.val_losses]
    assert losses == pytest.approx(ANSWERS["valid_losses"], abs=1e-6)
    weight = learner.model[-1].weight.detach().flatten().tolist()
    assert weight == pytest.approx(ANSWERS["last_weight"], abs=1e-6)


def test_a_checkpoint_is_gone_on_with(dataset, old, tmp_path, capsys):
    require_whole(resumed(dataset, old / "checkpoints", tmp_path))
    assert "stage1: going on after epoch 1 of 2" in capsys.readouterr().out


def test_a_checkpoint_without_a_recipe_field_takes_its_default(dataset, old, tmp_path, refused):
    for name in ("start", "stage1"):
        path = old / f"checkpoints/{name}.pth"
        content = load_tensors(path)
        del content["identity"]["fast"], content["identity"]["tta_passes"]
        torch.save(content, path)
    require_whole(resumed(dataset, old / "checkpoints", tmp_path))
    content = load_tensors(old / "checkpoints/start.pth")
    content["identity"]["elastic_turns"] = 0.1
    torch.save(content, old / "checkpoints/start.pth")
    with refused(hcd.InputError, "start.pth", "elastic_turns", "unknown"):
        resumed(dataset, old / "checkpoints", tmp_path)


def test_saved_models_load(dataset, old, tmp_path):
    learner = new_small_learner(new_data(dataset, hcd.Recipe(**CHANGES)), Path(old))
    learner.load("old")
    assert torch.equal(
        learner.model[-1].weight, load_tensors(OLD / "models/old.pth")["model"]["5.weight"]
    )


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_an_export_loads_although_its_classes_have_moved(dataset, tmp_path, refused, kind):
    path, recipe = OLD / f"exports/{kind}.pkl", hcd.Recipe(**CHANGES)
    with refused(hcd.InputError, path, "hcd 0.1.0", "recipe="):
        hcd.load_export(path, trust=True)
    learner = hcd.load_export(path, trust=True, recipe=recipe)
    assert type(learner) is hcd.Learner and isinstance(learner.model, FastModel) == (kind == "fast")
    data = new_data(dataset, recipe)
    plain = new_small_learner(data, tmp_path).model.eval()
    images, _ = data.one_batch(denorm=False)
    # 16 bits have three digits
    answers = [model.eval()(images) for model in (learner.model, plain)]
    assert torch.allclose(*answers, atol=1e-6 if kind == "plain" else 1e-2)
    assert learner.data.valid_ds.x.recipe == recipe
