"""Predict a whole slide: threads read blocks of cells while the model answers batches of them."""

import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import __version__
from ..disk.parallel import usable_cpus
from ..disk.shown import progress_bar
from ..disk.whole import StrPath
from ..errors import InputError
from ..export.prediction import MOST_READERS, answering
from .answer import SlideAnswer
from .cells import CELL, Grid, make_grid, read_block, shares
from .kept import Kept, fingerprint, kept_file
from .opened import Slide, open_slide
from .presence import require_same_presence, require_whole_block
from .tissue import overview, tissue_mask

# Sums of few patches are ordered by their number: from 16 on, on a CPU, a patch's answer has the
# same bits whatever the number, and of a smaller batch it has others
LEAST_BATCH = 16
LEAST_TISSUE = 0.1  # of a cell that is answered


def predict_slide(
    bundle: Any,
    path: StrPath,
    batch_size: int = 64,
    device: Any = None,
    threads: int | None = None,
    fast: bool = False,
    calibrated: bool = False,
    mpp: float | None = None,
    resume: StrPath | None = None,
    progress: bool = True,
) -> SlideAnswer:
    """Predict every cell of a whole slide that shows tissue.

    A cell is the centre 32 x 32 px of a patch at the model's spacing; beyond the slide, patches are
    white. On a CPU the probabilities do not depend, to the bit, on batch size, threads and
    interruptions.

    Args:
        bundle: what `load_bundle` or `load_onnx` returns; left as it is.
        path: a file that openslide or tiffslide reads: CAMELYON's .tif, .svs, .ndpi, OME-TIFF ...
        batch_size: patches that the model sees at once, rounded up to sixteens.
        device, threads, fast, calibrated: see `predict_images`.
        mpp: micrometres a pixel of level 0, for a slide that does not say or is wrong about it.
        resume: folder to keep what is finished in, as NAME.unfinished.npz, which a call with the
            same arguments takes up; the caller removes it.
        progress: show a bar.
    Returns:
        SlideAnswer.
    Raises:
        FileNotFoundError, InputError, InputTypeError: no such slide, or a damaged one, without
            tissue or um/px, or settings that cannot be used. OSError: `resume` cannot be written.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r} is no number of patches; give 1 or more")
    model, card = answering(bundle, device, threads, fast, calibrated), card_of(bundle)
    if model.original_size < CELL or model.original_size % 2:
        raise InputError(
            f"the model reads patches of {model.original_size} px, which have no centre of {CELL};"
            " use one of 96"
        )
    with open_slide(path) as slide:
        spacing = _spacing(slide, mpp)
        grid = make_grid(slide, spacing, card["spacing_um_px"], model.original_size)
        thumbnail, seen, tissue = _survey(slide, grid, spacing)
        key: dict[str, Any] = {
            "slide": fingerprint(slide.path) + slide.identity,
            "mpp": list(spacing),
            "model": [card["weights_sha256"], card.get("temperature"), model.original_size],
            "device": _device(model),
            "fast": fast,
            "calibrated": calibrated,
            "hcd": __version__,
        }
        file = None if resume is None else kept_file(resume, path)
        kept = Kept(file, key, grid.shape, len(grid.blocks()))
        try:
            _answer(model, slide, grid, (tissue, seen), kept, batch_size, progress)
        except InputError:  # the file is damaged, and a whole one will be another
            kept.remove()
            raise
    return SlideAnswer(
        str(path), slide.sizes[0], spacing, grid.cell, kept.probabilities, thumbnail, card
    )


def _device(model):
    """Return the kind of device that computes; its sums may be ordered otherwise than another's."""
    network = getattr(model, "model", None)
    return next(network.parameters()).device.type if network is not None else "onnx"


def card_of(bundle: Any) -> dict:
    """Return a model's card; of an ONNX file, what stands in it."""
    card = getattr(bundle, "card", None)
    if card is not None:
        return card
    texts = getattr(bundle, "metadata", {})
    try:
        found = {name: json.loads(texts[name]) for name in ("spacing_um_px", "temperature")}
        found |= {name: texts[name] for name in ("limits", "weights_sha256")}
        if not 0 < found["spacing_um_px"] < 1000:
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            "the model does not say at which spacing it was trained; give what load_bundle or"
            " load_onnx returns"
        ) from error
    return found


def _spacing(slide, mpp):
    """Return the um/px of level 0 (x, y), as given or as the slide states it."""
    if mpp is not None:
        if isinstance(mpp, bool) or not isinstance(mpp, (int, float)) or not 0 < mpp < math.inf:
            raise InputError(f"mpp={mpp!r} is no spacing; give um a pixel, such as 0.25")
        return float(mpp), float(mpp)
    if slide.mpp is None:
        raise InputError(
            f"{slide.path} does not say how many um a pixel has; give it with --mpp (mpp=...), such"
            " as 0.25 for a scan at 40x"
        )
    return slide.mpp


def _survey(slide, grid, spacing):
    """Return the thumbnail, (H, W, 3) uint8; how much of each cell is there on it, (rows, columns);
    and which cells show tissue, (rows, columns) bool."""
    thumbnail, seen = overview(slide)
    width, _ = slide.sizes[0]
    mask = tissue_mask(thumbnail, spacing[0] * width / thumbnail.shape[1])
    tissue = shares(mask, grid, slide.sizes[0]) >= LEAST_TISSUE
    seen = shares(seen, grid, slide.sizes[0])
    require_same_presence(slide, grid, seen)
    if not tissue.any():
        raise InputError(
            f"no tissue was found on {slide.path}; check that it is a stained section in colour"
        )
    return thumbnail, seen, tissue


def _answer(model, slide, grid, survey, kept, batch_size, progress):
    """Answer all cells with tissue that are not yet."""
    tissue, seen = survey
    todo = [
        (number, place)
        for number, place in enumerate(grid.blocks())
        if tissue[place].any() and not kept.done[number]
    ]
    total, left = int(tissue.sum()), sum(int(tissue[place].sum()) for _, place in todo)
    size = math.ceil(batch_size / LEAST_BATCH) * LEAST_BATCH
    title, options = slide.path.name, {"initial": total - left, "unit": " cells"}
    try:
        with progress_bar(total, title, progress, **options) as bar:
            for number, place, rgb, there in _read(slide, grid, todo):
                require_whole_block(slide, grid, place, tissue[place], seen[place], there)
                values: np.ndarray = np.full(there.shape, np.nan, np.float32)
                cells = np.argwhere(tissue[place])
                for start in range(0, len(cells), size):
                    some = cells[start : start + size]
                    values[tuple(some.T)] = _probabilities(model, rgb, some, slide)
                    bar.update(len(some))
                kept.finish(number, place, values)
    finally:  # Ctrl-C and errors lose no block that is finished
        kept.save()


def _read(slide: Slide, grid: Grid, todo: list) -> Iterator[tuple]:
    """Yield the blocks in order, while the next ones are read."""
    readers = min(usable_cpus(), MOST_READERS)
    waiting = iter(todo)
    with ThreadPoolExecutor(readers) as pool:

        def submit(some):
            return [
                (number, place, pool.submit(read_block, slide, grid, *place))
                for number, place in some
            ]

        try:
            ahead = submit(itertools.islice(waiting, readers))
            while ahead:
                number, place, future = ahead.pop(0)
                rgb, there = future.result()
                ahead += submit(itertools.islice(waiting, 1))
                yield number, place, rgb, there
        finally:
            pool.shutdown(cancel_futures=True)


def _probabilities(model, rgb, cells, slide):
    """Answer cells of a block; a batch is filled up to sixteens with white patches."""
    side = model.original_size
    count = math.ceil(len(cells) / LEAST_BATCH) * LEAST_BATCH
    patches = np.full((count, side, side, 3), 255, np.uint8)
    for patch, (row, column) in zip(patches, cells * CELL):
        patch[:] = rgb[row : row + side, column : column + side]
    found = model.probabilities(patches)[: len(cells)]
    if not np.isfinite(found).all():
        raise InputError(
            f"{slide.path}: the model's answer is not a number; its weights or the card's std are"
            " unusable, save it again"
        )
    return found
