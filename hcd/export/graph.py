"""What goes before and behind the network in the files that leave hcd."""

import numpy as np
import torch
from torch import nn

from ..dataset.sample import draw_patch
from ..errors import InputError
from .answer import tumour_probabilities
from .bundle import Bundle

CHECKED = 5  # patches, of which the last is noise
TOLERANCE = 1e-5


class CentreCrop(nn.Module):
    """Logits of the centre crops of normalised patches, (N, 3, S, S) -> (N, 2)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model, self.margin = bundle.model, bundle.recipe.margin
        self.crop_size = bundle.recipe.crop_size

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Crop, and hand on."""
        inside = slice(self.margin, self.margin + self.crop_size)
        return self.model(patches[:, :, inside, inside])


class TumourProbability(nn.Module):
    """Tumour probabilities of pixels, (N, S, S, 3) uint8 -> (N,) float32."""

    def __init__(self, bundle: Bundle, temperature: float = 1) -> None:
        super().__init__()
        self.logits, self.temperature = CentreCrop(bundle), temperature
        self.register_buffer("mean", torch.tensor(bundle.recipe.mean))
        self.register_buffer("std", torch.tensor(bundle.recipe.std))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Normalise, crop, and compare the two logits."""
        levels = patches.to(torch.float32) / 255
        batch = ((levels - self.mean) / self.std).permute(0, 3, 1, 2)
        logits = self.logits(batch) / self.temperature
        return torch.softmax(logits, 1)[:, 1]


def check_patches(size: int) -> np.ndarray:
    """Return drawn patches of both classes and one of noise, to compare answers on:
    (5, size, size, 3) uint8."""
    rng = np.random.default_rng(0)
    drawn = [draw_patch(number % 2, rng) for number in range(CHECKED - 1)]
    rows: np.ndarray = np.arange(size) % len(drawn[0])  # of another size: repeated or cut
    noise = rng.integers(0, 256, (size, size, 3), np.uint8)
    return np.stack([*(patch[rows][:, rows] for patch in drawn), noise])


def require_equal(bundle: Bundle, answer, temperature: float = 1, what: str = "the file") -> None:
    """Require another form of a model to answer as the bundle does, to 1e-5, one patch and many.

    Args:
        bundle: see `load_bundle`. answer: function of (N, S, S, 3) uint8 that returns the (N,)
            tumour probabilities. temperature: that it was given. what: to call it in the error.
    Raises:
        InputError: it does not.
    """
    patches = check_patches(bundle.recipe.original_size)
    expected = tumour_probabilities(bundle.model, patches, bundle.recipe, temperature)
    found = np.concatenate([answer(patches), answer(patches[:1])])
    largest = float(np.abs(found - np.append(expected, expected[0])).max())
    if not largest <= TOLERANCE:
        raise InputError(
            f"{what} answers otherwise than the model (probabilities up to {largest:.2g} apart), so"
            " it was not written; install the versions of requirements.txt and export it again"
        )
