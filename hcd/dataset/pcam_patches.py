"""PatchCamelyon's patches: hashed, judged, and written as files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import pandas as pd

from ..disk.images import encode_tiff
from ..disk.parallel import usable_cpus
from ..disk.shown import progress_bar
from .pcam_files import PATCH, Side

MOST_THREADS = 8  # the disk is the bound, and each holds a batch in memory
CENTRE = slice(32, 64)  # px, of rows and of columns: what the label speaks of


def _map_rows(function, rows, title, progress) -> Iterator[Any]:
    """Yield `function(start)` for each batch of rows, in order, computed on all usable cores with a
    progress bar of rows."""
    count = len(rows.data)
    with (
        ThreadPoolExecutor(min(usable_cpus(), MOST_THREADS)) as pool,
        progress_bar(count, title, progress) as bar,
    ):
        try:
            for result in pool.map(function, range(0, count, rows.batch)):
                bar.update(min(rows.batch, count - bar.n))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C and errors do not wait for the rest


def hash_patches(sides: Sequence[Side], opened: dict, progress: bool) -> pd.DataFrame:
    """Hash all patches.

    Args:
        sides: of `find_sides`. opened: {role: (patches, masks)} of `open_side`. progress: show
            bars.
    Returns:
        DataFrame of columns id, side, row, label (0 where a side has none) and wsi ("" where a
        side has no meta).
    """
    tables = []
    for side in sides:
        patches, _ = opened[side.role]

        def digests(start, patches=patches):
            return [hashlib.sha1(patch).hexdigest() for patch in patches.read(start)]

        parts = _map_rows(digests, patches, f"hashing {side.role}", progress)
        columns: dict = {"id": [digest for part in parts for digest in part], "side": side.role}
        columns |= {"row": range(side.rows), "label": 0, "wsi": ""}
        if side.labels is not None:
            columns["label"] = side.labels
        if side.slides is not None:
            columns["wsi"] = side.slides
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def judge(table: pd.DataFrame) -> np.ndarray:
    """Decide which patches are kept.

    Args:
        table: columns id, side ("train", "valid", "test") and label of all patches; of equal ones
            on the same side of train/ and test/ the first is kept.
    Returns:
        (N,) of "kept", "duplicates", "contradicting" and "in_train_and_test".
    """
    is_test = (table["side"] == "test").to_numpy()
    in_test = table["id"].isin(table["id"][is_test]).to_numpy()
    judging = table[is_test | ~in_test]  # the others are not asked
    labels = judging.groupby("id")["label"].agg(["min", "max"])
    both = table["id"].isin(labels.index[labels["min"] != labels["max"]]).to_numpy()
    first: np.ndarray = np.zeros(len(table), bool)
    first[judging.index[~judging.duplicated("id")]] = True
    return np.select(
        [both, in_test & ~is_test, first],
        ["contradicting", "in_train_and_test", "kept"],
        "duplicates",
    )


def tell_copies(table: pd.DataFrame) -> list[str]:
    """Return sentences on copies that differ in label or slide; table: with `judge`'s fate."""
    remarks = []
    both = table.loc[table["fate"] == "contradicting", "id"].nunique()
    if both:
        remarks.append(f"{both} patch(es) have both labels, and all their copies were dropped")
    known = table[(table["wsi"] != "") & table["fate"].isin(["kept", "duplicates"])]
    slides = known.groupby("id")["wsi"].nunique()
    several = int((slides > 1).sum())
    if several:
        remarks.append(
            f"{several} patch(es) have equal copies on other slides, and the first one's is theirs"
        )
    return remarks


def write_patches(
    table: pd.DataFrame, opened: dict, scratch: Path, resumed: bool, progress: bool
) -> tuple[int, int]:
    """Write the kept patches and their masks.

    Args:
        table: of `hash_patches`, with `judge`'s fate. opened: {role: (patches, masks)}. scratch:
            folder to write train/, test/ and masks/ in. resumed: it may hold some of the files.
            progress: show bars.
    Returns:
        number of masks written; number of rows whose mask and label contradict each other.
    """
    for name in ("train", "masks", *(["test"] if "test" in opened else [])):
        (scratch / name).mkdir(exist_ok=True)
    save = _save_again if resumed else _save
    written = odd = 0
    for role, (patches, masks) in opened.items():
        side = table[table["side"] == role]
        args = patches, masks, side, scratch, "test" if role == "test" else "train", save
        batches = _map_rows(_batch_writer(*args), patches, f"writing {role}", progress)
        for of_batch in batches:
            written += of_batch[0]
            odd += of_batch[1]
    if not any(masks for _, masks in opened.values()):
        (scratch / "masks").rmdir()
    return written, odd


def _batch_writer(patches, masks, side, scratch, folder, save) -> Callable:
    """Return the function that writes the kept patches of a batch, and counts (masks, masks that
    contradict their label)."""
    ids, labels = side["id"].tolist(), side["label"].to_numpy()
    head, tail = _around_pixels()
    kept = (side["fate"] == "kept").to_numpy()
    # the kernel lets one thread at a time make a file in a folder, and the others burn their time
    one_writer = Lock()

    def write(start):
        pixels = patches.read(start)
        rows = np.flatnonzero(kept[start : start + len(pixels)])
        pngs, odd = {}, 0
        if masks is not None:
            tumour = masks.read(start, len(pixels))[..., 0] > 0
            for row in rows[tumour[rows].any(axis=(1, 2))].tolist():
                pngs[row] = cv2.imencode(".png", tumour[row] * np.uint8(255))[1].tobytes()
            centre = tumour[:, CENTRE, CENTRE].any(axis=(1, 2))
            odd = int((centre != labels[start : start + len(pixels)]).sum())
        with one_writer:
            for row in rows.tolist():
                tiff = b"".join((head, pixels[row].data, tail))
                save(f"{scratch}/{folder}/{ids[start + row]}.tif", tiff)
            for row, png in pngs.items():
                save(f"{scratch}/masks/{ids[start + row]}.png", png)
        return len(pngs), odd

    return write


def _around_pixels():
    """Return the bytes that stand before and behind the pixels of every patch that `encode_tiff`
    encodes, which alone takes longer than hashing and writing."""
    white: np.ndarray = np.full(PATCH, 255, np.uint8)
    head, _, tail = encode_tiff(white).partition(white.tobytes())
    return head, tail


def _save(path, content):
    with open(path, "wb", buffering=0) as file:
        while content:  # a full disk takes a part, and raises at the next try
            content = content[file.write(content) :]


def _save_again(path, content):
    """Write a file unless an earlier call has, in full."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if file.read(len(content) + 1) == content:
            return
    _save(path, content)
