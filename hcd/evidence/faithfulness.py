"""How far can a heatmap be believed? Measured where the truth is known: the label of a patch is
decided by its centre 32 x 32 px."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from ..disk.parallel import listed_paths
from ..errors import InputError
from ..export.bundle import Bundle, prepared, require_bundle
from ..gradcam import compute_map
from ..plots import CENTRE
from ..reader import read_patch

BLUR = 8.0  # px, the Gaussian's standard deviation: no nucleus is left to be seen
BATCH = 64


@dataclass(frozen=True)
class Faithfulness:
    """What `heatmap_faithfulness` measured. Shares are of a map's values above 0, on the pixels of
    the crop, between cells by bilinear interpolation.

    Attributes:
        method: that drew the maps. size: (h, w) of the maps, in cells.
        maps: how many tumour patches have a map with a value above 0. empty: how many have none.
        centre_share: mean share of a map in the patch's centre 32 x 32 px. chance_share: of a map
            that is the same everywhere.
        possible_shares: (least, most) that any map of that size can have there; equal where it
            cannot point at the centre, whatever the network does.
        auc: of the model on the patches as they are. auc_centre_only: with all but the centre
            blurred. auc_without_centre: with the centre blurred.
        random_correlation: mean rank correlation of the maps with those of the same network with
            random weights; near 1 where a map shows the patch and not the model.
        mask_share: mean share of a map within the tumour's mask, and chance_mask_share that of a
            map that is the same everywhere; None without masks.
    """

    method: str
    size: tuple
    maps: int
    empty: int
    centre_share: float
    chance_share: float
    possible_shares: tuple
    auc: float
    auc_centre_only: float
    auc_without_centre: float
    random_correlation: float
    mask_share: float | None
    chance_mask_share: float | None

    @property
    def can_localise(self) -> bool:
        """False where every map of that size has the same share in the centre."""
        return self.possible_shares[1] - self.possible_shares[0] > 0.01

    def as_dict(self) -> dict:
        """Return everything as a dict that JSON can hold."""
        return {"can_localise": self.can_localise, **asdict(self)}


def heatmap_faithfulness(
    bundle: Bundle,
    paths: Sequence,
    labels: Any,
    masks: Any = None,
    method: str = "layer_cam",
    size: int | None = 11,
    rng_seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """Measure how far the heatmaps of a model can be believed, on patches that it was not trained
    on.

    Args:
        bundle: see `load_bundle`.
        paths: (N,) files of patches, or packed patches. labels: (N,) of 0 and 1; maps are drawn of
            tumour patches, for tumour.
        masks: (N, original_size, original_size) bool, where the tumour is; None without.
        method, size: see `explain_image`.
        rng_seed: of the random weights. progress: show a bar.
    Returns:
        Faithfulness.
    Raises:
        InputError: labels or masks that do not fit the patches, a file that is no patch, or maps
            without any value above 0.
    """
    require_bundle(bundle, "heatmap_faithfulness")
    paths, labels = listed_paths(paths), np.asarray(labels)
    side, crop = bundle.recipe.original_size, bundle.recipe.crop_size
    if labels.shape != (len(paths),) or set(np.unique(labels)) != {0, 1}:
        raise InputError(
            f"labels of shape {labels.shape} hold {np.unique(labels)[:5].tolist()} for"
            f" {len(paths)} patches; give one for each, 0 or 1, and some of both"
        )
    if masks is not None and np.shape(masks) != (len(paths), side, side):
        raise InputError(
            f"masks have shape {np.shape(masks)} for {len(paths)} patches; give ({len(paths)},"
            f" {side}, {side}), True where tumour is"
        )
    patches = np.stack([read_patch(path, bundle.recipe) for path in paths])
    random = replace(bundle, model=_with_random_weights(bundle.model, rng_seed))
    positives = np.flatnonzero(labels)
    found, others = (
        [
            compute_map(which.model, prepared(which, patches[i : i + 1]), 1, method, size)
            for i in tqdm(positives, desc=f"{method}, {what} weights", disable=not progress)
        ]
        for which, what in ((bundle, "trained"), (random, "random"))
    )
    shares = [_centre_share(heatmap, crop) for heatmap in found]
    kept = np.flatnonzero(np.isfinite(shares))
    if not len(kept):
        raise InputError(
            f"none of the {len(found)} heatmaps has a value above 0; give method='layer_cam', or"
            " check the model"
        )
    mask_shares = (
        [_mask_shares(found[i], masks[positives[i]], crop) for i in kept]
        if (masks is not None)
        else [(np.nan, np.nan)]
    )
    within = np.nanmean(mask_shares, axis=0).tolist() if masks is not None else (None, None)
    return Faithfulness(
        method=method,
        size=found[0].shape,
        maps=len(kept),
        empty=len(found) - len(kept),
        centre_share=float(np.mean(np.array(shares)[kept])),
        chance_share=_centre_share(np.ones((1, 1), np.float32), crop),
        possible_shares=_possible_shares(found[0].shape, crop),
        auc=_auc(bundle, patches, labels),
        auc_centre_only=_auc(bundle, _blurred(patches, centre=False), labels),
        auc_without_centre=_auc(bundle, _blurred(patches, centre=True), labels),
        random_correlation=_correlation(found, others),
        mask_share=within[0],
        chance_mask_share=within[1],
    )


def _energy(heatmap, crop):
    """Return a map's values above 0 on the pixels of the crop, as `plot_patch_grid` draws it."""
    values = torch.from_numpy(np.maximum(heatmap, 0).astype(np.float32))[None, None]
    large = torch.nn.functional.interpolate(
        values, (crop, crop), mode="bilinear", align_corners=False
    )
    return large[0, 0].double().numpy()


def _centre(crop):
    start = (crop - CENTRE) // 2
    return slice(start, start + CENTRE)


def _centre_share(heatmap, crop):
    energy, centre = _energy(heatmap, crop), _centre(crop)
    total = energy.sum()
    return float(energy[centre, centre].sum() / total) if total > 0 else float("nan")


def _possible_shares(size, crop):
    """Return the least and the most of what a map has in the centre: of all maps that are 0 or
    above, those with one cell alone have the extremes."""
    cells: np.ndarray = np.eye(size[0] * size[1], dtype=np.float32).reshape(-1, *size)
    shares = [_centre_share(cell, crop) for cell in cells]
    return min(shares), max(shares)


def _mask_shares(heatmap, mask, crop):
    start = (len(mask) - crop) // 2
    mask = np.asarray(mask)[start : start + crop, start : start + crop].astype(bool)
    if not mask.any():  # its tumour lies in the rim that is cut off, or it was given none
        return np.nan, np.nan
    energy = _energy(heatmap, crop)
    return energy[mask].sum() / energy.sum(), mask.mean()


def _blurred(patches, centre):
    """Blur the centre 32 x 32 px of patches, or all but it."""
    start = (patches.shape[1] - CENTRE) // 2
    inside = np.zeros(patches.shape[1:3], bool)
    inside[start : start + CENTRE, start : start + CENTRE] = True
    blurred = np.stack([cv2.GaussianBlur(patch, (0, 0), BLUR) for patch in patches])
    return np.where((inside == centre)[None, :, :, None], blurred, patches)


def _auc(bundle, patches, labels):
    logits = []
    with torch.inference_mode():
        for start in range(0, len(patches), BATCH):
            batch = prepared(bundle, patches[start : start + BATCH])
            logits.append(bundle.model(batch).double().cpu())
    scores = torch.cat(logits)
    return float(roc_auc_score(labels, (scores[:, 1] - scores[:, 0]).numpy()))


def _with_random_weights(model, rng_seed):
    model = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(rng_seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return model.eval()


def _correlation(maps, others):
    """Return the mean rank correlation of maps; those that are the same everywhere have none."""
    pairs = [
        (a.ravel(), b.ravel()) for a, b in zip(maps, others) if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    return float(np.mean([spearmanr(a, b)[0] for a, b in pairs])) if pairs else 0.0
