"""`hcd run`: the notebook executed in a folder of its own, or an interrupted run gone on with."""

import os
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import papermill
import torch
from nbclient.exceptions import DeadKernelError

from .dataset.opened import open_dataset, refuse_data_places
from .dataset.slides import read_slides
from .disk.whole import read_json
from .engine.ranks import launched
from .errors import InputError, Refused
from .learner import check_machine
from .recipe import Recipe, robust_changes
from .runs import events
from .runs.folder import (
    locked_output,
    new_run_folder,
    outputs_folder,
    remove_run,
    resume_command,
)
from .runs.notebook import failed_cell, run_notebook
from .runs.progress import say
from .runs.readme import write_readme
from .runs.record import (
    MOST_BYTES,
    MOST_WORKERS,
    note_end,
    noted_warnings,
    resume_record,
    start_record,
)
from .runs.template import find_notebook
from .runs.tidy import tidy_run
from .split import split_dataset
from .terminal import tell


def run(options) -> int:
    """Execute the walkthrough, or go on with a run that was interrupted, and print the closing
    table.

    Args:
        options: of the command line, see `cli`.
    Returns:
        exit code: 0 done, 1 failed on the way, 130 stopped.
    Raises:
        InputError, OSError: turned down before the run had begun; nothing of it is left.
    """
    if launched().world > 1:
        from .run_ranks import run_ranks

        return run_ranks(options, launched())
    check_options(options)
    start = resumed_run if options.resume else new_run
    with noted_warnings() as noted, start(options) as (output, record):
        code, metrics = 0, None
        try:
            say(f"writing to {output}")
            if not is_complete(output):
                resume = {"resume": True} if options.resume else {}
                run_notebook(output, {**record["parameters"], **resume})
                events.append(output, "complete")
            metrics = read_metrics(output)
            tidy_run(output, metrics["final_model"])
            write_readme(output, record["parameters"]["data_folder"])
        except (
            papermill.PapermillExecutionError,
            DeadKernelError,
            KeyboardInterrupt,
            OSError,
        ) as error:
            code, line = _failure(error, output)
            tell(line)
        note_end(output, record, noted, metrics)
    if metrics:
        print_table(metrics, output)
    return code


def check_options(options):
    """Turn down what no run can be started with."""
    if options.workers is not None and not 0 <= options.workers <= MOST_WORKERS:
        raise InputError(f"--workers {options.workers} is no count; give 0 to {MOST_WORKERS}")
    for flag in ("output", "remove_outliers", "back_to_stage1") if options.resume else ():
        if getattr(options, flag):
            raise InputError(
                f"--{flag.replace('_', '-')} cannot be given with --resume, which goes on as it"
                " began; leave it out"
            )


def is_complete(output):
    """Say whether the notebook came to its end; a kill may have come before the record's."""
    left = all((output / name).is_file() for name in ("metrics.json", "model/card.json"))
    return left and any(event["event"] == "complete" for event in events.read(output))


def read_metrics(output):
    """Return the metrics that the notebook has left, or a stranger.

    Raises:
        InputError: they are not what it leaves.
    """
    metrics = read_json(output / "metrics.json", MOST_BYTES)
    wanted = {"final_model": str, "data_fingerprint": str, "valid_accuracy": float}
    for name, kind in {**wanted, "valid_auc": float}.items():
        if not isinstance(metrics, dict) or not isinstance(metrics.get(name), kind):
            raise InputError(
                f"{output / 'metrics.json'} does not hold {name} as a run leaves it; start a new"
                " run in another folder"
            )
    return metrics


def _failure(error, output):
    """Return exit code and one sentence for a run that did not come to its end, with the command
    that goes on with it where that can help."""
    go_on = f"go on with: {resume_command(os.path.relpath(output))}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"stopped; {go_on}"
    if isinstance(error, DeadKernelError):
        return 1, (
            "the notebook's process was killed, most often for want of memory; give less"
            f" --batch-size or --workers in a new run, or {go_on}"
        )
    if isinstance(error, OSError):
        return 1, f"{error}, and then {go_on}"
    told = [event for event in events.read(output) if event["event"] == "failed"]
    if told and told[-1].get("final"):
        return 1, str(told[-1].get("text"))
    return 1, (
        f"{failed_cell(output, error)} failed with {error.ename}: {error.evalue}; its"
        f" traceback is in {output / 'walkthrough.ipynb'}, and when that is mended, {go_on}"
    )


@contextmanager
def new_run(options):
    """Check what the notebook will check too, before a kernel starts or a folder is made; yield the
    folder and its record. Where the notebook turns it down after all, nothing of it is left."""
    for given in (options.data, options.output, options.slides):
        _require_utf8(given or "")
    changes, recipe = recipe_changes(options), asked_recipe(options)
    dataset = open_dataset(options.data) if options.data else None
    fingerprint = dataset.fingerprint if dataset else None
    _check_slides(options.slides, recipe, dataset)
    check_machine(recipe, options.device)
    existed = bool(options.output) and Path(options.output).is_dir()
    if options.output:
        _refuse_own_places(Path(options.output).resolve(), options.data)
    output = Path(options.output) if options.output else new_run_folder(outputs_folder())
    output = output.resolve()
    parameters = {
        "data_folder": str(Path(options.data).resolve()) if options.data else "",
        "recipe_changes": changes,
        "num_workers": options.workers,
        "device": options.device,
        "remove_outliers": options.remove_outliers,
        "back_to_stage1": options.back_to_stage1,
        "slides_file": str(Path(options.slides).resolve()) if options.slides else "",
    }
    if dataset:
        _tell_no_test(dataset)
    with locked_output(output):
        try:
            yield output, start_record(output, recipe, parameters, fingerprint)
        except Refused:
            remove_run(output, keep_folder=existed)
            raise


def _check_slides(path, recipe, dataset):
    """Turn down a table of slides that the notebook would turn down, or that it cannot use."""
    if dataset is not None:
        table = read_slides(path, dataset, recipe)
        if recipe.split == "slides":  # that they leave both sides both labels, better now than then
            split_dataset(dataset, recipe, table)
    elif path or recipe.split == "slides":
        raise InputError(
            f"{'--slides' if path else '--split slides'} is for a data set of your own, and the"
            " synthetic sample has no slides; give --data too"
        )


def _require_utf8(name):
    """Require a name that the notebook and the record can hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{os.fsencode(name)!r} is no UTF-8; give the folder another name"
        ) from error


def _refuse_own_places(output, data):
    """Keep a run out of the folders of its template and of its data; a folder of its own beside
    train/ and test/ is fine."""
    template = find_notebook().parent.resolve()
    if template in (output, *output.parents):
        raise InputError(
            f"{template} holds the walkthrough itself, and no run is written there; name another"
        )
    if data:
        refuse_data_places(output, data, "no run is written there")
        if output == Path(data).resolve():
            raise InputError(f"{output} holds the data, and no run is written there; name another")


@contextmanager
def resumed_run(options):
    """Yield the folder and the record of an interrupted run; what is asked for now must be what it
    was run with."""
    with locked_output(Path(options.resume).resolve(), resume=True) as output:
        changes = recipe_changes(options)
        robust = [name for name in changes if getattr(options, name) is None]
        record = resume_record(output, changes, robust)
        parameters = record["parameters"]
        if options.data and not parameters["data_folder"]:
            raise InputError(
                f"{output} holds a run on the sample that it drew itself; leave --data out to go on"
                " with it, or start a new run"
            )
        if options.data:  # it may have moved
            parameters["data_folder"] = str(Path(options.data).resolve())
        if options.slides:
            parameters["slides_file"] = str(Path(options.slides).resolve())
        recipe = Recipe.from_stored(record["recipe"])
        if parameters["data_folder"]:
            dataset = open_dataset(parameters["data_folder"])
            _require_same_data(output, record, dataset)
            _check_slides(parameters["slides_file"], recipe, dataset)
        for name, value in (("num_workers", options.workers), ("device", options.device)):
            if value is not None:
                parameters[name] = value
        check_machine(recipe, parameters["device"])
        _tell_threads(record)
        yield output, record


def _require_same_data(output, record, dataset):
    """Require the ids and labels that a run began with; its pixels are the checkpoints' to compare,
    which an early interruption leaves none of."""
    before, now = record["data_fingerprint"], dataset.fingerprint
    if before not in (None, now):
        raise InputError(
            f"{output} began with other ids or labels than {dataset.root} holds now; restore the"
            " data set, or start a new run in another folder"
        )
    _tell_no_test(dataset)


def _tell_no_test(dataset):
    if dataset.no_test:
        print(f"{dataset.no_test}, so this run trains and validates but predicts no test set")


def _tell_threads(record):
    """Say where a run goes on with another number of threads than it began with."""
    was, now = record["machine"].get("torch_threads"), torch.get_num_threads()
    if was != now:
        print(
            f"this run began with {was} threads and goes on with {now}: sums are added up in"
            f" another order, so its last digits may differ; OMP_NUM_THREADS={was} keeps them"
        )


def asked_recipe(options) -> Recipe:
    """Return the recipe of a new run."""
    changes = recipe_changes(options)
    return Recipe(**changes) if options.data else Recipe.sample(**changes)


def recipe_changes(options) -> dict:
    """Return the recipe fields that were given on the command line, --robust for its own."""
    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    changes = {name: value for name, value in given.items() if value is not None}
    return robust_changes(changes) if options.robust else changes


def print_table(metrics, output, left=("walkthrough.html", "figures", "model", "metrics.json")):
    rows = [
        ("validation accuracy", f"{metrics['valid_accuracy']:.4f}"),
        ("validation AUC", f"{metrics['valid_auc']:.4f}"),
    ]
    if "test_auc" in metrics:
        rows.append(("test AUC", f"{metrics['test_auc']:.4f}"))
    rows += [(name, str(output / name)) for name in left]
    for name, value in rows:
        say(f"{name:20} {value}")
