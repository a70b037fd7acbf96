"""Predict a whole slide: threads read blocks of cells while the model answers batches of them."""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..disk.parallel import usable_cpus
from ..disk.shown import progress_bar
from ..disk.whole import StrPath
from ..errors import InputError
from ..export.prediction import MOST_READERS, answering
from ..terminal import printable
from .answer import SlideAnswer
from .asked import card_of, kept_key, require_centre, spacing_of
from .cells import CELL, Grid, make_grid, read_block, shares
from .kept import Kept, kept_file
from .libraries import open_slide
from .opened import Slide
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
    require_centre(model)
    with open_slide(path) as slide:
        spacing = spacing_of(slide, mpp)
        grid = make_grid(slide, spacing, card["spacing_um_px"], model.original_size)
        thumbnail, seen, tissue = _survey(slide, grid, spacing)
        key = kept_key(slide, spacing, model, card, fast, calibrated)
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
    title, options = printable(slide.path.name), {"initial": total - left, "unit": " cells"}
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
