"""`torchrun ... -m hcd.cli run`: the notebook's twin, trained by several processes together."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from typing import NoReturn

import matplotlib
import torch

from .engine.compat import library_versions
from .engine.device import find_device
from .engine.ranks import Ranks, agree, joined, on_first
from .engine.sharded import require_shareable
from .engine.watch import watched
from .errors import InputError, Refused
from .recipe import Recipe
from .run import (
    asked_recipe,
    check_options,
    is_complete,
    new_run,
    print_table,
    read_metrics,
    resumed_run,
)
from .runs import events
from .runs.progress import say, shown_progress
from .runs.record import note_end, noted_warnings
from .terminal import tell, tell_launcher
from .walkthrough import run_walkthrough

MENDABLE = (InputError, OSError)
# how gloo and NCCL say that the other end is gone
GONE = ("connection closed", "connection reset", "gloo", "nccl", "broken pipe")


def run_ranks(options, ranks: Ranks) -> int:
    """Run the walkthrough on every rank, or go on with a run, and print the closing table on rank
    0.

    Args:
        options: of the command line, see `cli`. ranks: see `launched`.
    Returns:
        exit code: 0 done, 1 failed on the way, 2 turned down, 130 stopped.
    """
    try:
        with joined(ranks), watched(ranks) as watch:
            try:
                _run(options, ranks, watch)
            except (Exception, KeyboardInterrupt) as error:
                _told(error, ranks, watch)
    except InputError as error:  # they never met
        tell(error)
        return 2
    return 0


def _told(error, ranks, watch) -> NoReturn:
    """Say what has ended the run, on the rank that is the first to know, and leave at once: the
    others may wait for ever."""
    lost = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in GONE)
    stopped, mendable = isinstance(error, KeyboardInterrupt), isinstance(error, MENDABLE)
    if watch.claim():
        named = not ranks.rank or str(error).startswith("rank ")
        where = "" if named else f"rank {ranks.rank}: "
        if stopped:
            tell(f"stopped; {watch.go_on}")
        elif lost:
            tell(f"a rank has died, or cannot be reached any more; {watch.go_on}")
        elif mendable:
            tell(f"{where}{error}")
            tell_launcher(f"{where}{error}")
        else:
            traceback.print_exception(error)
            tell(f"{where}failed with {type(error).__name__}; when that is mended, {watch.go_on}")
    sys.stdout.flush()
    os._exit(130 if stopped else 2 if mendable else 1)


def own_device(given: str | None, ranks: Ranks) -> str:
    """Return the device of this rank: a GPU of its own, or the CPU.

    Raises:
        InputError: one device for all was asked for, or there are fewer GPUs than ranks.
    """
    if given not in (None, "cpu", "cuda"):
        raise InputError(
            f"--device {given} would be that of every rank; give cpu, or cuda for a GPU each"
        )
    if given == "cpu" or ranks.device == "cpu" and given is None:
        return "cpu"
    find_device("cuda")
    count = torch.cuda.device_count()
    if count < ranks.neighbours:
        raise InputError(
            f"{ranks.neighbours} ranks have {count} GPUs here, and each needs its own; give"
            f" torchrun --nproc-per-node {count}, or --device cpu"
        )
    torch.cuda.set_device(ranks.local)
    return f"cuda:{ranks.local}"


def _run(options, ranks, watch) -> None:
    """Run the walkthrough on this rank."""
    device = own_device(options.device, ranks)
    agree(device=device.partition(":")[0], **library_versions(), **_asked(options))
    check_options(options)
    if not options.resume:
        require_shareable(asked_recipe(options))
    with ExitStack() as stack:
        noted = stack.enter_context(noted_warnings())
        output, record = on_first(lambda: stack.enter_context(_begun(options, noted)))
        # on one machine a fixed port would be in the way of another run
        alone = "--standalone " if ranks.neighbours == ranks.world else ""
        where = f" --device {device}" if options.device == "cpu" else ""
        watch.go_on = (
            f"go on with: torchrun {alone}--nproc-per-node {ranks.neighbours} -m hcd.cli run"
            f" --resume {shlex.quote(os.path.relpath(output))}{where}"
        )
        if not on_first(lambda: is_complete(output)):
            with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
                _walk(options, output, record, device)
        if ranks.rank == 0:
            events.append(output, "complete")
            metrics = read_metrics(output)
            note_end(output, record, noted, metrics)
            print_table(metrics, output, ("model", "metrics.json"))


def _asked(options) -> dict:
    """Return what the command line of every rank must say."""
    names = [field.name for field in fields(Recipe)]
    names += ["output", "resume", "remove_outliers", "back_to_stage1", "robust"]
    asked = {name: str(getattr(options, name)) for name in names}
    given = {"a_data_set": options.data, "slides": options.slides}  # which may lie elsewhere
    return {**asked, **{name: str(bool(value)) for name, value in given.items()}}


def _walk(options, output, record, device) -> None:
    parameters = record["parameters"]
    run_walkthrough(
        options.data or parameters["data_folder"],
        Recipe.from_stored(record["recipe"]),
        output,
        parameters["num_workers"],
        device,
        parameters["remove_outliers"],
        parameters["back_to_stage1"],
        bool(options.resume),
        options.slides or parameters["slides_file"],
    )


@contextmanager
def _begun(options, noted) -> Iterator[tuple]:
    """Yield a run's folder and its record, on rank 0; what is refused before it has begun leaves
    nothing, as in `run`."""
    matplotlib.use("Agg")  # nobody looks
    start = resumed_run if options.resume else new_run
    with start(options) as (output, record):
        os.environ[events.RUN] = str(output)
        events.append(output, "attempt", process=os.getpid())
        say(f"writing to {output}")
        try:
            with shown_progress(output):
                yield output, record
        except BaseException as error:
            attempt = events.last_attempt(events.read(output))
            begun = options.resume or any(event["event"] == "begun" for event in attempt)
            if not begun and isinstance(error, MENDABLE):
                raise Refused(str(error)) from error
            note_end(output, record, noted)
            raise
        finally:
            del os.environ[events.RUN]
