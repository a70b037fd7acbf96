"""`hcd run | notebook | predict | serve | ...`: parse, call, print.

What a command needs is imported when it runs, so that help and usage errors wait for no library.
"""

import argparse
import importlib.util
import json
import shlex
import sys
import time
import traceback
from dataclasses import fields, replace
from pathlib import Path

from . import __version__
from .errors import InputError
from .recipe import Recipe
from .terminal import is_unread, stop_printing, tell, tell_launcher, tell_warnings

REPORT = "please report it with the lines above and the command that you gave"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed on the way, 2 wrong input, and
    as of other programs 130 stopped by Ctrl-C and 141 that nobody reads what it prints any more."""
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    try:
        try:
            code = _call(arguments)
        finally:
            sys.stdout.flush()
    except OSError as error:
        stop_printing()
        if isinstance(error, BrokenPipeError):
            return 141
        if code != 2:  # else it has been told
            tell(f"what was to be printed cannot be written ({error.strerror}); free space")
        return 2
    return code


def _call(arguments):
    options = _parser().parse_args(arguments)
    try:
        _refuse_empty(options)
        with tell_warnings():
            return options.command(options)
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError) and is_unread():
            raise
        tell(error)
        tell_launcher(error)
        return 2
    except KeyboardInterrupt:
        print("hcd: stopped; what was finished stays where it is", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(f"hcd: this is a fault of hcd {__version__}; {REPORT}", file=sys.stderr)
        tell_launcher(f"a fault of hcd {__version__}, whose lines are above")
        return 1


def _refuse_empty(options) -> None:
    """Turn down empty names of files and folders, such as a shell's unset variable leaves."""
    words = {
        "data": "DIR",
        "model": "MODEL",
        "source": "DIR",
        "folder": "OUT",
        "run": "RUN",
        "file": "FILE",
    }
    for name in (
        "data",
        "output",
        "resume",
        "into",
        "csv",
        "heatmap",
        "slides",
        "onnx",
        "wsinfer",
        "host",
        *words,
    ):
        if getattr(options, name, None) == "":
            is_flag = name not in words or name == "data" and options.command in (run, report)
            shown = f"--{name}" if is_flag else words[name]
            rest = f", or leave {shown} out altogether" if is_flag else ""
            raise InputError(f'{shown} "" names nothing; give a name{rest}')
    if "" in getattr(options, "images", ()):
        raise InputError('image "" names nothing; give the name of a file')


def run(options) -> int:
    """Execute the walkthrough, or go on with a run that was interrupted."""
    from .run import run

    return run(options)


def notebook(options) -> int:
    """Copy the walkthrough's notebook and print how to open it."""
    from .runs.template import copy_notebook

    path = copy_notebook(options.file)
    name = f"./{path}" if str(path).startswith("-") else str(path)  # else it looks like an option
    print(f"{path} is yours to step through and to change; open it with:")
    print(f"jupyter lab {shlex.quote(name)}")
    if importlib.util.find_spec("jupyterlab") is None:
        print("JupyterLab is not installed here; install it with pip install 'hcd[notebook]'")
    return 0


def predict(options) -> int:
    """Answer images with a model."""
    from .export.command import predict

    return predict(options)


def export(options) -> int:
    """Write a model in another form, and print where."""
    from .export.bundle import load_bundle
    from .export.command import model_folder

    bundle = load_bundle(model_folder(Path(options.model)))
    if options.onnx:
        from .export.to_onnx import export_onnx

        print(export_onnx(bundle, options.onnx, options.calibrated))
    elif options.calibrated:
        raise InputError("--calibrated goes with --onnx: WSInfer applies a softmax of its own")
    else:
        from .export.wsinfer import export_wsinfer

        print(export_wsinfer(bundle, options.wsinfer))
    return 0


def slide(options) -> int:
    """Answer whole slides with a model."""
    from .slide.command import slide

    return slide(options)


def serve(options) -> int:
    """Answer images in a browser, with a model."""
    from .deploy.serve import serve

    return serve(options)


def check(options) -> int:
    """Print what is wrong with a data set; 0 when nothing is, 1 otherwise."""
    from .dataset.check import check_dataset

    report = check_dataset(options.data)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    return 0 if report.clean else 1


def audit(options) -> int:
    """Print how much tissue patches share; 0 when none do, 1 otherwise, as when training and test
    share slides."""
    from .evidence.audit import audit_dataset

    side = options.original_size
    recipe = replace(Recipe().plain(), original_size=side, crop_size=side, max_shift=0)
    report = audit_dataset(options.data, options.slides, recipe)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    return 0 if report.clean else 1


def report(options) -> int:
    """Write the report of a finished run, and print where it is and its first lines."""
    from .evidence.report import write_report

    numbers = write_report(options.run, options.data, options.slides)
    if options.json:
        print(json.dumps(numbers, indent=1))
    else:
        _tell_report(numbers, Path(options.run) / "report.html")
    if options.calibrate:
        _calibrate(Path(options.run), numbers["validation"]["temperature"])
    return 0


def _tell_report(numbers, page):
    for name in ("validation", "test"):
        side = numbers[name]
        if side:
            interval = side["interval_over_groups"]
            shown = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            print(f"{name} AUC {side['auc']:.4f}{shown}, colour alone {side['colour_auc']:.4f}")
    print(f"{numbers['leak']['share']:.1%} of the validation patches show tissue of training")
    print(page)


def _calibrate(folder, temperature):
    from .export.bundle import write_temperature

    if temperature is None:
        raise InputError(
            "no temperature could be fitted to these validation patches; see why in report.html,"
            " and leave --calibrate out"
        )
    write_temperature(folder / "model", temperature)


def pack(options) -> int:
    """Pack a data set and print where, how large and how long."""
    from .dataset.packer import pack_dataset

    start = time.monotonic()
    try:
        report = pack_dataset(options.data, options.into)
    except KeyboardInterrupt as error:
        print(f"hcd: {error or 'stopped; nothing was packed'}", file=sys.stderr)
        return 130
    what = f"{report.folder}: {report.patches:,} patches, {report.size_bytes / 1e9:.2f} GB"
    if report.no_test:
        what += f", none for a test set ({report.no_test})"
    if not report.new:
        print(f"{what}, whole and of this data set; nothing to do")
        return 0
    earlier = f", {report.kept:,} of them by an earlier run" if report.kept else ""
    print(f"{what}, packed in {time.monotonic() - start:.0f} s{earlier}")
    if report.replaced:
        print(f"the pack that was there could not stay: {report.replaced}")
    return 0


def import_pcam(options) -> int:
    """Import PatchCamelyon and print what came of it."""
    from .dataset.pcam import import_pcam

    report = import_pcam(options.source, options.folder, options.map_only)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report.text())
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="hcd", description="Histopathologic cancer detection in fastai v1."
    )
    parser.add_argument("--version", action="version", version=f"hcd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    adders = (
        _add_run,
        _add_notebook,
        _add_predict,
        _add_slide,
        _add_export,
        _add_serve,
        _add_report,
        _add_check,
        _add_audit,
        _add_pack,
        _add_import,
    )
    for add in adders:
        add(commands)
    return parser


def _add_run(commands):
    command = commands.add_parser(
        "run",
        help="run the whole walkthrough; without --data on a synthetic sample",
        description="Execute the walkthrough's notebook, or under torchrun --nproc-per-node N -m"
        " hcd.cli run its twin without a notebook, on N ranks together.",
    )
    command.set_defaults(command=run)
    add = command.add_argument
    add("--data", metavar="DIR", help="the competition's folder; default: a synthetic sample")
    add("--output", metavar="DIR", help="folder to write into; default: a new one in outputs/")
    add("--resume", metavar="RUN", help="folder of an interrupted run to go on with")
    add("--workers", type=int, metavar="N", help="processes that read; default: one a core")
    add("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    add("--slides", metavar="FILE", help="CSV of id,wsi; default: slides.csv of the data folder")
    add("--remove-outliers", action="store_true", help="drop too dark and bright patches (In 10)")
    add("--back-to-stage1", action="store_true", help="go on with the stage-1 model (In 29)")
    add("--robust", action="store_true", help="what helps on unseen slides: see Recipe.robust")
    recipe = command.add_argument_group(
        "recipe", "the walkthrough's values; the sample has smaller ones of its own"
    )
    meanings = Recipe.meanings()
    for field in fields(Recipe):
        _add_recipe_flag(recipe, field, meanings.get(field.name, ""))


def _add_notebook(commands):
    command = commands.add_parser(
        "notebook", help="copy the walkthrough's notebook, to step through it in Jupyter"
    )
    command.set_defaults(command=notebook)
    add = command.add_argument
    add("file", metavar="FILE", nargs="?", default="walkthrough.ipynb", help="default: %(default)s")


def _add_predict(commands):
    command = commands.add_parser("predict", help="predict image files with a saved model folder")
    command.set_defaults(command=predict)
    add = command.add_argument
    add(
        "model",
        metavar="MODEL",
        help="folder of a run or of a model, or an ONNX file of `hcd export`",
    )
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="96 x 96 px RGB image file, a folder of them, a pattern such as 'DIR/*.tif' in quotes,"
        " or - for a list on standard input",
    )
    add("--csv", metavar="FILE", help="write the lines to this CSV file too")
    add("--heatmap", metavar="DIR", help="new folder to get a picture of where the model looks")
    _add_answering(add, "images")


def _add_answering(add, what):
    """Add how a model answers many images; `what` they are."""
    add("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    add("--fast", action="store_true", help="compute in 16 bits")
    add("--batch-size", type=int, default=64, metavar="N", help=f"{what} at once; default: 64")
    add("--threads", type=int, metavar="N", help="of torch on a CPU; default: torch's own")
    add("--calibrated", action="store_true", help="apply the temperature on the model's card")


def _add_slide(commands):
    command = commands.add_parser(
        "slide", help="find tumour on whole slides; needs pip install 'hcd[slide]'"
    )
    command.set_defaults(command=slide)
    add = command.add_argument
    add("model", metavar="MODEL", help="see `hcd predict`")
    add("slides", metavar="SLIDE", nargs="+", help="file of a slide, or a folder of them")
    add("--output", default="slides", metavar="DIR", help="gets a folder a slide; default: slides")
    add("--mpp", type=float, metavar="UM", help="um a pixel; default: what the slide says")
    add("--threshold", type=float, default=0.5, metavar="P", help="of tumour; default: 0.5")
    add("--cells", action="store_true", help="write each cell as a tile for QuPath too")
    _add_answering(add, "patches")


def _add_export(commands):
    command = commands.add_parser(
        "export", help="write a model as an ONNX file or for WSInfer and QuPath"
    )
    command.set_defaults(command=export)
    command.add_argument("model", metavar="MODEL", help="folder of a run or of a model")
    forms = command.add_mutually_exclusive_group(required=True)
    forms.add_argument(
        "--onnx", metavar="FILE", help="file to write; needs pip install 'hcd[onnx]'"
    )
    forms.add_argument("--wsinfer", metavar="DIR", help="folder to write; needs nothing more")
    command.add_argument(
        "--calibrated", action="store_true", help="apply the temperature on the model's card"
    )


def _add_serve(commands):
    command = commands.add_parser(
        "serve", help="a page and an API that answer with a model; needs pip install 'hcd[serve]'"
    )
    command.set_defaults(command=serve)
    add = command.add_argument
    add("model", metavar="MODEL", help="folder of a run or of a model")
    add("--host", default="127.0.0.1", help="address to listen at; default: this machine alone")
    add("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    add("--allow", nargs="+", default=[], metavar="NAME", help="other names that it is asked by")
    add("--device", help="cpu, cuda, ...; default: a GPU when there is one")
    add("--fast", action="store_true", help="compute in 16 bits")


def _add_check(commands):
    command = commands.add_parser(
        "check", help="read every file of a data set and report all that is wrong"
    )
    command.set_defaults(command=check)
    command.add_argument("data", metavar="DIR", help="folder in the competition's layout")
    command.add_argument("--json", action="store_true", help="print JSON, for machines")


def _add_audit(commands):
    command = commands.add_parser(
        "audit", help="count the patches that show the same tissue, in training and in test"
    )
    command.set_defaults(command=audit)
    add = command.add_argument
    add("data", metavar="DIR", help="folder in the competition's layout")
    add("--slides", metavar="FILE", help="CSV of id,wsi; default: slides.csv of the data folder")
    add("--original-size", type=int, default=96, metavar="PX", help="side of a patch; default: 96")
    add("--json", action="store_true", help="print JSON, for machines")


def _add_report(commands):
    command = commands.add_parser(
        "report", help="write a page that says what the numbers of a finished run are worth"
    )
    command.set_defaults(command=report)
    add = command.add_argument
    add("run", metavar="RUN", help="folder of a finished run; gets report.html and report.json")
    add("--data", metavar="DIR", help="its data; default: the folder that it was run on")
    add("--slides", metavar="FILE", help="CSV of id,wsi; default: the run's, or the data folder's")
    add("--calibrate", action="store_true", help="put the fitted temperature on the model's card")
    add("--json", action="store_true", help="print the numbers as JSON, for machines")


def _add_pack(commands):
    command = commands.add_parser(
        "pack",
        help="write every patch of a data set into one array, to read faster from a slow disk",
    )
    command.set_defaults(command=pack)
    add = command.add_argument
    add("data", metavar="DIR", help="folder in the competition's layout")
    add("--into", metavar="FOLDER", help="folder to get tables and pack; default: beside the files")


def _add_import(commands):
    command = commands.add_parser(
        "import", help="write another data set's files in the competition's layout"
    )
    sources = command.add_subparsers(required=True, metavar="source")
    command = sources.add_parser(
        "pcam", help="PatchCamelyon's official HDF5 files; needs pip install 'hcd[pcam]'"
    )
    command.set_defaults(command=import_pcam)
    add = command.add_argument
    add("source", metavar="DIR", help="folder of camelyonpatch_level_2_split_*, gzipped or not")
    add("folder", metavar="OUT", help="folder to fill, or with --map-only the competition's")
    add("--map-only", action="store_true", help="write only slides.csv (id,wsi) for OUT's ids")
    add("--json", action="store_true", help="print JSON, for machines")


def _add_recipe_flag(group, field, meaning):
    """Add the flag of a recipe field; its help says what the field means."""
    flag, value = f"--{field.name.replace('_', '-')}", field.default
    text = meaning.replace("%", "%%").rstrip(".")
    if field.type in (bool, bool | None):
        options: dict = {"action": argparse.BooleanOptionalAction, "default": None}
        shown = str(value)
    elif isinstance(value, tuple):
        count = "+" if field.name == "sweep_weight_decays" else len(value)
        options = {"type": float, "nargs": count, "metavar": "X"}
        shown = " ".join(f"{v:g}" for v in value)
    else:
        kind = int if value is None else type(value)
        options = {"type": kind, "metavar": kind.__name__.upper()}
        shown = str(value)
    group.add_argument(flag, help=f"{text}; walkthrough: {shown}", **options)


if __name__ == "__main__":
    sys.exit(main())
