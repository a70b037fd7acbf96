"""The record of a run, run.json in its folder: all that it takes to do it again, to go on with it, or to doubt it."""
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from .card import library_versions
from .files import write_json
from .recipe import Recipe

NAME, FORMAT = "run.json", "hcd-run-1"


def start_record(output, recipe, parameters):
    """Write the record of a run that is about to start.

    Args:
        output: the run's folder. recipe: its whole recipe. parameters: of the notebook's first cell.
    Returns:
        the record, a dict.
    """
    record = {"format": FORMAT, "recipe": asdict(recipe), "parameters": parameters, "versions": library_versions(),
              "git_commit": _git_commit(), "machine": _machine(), "started": [_now()], "finished": None, "data_fingerprint": None,
              "warnings": []}
    write_json(Path(output) / NAME, record)
    return record


def resume_record(folder, changes):
    """Read the record of an interrupted run, and note that it is resumed.

    Args:
        folder: the run's folder. changes: recipe fields that are asked for now.
    Returns:
        the record, a dict; its "recipe" and "parameters" are those of the interrupted run.
    Raises:
        FileNotFoundError: no such run. FileExistsError: it is finished. ValueError: a damaged record, or a recipe that differs; says
            where.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so there is no run to resume; name the folder that `hcd run` wrote to")
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        recipe = Recipe(**record["recipe"])
        record["started"].append(_now())
        record["parameters"]["data_folder"]  # noqa: B018  a run without one was not started by hcd
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no record of this hcd ({error}); start a new run") from error
    if record.get("finished"):
        raise FileExistsError(f"{folder} holds a run that was finished at {record['finished']}, so there is nothing to resume; read its "
                              "results or start a new run in another folder")
    asked = replace(recipe, **changes)
    for field in fields(Recipe):
        was, value = getattr(recipe, field.name), getattr(asked, field.name)
        if value != was:
            raise ValueError(f"{folder} was run with {field.name}={was!r} and not {value!r}; resume it without that option or start "
                             "a new run")
    write_json(path, record)
    return record


def close_record(output, record, metrics, notebook):
    """Add what is known at the end: the time, the data's fingerprint and every warning that the notebook shows."""
    shown = [output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
             if output.get("name") == "stderr"]
    found = re.findall(r"^.*\b\w*Warning: .*$", "\n".join(shown), re.MULTILINE)
    record = {**record, "finished": _now(), "data_fingerprint": metrics["data_fingerprint"], "warnings": found}
    write_json(Path(output) / NAME, record)


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _machine():
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(), "gpus": gpus}


def _git_commit():
    """Return the commit of the checkout that hcd runs from, None where it was installed without one."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        commit, changes = (subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout
                           for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]))
    except (OSError, subprocess.CalledProcessError):  # no git here, or not the user's own checkout
        return None
    return commit.strip() + (" with local changes" if changes else "")
