"""What a prediction hangs on: the model's card, the slide's spacing, the settings."""

import json
import math
from typing import Any

from .. import __version__
from ..errors import InputError
from .cells import CELL
from .kept import fingerprint
from .opened import Slide


def card_of(bundle: Any) -> dict:
    """Return a model's card; of an ONNX file, what stands in it.

    Raises:
        InputError: it has none.
    """
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


def require_centre(model: Any) -> None:
    """Require a model whose patches have a cell as their centre.

    Raises:
        InputError: they have not.
    """
    if model.original_size < CELL or model.original_size % 2:
        raise InputError(
            f"the model reads patches of {model.original_size} px, which have no centre of {CELL};"
            " use one of 96"
        )


def spacing_of(slide: Slide, mpp: float | None) -> tuple[float, float]:
    """Return the um/px of level 0 (x, y), as given or as the slide states it.

    Raises:
        InputError: neither, or nonsense.
    """
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


def kept_key(
    slide: Slide, spacing: tuple[float, float], model: Any, card: dict, fast: bool, calibrated: bool
) -> dict:
    """Return by name what the bits of the probabilities hang on, for `Kept`."""
    return {
        "slide": fingerprint(slide.path) + slide.identity,
        "mpp": list(spacing),
        "model": [card["weights_sha256"], card.get("temperature"), model.original_size],
        "device": _device(model),
        "fast": fast,
        "calibrated": calibrated,
        "hcd": __version__,
    }


def _device(model):
    """Return the kind of device that computes; its sums may be ordered otherwise than another's."""
    network = getattr(model, "model", None)
    return next(network.parameters()).device.type if network is not None else "onnx"
