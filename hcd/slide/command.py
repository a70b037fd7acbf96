"""`hcd slide`: whole slides by name, a folder of answers each."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..disk.locks import take_lock
from ..disk.whole import SCRATCH, read_json, refuse_link, unwritable, writable_folder, write_json
from ..errors import InputError
from ..export.command import open_model
from ..export.prediction import answering, answers_by_itself
from ..terminal import printable, tell
from .asked import card_of
from .kept import fingerprint, kept_file
from .libraries import import_readers
from .predict import predict_slide

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
ANSWER, MOST_BYTES = "answer.json", 1 << 16  # what a folder was answered from


def slide(options) -> int:
    """Answer slides one after the other, each into a new folder of the output folder. One that
    cannot be has its sentence; exit code 1 then, or 2 where none could be answered."""
    import_readers()
    _require_numbers(options)
    slides = _listed(options.slides)
    bundle = open_model(options.model, options.threads)
    torch_threads = None if answers_by_itself(bundle) else options.threads
    answering(bundle, options.device, torch_threads, options.fast, options.calibrated)
    output = writable_folder(options.output)
    busy = f"{output} is being written by another process; let it finish, or name another folder"
    lock, bad = take_lock(output, busy), 0
    try:
        for path in slides:
            try:
                _answer(bundle, path, output, options, torch_threads)
            except (InputError, OSError) as error:
                tell(error)
                bad += 1
            except KeyboardInterrupt:
                print(
                    f"hcd: stopped; the same command goes on with {printable(str(path))}",
                    file=sys.stderr,
                )
                return 130
    finally:
        lock.release()
    return 0 if not bad else 1 if bad < len(slides) else 2


def _require_numbers(options):
    """Turn down numbers that would fail only after hours."""
    if not 0 <= options.threshold < 1:
        raise InputError(
            f"--threshold {options.threshold} is no threshold; give a probability from 0 up to,"
            " not including, 1"
        )
    if options.mpp is not None and not 0 < options.mpp < float("inf"):
        raise InputError(f"--mpp {options.mpp} is no spacing; give um a pixel, such as 0.25")
    if options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size} is no number; give 1 or more")


def _listed(names):
    """Return the slides that are named, and those in folders that are; each has a name of its own,
    by which its folder is called."""
    found: list[Path] = []
    for name in names:
        if not name:
            raise InputError('SLIDE "" names nothing; give the name of a file')
        if not os.path.isdir(name):
            found.append(Path(name))
            continue
        inside = sorted(
            path
            for path in Path(name).iterdir()
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."
        )
        if not inside:
            raise InputError(
                f"{name} holds no slides ({', '.join(SUFFIXES)}); name their folder or the files"
            )
        found += inside
    found = list(dict.fromkeys(found))  # one that is named twice is answered once
    stems: dict = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"{other} and {path} would both be answered in a folder {path.stem!r}; give them in"
                " two calls, each with another --output"
            )
    return found


def _answer(bundle, path, output, options, threads):
    """Answer one slide, or find that an earlier call has."""
    target, shown = output / path.stem, printable(str(path))
    refuse_link(target)
    if target.exists():
        _require_answered(target, _question(bundle, path, options))
        print(f"{shown}\t{printable(str(target))}\tanswered already", flush=True)
        return
    settings: dict[str, Any] = {"fast": options.fast, "calibrated": options.calibrated}
    answer = predict_slide(
        bundle,
        path,
        options.batch_size,
        options.device,
        threads,
        mpp=options.mpp,
        resume=output,
        **settings,
    )
    _write(answer, target, _question(bundle, path, options), options)
    kept_file(output, path).unlink()
    with np.errstate(invalid="ignore"):
        above = int((answer.probabilities > options.threshold).sum())
    cells = int(np.isfinite(answer.probabilities).sum())
    line = f"{cells:,} cells, {above:,} above {options.threshold:g}"
    print(f"{shown}\t{printable(str(target))}\t{line}", flush=True)


def _write(answer, target, question, options):
    """Write the files of an answer, and what it is the answer to, in a folder that is there whole
    or not at all."""
    from .outputs import write_answer

    try:
        with TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            pending = Path(scratch, target.name)
            write_answer(answer, pending, options.threshold, options.cells)
            write_json(pending / ANSWER, question)
            os.rename(pending, target)
    except OSError as error:
        reason = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
        raise unwritable(target, reason) from error


def _question(bundle, path, options):
    """Return what an answer hangs on, by name; JSON."""
    card = card_of(bundle)
    names = ("mpp", "fast", "calibrated", "threshold", "cells")
    asked = {name: getattr(options, name) for name in names}
    model = {name: card.get(name) for name in ("weights_sha256", "temperature")}
    return {"slide": path.name, "sha256_of_pieces": fingerprint(path), **model, **asked}


def _require_answered(target, question):
    """Require a folder that is there to be the answer to the same question."""
    try:
        held = read_json(target / ANSWER, MOST_BYTES)
    except (OSError, InputError):
        held = None
    if held != question:
        held = held if isinstance(held, dict) else {}
        other = [name for name in question if name in held and held[name] != question[name]]
        why = f" but to one with another {' and '.join(other)}" if other else ""
        raise FileExistsError(
            f"{target} is there already, and not the answer to this call{why}; remove it or name"
            " another --output"
        )
