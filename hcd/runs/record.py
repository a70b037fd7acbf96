"""The record of a run, run.json in its folder: all that it takes to do it again, to go on with it,
or to doubt it."""

import platform
import re
import subprocess
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from ..disk.parallel import usable_cpus
from ..disk.whole import read_json, shorten, write_json
from ..engine.compat import library_versions
from ..errors import InputError
from ..recipe import Recipe
from . import events
from .folder import own_checkout

NAME, FORMAT, MOST_BYTES = "run.json", "hcd-run-1", 1 << 24
MOST_WORKERS = 256
PARAMETERS = {
    "data_folder": (str,),
    "recipe_changes": (dict,),
    "num_workers": (int, type(None)),
    "device": (str, type(None)),
    "remove_outliers": (bool,),
    "back_to_stage1": (bool,),
    "slides_file": (str,),
}  # of the notebook's first cell
ADDED = {"slides_file": ""}  # what older records lack


def start_record(output, recipe, parameters, data_fingerprint=None):
    """Write the record of a run that is about to start.

    Args:
        output: the run's folder. recipe: its whole recipe. parameters: of the notebook's first
            cell, see PARAMETERS.
        data_fingerprint: see `Dataset.fingerprint`; None where the run draws its data itself.
    Returns:
        the record, a dict.
    """
    record = {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "parameters": parameters,
        "versions": library_versions(),
        "git_commit": _git_commit(),
        "machine": _machine(),
        "started": [_now()],
        "finished": None,
        "data_fingerprint": data_fingerprint,
        "warnings": [],
    }
    write_json(Path(output) / NAME, record)
    return record


def resume_record(folder, changes, robust=()):
    """Read the record of an interrupted run, and note that it is resumed.

    Args:
        folder: the run's folder; whoever wrote it, nothing in the record is run. changes: recipe
            fields that are asked for now. robust: names of those that --robust alone asks for.
    Returns:
        the record, a dict; its "recipe" and "parameters" are those of the interrupted run.
    Raises:
        FileNotFoundError: no such run. FileExistsError: it is finished. InputError: a damaged
            record, or a recipe that differs; says where.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, so there is no run to resume; name the folder that `hcd run`"
            " wrote to"
        )
    record = read_json(path, MOST_BYTES)
    try:
        recipe = _check(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = shorten(ascii(str(error))[1:-1], 300)  # of a stranger's text
        raise InputError(f"{path} is no record of this hcd ({reason}); start a new run") from error
    if record["finished"]:
        raise FileExistsError(
            f"{folder} holds a run that was finished at {shorten(ascii(record['finished']))}, so"
            " there is nothing to resume; read its results or start a new run in another folder"
        )
    _require_same_recipe(folder, recipe, replace(recipe, **changes), robust)
    # of an attempt that was killed and could note none
    _add_warnings(record, told_warnings(folder))
    record["started"].append(_now())
    write_json(path, record)
    return record


def _require_same_recipe(folder, recipe, asked, robust):
    """Require what is asked for now to be what the run began with."""
    others = {
        field.name: (getattr(recipe, field.name), getattr(asked, field.name))
        for field in fields(Recipe)
        if getattr(recipe, field.name) != getattr(asked, field.name)
    }
    if robust and others.keys() >= set(robust):
        raise InputError(
            f"{folder} was started without --robust; resume it without that option or start a new"
            " run"
        )
    for name, (was, value) in others.items():
        raise InputError(
            f"{folder} was run with {name}={was!r} and not {value!r}"
            f"{', as --robust has it' if name in robust else ''}; resume it without that option or"
            " start a new run"
        )


def _check(record):
    """Require a record to be one that `start_record` could have written, and return its recipe.

    papermill writes the parameters into the notebook as lines of Python, their names just as they
    are.
    """
    if record["format"] != FORMAT:
        raise InputError(f"its format is {record['format']!r}")
    parameters = record["parameters"]
    if isinstance(parameters, dict):
        parameters = record["parameters"] = {**ADDED, **parameters}
    if parameters.keys() != PARAMETERS.keys():
        raise InputError(f"its parameters are {', '.join(map(repr, parameters))}")
    for name, kinds in PARAMETERS.items():
        if type(parameters[name]) not in kinds:
            raise InputError(f"its {name} is {parameters[name]!r}")
    for name, kinds in {
        "started": (list,),
        "finished": (str, type(None)),
        "machine": (dict,),
        "warnings": (list,),
    }.items():
        if (
            type(record[name]) not in kinds
            or name != "finished"
            and not all(isinstance(text, str) for text in record[name])
        ):
            raise InputError(f"its {name} is {record[name]!r}")
    _check_bounds(parameters)
    changes = parameters["recipe_changes"]
    recipe = Recipe.from_stored(record["recipe"])
    if recipe != (Recipe(**changes) if parameters["data_folder"] else Recipe.sample(**changes)):
        raise InputError("its recipe is not the one that its recipe_changes make")
    return recipe


def _check_bounds(parameters):
    """Require what a stranger's record would start to be within what a machine can have."""
    workers, device = parameters["num_workers"], parameters["device"]
    if workers is not None and not 0 <= workers <= MOST_WORKERS:
        raise ValueError(f"its num_workers is {workers}")
    if device is not None and not re.fullmatch(r"[a-z]{1,20}(:\d{1,3})?", device):
        raise ValueError(f"its device is {device!r}")


def note_end(output, record, noted, metrics=None):
    """Add to a record what is known when an attempt ends, however it ends: every warning so far,
    and of a finished run the time.

    Args:
        output: the run's folder, with what its notebook told. noted: warnings of this process, see
            `noted_warnings`.
        metrics: those of a finished run.
    """
    _add_warnings(record, noted + told_warnings(output))
    if metrics:
        record = {**record, "finished": _now(), "data_fingerprint": metrics["data_fingerprint"]}
    write_json(Path(output) / NAME, record)


def told_warnings(output) -> list:
    """Return every warning that the notebook's processes of a run have told."""
    return [str(event.get("text")) for event in events.read(output) if event["event"] == "warning"]


@contextmanager
def noted_warnings():
    """Yield a list that gets every warning of this process, as text; they are shown as before."""
    noted, show = [], warnings.showwarning

    def note(message, category, filename, lineno, *rest):
        noted.append(f"{filename}:{lineno}: {category.__name__}: {message}")
        show(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.showwarning = note
        yield noted


def _add_warnings(record, found):
    record["warnings"] += [text for text in dict.fromkeys(found) if text not in record["warnings"]]


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _machine():
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": usable_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _git_commit():
    """Return the commit of the checkout that hcd runs from, None where it was installed without
    one."""
    checkout = own_checkout()
    if checkout is None or not (checkout / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=checkout, capture_output=True, text=True, check=True
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or not the user's own checkout
        return None
    return commit.strip() + (" with local changes" if changes else "")
