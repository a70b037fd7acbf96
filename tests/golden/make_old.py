"""Make tests/golden/old with the hcd of commit 6146454, whose formats must load for ever.

    git worktree add /tmp/old 6146454
    PYTHONPATH=/tmp/old OMP_NUM_THREADS=1 python tests/golden/make_old.py tests/golden/old

`card_2.json` is the card that `make_card` of commit b864281 wrote for the same weights, and
`card_3.json` that of commit cb13cff.

Weights take four values a tensor, so that git stores 5 MB of them in half a megabyte.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly
import torch
from fastai.basic_train import LearnerCallback
from fastai.metrics import accuracy
from torch import nn

CHANGES = {
    "arch": "squeezenet1_1",
    "pretrained": False,
    "batch_size": 8,
    "valid_fraction": 0.25,
    "crop_size": 48,
    "head_epochs": 2,
    "finetune_epochs": 1,
    "sweep_iterations": 3,
    "rng_seed": 3,
}


class Cut(LearnerCallback):
    """Interrupts the fit after its first epoch."""

    _order = 200

    def on_epoch_end(self, **kwargs):
        raise KeyboardInterrupt


def new_data(dataset, recipe):
    _, valid_idx = hcd.stratified_split(dataset.labels["label"], 0.25, 0)
    hcd.set_rng_seed(3)
    return hcd.make_databunch(dataset, recipe, valid_idx, num_workers=0, device="cpu")


def new_small_learner(data, path):
    """A network of a few weights, whose checkpoint is small."""
    torch.manual_seed(7)
    conv = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return hcd.Learner(data, model, metrics=[accuracy], path=path)


def coarse(model):
    """Set the weights of a model to four values each."""
    generator = torch.Generator().manual_seed(5)
    for name, values in model.state_dict().items():
        if values.dtype.is_floating_point:
            scale = (2 / values[0].numel()) ** 0.5 if values.dim() > 1 else 0.1
            levels = torch.randint(0, 4, values.shape, generator=generator).float() - 1.5
            around_one = "running_var" in name or (values.dim() == 1 and name.endswith("weight"))
            new = levels * scale * 0.9
            values.copy_(new.abs() + 0.8 if around_one else new)


def main(out, work):
    from hcd.record import start_record  # where it lay in that commit

    recipe = hcd.Recipe(**CHANGES)
    dataset = hcd.make_sample(work / "data", train=16, test=4, rng_seed=1)
    data = new_data(dataset, recipe)
    learner = hcd.get_learner(data, recipe, work)
    coarse(learner.model)
    hcd.save_bundle(learner, out / "model", {"validation AUC": 0.75}, dataset.fingerprint)
    bundle = hcd.load_bundle(out / "model")
    answers = {
        name: hcd.predict_image(bundle, dataset.test_path(name)).probability
        for name in dataset.test_ids
    }
    kept = hcd.Checkpoints(out / "checkpoints", recipe, dataset)
    small = new_small_learner(data, work)
    try:
        small.fit_one_cycle(2, 1e-2, callbacks=[kept.callback(small, "stage1"), Cut(small)])
    except KeyboardInterrupt:
        small.save("old")
    (out / "models").mkdir()
    shutil.copy(work / "models/old.pth", out / "models/old.pth")
    parameters = {"data_folder": "data", "recipe_changes": CHANGES, "num_workers": 0}
    choices = {"device": "cpu", "remove_outliers": False, "back_to_stage1": False}
    start_record(out, recipe, {**parameters, **choices}, dataset.fingerprint)
    whole = new_small_learner(new_data(dataset, recipe), work)
    never = hcd.Checkpoints(work / "kept", recipe, dataset)
    whole.fit_one_cycle(2, 1e-2, callbacks=[never.callback(whole, "stage1")])
    results = {
        "probabilities": answers,
        "valid_losses": [float(loss) for loss in whole.recorder.val_losses],
        "last_weight": whole.model[-1].weight.detach().flatten().tolist(),
    }
    hcd.write_json(out / "answers.json", results)
    (out / "exports").mkdir()
    for fast in (False, True):
        make_export(new_small_learner(data, out / "exports"), fast)


def make_export(learner, fast):
    """Export a learner as it is, or with its network as `fast` runs it."""
    from hcd.fast import FastModel

    if fast:
        learner.model = FastModel(learner.model)
    learner.export("fast.pkl" if fast else "plain.pkl")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(sys.argv[1]), Path(work))
