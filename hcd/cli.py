"""`hcd run | predict | check`: parse, call, print."""
import argparse
import csv
import json
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import papermill
from nbclient.exceptions import DeadKernelError

from .check import check_dataset
from .dataset import open_dataset
from .export import load_bundle, predict_image
from .files import new_run_folder, prepare_output, whole_write
from .learner import check_machine
from .recipe import Recipe
from .runner import InputError, run_notebook


def main(arguments=None):
    """Run the command line; returns the exit code: 0 done, 1 failed on the way, 2 wrong input."""
    options = _parser().parse_args(arguments)
    # of a damaged image OpenCV would print lines of its own, here and in the notebook's process
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        return options.command(options)
    except (InputError, ValueError, TypeError, OSError) as error:
        print(f"hcd: {' '.join(str(error).split())}", file=sys.stderr)  # one line, whatever a library wrote
        return 2
    except KeyboardInterrupt:
        print("hcd: stopped; what was finished stays where it is", file=sys.stderr)
        return 130


def run(options):
    """Execute the walkthrough and print the closing table."""
    changes = {field.name: getattr(options, field.name) for field in fields(Recipe) if getattr(options, field.name) is not None}
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers {options.workers} is no count; give 0 or more")
    # the notebook checks the same; here a wrong value is found before a kernel starts or a folder is made
    recipe = Recipe(**changes) if options.data else Recipe.sample(**changes)
    if options.data:
        open_dataset(options.data)
    check_machine(recipe, options.device)
    output = prepare_output(options.output).resolve() if options.output else new_run_folder("outputs").resolve()
    parameters = {"data_folder": str(Path(options.data).resolve()) if options.data else "", "recipe_changes": changes,
                  "num_workers": options.workers, "device": options.device, "remove_outliers": options.remove_outliers,
                  "back_to_stage1": options.back_to_stage1}
    print(f"writing to {output}")
    try:
        run_notebook(output, parameters)
    except InputError:
        if not options.output:
            shutil.rmtree(output)
        raise
    except papermill.PapermillExecutionError as error:
        print(f"hcd: {error.source.splitlines()[0][2:]} failed with {error.ename}: {error.evalue}; its traceback is in "
              f"{output / 'walkthrough.ipynb'}", file=sys.stderr)
        return 1
    except DeadKernelError:
        print("hcd: the notebook's process was killed, most often for want of memory; give less --batch-size or --workers",
              file=sys.stderr)
        return 1
    _print_table(json.loads((output / "metrics.json").read_text()), output)
    return 0


def predict(options):
    """Print one line per image: path, class, tumour probability."""
    bundle = load_bundle(options.model)
    predictions = [predict_image(bundle, image) for image in options.images]
    for prediction in predictions:
        print(f"{prediction.path}\t{prediction.label}\t{prediction.probability:.6f}")
    if options.csv:
        with whole_write(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "probability"),
                                        *((p.path, p.label, p.probability) for p in predictions)])
    return 0


def check(options):
    """Print what is wrong with a data set; 0 when nothing is, 1 otherwise."""
    report = check_dataset(options.data)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    return 0 if report.clean else 1


def _parser():
    parser = argparse.ArgumentParser(prog="hcd", description="Histopathologic cancer detection in fastai v1.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="run the whole walkthrough; without --data on a synthetic sample")
    command.set_defaults(command=run)
    command.add_argument("--data", metavar="DIR", help="folder in the competition's layout; default: a synthetic sample")
    command.add_argument("--output", metavar="DIR", help="folder to write into; default: a new one under outputs/")
    command.add_argument("--workers", type=int, metavar="N", help="processes that read patches; default: one a core")
    command.add_argument("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    command.add_argument("--remove-outliers", action="store_true", help="drop too dark and too bright patches (In 10)")
    command.add_argument("--back-to-stage1", action="store_true", help="go on with the stage-1 model (In 29)")
    recipe = command.add_argument_group("recipe", "the walkthrough's values; the sample has smaller ones of its own")
    for field in fields(Recipe):
        _add_recipe_flag(recipe, field)
    command = commands.add_parser("predict", help="predict image files with a saved model folder")
    command.set_defaults(command=predict)
    command.add_argument("model", metavar="MODEL", help="folder that `hcd run` or save_bundle wrote")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="96 x 96 px RGB image file")
    command.add_argument("--csv", metavar="FILE", help="write the lines to this CSV file too")
    command = commands.add_parser("check", help="read every file of a data set and report all that is wrong")
    command.set_defaults(command=check)
    command.add_argument("data", metavar="DIR", help="folder in the competition's layout")
    command.add_argument("--json", action="store_true", help="print everything as JSON, for machines")
    return parser


def _add_recipe_flag(group, field):
    flag, value = f"--{field.name.replace('_', '-')}", field.default
    if isinstance(value, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=f"walkthrough: {value}")
    elif isinstance(value, tuple):
        count = "+" if field.name == "sweep_weight_decays" else len(value)
        group.add_argument(flag, type=float, nargs=count, metavar="X", help=f"walkthrough: {' '.join(f'{v:g}' for v in value)}")
    else:
        kind = int if value is None else type(value)
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=f"walkthrough: {value}")


def _print_table(metrics, output):
    rows = [("validation accuracy", f"{metrics['valid_accuracy']:.4f}"), ("validation AUC", f"{metrics['valid_auc']:.4f}")]
    if "test_auc" in metrics:
        rows.append(("test AUC", f"{metrics['test_auc']:.4f}"))
    rows += [(name, str(output / name)) for name in ("walkthrough.html", "figures", "model", "metrics.json")]
    for name, value in rows:
        print(f"{name:20} {value}")


if __name__ == "__main__":
    sys.exit(main())
