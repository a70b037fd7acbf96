"""Open a whole slide and read regions of its levels, by whichever library sees its pyramid."""

import logging
import math
import os
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.whole import StrPath, shorten
from ..errors import InputError

BLACK = 8  # brightest value of a pixel that is black, or that is missing
INSTALL = "install it with pip install 'hcd[slide]'"


@dataclass(frozen=True, eq=False)
class Slide:
    """An opened slide, whose levels are read by any number of threads at once.

    Attributes:
        path: of the file. sizes: (width, height) of each level in px, the largest first.
        mpp: micrometres a pixel of level 0 (x, y), as the file states them; None where it does not.
        reader: name of the library. identity: what else tells it from other slides.
    """

    path: Path
    sizes: list[tuple[int, int]]
    mpp: tuple[float, float] | None
    reader: str
    identity: str
    _pixels: Callable = field(repr=False)
    _close: Callable = field(repr=False)

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def downsample(self, level: int) -> tuple[float, float]:
        """Return how many pixels of level 0 one of another level covers (x, y)."""
        (width, height), (w, h) = self.sizes[0], self.sizes[level]
        return width / w, height / h

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a region that lies within a level.

        openslide is asked for places of level 0; where a level's size is no whole part of level
        0's, it blends neighbours, by less than half a pixel of level 0.

        Args:
            level: 0 is the largest. x, y, width, height: in its pixels.
        Returns:
            (height, width, 3) uint8 RGB, what is transparent being white; (height, width) bool,
            where there is something: neither wholly transparent nor black, which is how the
            libraries return, without a word, tiles that a file lacks.
        Raises:
            InputError: no such place, or it cannot be decoded.
        """
        here = f"level {level} of {self.path} at {x}, {y}"
        inside = 0 <= level < len(self.sizes) and min(x, y) >= 0 and min(width, height) > 0
        if not inside or x + width > self.sizes[level][0] or y + height > self.sizes[level][1]:
            raise InputError(f"{here}, {width} x {height} px, is not there; check the place")
        try:
            pixels = self._pixels(level, x, y, width, height)
        except Exception as error:  # the codecs' errors have no class in common
            reason = shorten(" ".join(str(error).split()), 120)
            raise InputError(
                f"{here} cannot be read ({reason}); the file is damaged, get it again"
            ) from error
        return _on_white(pixels)


def _on_white(pixels):
    """Compose (H, W, 3 or 4) uint8 on white; returns RGB and where there is something."""
    rgb = pixels[..., :3]
    there = rgb.max(axis=2) > BLACK
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(rgb), there
    alpha = pixels[..., 3:]
    there &= alpha[..., 0] > 0
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb), there
    mixed = (rgb.astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8), there


def open_slide(path: StrPath) -> Slide:
    """Open a whole slide: by openslide, and by tiffslide where that cannot or sees one level only,
    as of OME-TIFF, whose others lie in SubIFDs.

    Raises:
        FileNotFoundError: no such file. InputError: no slide, a damaged one, one that is no 8-bit
            RGB, or no library here to open it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; name the file of a slide")
    openslide, tiffslide = import_readers()
    try:
        slide = _of_openslide(openslide, path)
    except openslide.OpenSlideUnsupportedFormatError:
        return _of_tiffslide(tiffslide, path)
    except openslide.OpenSlideError as error:
        raise _no_slide(path, error) from error
    if len(slide.sizes) > 1 or path.suffix.lower() not in (".tif", ".tiff"):
        return slide
    try:
        other = _of_tiffslide(tiffslide, path)
    except InputError:
        return slide
    worse, better = (slide, other) if len(other.sizes) > 1 else (other, slide)
    worse._close()
    return better


def import_readers() -> tuple[Any, Any]:
    """Return openslide and tiffslide, which come with the extra [slide].

    Raises:
        InputError: one of them is not installed.
    """
    try:
        import openslide
        import tiffslide
    except (ImportError, OSError) as error:  # without openslide-bin, its C library may be missing
        name = getattr(error, "name", None) or "openslide's C library"
        raise InputError(
            f"whole slides are read by openslide and tiffslide, and {name} is not installed;"
            f" {INSTALL}"
        ) from error
    return openslide, tiffslide


def _of_openslide(openslide, path):
    opened = openslide.OpenSlide(os.fspath(path))
    factors = opened.level_downsamples

    def pixels(level, x, y, width, height):
        place = round(x * factors[level]), round(y * factors[level])
        return np.asarray(opened.read_region(place, level, (width, height)))

    properties = opened.properties
    mpp = _spacing(properties.get(f"openslide.mpp-{axis}") for axis in "xy")
    identity = str(properties.get("openslide.quickhash-1"))
    sizes = [tuple(size) for size in opened.level_dimensions]
    return Slide(path, sizes, mpp, "openslide", identity, pixels, opened.close)


def _of_tiffslide(tiffslide, path):
    with ExitStack() as stack:
        try:
            with _told() as faults:
                opened = tiffslide.TiffSlide(os.fspath(path))
                stack.callback(opened.close)
                sizes, properties = list(opened.level_dimensions), opened.properties
            if faults:
                raise ValueError(faults[0])
            probe = opened.read_region((0, 0), 0, (1, 1), as_array=True)
        except Exception as error:  # of a damaged file, tifffile raises what it happens to meet
            raise _no_slide(path, error) from error
        stack.pop_all()
    if probe.dtype != np.uint8 or probe.shape[2] not in (3, 4):
        opened.close()
        raise InputError(
            f"{path} holds {probe.shape[2]} channels of {probe.dtype}, and a model reads 8-bit RGB;"
            " convert it"
        )
    factors = opened.level_downsamples

    def pixels(level, x, y, width, height):
        place = tuple(_first(value, factors[level]) for value in (x, y))
        return opened.read_region(place, level, (width, height), as_array=True)

    mpp = _spacing(properties.get(f"tiffslide.mpp-{axis}") for axis in "xy")
    mpp = mpp or _ome_spacing(opened.ts_tifffile)
    return Slide(path, sizes, mpp, "tiffslide", "", pixels, opened.close)


def _first(value, factor):
    """Return the first pixel of level 0 that tiffslide, which divides and drops what is left, takes
    for the pixel `value` of a level."""
    place = math.ceil(value * factor)
    while int(place / factor) < value:  # the product was rounded down
        place += 1
    return place


def _spacing(values):
    """Return two positive numbers, or None."""
    try:
        x, y = map(float, values)
    except (TypeError, ValueError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _ome_spacing(file):
    """Return the um/px that OME-XML states, None where it states none."""
    import tifffile

    try:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        units = {pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XY"}
        found = _spacing(pixels[f"PhysicalSize{axis}"] for axis in "XY")
    except (KeyError, TypeError, AttributeError, ValueError, SyntaxError):
        return None
    factor = {"µm": 1, "um": 1, "nm": 1e-3, "mm": 1e3}.get(units.pop(), 0) if len(units) == 1 else 0
    return (found[0] * factor, found[1] * factor) if found and factor else None


@contextmanager
def _told():
    """Collect what tifffile logs as an error, such as a directory beyond the file's end, and goes
    on after, in the place of printing it."""
    faults: list[str] = []
    logger, handler = logging.getLogger("tifffile"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: faults.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield faults
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _no_slide(path, error):
    reason = shorten(" ".join(str(error).split()), 120) or type(error).__name__
    return InputError(
        f"{path} cannot be opened as a slide ({reason}); the file is damaged or no slide, get it"
        " again"
    )
