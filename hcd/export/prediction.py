"""What a model says of images, any number of them; knows no torch, for models that run without it.

A model is whatever `load_bundle` or `load_onnx` returns.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..disk.parallel import usable_cpus
from ..errors import InputError, InputTypeError
from ..reader import decode_patch, read_patch
from ..recipe import Recipe

CLASSES = ["negative", "tumour"]
MOST_READERS = 4  # threads; more wait for the network that they feed


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: its `path`, the `label` ("negative" or "tumour") and the
    tumour `probability`.

    One that could not be answered, see `predict_images`, has its sentence as `error`, the label ""
    and the probability NaN. An image that came without a name is called by its place, "image 0".
    """

    path: str
    label: str
    probability: float
    error: str = ""


def predict_images(
    bundle: Any,
    images: Iterable,
    batch_size: int = 64,
    device: Any = None,
    threads: int | None = None,
    fast: bool = False,
    calibrated: bool = False,
    on_error: str = "raise",
) -> Iterator[Prediction]:
    """Predict any number of images in batches: centre crop, no augmentation.

    The probabilities are those of `predict_image`; in float32 on a CPU they differ by less than
    1e-6, as sums are added up in another order.

    Args:
        bundle: see `load_bundle`; left as it is. Or what `load_onnx` returns.
        images: paths, bytes of image files, (96, 96, 3) uint8 RGB arrays, Pillow images or patches
            of a pack, mixed as they come; at most two batches are held at once.
        batch_size: images that the model sees at once.
        device: torch's name of one; None takes a GPU when there is one.
        threads: of torch on a CPU while a batch is computed; None leaves torch's own number.
        fast: compute in 16 bits.
        calibrated: divide the logits by the temperature on the model's card.
        on_error: "raise", or "report" for a Prediction with a sentence in the place of an image
            that cannot be read.
    Returns:
        iterator of Prediction, in the order of the images.
    Raises:
        InputError, InputTypeError: at once, settings that cannot be used; on the way, an image that
            cannot be read, unless on_error is "report", or a model whose answer is no number.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r} is no number of images; give 1 or more")
    if on_error not in ("raise", "report"):
        raise InputError(f'on_error={on_error!r} is not known; give "raise" or "report"')
    _require_many(images)
    model = answering(bundle, device, threads, fast, calibrated)
    return _predict(model, enumerate(images), batch_size, on_error == "report")


def _require_many(images):
    """Turn down one image, whose letters, bytes or rows would be taken for images."""
    single = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike))
    single = single or (isinstance(images, np.ndarray) and images.ndim < 4)
    if single or not hasattr(images, "__iter__"):
        raise InputTypeError(
            f"images is one {type(images).__name__}; give a list of images, such as [image]"
        )


def answering(
    bundle: Any,
    device: Any = None,
    threads: int | None = None,
    fast: bool = False,
    calibrated: bool = False,
) -> Any:
    """Return what answers batches: an object with `original_size`, and `probabilities` of
    (N, S, S, 3) uint8.

    Args:
        bundle: such an object already, or a Bundle. The others: see `predict_images`.
    Raises:
        InputError, InputTypeError: no model, or settings that it cannot have.
    """
    if answers_by_itself(bundle):
        given = {"device": device, "threads": threads, "fast": fast, "calibrated": calibrated}
        for name, value in given.items():
            if value and (name, str(value)) != ("device", "cpu"):
                raise InputError(
                    f"{name}={value!r} cannot be had of an ONNX file, whose graph is fixed and runs"
                    f" on the CPU; leave {name} out, or use the model folder"
                )
        return bundle
    from .answer import TorchModel

    return TorchModel(bundle, device, threads, fast, calibrated)


def answers_by_itself(model: Any) -> bool:
    """Say whether a model is set up already, as an ONNX file is, and no Bundle of torch's."""
    return hasattr(model, "probabilities")


def require_threads(threads: int | None) -> None:
    """Require a number of threads, or None for the library's own."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError(f"threads={threads!r} is no number of threads; give 1 or more")


def _predict(model, numbered, batch_size, report):
    """Yield predictions; the next batch is read while one is computed."""

    def read(item):
        number, image = item
        try:
            return name_of(image, number), to_patch(image, model.original_size, number), ""
        except (InputError, OSError) as error:
            return name_of(image, number), None, error

    with ThreadPoolExecutor(min(usable_cpus(), MOST_READERS)) as pool:
        try:
            batch = [pool.submit(read, item) for item in itertools.islice(numbered, batch_size)]
            while batch:
                following = itertools.islice(numbered, batch_size)
                ahead = [pool.submit(read, item) for item in following]
                yield from _answers(model, [future.result() for future in batch], report)
                batch = ahead
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest


def _answers(model, batch, report):
    """Yield the predictions of a batch; those before a bad image come before its error."""
    patches = [patch for _, patch, _ in batch if patch is not None]
    found = iter(model.probabilities(np.stack(patches)) if patches else ())
    for name, patch, error in batch:
        if patch is not None:
            yield prediction(name, float(next(found)))
        elif report:
            yield Prediction(name, "", math.nan, " ".join(str(error).split()))
        else:
            raise error


def prediction(name: str, probability: float) -> Prediction:
    """Return the Prediction of a tumour probability.

    Raises:
        InputError: it is not a number.
    """
    if not math.isfinite(probability):
        raise InputError(
            f"{name}: the model's answer is not a number; its weights or the card's std are"
            " unusable, save it again"
        )
    return Prediction(name, CLASSES[int(probability > 0.5)], probability)


def name_of(image: Any, number: int = 0) -> str:
    """Return what to call an image: its path where it has one, otherwise its place, from 0."""
    name = getattr(image, "filename", None) or image  # Pillow's
    return os.fsdecode(name) if isinstance(name, (str, os.PathLike)) else f"image {number}"


def to_patch(image: Any, size: int, number: int = 0) -> np.ndarray:
    """Return an image as the patch that a model reads.

    Args:
        image: path, bytes of a file, array, Pillow image or patch of a pack, see `predict_images`.
        size: of a patch, in px. number: its place, for messages.
    Returns:
        (size, size, 3) uint8 RGB.
    Raises:
        FileNotFoundError, InputError: no readable image, not 8-bit RGB, or of another size.
        InputTypeError: nothing of the kind.
    """
    recipe = Recipe(original_size=size, crop_size=size, max_shift=0, max_rotation=0)
    if isinstance(image, (str, os.PathLike)):
        return read_patch(image, recipe)
    name = name_of(image, number)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_patch(bytes(image), name, recipe)
    mode = getattr(image, "mode", None)
    if isinstance(mode, str) and hasattr(image, "getexif"):
        return _of_pillow(image, mode, name, size)
    if not isinstance(image, np.ndarray):
        raise InputTypeError(
            f"{name} is a {type(image).__name__}; give a path, the bytes of an image file, a uint8"
            " array or a Pillow image"
        )
    if image.dtype != np.uint8 or image.shape != (size, size, 3):
        raise InputError(
            f"{name} is an array of {image.dtype} and shape {image.shape}; give uint8 RGB of shape"
            f" ({size}, {size}, 3), values from 0 to 255"
        )
    return image


def _of_pillow(image, mode, name, size):
    """Return a Pillow image as a patch, turned as its EXIF says, as files are."""
    from PIL import ImageOps

    if mode != "RGB" or image.size != (size, size):
        raise InputError(
            f"{name} is a Pillow image of mode {mode} and {image.size[0]} x {image.size[1]} px;"
            f" give mode RGB (image.convert('RGB')) and {size} x {size} px"
        )
    try:
        return np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError) as error:  # it decodes only now
        raise InputError(
            f"{name} cannot be decoded by Pillow ({' '.join(str(error).split())[:100]}); restore it"
            " from the data set"
        ) from error
