"""Paint a tissue section with the drawing code of the synthetic patches, and save it as a slide.

It has an outline, gaps, tumour in known discs, glass around it, a pen mark and a black edge.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from hcd.dataset import sample

SPACING = 0.972  # um/px of the patches
GLASS, INK = (244, 243, 245), (40, 70, 190)
TILE = 480  # px at SPACING that are drawn at once
STAIN = 5  # rng seed of the dyes, which a section has in common


@dataclass(frozen=True)
class Painted:
    """A painted section. rgb: (H, W, 3) uint8 at SPACING. tissue: (H, W) bool, without ink.
    places: (N, 3) x, y, radius of the tumours, in its px."""

    rgb: np.ndarray
    tissue: np.ndarray
    places: np.ndarray


@contextmanager
def larger(times):
    """Have the drawing code draw patches of so many times the length, with as fine a structure."""
    held = {name: getattr(sample, name) for name in ("SIDE", "MIDDLE", "_field")}

    def field(rng, rows, columns=None):
        return held["_field"](rng, rows * times, (columns or rows) * times)

    sample.SIDE = held["SIDE"] * times
    sample.MIDDLE = (sample.SIDE - 1) / 2
    sample._field = field
    try:
        yield
    finally:
        for name, value in held.items():
            setattr(sample, name, value)


def paint(width, height, places=(), rng_seed=0, marks=True):
    """Paint a section of so many px at SPACING, with tumour in discs (x, y, radius)."""
    rng = np.random.default_rng(rng_seed)
    places = np.asarray(places, float).reshape(-1, 3)
    rows, columns = -(-height // TILE), -(-width // TILE)
    rgb = np.empty((rows * TILE, columns * TILE, 3), np.uint8)
    with larger(TILE // 96):
        for top in range(0, len(rgb), TILE):
            for left in range(0, rgb.shape[1], TILE):
                here = places - (left, top, 0)
                rgb[top : top + TILE, left : left + TILE] = _tile(here, rng)
    rgb = rgb[:height, :width]
    tissue = _outline(width, height, rng)
    glass = np.clip(rng.normal(GLASS, 1, (height, width, 3)), 0, 255).astype(np.uint8)
    rgb = np.where(tissue[..., None], rgb, glass)
    if marks:
        ink = np.zeros((height, width), np.uint8)
        start, end = (int(0.8 * width), int(0.1 * height)), (int(0.95 * width), int(0.5 * height))
        cv2.line(ink, start, end, 1, max(20, width // 60))
        ink[:, : max(40, width // 50)] = 2  # the edge of the scanner's frame
        rgb[ink == 1], rgb[ink == 2] = INK, 0
        tissue &= ink == 0
    return Painted(np.ascontiguousarray(rgb), tissue, places)


def _tile(places, rng):
    """Draw a piece of tissue; as `draw_patch`, but with tumour where the places are."""
    side = sample.SIDE
    eosin, glass = sample._stroma(rng)
    scan = sample._scanner(np.random.default_rng(STAIN))
    points = _points(rng, rng.uniform(9.3, 13), rng.uniform(0.2, 0.85))
    inside = np.zeros((side, side), np.uint8)
    for x, y, radius in places:
        cv2.circle(inside, (round(x), round(y)), round(radius), 1, -1)
    benign = points[~_within(points, places, 3)]
    nuclei = sample._draw_nuclei(benign, rng.uniform(3.6, 4.3), 0.09, 1.1, False, rng)
    if inside.any():
        radius = rng.uniform(6, 7.5)
        crowd = _points(rng, 1.75 * radius, 1)
        crowd = crowd[_within(crowd, places, -3)]
        eosin, glass = np.where(inside, np.maximum(eosin, 0.3), eosin), glass * (1 - inside)
        tumour = sample._draw_nuclei(crowd, radius, 0.15, 0.65, True, rng)
        around = cv2.dilate(np.sign(tumour), np.ones((5, 5)))
        tumour = np.maximum(tumour, 0.3 * cv2.GaussianBlur(around, (0, 0), 1.5))
        nuclei = np.maximum(nuclei, tumour)
    nuclei = nuclei * (1 - glass)
    return scan(nuclei, eosin * (1 - 0.9 * np.minimum(3 * nuclei, 1)))


def _points(rng, spacing, keep):
    """Return a grid of points; the drawing code's own ends a tenth before the lower edge,
    which of a patch is less than a nucleus."""
    side = sample.SIDE
    sample.SIDE = side * 1.2
    try:
        return sample._grid(rng, spacing, keep)
    finally:
        sample.SIDE = side


def _within(points, places, more):
    found = np.zeros(len(points), bool)
    for x, y, radius in places:
        found |= np.hypot(points[:, 0] - x, points[:, 1] - y) < radius + more
    return found


def _outline(width, height, rng):
    """Return a bent ellipse that fills most of the slide, (H, W) bool."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    reach = 0.44 * (1 + 0.06 * np.sin(3 * angle + rng.uniform(0, 6)))
    outline = np.stack(
        [width * (0.5 + reach * np.cos(angle)), height * (0.5 + reach * np.sin(angle))]
    )
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline.T).astype(np.int32)], 1)
    return mask > 0


def save(
    path,
    painted,
    mpp=0.25,
    size=None,
    levels=5,
    compression="deflate",
    sub=False,
    alpha=None,
    ome=False,
    stated=True,
):
    """Save a painted section as a pyramid.

    Args:
        mpp: um a px of level 0. size: (width, height) of level 0; default: of the painting.
        levels: each half the one before. compression: "deflate" or "jpeg". sub: levels in SubIFDs
            in the place of pages. alpha: (H, W) uint8 of the painting's size, as a fourth channel.
        ome: OME-XML in the place of TIFF's resolution. stated: with the um/px.
    """
    height, width = painted.rgb.shape[:2]
    times = SPACING / mpp
    size = size or (round(width * times), round(height * times))
    image = cv2.resize(painted.rgb, size, interpolation=cv2.INTER_LINEAR)
    if alpha is not None:
        mask = cv2.resize(alpha, size, interpolation=cv2.INTER_NEAREST)
        image = np.dstack([image, mask])
    common = {"tile": (256, 256), "photometric": "rgb", "compression": compression}
    if alpha is not None:
        common["extrasamples"] = ["unassalpha"]
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    named = {
        "axes": "YXS",
        **({"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, **units} if stated else {}),
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=ome) as file:
        for level in range(levels):
            own = {**common, "metadata": named if ome and not level else None}
            if not ome and stated:
                own |= {"resolution": (1e4 / mpp / 2**level,) * 2, "resolutionunit": "CENTIMETER"}
            if level:
                own["subfiletype"] = 1
                half = max(1, image.shape[1] // 2), max(1, image.shape[0] // 2)
                image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
            elif sub or ome:
                own["subifds"] = levels - 1
            file.write(image, **own)
    return Path(path)
