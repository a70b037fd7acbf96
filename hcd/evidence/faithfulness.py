"""How far a model's heatmaps can be believed, in numbers.

The network's build alone draws a picture too. ResNet's convolutions with a stride leave a grid in
the gradients of earlier maps, and DenseNet's pooling from 11 px to 5 px drops the last row and
column, so those places are dark whatever was learned. LayerCAM, which keeps no sign of the
gradients, shows that most: of a briefly trained DenseNet-121 its 11 x 11 maps correlate 0.74 with
those of randomised weights, and HiResCAM's 0.04. Hence the shares are to be held against
`randomised_centre_share` and not only against chance.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ..disk.shown import progress_bar
from ..engine.given import (
    applied_recipe,
    require_learner,
    require_negative_then_tumour,
    unwrapped,
)
from ..engine.layers import evaluated, find_layer
from ..engine.saving import Learner
from ..errors import InputError
from ..export.answer import normalised
from ..export.bundle import Bundle
from ..gradcam import find_method, hooked_backward
from ..reader import augment, read_patch
from .centre import SIGMA, blur_region, centre_box, share_in, share_range, square
from .randomised import correlation, randomised


@dataclass(frozen=True)
class Faithfulness:
    """What `heatmap_faithfulness` measured; shares, AUCs and chances lie in [0, 1].

    Attributes:
        method, layer: whose maps, such as "layer_cam" of "0.0.denseblock2". map_size: (h, w) of a
            map. patches: how many were looked at. empty_maps: those whose map is nowhere positive;
            they count in no mean of maps.
        centre_share: mean share of a map's energy, its non-negative part, in the centre 32 x 32 px.
            centre_chance: share of an even map. centre_share_range: between which two values any
            non-negative map of that size must lie. can_localise: whether these differ; where not,
            centre_share says nothing about the network. randomised_centre_share: mean share in the
            maps of randomised weights, so what the network's build alone comes to.
        auc: of the patches as they are. auc_outside_blurred, auc_centre_blurred: of patches blurred
            around the centre, and in it. blur_sigma: of the Gaussian, px.
        randomised_correlation: mean Spearman correlation of a patch's map with that of the same
            network with weights drawn anew; near 1, the maps show the architecture or the picture
            and not what was learned. correlated_maps: how many both networks have a map of.
            rng_seed: of that draw.
        mask_share: mean share of a map's energy within the tumour mask. mask_chance: mean share of
            the crop that the masks cover. masked_maps: patches with a map and a mask that covers
            some of the crop and not all.
    """

    method: str
    layer: str
    map_size: tuple[int, int]
    patches: int
    empty_maps: int
    centre_share: float | None
    centre_chance: float
    centre_share_range: tuple[float, float]
    can_localise: bool
    randomised_centre_share: float | None
    auc: float
    auc_outside_blurred: float
    auc_centre_blurred: float
    blur_sigma: float
    randomised_correlation: float | None
    correlated_maps: int
    rng_seed: int
    mask_share: float | None
    mask_chance: float | None
    masked_maps: int

    def as_dict(self) -> dict:
        """Return all of it as JSON can hold it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def heatmap_faithfulness(
    given: Bundle | Learner,
    patches: Sequence | np.ndarray,
    labels: Any,
    masks: Any = None,
    method: str = "layer_cam",
    size: int | None = 11,
    rng_seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """Measure how far a model's heatmaps of the tumour can be believed.

    Every map is of the tumour's logit and of the centre crop, whatever the patch's label. A patch
    costs three predictions and two heatmaps, and only its maps are kept.

    Args:
        given: loaded bundle or learner; left as it is, like every random generator.
        patches: files of patches, or (N, 96, 96, 3) uint8 RGB.
        labels: (N,) of 0 and 1, both there.
        masks: (N, 96, 96) bool, True for tumour, of the whole patches; None for none.
        method, size: see `explain_image`.
        rng_seed: of the weights drawn anew (Adebayo et al. 2018, arXiv 1810.03292).
        progress: show a bar.
    Returns:
        Faithfulness.
    Raises:
        FileNotFoundError: no such patch. InputError: one that is no patch, labels or masks that do
            not fit, no such method or size, or a model whose answer is no number.
    """
    _, to_map = find_method(method)
    model, recipe = _model_and_recipe(given)
    patches = patches if isinstance(patches, np.ndarray) else list(patches)
    labels = _fitting_labels(labels, len(patches))
    masks = None if masks is None else _fitting_masks(masks, len(patches), recipe)
    _, in_crop = centre_box(recipe)
    layer_name, networks = "0", [(model, None), (randomised(model, rng_seed), None)]
    scores: list[list[float]] = []
    maps: tuple[list, list] = ([], [])
    waiting = progress_bar(len(patches), "explaining patches", progress, iterable=patches)
    for patch in waiting:
        batch = _views(patch, recipe, model)
        if size is not None and not scores:
            layer_name, _ = find_layer(model, batch[:1], size)
            networks = [(network, network.get_submodule(layer_name)) for network, _ in networks]
        scores.append(_tumour_scores(model, batch))
        for kept, (network, layer) in zip(maps, networks):
            kept.append(to_map(*hooked_backward(network, batch[:1], 1, layer)).numpy())
    seen = square(recipe.crop_size, in_crop)
    shares, twins_shares = ([share_in(heatmap, seen) for heatmap in part] for part in maps)
    shape = maps[0][0].shape
    low, high = share_range(shape, recipe.crop_size, in_crop)
    correlations = _known(map(correlation, *maps))
    auc, outside_blurred, centre_blurred = (
        float(roc_auc_score(labels, column)) for column in zip(*scores)
    )
    return Faithfulness(
        method=method,
        layer=layer_name,
        map_size=shape,
        patches=len(labels),
        empty_maps=shares.count(None),
        centre_share=_mean(_known(shares)),
        centre_chance=float(seen.mean()),
        centre_share_range=(low, high),
        can_localise=high - low > 1e-6,
        randomised_centre_share=_mean(_known(twins_shares)),
        auc=auc,
        auc_outside_blurred=outside_blurred,
        auc_centre_blurred=centre_blurred,
        blur_sigma=SIGMA,
        randomised_correlation=_mean(correlations),
        correlated_maps=len(correlations),
        rng_seed=rng_seed,
        **_mask_shares(maps[0], masks),
    )


def _model_and_recipe(given):
    """Return the model of a bundle or a learner, and how its patches are read."""
    if hasattr(given, "recipe") and hasattr(given, "model"):
        return given.model, given.recipe.plain()
    require_learner(given)
    require_negative_then_tumour(given.data)
    return unwrapped(given.model), applied_recipe(given.data).plain()


def _fitting_labels(labels, count):
    labels = np.asarray(labels)
    if labels.shape != (count,) or set(np.unique(labels)) != {0, 1}:
        raise InputError(
            f"labels have shape {labels.shape} and hold {np.unique(labels)[:5].tolist()} for"
            f" {count} patches; give one 0 or 1 for each, and patches of both"
        )
    return labels


def _fitting_masks(masks, count, recipe):
    """Return the part of the masks that the crops show: (N, crop_size, crop_size)."""
    masks, side = np.asarray(masks), recipe.original_size
    if masks.shape != (count, side, side) or masks.dtype != bool:
        raise InputError(
            f"masks are {masks.dtype} {masks.shape} for {count} patches; give bool"
            f" ({count}, {side}, {side}), True for tumour"
        )
    shown = slice(recipe.margin, recipe.margin + recipe.crop_size)
    return masks[:, shown, shown]


def _views(patch, recipe, model):
    """Return a patch as it is, blurred around the centre and blurred in it, as one batch."""
    side = recipe.original_size
    if not isinstance(patch, np.ndarray):
        patch = read_patch(patch, recipe)
    if patch.shape != (side, side, 3) or patch.dtype != np.uint8:
        raise InputError(
            f"a patch is {patch.dtype} {patch.shape}; give uint8 RGB ({side}, {side}, 3)"
        )
    centre = square(side, centre_box(recipe)[0])
    views = [patch, blur_region(patch, ~centre), blur_region(patch, centre)]
    crops = [augment(view, recipe, random.Random(0)) for view in views]
    return normalised(torch.from_numpy(np.stack(crops)), recipe, next(model.parameters()))


def _tumour_scores(model, batch):
    """Return by how much each image's tumour logit exceeds the other."""
    with evaluated(model), torch.inference_mode():
        logits = model(batch).double()
    if logits.shape[1] != 2 or not torch.isfinite(logits).all():
        raise InputError(
            f"the model's answer is {logits[0].tolist()[:3]} where two finite logits belong; give a"
            " model that predict_image can use"
        )
    return (logits[:, 1] - logits[:, 0]).tolist()


def _mask_shares(heatmaps, masks):
    """Return the figures of tumour masks; a mask that covers all of the crop or nothing tells
    nothing."""
    pairs = [
        (share_in(heatmap, mask), float(mask.mean()))
        for heatmap, mask in zip(heatmaps, [] if masks is None else masks)
        if 0 < mask.mean() < 1
    ]
    pairs = [(share, chance) for share, chance in pairs if share is not None]
    return {
        "mask_share": _mean([share for share, _ in pairs]),
        "mask_chance": _mean([chance for _, chance in pairs]),
        "masked_maps": len(pairs),
    }


def _known(values):
    return [value for value in values if value is not None]


def _mean(values):
    return float(np.mean(values)) if values else None
