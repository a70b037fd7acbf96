"""What a loaded model folder says of patches, computed by torch."""

import copy
import os
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..engine.device import find_device
from ..engine.fast import FastModel
from ..errors import InputError, InputTypeError
from ..reader import read_patch, tone_table
from ..recipe import Recipe
from .bundle import Bundle
from .prediction import Prediction, prediction, require_threads


class TorchModel:
    """A bundle that answers batches of patches."""

    def __init__(
        self,
        bundle: Bundle,
        device: Any = None,
        threads: int | None = None,
        fast: bool = False,
        calibrated: bool = False,
    ) -> None:
        """Copy the bundle's model to where it computes; see `predict_images`."""
        require_bundle(bundle)
        require_threads(threads)
        self.threads = threads
        self.temperature = require_temperature(bundle) if calibrated else 1
        self.recipe = bundle.recipe
        self.original_size = bundle.recipe.original_size
        model = copy.deepcopy(bundle.model).to(find_device(device)).eval()
        # float32 gains by this layout too, a third on two cores
        self.model = FastModel(model) if fast else model.to(memory_format=torch.channels_last)

    def probabilities(self, patches: np.ndarray) -> np.ndarray:
        """Return the tumour probability of each patch.

        Args:
            patches: (N, S, S, 3) uint8 RGB.
        Returns:
            (N,) float64.
        Raises:
            InputError: the network cannot take crops of that size.
        """
        with _threads(self.threads):
            return tumour_probabilities(self.model, patches, self.recipe, self.temperature)


@contextmanager
def _threads(count):
    """Have torch use so many threads for a while."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def tumour_probabilities(
    model: torch.nn.Module, patches: np.ndarray, recipe: Recipe, temperature: float = 1
) -> np.ndarray:
    """Return what a model says of a batch; see `TorchModel.probabilities`."""
    inside = slice(recipe.margin, recipe.margin + recipe.crop_size)
    crops = torch.from_numpy(tone_table(0, 0)[patches[:, inside, inside]])
    batch = normalised(crops, recipe, next(model.parameters()))
    if batch.device.type == "cpu" and len(patches) > 1:
        batch = batch.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            logits = model(batch)
    except RuntimeError as error:
        # a card may ask for a crop that its network's pooling leaves nothing of
        reason = " ".join(str(error).split())[:120].replace(". ", ", ")
        raise InputError(
            f"the model cannot take crops of {recipe.crop_size} px ({reason}); restore its card, or"
            " train with a larger crop_size"
        ) from error
    return torch.softmax(logits.double() / temperature, 1)[:, 1].cpu().numpy()


def normalised(crops: torch.Tensor, recipe: Recipe, weights: torch.Tensor) -> torch.Tensor:
    """Make a batch of crops.

    Args:
        crops: (N, H, W, 3) float32 RGB in [0, 1]. recipe: `mean` and `std`. weights: of the model,
            whose device and type the batch takes.
    Returns:
        (N, 3, H, W), contiguous.
    """
    batch = (crops - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    return batch.to(weights.device, weights.dtype).permute(0, 3, 1, 2).contiguous()


def predict_image(bundle: Bundle, path: Any, calibrated: bool = False) -> Prediction:
    """Predict one image file with a loaded model: centre crop, no augmentation.

    Args:
        bundle: see `load_bundle`.
        path: an 8-bit RGB patch of the size that the recipe names, 96 x 96 px.
        calibrated: divide the logits by the temperature on the model's card, which leaves the class
            as it is.
    Returns:
        Prediction.
    Raises:
        FileNotFoundError, InputError: no such file, no such patch, no temperature on the card, or a
            model whose answer is no number. InputTypeError: no Bundle, or pixels or bytes where a
            path belongs; see `predict_images`.

    CHANGED C9: the walkthrough crops 68 px and divides by 256 here; this is the crop and scale that
        the model was trained on.

    Source: In 45.
    """
    require_bundle(bundle)
    if not isinstance(path, (str, os.PathLike)):
        raise InputTypeError(
            f"predict_image was given {type(path).__name__} where a file's path belongs; give it to"
            " predict_images, in a list"
        )
    temperature = require_temperature(bundle) if calibrated else 1
    patch = read_patch(path, bundle.recipe)
    found = tumour_probabilities(bundle.model, patch[None], bundle.recipe, temperature)
    return prediction(str(path), float(found[0]))


def require_bundle(bundle: Any) -> None:
    """Require a bundle that can answer.

    Raises:
        InputTypeError: no Bundle. InputError: a model in training mode or without weights.
    """
    if not (hasattr(bundle, "recipe") and hasattr(bundle, "model")):
        raise InputTypeError(
            f"a {type(bundle).__name__} was given where a Bundle belongs; save the learner with"
            " save_bundle and give what load_bundle returns"
        )
    weights = next(bundle.model.parameters())
    if weights.is_meta or bundle.model.training:
        raise InputError(
            "the bundle's model is in training mode or has no weights; load it again with"
            " load_bundle, or call bundle.model.eval()"
        )


def require_temperature(bundle: Bundle) -> float:
    """Return the temperature on a model's card.

    Raises:
        InputError: there is none.
    """
    temperature = bundle.card.get("temperature")
    if temperature is None:
        raise InputError(
            "the model's card has no temperature to calibrate by; put one there with"
            " `hcd report RUN --calibrate` or write_temperature, or predict without calibration"
        )
    return temperature
