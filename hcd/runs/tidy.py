"""A finished run keeps each set of weights once."""

import io
import re
from pathlib import Path

import torch

from ..disk.whole import shorten, sweep_parts, whole_write
from ..engine.compat import load_tensors
from ..errors import InputError


def tidy_run(folder, final_model: str) -> None:
    """Remove what only an interrupted run needs, once all that a run leaves is written.

    The final model's weights lie in model/; models/ keeps those of the other stages, without the
    optimiser's state, which is twice as large. It may be stopped and called again at any moment.

    Args:
        folder: of the run. final_model: the name of the model in model/, see metrics.json.
    """
    if not re.fullmatch(r"\w+_stage[12]", final_model):  # a stranger's name may lead elsewhere
        raise InputError(
            f"final_model={shorten(repr(final_model))} is no model of a run; restore metrics.json"
        )
    models = Path(folder) / "models"
    for name in ("tmp", final_model):
        (models / f"{name}.pth").unlink(missing_ok=True)
    for file in models.glob("*_stage[12].pth"):
        _drop_optimiser(file)
    for file in (Path(folder) / "checkpoints").glob("*.pth"):
        file.unlink()
    for name in ("", "models", "checkpoints", "figures", "model", "slide"):
        sweep_parts(Path(folder) / name)


def _drop_optimiser(file: Path) -> None:
    saved = load_tensors(file)
    if isinstance(saved, dict) and saved.keys() == {"model", "opt"}:
        content = io.BytesIO()
        torch.save(saved["model"], content)
        with whole_write(file) as opened:
            opened.write(content.getbuffer())
