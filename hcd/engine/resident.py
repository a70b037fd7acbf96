"""Patches that stay on the device: each batch of crops is cut there, bit for bit as the reader cuts
them.

Worker processes then draw and no longer read: a batch arrives as whole numbers, the row of each
patch and its draw. That a crop can be had without OpenCV rests on its 8-bit `warpAffine` being
integer arithmetic: coordinates in 1/1024 px rounded to 1/32 px, weights in 1/32768, what lies
outside counts 0. A test plays every golden read.
"""

import itertools
import math
import random
import sys

import cv2
import numpy as np
import torch

from ..disk.names import Names
from ..disk.parallel import map_patches
from ..errors import InputError
from ..reader import draw_augmentation, read_patch, tone_table
from ..recipe import Recipe
from .compat import DataBunch, DataLoader
from .draws import DrawnByKey, PassLoader
from .given import require_crops

SHARE = 0.6  # of the device's free memory that patches may take; the network needs the rest
CHUNK = 1024  # patches that are copied to the device at a time
SUBPIXELS, FIXED, WEIGHT_BITS = 32, 1024, 15  # OpenCV's INTER_TAB_SIZE, AB_SCALE, COEF_BITS


class ResidentPatches:
    """The patches of some items, and the tables that crop, turn, flip and tone them.

    Args:
        pixels: (N, original_size, original_size, 3) uint8 RGB on the device.
        names: (N,) the items' names. recipe: without stain_jitter.
    """

    def __init__(self, pixels: torch.Tensor, names: np.ndarray, recipe: Recipe) -> None:
        self.pixels, self.recipe, self.device = pixels, recipe, pixels.device
        self.order = np.argsort(names, kind="stable")
        self.names = names[self.order]
        turns = _turns(recipe)
        tables = np.stack([_turn_tables(turn, recipe.original_size) for turn in turns])
        self.turns = torch.tensor(turns, device=self.device)
        self.tables = torch.from_numpy(tables).to(self.device)
        self.tones = torch.from_numpy(_tone_tables(recipe)).to(self.device)

    def __reduce__(self):
        raise InputError(
            f"{len(self.pixels):,} patches lie on {self.device}, and a databunch is not pickled"
            " with them; build it again with make_databunch from data set, recipe and valid_idx"
        )

    def __deepcopy__(self, memo):
        return self  # nobody writes into them

    def rows_of(self, names: np.ndarray) -> np.ndarray:
        """Return the row of each item's patch: (n,) int64.

        Raises:
            InputError: a patch that is not here.
        """
        places = np.searchsorted(self.names, names).clip(max=len(self.names) - 1)
        if len(names) and not np.array_equal(self.names[places], names):
            name = names[np.flatnonzero(self.names[places] != names)[0]]
            raise InputError(
                f"{name} is not among the patches on {self.device}; build the databunch again with"
                " make_databunch"
            )
        return self.order[places]

    def crops(self, rows: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Return the crops that `reader.apply_draw` cuts of these patches.

        Args:
            rows: (B,) of the patches. draws: (B, 7) whole numbers, see `reader.draw_augmentation`.
        Returns:
            (B, 3, crop_size, crop_size) float32 RGB in [0, 1], on the device.
        """
        rows, draws = rows.to(self.device), draws.to(self.device, torch.int64)
        turn, down, right, mirror, upend, brightness, contrast = draws.unbind(1)
        crop = self.recipe.crop_size
        along = torch.arange(crop, device=self.device)
        y_cut = down[:, None] + torch.where(upend[:, None] > 0, crop - 1 - along, along)
        x_cut = right[:, None] + torch.where(mirror[:, None] > 0, crop - 1 - along, along)
        turn = torch.searchsorted(self.turns, turn.contiguous())
        levels = self._turned(rows, turn, y_cut, x_cut)
        recipe = self.recipe
        tone = (brightness + recipe.max_brightness) * (2 * recipe.max_contrast + 1)
        tone = (tone + contrast + recipe.max_contrast) * 256
        toned = self.tones[tone[:, None, None, None] + levels]
        return toned.permute(0, 3, 1, 2).contiguous()

    def cut(self, batch):
        """Return a batch of a loader's with crops in the place of rows and draws; one that holds
        images already, see `ResidentItems`, stays as it is."""
        drawn, labels = batch
        if drawn.is_floating_point():
            return batch
        drawn, labels = (part.to(self.device, non_blocking=True) for part in (drawn, labels))
        return [self.crops(drawn[:, 0], drawn[:, 1:]), labels]

    def _turned(self, rows, turn, y_cut, x_cut):
        """Return these pixels of the turned patches: (B, crop, crop, 3) int64 levels.

        Args:
            rows, turn: (B,) which patch and which turn. y_cut, x_cut: (B, crop) which pixels.
        """
        size = self.recipe.original_size
        x_of_x, y_of_x, x_of_y, y_of_y = self.tables[turn].unbind(1)  # (B, size) each
        x = x_of_x.gather(1, x_cut)[:, None, :] + x_of_y.gather(1, y_cut)[:, :, None]
        y = y_of_x.gather(1, x_cut)[:, None, :] + y_of_y.gather(1, y_cut)[:, :, None]
        x, y = (at >> 5 for at in (x, y))  # 1/1024 px -> 1/32 px
        total = 0
        for lower in (0, 1):
            for further in (0, 1):
                column, line = (x >> 5) + further, (y >> 5) + lower
                weight = _part(x, further) * _part(y, lower) * (2**WEIGHT_BITS // SUBPIXELS**2)
                inside = (column >= 0) & (column < size) & (line >= 0) & (line < size)
                place = line.clamp(0, size - 1) * size + column.clamp(0, size - 1)
                place = rows[:, None, None] * size**2 + place
                found = self.pixels.view(-1, 3)[place]  # (B, crop, crop, 3)
                total = total + found * (weight * inside)[..., None]
        return (total + 2 ** (WEIGHT_BITS - 1)) >> WEIGHT_BITS


class ResidentItems(DrawnByKey):
    """A set of fastai's that gives a loader the rows and draws of its items, (8,) int64 each,
    instead of images; those where anybody has changed what the set does to an item."""

    own = ("dataset", "passes", "names", "rows", "cut_by")

    def __init__(self, dataset, passes, patches):
        super().__init__(dataset, passes)
        self.names = np.array(dataset.x.items)  # a copy, for somebody may write into the list
        self.rows, self.cut_by = patches.rows_of(self.names), patches.recipe

    def __getitems__(self, keys):
        """Return the items of a batch; torch's loader asks for them at once."""
        if not self.unchanged([key[1] if isinstance(key, tuple) else key for key in keys]):
            return [self[key] for key in keys]
        return [self._drawn(key) for key in keys]

    def unchanged(self, indices=slice(None)):
        """Say whether these items are still the reader's crops alone, of the same files and by the
        same recipe."""
        try:
            if require_crops(self.dataset, "the set") != self.cut_by:
                return False
        except InputError:
            return False
        items = self.dataset.x.items  # of millions, only those asked for are made texts
        items = items if isinstance(items, Names) else np.asarray(items)
        same = len(items) == len(self.names) and (items[indices] == self.names[indices]).all()
        return bool(same) and self.dataset.item is None

    def _drawn(self, key):
        by_key = isinstance(key, tuple)
        rng = self.passes.rng(*key) if by_key else random
        draw = draw_augmentation(self.dataset.x.recipe, rng)
        if self.dataset.tfmargs and not by_key:
            rng.random()  # as `Crop.apply_tfms` does after each read
        index = key[1] if by_key else key
        return np.array([self.rows[index], *draw]), self.dataset.y[index]


class ResidentLoader(DataLoader):
    """DataLoader whose batches are cut on the device."""

    def __init__(self, *args, patches, **kwargs):
        super().__init__(*args, **kwargs)
        self.patches, self.init_kwargs["patches"] = patches, patches

    def __iter__(self):
        """Begin a pass."""
        return map(self.patches.cut, super().__iter__())


class ResidentPassLoader(ResidentLoader, PassLoader):
    """PassLoader whose batches are cut on the device."""


def is_to_be_resident(recipe: Recipe, device: torch.device) -> bool:
    """Say whether a recipe wants its patches on the device, if there is room."""
    possible = recipe.fast and device.type == "cuda" and not recipe.stain_jitter
    return possible if recipe.resident is None else recipe.resident


def make_resident(data: DataBunch, recipe: Recipe) -> bool:
    """Bring a databunch's patches onto its device, and have its loaders' batches cut there; where
    the recipe leaves it open, only if it is fast, on a GPU with room for them.

    The draws are the same ones, so in float32 no number changes.

    Returns:
        whether they lie there.
    Raises:
        InputError: the recipe asks for it, and the device has no room.
    """
    device = data.device
    if not is_to_be_resident(recipe, device):
        return False
    sets = [data.train_ds.x, data.valid_ds.x, *([data.test_ds.x] if data.test_dl else [])]
    names = np.concatenate([items.items for items in sets])
    try:
        pixels = _room(len(names), recipe, device)
    except InputError as error:
        if recipe.resident:
            raise
        print(f"{error}; reading goes on in worker processes", file=sys.stderr)
        return False
    _fill(pixels, [items.find(name) for items in sets for name in items.items], recipe)
    patches = ResidentPatches(pixels, names, recipe)
    for bound in (data.train_dl, data.valid_dl, data.fix_dl, data.test_dl):
        if bound is None:
            continue
        options = {**bound.dl.init_kwargs, "patches": patches, "collate_fn": bound.collate_fn}
        items = data._grab_dataset(bound)
        kind = ResidentLoader if data.passes is None else ResidentPassLoader
        bound.dl = kind(ResidentItems(items, data.passes, patches), **options)
    return True


def _room(count, recipe, device):
    """Return memory for so many patches on the device.

    Raises:
        InputError: it has too little.
    """
    shape = (count, recipe.original_size, recipe.original_size, 3)
    needed = math.prod(shape)
    free = torch.cuda.mem_get_info(device)[0] * SHARE if device.type == "cuda" else math.inf
    try:
        if needed > free:
            raise RuntimeError
        return torch.empty(shape, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        raise InputError(
            f"{count:,} patches take {needed / 2**30:.1f} GiB on {device}, which has too little"
            " memory free for them and a network; leave resident at None or False, which read in"
            " worker processes"
        ) from error


def _fill(pixels, paths, recipe):
    """Read patches onto the device."""
    # verified before training, as in `CroppedImageList.open`
    read = map_patches(
        lambda path: read_patch(path, recipe, proven=True), paths, f"patches onto {pixels.device}"
    )
    for start in range(0, len(paths), CHUNK):
        part = np.stack(list(itertools.islice(read, CHUNK)))
        pixels[start : start + len(part)].copy_(torch.from_numpy(part))


def _part(at, second):
    """Return how much of the first or of the second pixel counts, in 1/32."""
    return at & 31 if second else 32 - (at & 31)


def _turns(recipe):
    """Return every turn that the recipe can draw, in degrees, in order."""
    quarters = (-90, 0, 90) if recipe.quarter_turns else (0,)
    few = range(-recipe.max_rotation, recipe.max_rotation + 1)
    return sorted({quarter + turn for quarter in quarters for turn in few})


def _turn_tables(turn, size):
    """Return where a pixel of the turned patch comes from: (4, size) int64 in 1/1024 px, the x and
    the y that its column gives, then those that its row gives, which holds the rounding."""
    matrix = cv2.getRotationMatrix2D((size // 2, size // 2), turn, 1)
    (a, b, c), (d, e, f) = matrix.tolist()
    # step by step as OpenCV inverts it, for another order can round otherwise
    scale = 1.0 / (a * e - b * d)
    a, b, d, e = e * scale, b * -scale, d * -scale, a * scale
    c, f = -a * c - b * f, -d * c - e * f
    along, half = np.arange(size), FIXED // SUBPIXELS // 2
    return np.rint(
        np.stack(
            [a * along * FIXED, d * along * FIXED, (b * along + c) * FIXED, (e * along + f) * FIXED]
        )
    ).astype(np.int64) + [[0], [0], [half], [half]]


def _tone_tables(recipe):
    """Return `tone_table` of every brightness and contrast that the recipe can draw, one after the
    other: (brightnesses x contrasts x 256,) float32."""
    bright, contrast = recipe.max_brightness, recipe.max_contrast
    return np.concatenate(
        [
            tone_table(one, other)
            for one in range(-bright, bright + 1)
            for other in range(-contrast, contrast + 1)
        ]
    )
