"""The page of a model folder: hubs read its front matter as it was meant, whatever texts it has."""

import re

import pytest
import yaml

from hcd import Recipe
from hcd.export.card import INTENDED_USE, SYNTHETIC, make_card
from hcd.export.notes import card_notes

SHA = "0123456789abcdef" * 4
METRICS = {
    "patches": 480,
    "mean": [0.7, 0.55, 0.65],
    "stage1": {"valid_loss": 0.31234, "accuracy": 0.875},
    "final_model": "resnet18_stage2",
    "valid_auc": 0.95081,
    "valid_auc_interval": {"low": 0.91, "high": 0.9724, "over": "islands of tissue"},
    "test_auc": 0.9,
}
SPLITS = {"stage1": "random", "valid_auc": "random", "test_auc": "other slides"}
HOSTILE = [
    "a: b # c",
    "---",
    "x\n---\nlicense: mit",
    "x\r\n...\r\n--- !!python/object/apply:os.system ['true']",
    "\"quoted\" and 'quoted'",
    "{a: 1, [b",
    "*alias &anchor !!tag",
    "no",
    "1e3",
    "~",
    "\u2028\x85\ud800\ufeff\x07 end",
    "  ",
    "x" * 5000,
]


def notes(metrics=METRICS, splits=SPLITS, recipe=Recipe(), **more):
    return card_notes(make_card(recipe, SHA, metrics, "ab12", splits, **more)[0])


def parts(text):
    """Return front matter and body, as a hub tells them apart."""
    found = re.match(r"---\n([\s\S]*?)\n---\n([\s\S]*)$", text)
    return yaml.safe_load(found[1]), found[2].strip("\n").split("\n")


def test_the_front_matter_says_what_a_hub_asks():
    front, _ = parts(notes(license="CC-BY-4.0", dataset="owner/name"))
    assert front["library_name"] == "hcd" and front["pipeline_tag"] == "image-classification"
    assert front["license"] == "cc-by-4.0" and "license_name" not in front
    assert front["datasets"] == ["owner/name"] and front["metrics"] == ["roc_auc", "accuracy"]
    (index,) = front["model-index"]
    assert index["name"] == "densenet169"
    validation, test = index["results"]
    assert validation["task"]["type"] == "image-classification"
    assert validation["dataset"] == {
        "name": "owner/name (random split)",
        "type": "owner/name",
        "split": "validation",
    }
    assert validation["metrics"] == [
        {"type": "loss", "value": 0.31234, "name": "stage 1 validation loss"},
        {"type": "accuracy", "value": 0.875, "name": "stage 1 accuracy"},
        {
            "type": "roc_auc",
            "value": 0.95081,
            "name": "validation AUC",
            "args": {"interval_95": [0.91, 0.9724], "over": "islands of tissue"},
        },
    ]
    other = {"name": "owner/name (other slides)", "type": "owner/name", "split": "test"}
    assert test["dataset"] == other
    assert test["metrics"] == [{"type": "roc_auc", "value": 0.9, "name": "test AUC"}]


@pytest.mark.parametrize(
    "metric, splits, split, side",
    [
        ("test_auc", {}, "test set", "test"),  # as a run records it
        ("test_auc", {"test_auc": "slides"}, "split by slides", "test"),
        ("valid_auc", {"valid_auc": "islands"}, "split by islands of tissue", "validation"),
        ("validation AUC", {}, "split not recorded", "validation"),
        ("latest_auc", {}, "split not recorded", None),
    ],
)
def test_which_patches_a_number_is_of(metric, splits, split, side):
    """A hub's config and revision are of a data set that it holds; no kind of split and no
    fingerprint of files is one."""
    front, body = parts(notes({metric: 0.5}, splits, dataset="owner/name"))
    (found,) = front["model-index"][0]["results"]
    wanted = {"name": f"owner/name ({split})", "type": "owner/name", "split": side}
    assert found["dataset"] == {name: value for name, value in wanted.items() if value}
    assert [line for line in body if line.endswith(f"AUC 0.5000 ({split})")]
    assert "- data: owner/name, fingerprint ab12" in body


def test_people_read_numbers_with_their_split():
    _, body = parts(notes(license="CC-BY-4.0"))
    assert body[0] == "# densenet169, negative / tumour" and INTENDED_USE in body
    assert any(line.startswith("**Limits.** Not a medical device") for line in body)
    assert "- licence: CC-BY-4.0" in body and "- data: fingerprint ab12" in body
    assert f"- weights: SHA-256 {SHA}" in body
    (size,) = [line for line in body if line.startswith("- input: ")]
    assert size.startswith("- input: 96 x 96 px RGB at 0.972 micrometres a px, centre 90 px")
    assert body[body.index("## Metrics") + 2 :][:3] == [
        "- stage 1: validation loss 0.3123, accuracy 0.8750 (random split)",
        "- validation AUC 0.9508, 95 % interval 0.9100 to 0.9724 over islands of tissue"
        " (random split)",
        "- test AUC 0.9000 (other slides)",
    ]
    assert body[body.index("## Also recorded") + 2 :][:3] == [
        "- patches: 480",
        "- mean: 0.7000, 0.5500, 0.6500",
        "- final model: resnet18_stage2",
    ]
    assert "valid_auc" not in "\n".join(body) and notes().endswith(">`.\n")


def test_without_metrics_licence_and_data_it_says_so():
    front, body = parts(card_notes(make_card(Recipe(), SHA)[0]))
    assert "- none recorded" in body and "- licence: unspecified" in body
    assert "- data: fingerprint not recorded" in body
    assert (front["license"], front["license_name"]) == ("other", "unspecified")
    assert not {"model-index", "datasets", "metrics"} & set(front)


def test_the_synthetic_sample_is_named():
    front, body = parts(notes(dataset=SYNTHETIC))
    assert front["datasets"] == ["hcd-synthetic-sample"] and "synthetic" in front["tags"]
    assert any(line.startswith("**Limits.** Trained on synthetic patches") for line in body)
    assert "- data: the synthetic sample that hcd draws, fingerprint ab12" in body
    assert "synthetic" not in notes()


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:20])
def test_what_users_name_neither_breaks_nor_adds_a_field(text):
    metrics = {f"{text} AUC": 0.5, "note": text, text: {text: 0.25}}
    given = {"license": text, "dataset": text}
    written = notes(metrics, {f"{text} AUC": text, text: text}, **given)
    front, body = parts(written)
    fields = {"library_name", "pipeline_tag", "license", "license_name", "tags", "model-index"}
    assert set(front) - {"datasets"} == fields | {"metrics"}
    assert front["license"] == "other" and re.fullmatch("[a-z0-9.-]+", front["license_name"])
    values = [
        one["value"] for result in front["model-index"][0]["results"] for one in result["metrics"]
    ]
    assert sorted(values) == [0.25, 0.5]
    for line in ("# densenet169, negative / tumour", "## Metrics", "## Also recorded"):
        assert body.count(line) == 1
    assert written.encode() and not re.search(r"[\r\x85\u2028]", written)


@pytest.mark.parametrize(
    "metrics, wanted",
    [
        ({"AUC": 10**400}, "- AUC 1000"),
        ({"AUC": 5e-324}, "- AUC 4.941e-324 (split not recorded)"),
        ({"AUC": 1e308, "AUC_interval": {"low": 1}}, "- AUC 1e+308 (split not recorded)"),
        ({"AUC": 0.5, "AUC_interval": None}, "- AUC interval: null"),
        (
            {"AUC": 0.5, "AUC_interval": {"low": 0.25, "high": 1}},
            "- AUC 0.5000, 95 % interval 0.2500 to 1 (split not recorded)",
        ),
        (
            {"AUC": 0.5, "AUC_interval": (0.25, 0.75)},
            "- AUC 0.5000, 95 % interval 0.2500 to 0.7500 (split not recorded)",
        ),
        ({"AUC": 0.5, "AUC_interval": [0.25]}, "- AUC interval: 0.2500"),
        ({"AUC": True}, "- AUC: true"),
        ({"curve": [0.5] * 20_000}, "- curve: 0.5000, 0.5000"),
        ({"stage1": {"losses": [0.5, 0.25]}}, '- stage 1: {"losses": [0.5, 0.25]}'),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_of_any_size_and_kind_have_their_line(metrics, wanted):
    front, body = parts(notes(metrics, {}))
    assert any(line.startswith(wanted) for line in body), body
    assert max(map(len, body)) < 1000


@pytest.mark.parametrize("hostile", [None, *HOSTILE], ids=lambda text: repr(text)[:20])
def test_the_hubs_own_parser_reads_it_without_loss(hostile):
    hub = pytest.importorskip("huggingface_hub", reason="needs pip install huggingface-hub")
    more = {"license": hostile, "dataset": hostile} if hostile else {}
    written = notes({**METRICS, "note": hostile}, **more)
    front, body = parts(written)
    card = hub.ModelCard(written)
    assert card.data.to_dict() == front
    assert card.text.strip("\n").split("\n") == body
    found = {one.metric_name: one for one in card.data.eval_results}
    auc = found["validation AUC"]
    assert (auc.metric_type, auc.metric_value) == ("roc_auc", 0.95081)
    assert auc.dataset_name.endswith(" (random split)") and auc.dataset_split == "validation"
    assert {(one.dataset_config, one.dataset_revision) for one in found.values()} == {(None, None)}
    assert auc.metric_args == {"interval_95": [0.91, 0.9724], "over": "islands of tissue"}
    assert found["test AUC"].dataset_split == "test" and len(found) == 4
    hub.repocard_data.eval_results_to_model_index(card.data.model_name, card.data.eval_results)
