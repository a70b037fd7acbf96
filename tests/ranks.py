"""What tests have several ranks do, and how they start them without torchrun.

python -m tests.ranks trained FOLDER    one rank of those that the environment speaks of
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hcd  # isort: skip  first, so that fastai is imported quietly

import torch
from fastai.basic_train import LearnerCallback
from fastai.train import ClassificationInterpretation
from torch import nn
from torch.distributed import TCPStore

from hcd.engine.ranks import joined, launched

CHECKOUT = Path(__file__).resolve().parents[1]
RECIPE = hcd.Recipe.sample(crop_size=32, max_shift=0, head_dropout=0.0, arch="resnet18")


def run_ranks(commands, folder, timeout):
    """Run a process for each command, as the ranks of one world; returns their exit codes.

    Args:
        commands: module and arguments of each. folder: gets out<rank>.txt and err<rank>.txt.
        timeout: seconds after which all are killed.
    """
    # theirs to meet at, and it outlives each of them, as torchrun's does
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(len(commands)),
        "LOCAL_WORLD_SIZE": str(len(commands)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    started = []
    try:
        for rank, command in enumerate(commands):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", *map(str, command)]
            with (
                open(Path(folder, f"out{rank}.txt"), "w") as out,
                open(Path(folder, f"err{rank}.txt"), "w") as err,
            ):
                started.append(
                    subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=out, stderr=err)
                )
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


class Frozen(LearnerCallback):
    """Leaves batch norms as they are, and keeps the first gradient."""

    def on_batch_begin(self, train, **kwargs):
        """Have every batch norm go by its running statistics."""
        for layer in self.learn.model.modules() if train else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    def on_backward_end(self, iteration, **kwargs):
        """Keep the gradient before the optimiser takes its step."""
        if iteration == 0:
            parameters = self.learn.model.parameters()
            self.gradient = torch.cat([values.grad.flatten() for values in parameters])


def double_learner(folder, recipe, valid):
    """Return a learner in float64 on the data set of a folder."""
    hcd.set_rng_seed(recipe.rng_seed)
    data = hcd.make_databunch(hcd.open_dataset(folder / "data"), recipe, valid, 0, "cpu")
    data.add_tfm(lambda batch: (batch[0].double(), batch[1]))
    learner = hcd.get_learner(data, recipe, folder / "learner")
    learner.model.double()
    return learner


def trained(folder):
    """Train two epochs; returns first gradient, losses and weights."""
    learner = double_learner(folder, replace(RECIPE, batch_size=32), range(0, 140, 4))
    frozen = Frozen(learner)
    learner.fit_one_cycle(2, 3e-3, callbacks=[frozen])
    weights = torch.cat([values.flatten() for values in learner.model.state_dict().values()])
    recorder = learner.recorder
    return {
        "gradient": frozen.gradient,
        "weights": weights,
        "losses": torch.stack(recorder.losses),
        "val_losses": torch.tensor(recorder.val_losses),
        "accuracy": torch.tensor([float(metrics[0]) for metrics in recorder.metrics]),
        "dropout": torch.rand(3),
    }


def predicted(folder):
    """Predict 25 validation patches in batches of 12, whose last holds one, 20 in batches of 18,
    whose last holds two, and the test set; returns all of it."""
    found = {}
    for batch_size, count in ((12, 25), (18, 20)):
        recipe = replace(RECIPE, batch_size=batch_size)
        learner = double_learner(folder, recipe, range(count))
        name = f"{count} by {batch_size}"
        found[name] = torch.cat([part.double().flatten() for part in learner.get_preds()])
        interp = ClassificationInterpretation.from_learner(learner)
        found[f"{name}, interpreted"] = torch.cat([interp.preds.flatten(), interp.losses])
        found[f"{name}, confusion"] = torch.from_numpy(interp.confusion_matrix())
        found[f"{name}, validated"] = torch.tensor([float(v) for v in learner.validate()])
        found[f"{name}, averaged"] = torch.from_numpy(hcd.predict_tta(learner, 2, False))
    return found


CASES = {"trained": trained, "predicted": predicted}

if __name__ == "__main__":
    case, folder = sys.argv[1], Path(sys.argv[2])
    ranks = launched()
    with joined(ranks):
        torch.save(CASES[case](folder), folder / f"{case}-{ranks.rank}-of-{ranks.world}.pt")
