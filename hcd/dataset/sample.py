"""The embedded synthetic data set: schematic H&E patches drawn from random numbers, in the
competition's layout.

A patch is painted as two dye concentrations (haematoxylin in nuclei, eosin in stroma) that absorb
light by the law of Beer and Lambert, as in Ruifrok & Johnston (2001). The label changes nothing but
the nuclei of the centre 32 x 32.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ..dataset.opened import Dataset
from ..disk.images import encode_tiff
from ..disk.locks import take_lock
from ..disk.whole import StrPath, empty_folder, refuse_link, unwritable, writable_folder
from ..errors import InputError, InputTypeError
from .opened import open_dataset
from .tables import TABLES

SIDE, MIDDLE = 96, 47.5  # px: edge of a patch, and where its centre lies
CARD = "sample.json"  # what was drawn
NAMES = ("train", "test", *TABLES, CARD)
# folder that is there as long as drawing goes on; a name that no user would give
UNFINISHED = ".hcd-sample-unfinished"


def make_sample(
    root: StrPath, train: int = 480, test: int = 96, rng_seed: int | None = 0
) -> Dataset:
    """Draw the synthetic data set into a folder; the same call again reuses it.

    Two patches in five are positive. Three training negatives are outliers: one almost black, two
    almost white. test_labels.csv holds the answers for scoring; the competition has no such file.

    Args:
        root: folder to fill: new, empty, or filled by an equal call.
        train, test: how many patches of each, at least 8 and 2.
        rng_seed: int from 0; the same one draws the same bytes.
    Returns:
        Dataset of `train` labelled patches and `test` test patches.
    Raises:
        InputError: too few patches, or a bad rng_seed. FileExistsError: root holds anything else.
            OSError: root cannot be written, or is a link and has no sample yet.
    """
    for name, count, least in (("train", train, 8), ("test", test, 2)):
        if not isinstance(count, (int, np.integer)) or count < least:
            raise InputError(
                f"{name}={count!r} patches cannot hold both labels and outliers; ask for {least} or"
                " more"
            )
    if not isinstance(rng_seed, (int, np.integer)) or rng_seed < 0:
        raise InputError(
            f"rng_seed={rng_seed!r} starts no random generator; pass a whole number from 0 up"
        )
    root = Path(root).expanduser()
    call = {"train": int(train), "test": int(test), "rng_seed": int(rng_seed)}
    if not os.path.lexists(root):
        writable_folder(root)
    if not root.is_dir():
        return _draw(root, call)
    busy = f"{root} is being drawn by another process; let it finish, then the same call opens it"
    lock = take_lock(root, busy, patience=600)
    try:
        return _draw(root, call)
    finally:
        lock.release()


def is_sample(root: StrPath) -> bool:
    """Say whether a folder holds the sample just as `make_sample` drew it, whose sample.json has
    the SHA-1 of all of it."""
    card = Path(root) / CARD
    try:
        content = card.read_bytes() if card.stat().st_size < 1000 else b""
        call = json.loads(content)
        del call["sha1"]
        return content == _card(Path(root), call)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # somebody else's, or none
        return False


def _draw(root, call):
    """Draw the sample of a call, or open the one that is there."""
    _remove_unfinished(root)
    if root.is_dir() and any(root.iterdir()):
        if not (root / CARD).is_file() or (root / CARD).read_bytes() != _card(root, call):
            raise FileExistsError(
                f"{root} holds something other than the sample of {call}; name an empty folder, or "
                "remove this one"
            )
        return open_dataset(root)
    scratch = empty_folder(root) / UNFINISHED
    try:
        scratch.mkdir()
        _write(scratch, call["train"], call["test"], np.random.default_rng(call["rng_seed"]))
        (scratch / CARD).write_bytes(_card(scratch, call))
        for name in NAMES:
            os.replace(scratch / name, root / name)
        scratch.rmdir()
    except OSError as error:
        raise unwritable(root, error) from error
    finally:
        _remove_unfinished(root)
    return open_dataset(root)


def _remove_unfinished(root):
    """Empty a folder whose drawing was interrupted, even by a kill, of what is ours in it.

    All is drawn in a folder of its own and moved when the card is written: what lies beside that
    folder is ours if the card is there and the name is not in that folder any more.
    """
    scratch = root / UNFINISHED
    if not os.path.lexists(scratch):
        return
    is_drawn = (scratch / CARD).is_file() or (root / CARD).is_file()
    moved = [name for name in NAMES if is_drawn and not os.path.lexists(scratch / name)]
    doomed = [root, *(root / name for name in moved), scratch]
    for path in doomed:
        refuse_link(path)
    for path in doomed[1:]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def draw_patch(label, rng, stain=None):
    """Draw one schematic H&E patch.

    The label decides only which nuclei lie in the centre: lymphocytes as around them (0), or large,
    irregular, crowded, vesicular ones with nucleoli (1). With generators in equal states, both
    labels get equal pixels farther out.

    Args:
        label: 0 (no tumour) or 1 (tumour in the centre 32 x 32). rng: numpy Generator or
            RandomState. stain: see `draw_stain`; None draws one.
    Returns:
        (96, 96, 3) uint8 RGB.
    Raises:
        InputError: another label. InputTypeError: another kind of generator.
    """
    if label not in (0, 1):
        raise InputError(
            f"label={label!r} is no label: a patch is 0 (no tumour) or 1 (tumour); pass one of them"
        )
    if not isinstance(rng, (np.random.Generator, np.random.RandomState)):
        raise InputTypeError(
            f"rng={rng!r} is no numpy generator; pass numpy.random.default_rng(rng_seed)"
        )
    eosin, glass = _stroma(rng)
    scan = _scanner(rng, stain)
    spacing, keep, level = rng.uniform(9.3, 13), rng.uniform(0.2, 0.85), rng.uniform(0.95, 1.3)
    points = _grid(rng, spacing, keep)
    around = points[np.abs(points - MIDDLE).max(axis=1) > 13]
    nuclei = _draw_nuclei(around, rng.uniform(3.6, 4.3), 0.09, level, False, rng) * (1 - glass)
    centre = _tumour(rng) if label else _benign(rng, spacing, keep, level)
    y, x = np.mgrid[:SIDE, :SIDE] - MIDDLE
    # reaches 1 px beyond 32 x 32, and 4 once blurred
    nuclei = np.maximum(nuclei, centre * (np.hypot(x, y) < 17))
    # a nucleus takes the place of stroma
    return scan(nuclei, eosin * (1 - 0.9 * np.minimum(3 * nuclei, 1)))


def _tumour(rng):
    """Draw the centre of a positive: a crowd, in some patches only a few, of large irregular
    vesicular nuclei."""
    radius = rng.uniform(6, 7.5)
    points = _grid(rng, 1.75 * radius, 0.35 if rng.uniform() < 0.15 else 1)
    points = points[np.hypot(*(points - MIDDLE).T) < 13.5]
    if not len(points):
        points = MIDDLE + rng.uniform(-8, 8, (1, 2))
    nuclei = _draw_nuclei(points, radius, 0.15, rng.uniform(0.5, 0.8), True, rng)
    cytoplasm = cv2.GaussianBlur(cv2.dilate(np.sign(nuclei), np.ones((5, 5))), (0, 0), 1.5)
    return np.maximum(nuclei, 0.3 * cytoplasm)


def _benign(rng, spacing, keep, level):
    """Draw the centre of a negative: lymphocytes as around it, sometimes packed, or with one large
    nucleus."""
    kind = rng.uniform()
    points = _grid(rng, *((8, 1) if kind < 0.1 else (spacing, keep)))
    points = points[np.hypot(*(points - MIDDLE).T) < 14]
    nuclei = _draw_nuclei(points, rng.uniform(3.6, 4.6), 0.09, level, False, rng)
    if kind > 0.9:
        large = MIDDLE + rng.uniform(-8, 8, (1, 2))
        nuclei = np.maximum(
            nuclei, _draw_nuclei(large, rng.uniform(5.5, 7), 0.07, rng.uniform(0.4, 0.9), True, rng)
        )
    return nuclei


def _field(rng, rows, columns=None):
    """Return smooth noise, (96, 96) with mean 0 and spread 1: rows x columns normal numbers,
    enlarged."""
    coarse = rng.normal(size=(rows, columns or rows)).astype(np.float32)
    fine = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return (fine - fine.mean()) / fine.std()


def _stroma(rng):
    """Return the eosin of wavy fibres with gaps, and where glass shows through, each (96, 96)."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    turn = cv2.getRotationMatrix2D((MIDDLE, MIDDLE), rng.uniform(0, 180), 1.5)
    streaks = cv2.warpAffine(_field(rng, 40, 5), turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    fibres = cv2.remap(
        streaks,
        x + 5 * _field(rng, 4),
        y + 5 * _field(rng, 4),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    eosin = 0.48 + 0.15 * _field(rng, 7) + 0.16 * _field(rng, 32) + 0.22 * fibres
    # none of the gaps reaches the centre
    tissue = 3 * np.exp(-((x - MIDDLE) ** 2 + (y - MIDDLE) ** 2) / 512)
    gaps = _field(rng, int(rng.uniform(3, 9))) - rng.uniform(0, 2.5) - tissue
    glass = np.clip(0.5 + 3 * gaps, 0, 1)
    return np.clip(eosin, 0.05, None) * (1 - glass), glass


def _grid(rng, spacing, keep):
    """Return (N, 2) points x, y of a shaken hexagonal grid over the patch, about the share `keep`
    of them."""
    y, x = np.mgrid[-1 : SIDE / spacing + 1, -1 : SIDE / spacing + 1].reshape(2, -1)
    points = np.stack([x + (y % 2) / 2, y * 0.9], axis=1) + rng.uniform(0, 1, 2)
    points = (points + rng.normal(0, 0.13, points.shape)) * spacing
    return points[rng.uniform(size=len(points)) < keep]


def _draw_nuclei(points, radius, roughness, level, vesicular, rng):
    """Return the haematoxylin of nuclei at `points`, (96, 96): circles bent by three harmonics,
    later ones on top."""
    canvas: np.ndarray = np.zeros((SIDE, SIDE), np.uint8)
    n = len(points)
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    reach = radius * np.exp(rng.normal(0, 0.8 * roughness, (n, 1)))
    for order in (2, 3, 5):
        bend = rng.normal(0, 1.6 * roughness / order, (n, 1))
        reach = reach * (1 + bend * np.cos(order * angle + rng.uniform(0, 2 * np.pi, (n, 1))))
    # (N, 18, 2)
    outlines = points[:, None] + reach[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    spots = points + 0.3 * radius * rng.uniform(-1, 1, (n, 2))
    sixteenths = [np.rint(16 * xy).astype(np.int32) for xy in (outlines, spots)]
    for outline, spot, dye in zip(*sixteenths, 100 * level * np.exp(rng.normal(0, 0.12, n))):
        cv2.fillPoly(canvas, [outline], dye, cv2.LINE_AA, shift=4)
        if vesicular:  # chromatin at the rim, and a nucleolus
            cv2.polylines(canvas, [outline], True, 1.6 * dye, 1, cv2.LINE_AA, shift=4)
            cv2.circle(canvas, spot.tolist(), 19, 1.8 * dye, cv2.FILLED, cv2.LINE_AA, shift=4)
    return canvas / 100


def draw_stain(rng):
    """Draw what the patches of one slide have in common: stain, lamp, focus and noise."""
    # absorption of R, G, B by haematoxylin,
    reddish, bluish = np.array(
        [
            [[0.54, 0.80, 0.50], [0.12, 0.42, 0.28]],
            # by eosin; laboratories lie in between
            [[0.76, 0.80, 0.28], [0.22, 0.52, 0.17]],
        ]
    )
    dyes = reddish + rng.uniform() * (bluish - reddish)
    dyes = dyes * rng.uniform(0.6, 0.95, (2, 1)) * np.exp(rng.normal(0, 0.04, (2, 3)))
    return dyes, 255 * rng.uniform(0.93, 1, 3), rng.uniform(0.4, 0.7), rng.uniform(1.5, 5)


def _scanner(rng, stain=None):
    """Draw clumps and grain; return the function (haematoxylin, eosin) -> (96, 96, 3) uint8 RGB."""
    dyes, lamp, focus, noise = stain or draw_stain(rng)
    clumps = 1 + 0.8 * cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 0.8)
    grain = noise * rng.normal(size=(SIDE, SIDE, 3))

    def scan(haematoxylin, eosin):
        dye = np.stack([haematoxylin * np.clip(clumps, 0.2, None), eosin], axis=2)
        light = lamp * 10 ** -(cv2.GaussianBlur(dye, (7, 7), focus) @ dyes)  # Beer-Lambert
        return np.clip(np.rint(light + grain), 0, 255).astype(np.uint8)

    return scan


def _write(root, train, test, rng):
    """Write patches and tables; the outliers are the first three negatives to be drawn."""
    outliers = [np.uint8(0), np.uint8(248), np.uint8(248)]
    for folder, count in (("train", train), ("test", test)):
        (root / folder).mkdir()
        labels = {}
        for label in rng.permutation(np.arange(count) < round(0.4 * count)).astype(int).tolist():
            if folder == "train" and not label and outliers:
                rgb = outliers.pop() + rng.uniform(0, 8, (SIDE, SIDE, 3)).astype(np.uint8)
            else:
                rgb = draw_patch(label, rng)
            patch_id = hashlib.sha1(rgb.tobytes()).hexdigest()
            (root / folder / f"{patch_id}.tif").write_bytes(encode_tiff(rgb))
            labels[patch_id] = label
        _write_table(root / f"{folder}_labels.csv", sorted(labels.items()))
    _write_table(
        root / "sample_submission.csv",
        [(patch_id, 0) for patch_id in rng.permutation(sorted(labels))],
    )


def _write_table(path, rows):
    pd.DataFrame(rows, columns=["id", "label"]).to_csv(path, index=False)


def _card(root, call):
    """Return the bytes of sample.json: the call, and the SHA-1 of all that it drew, so that a
    change shows."""
    digest = hashlib.sha1()
    for path in sorted(
        [*root.glob("*/*.tif"), *(path for path in root.glob("*.csv") if path.name in TABLES)]
    ):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return json.dumps({**call, "sha1": digest.hexdigest()}, indent=1).encode()
