"""Open a whole slide by whichever library sees its pyramid."""

import logging
import math
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.whole import StrPath, shorten
from ..errors import InputError
from .opened import Slide

INSTALL = "install it with pip install 'hcd[slide]'"


def open_slide(path: StrPath) -> Slide:
    """Open a whole slide: by openslide, and by tiffslide where that cannot or sees one level only,
    as of OME-TIFF, whose others lie in SubIFDs.

    Raises:
        FileNotFoundError: no such file. InputError: no slide, a damaged one, one that none of
            them gives as 8-bit RGB, or no library here to open it.
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
