"""`hcd run | predict | check | pack`: parse, call, print."""

import argparse
import csv
import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import fields
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError

from . import __version__
from .dataset.check import check_dataset
from .dataset.opened import open_dataset
from .dataset.packer import pack_dataset
from .disk.whole import whole_write
from .engine.compat import silence_opencv
from .errors import InputError
from .export.bundle import load_bundle, predict_image
from .learner import check_machine
from .recipe import Recipe
from .runs.folder import new_run_folder, prepare_output, resume_command
from .runs.notebook import run_notebook
from .runs.record import note_end, noted_warnings, resume_record, start_record

REPORT = "please report it with the lines above and the command that you gave"


def main(arguments=None):
    """Run the command line; returns the exit code: 0 done, 1 failed on the way, 2 wrong input."""
    options = _parser().parse_args(arguments)
    # of a damaged image OpenCV would print lines of its own, here and in the notebook's process
    silence_opencv()
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        return options.command(options)
    except (InputError, OSError) as error:
        # one line, whatever a library wrote
        print(f"hcd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hcd: stopped; what was finished stays where it is", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(f"hcd: this is a fault of hcd {__version__}; {REPORT}", file=sys.stderr)
        return 1


def run(options):
    """Execute the walkthrough, or go on with a run that was interrupted, and print the closing
    table."""
    if options.workers is not None and options.workers < 0:
        raise InputError(f"--workers {options.workers} is no count; give 0 or more")
    with noted_warnings() as noted:
        output, record = _resumed_run(options) if options.resume else _new_run(options)
        print(f"writing to {output}")
        code, metrics = 0, None
        try:
            run_notebook(
                output, {**record["parameters"], **({"resume": True} if options.resume else {})}
            )
            metrics = json.loads((output / "metrics.json").read_text())
        except InputError:
            if not options.output and not options.resume:
                shutil.rmtree(output)
            raise
        except (
            papermill.PapermillExecutionError,
            DeadKernelError,
            KeyboardInterrupt,
            OSError,
        ) as error:
            code, line = _failure(error, output)
            print(f"hcd: {' '.join(line.split())}", file=sys.stderr)
    note_end(output, record, noted, metrics)
    if metrics:
        _print_table(metrics, output)
    return code


def _failure(error, output):
    """Return exit code and one sentence for a run that did not come to its end, with the command
    that goes on with it."""
    go_on = f"go on with: {resume_command(os.path.relpath(output))}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"stopped; {go_on}"
    if isinstance(error, DeadKernelError):
        return (
            1,
            (
                "the notebook's process was killed, most often for want of memory; give less"
                f" --batch-size or --workers in a new run, or {go_on}"
            ),
        )
    if isinstance(error, OSError):
        return 1, f"{error}, and then {go_on}"
    return (
        1,
        (
            f"{error.source.splitlines()[0][2:]} failed with {error.ename}: {error.evalue}; its"
            f" traceback is in {output / 'walkthrough.ipynb'}, and when that is mended, {go_on}"
        ),
    )


def _new_run(options):
    """Check what the notebook will check too, before a kernel starts or a folder is made; return
    the folder and its record."""
    changes = _recipe_changes(options)
    recipe = Recipe(**changes) if options.data else Recipe.sample(**changes)
    fingerprint = open_dataset(options.data).fingerprint if options.data else None
    check_machine(recipe, options.device)
    output = (
        prepare_output(options.output, lock=False) if options.output else new_run_folder("outputs")
    )
    output = output.resolve()
    parameters = {
        "data_folder": str(Path(options.data).resolve()) if options.data else "",
        "recipe_changes": changes,
        "num_workers": options.workers,
        "device": options.device,
        "remove_outliers": options.remove_outliers,
        "back_to_stage1": options.back_to_stage1,
    }
    return output, start_record(output, recipe, parameters, fingerprint)


def _resumed_run(options):
    """Return the folder and the record of an interrupted run; what is asked for now must be what it
    was run with."""
    for flag in ("output", "remove_outliers", "back_to_stage1"):
        if getattr(options, flag):
            raise InputError(
                f"--{flag.replace('_', '-')} cannot be given with --resume, which goes on as it"
                " began; leave it out"
            )
    output = prepare_output(Path(options.resume).resolve(), resume=True, lock=False)
    record = resume_record(output, _recipe_changes(options))
    parameters = record["parameters"]
    if options.data:  # it may have moved; the checkpoints know whether it is the same
        open_dataset(options.data)
        parameters["data_folder"] = str(Path(options.data).resolve())
    for name, value in (("num_workers", options.workers), ("device", options.device)):
        if value is not None:
            parameters[name] = value
    check_machine(Recipe(**record["recipe"]), parameters["device"])
    return output, record


def _recipe_changes(options):
    return {
        field.name: getattr(options, field.name)
        for field in fields(Recipe)
        if getattr(options, field.name) is not None
    }


def predict(options):
    """Print one line per image: path, class, tumour probability."""
    bundle = load_bundle(options.model)
    predictions = [predict_image(bundle, image) for image in options.images]
    for prediction in predictions:
        print(f"{prediction.path}\t{prediction.label}\t{prediction.probability:.6f}")
    if options.csv:
        with whole_write(options.csv, "w", newline="") as file:
            csv.writer(file).writerows(
                [
                    ("path", "label", "probability"),
                    *((p.path, p.label, p.probability) for p in predictions),
                ]
            )
    return 0


def check(options):
    """Print what is wrong with a data set; 0 when nothing is, 1 otherwise."""
    report = check_dataset(options.data)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    return 0 if report.clean else 1


def pack(options):
    """Pack a data set and print where, how large and how long."""
    start = time.monotonic()
    try:
        report = pack_dataset(options.data, options.into)
    except KeyboardInterrupt as error:
        print(f"hcd: {error or 'stopped; nothing was packed'}", file=sys.stderr)
        return 130
    what = f"{report.folder}: {report.patches:,} patches, {report.size_bytes / 1e9:.2f} GB"
    if not report.new:
        print(f"{what}, whole and of this data set; nothing to do")
        return 0
    earlier = f", {report.kept:,} of them by an earlier run" if report.kept else ""
    print(f"{what}, packed in {time.monotonic() - start:.0f} s{earlier}")
    if report.replaced:
        print(f"the pack that was there could not stay: {report.replaced}")
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="hcd", description="Histopathologic cancer detection in fastai v1."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "run", help="run the whole walkthrough; without --data on a synthetic sample"
    )
    command.set_defaults(command=run)
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder in the competition's layout; default: a synthetic sample",
    )
    command.add_argument(
        "--output", metavar="DIR", help="folder to write into; default: a new one under outputs/"
    )
    command.add_argument(
        "--resume", metavar="RUN", help="folder of an interrupted run to go on with"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that read patches; default: one a core"
    )
    command.add_argument("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    command.add_argument(
        "--remove-outliers",
        action="store_true",
        help="drop too dark and too bright patches (In 10)",
    )
    command.add_argument(
        "--back-to-stage1", action="store_true", help="go on with the stage-1 model (In 29)"
    )
    recipe = command.add_argument_group(
        "recipe", "the walkthrough's values; the sample has smaller ones of its own"
    )
    for field in fields(Recipe):
        _add_recipe_flag(recipe, field)
    command = commands.add_parser("predict", help="predict image files with a saved model folder")
    command.set_defaults(command=predict)
    command.add_argument(
        "model", metavar="MODEL", help="folder that `hcd run` or save_bundle wrote"
    )
    command.add_argument("images", metavar="IMAGE", nargs="+", help="96 x 96 px RGB image file")
    command.add_argument("--csv", metavar="FILE", help="write the lines to this CSV file too")
    command = commands.add_parser(
        "check", help="read every file of a data set and report all that is wrong"
    )
    command.set_defaults(command=check)
    command.add_argument("data", metavar="DIR", help="folder in the competition's layout")
    command.add_argument(
        "--json", action="store_true", help="print everything as JSON, for machines"
    )
    command = commands.add_parser(
        "pack",
        help="write every patch of a data set into one array, to read faster from a slow disk",
    )
    command.set_defaults(command=pack)
    command.add_argument("data", metavar="DIR", help="folder in the competition's layout")
    command.add_argument(
        "--into",
        metavar="FOLDER",
        help="folder to get the tables and the pack; default: beside the files",
    )
    return parser


def _add_recipe_flag(group, field):
    flag, value = f"--{field.name.replace('_', '-')}", field.default
    if isinstance(value, bool):
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=None, help=f"walkthrough: {value}"
        )
    elif isinstance(value, tuple):
        count = "+" if field.name == "sweep_weight_decays" else len(value)
        group.add_argument(
            flag,
            type=float,
            nargs=count,
            metavar="X",
            help=f"walkthrough: {' '.join(f'{v:g}' for v in value)}",
        )
    else:
        kind = int if value is None else type(value)
        group.add_argument(
            flag, type=kind, metavar=kind.__name__.upper(), help=f"walkthrough: {value}"
        )


def _print_table(metrics, output):
    rows = [
        ("validation accuracy", f"{metrics['valid_accuracy']:.4f}"),
        ("validation AUC", f"{metrics['valid_auc']:.4f}"),
    ]
    if "test_auc" in metrics:
        rows.append(("test AUC", f"{metrics['test_auc']:.4f}"))
    rows += [
        (name, str(output / name))
        for name in ("walkthrough.html", "figures", "model", "metrics.json")
    ]
    for name, value in rows:
        print(f"{name:20} {value}")


if __name__ == "__main__":
    sys.exit(main())
