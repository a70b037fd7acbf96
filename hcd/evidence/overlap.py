"""Which patches show the same tissue? Found exactly, from their pixels alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom

from ..disk.parallel import listed_paths, map_patches
from ..errors import InputError
from ..reader import read_patch
from ..recipe import Recipe

BLOCK = 16  # px; the grid that PatchCamelyon's patches were cut on
RIM = 1  # px; a JPEG copy's colours are smoothed across a block's edge, and no farther
FLAT_BELOW = 4  # grey levels of standard deviation in every channel: glass, or pure black


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The patches that show the same tissue.

    Attributes:
        ids: of the patches, in the order they were given.
        pairs: (P, 2) int64, positions in `ids` of two patches that overlap, the smaller first,
            sorted.
        offsets: (P, 2) int64, from the first patch of a pair to its second, px down and right.
        copies: (N,) int64, for each patch the position of the first one with equal pixels, mostly
            its own. Only those stand in `pairs`.
        islands: (N,) int64, the number of the island of each patch. Patches that are connected by
            pairs lie on one, and so do copies.
    """

    ids: tuple
    pairs: np.ndarray
    offsets: np.ndarray
    copies: np.ndarray
    islands: np.ndarray

    @property
    def neighbours(self) -> np.ndarray:
        """How many other patches share tissue with each one, copies included: (N,) int64."""
        same = np.bincount(self.copies, minlength=len(self.ids))
        first, second = self.pairs.T
        counts = same - 1
        np.add.at(counts, first, same[second])
        np.add.at(counts, second, same[first])
        return counts[self.copies]

    def shared_with(self, chosen: np.ndarray) -> np.ndarray:
        """Say which patches share tissue with another one that is chosen.

        Args:
            chosen: (N,) bool.
        Returns:
            (N,) bool.
        """
        count = len(self.ids)
        by_copy = np.bincount(self.copies, chosen, count)  # chosen ones with the same pixels
        found: np.ndarray = np.zeros(count, bool)
        for one, other in (self.pairs.T, self.pairs.T[::-1]):
            found[one[by_copy[other] > 0]] = True
        return found[self.copies] | (by_copy[self.copies] - chosen > 0)

    def first(self, count: int) -> "Overlaps":
        """Return the overlaps among the first `count` patches alone."""
        kept = self.pairs[:, 1] < count
        pairs, copies = self.pairs[kept], self.copies[:count]
        return Overlaps(
            self.ids[:count], pairs, self.offsets[kept], copies, _islands(pairs, copies)
        )


def leaked_share(neighbours: np.ndarray, valid_fraction: float = 0.1) -> float:
    """Compute how many validation patches of a random split have a neighbour in training.

    Args:
        neighbours: (N,) how many others each patch shares tissue with, see `Overlaps`.
        valid_fraction: share of the patches that is set aside for validation.
    Returns:
        share in [0, 1], expected over all splits of that size; the labels play no part.
    """
    count = len(neighbours)
    n_valid = int(np.ceil(valid_fraction * count))
    numbers, patches = np.unique(neighbours, return_counts=True)
    # a validation patch does not leak if all its neighbours are drawn for validation too
    kept = hypergeom.pmf(numbers, count - 1, numbers, n_valid - 1)
    return float(patches @ (1 - kept) / count)


def find_overlaps(
    patches: Any,
    ids: Sequence[str] | None = None,
    recipe: Recipe = Recipe(),
    progress: bool = True,
) -> Overlaps:
    """Find all pairs of patches that show the same tissue.

    Two patches that were cut from one slide on a grid of 16 px share whole blocks of 16 x 16 px.
    These are compared bit for bit by their hashes, but for the outermost px, in which JPEG copies
    differ. Flat blocks say nothing and are left out, and so is a block in more different patches
    than a grid has places for it. A pair counts where, at one offset, at least half of the blocks
    that both patches would then share are equal.

    Args:
        patches: files of patches or packed patches, as `Dataset.train_paths` lists them, or an (N,
            H, W, 3) uint8 array.
        ids: (N,) names for them; None takes the files' stems, or the array's positions.
        recipe: the size of patches that are read from files. progress: show a bar.
    Returns:
        Overlaps. Patches that were cut at other offsets than multiples of 16 px are not found.
    Raises:
        InputError: no patches, a file that is none, one smaller than a block, or another number of
        ids.
    """
    given = isinstance(patches, np.ndarray) and patches.ndim > 1
    if given and (patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8):
        raise InputError(
            f"patches are {patches.dtype} of shape {patches.shape}; give (N, H, W, 3) uint8 RGB, or"
            " a list of files"
        )
    patches = patches if given else listed_paths(patches)
    names = _names(patches, ids, given)
    height, width = patches.shape[1:3] if given else [recipe.original_size] * 2
    rows, columns = height // BLOCK, width // BLOCK
    if not len(patches) or not rows * columns:
        raise InputError(
            f"{len(patches)} patches of {height} x {width} px have no blocks of {BLOCK} x"
            f" {BLOCK} px to compare; give larger patches, or some"
        )
    digests: np.ndarray = np.empty(len(patches), np.uint64)
    hashes = np.empty((len(patches), rows, columns), np.uint64)
    flat = np.empty(hashes.shape, bool)
    found = map_patches(
        lambda patch: _fingerprints(patch if given else read_patch(patch, recipe)),
        patches,
        "comparing patches",
        progress,
    )
    for i, patch in enumerate(found):
        digests[i], hashes[i], flat[i] = patch
    _, first, kind = np.unique(digests, return_index=True, return_inverse=True)
    copies, unique = first[kind], np.sort(first)
    pairs, offsets = _matches(hashes[unique], flat[unique])
    pairs = unique[pairs]
    return Overlaps(names, pairs, offsets * BLOCK, copies, _islands(pairs, copies))


def _islands(pairs, copies):
    """Number the islands: (N,) int64."""
    links = np.concatenate([pairs, np.stack([np.arange(len(copies)), copies], 1)])
    graph = coo_matrix((np.ones(len(links), bool), links.T), (len(copies), len(copies)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _names(patches, ids, given):
    if ids is None:
        return tuple(map(str, range(len(patches)) if given else (Path(p).stem for p in patches)))
    if len(ids) != len(patches):
        raise InputError(
            f"{len(ids)} ids were given for {len(patches)} patches; give one for each, or leave ids"
            " out"
        )
    return tuple(ids)


def _fingerprints(patch):
    """Return the hash of a patch, and of each of its blocks the hash and whether it is flat."""
    rows, columns = (side // BLOCK for side in patch.shape[:2])
    blocks = patch[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
    inner = slice(RIM, BLOCK - RIM)
    # (rows, columns, 3, 14, 14)
    blocks = np.ascontiguousarray(blocks[:, inner, :, inner].transpose(0, 2, 4, 1, 3))
    levels = blocks.reshape(rows, columns, 3, -1)
    flat = levels.astype(np.float32).std(3).max(2) < FLAT_BELOW
    hashes = b"".join(_hash(block) for block in blocks.reshape(rows * columns, -1))
    whole = _hash(np.ascontiguousarray(patch))
    return (
        np.frombuffer(whole, np.uint64)[0],
        np.frombuffer(hashes, np.uint64).reshape(rows, columns),
        flat,
    )


def _hash(pixels):
    # 64 bits: among 8 million blocks two different ones agree once in half a million data sets
    return hashlib.blake2b(pixels.data, digest_size=8).digest()


def _matches(hashes, flat):
    """Return pairs (P, 2) and offsets (P, 2), in blocks, of patches with all different pixels.

    Args:
        hashes, flat: (N, rows, columns) of their blocks.
    """
    count, rows, columns = hashes.shape
    height, width = 2 * rows - 1, 2 * columns - 1  # so many offsets can a pair have
    keys: list = [np.empty(0, np.int64)]
    for a, b in _equal_blocks(hashes.ravel(), ~flat.ravel(), rows * columns):
        patch_a, block_a = np.divmod(a, rows * columns)
        patch_b, block_b = np.divmod(b, rows * columns)
        down = block_a // columns - block_b // columns + rows - 1
        right = block_a % columns - block_b % columns + columns - 1
        key = ((patch_a * count + patch_b) * height + down) * width + right
        keys.append(key[patch_a != patch_b])
    found, equal = np.unique(np.concatenate(keys), return_counts=True)
    pair, offset = np.divmod(found, height * width)
    pairs = np.stack(np.divmod(pair, count), 1)
    offsets = np.stack(np.divmod(offset, width), 1) - [rows - 1, columns - 1]
    shared = np.maximum(_shown(flat, pairs[:, 0], offsets), _shown(flat, pairs[:, 1], -offsets))
    # of a pattern that repeats itself, the offset with most equal blocks
    order = np.lexsort((-equal, pair))
    best = order[np.r_[True, pair[order][1:] != pair[order][:-1]]] if len(order) else order
    best = best[2 * equal[best] >= shared[best]]
    return pairs[best], offsets[best]


def _equal_blocks(hashes, usable, most):
    """Yield positions (a, b) of equal blocks, a before b, all of them once.

    Args:
        hashes: (B,). usable: (B,) bool. most: blocks that may be equal; of more, none is yielded,
            which also keeps the number of pairs in proportion to the blocks.
    """
    where = np.flatnonzero(usable)
    where = where[np.argsort(hashes[where], kind="stable")]
    hashes = hashes[where]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    sizes = np.diff(np.r_[starts, len(hashes)]) if len(hashes) else starts[:0]
    kept: np.ndarray = np.repeat((sizes > 1) & (sizes <= most), sizes)
    hashes, where = hashes[kept], where[kept]
    for step in range(1, most):
        same = hashes[step:] == hashes[:-step]
        if not same.any():
            return
        yield where[:-step][same], where[step:][same]


def _shown(flat, patches, offsets):
    """Count the blocks of a patch, flat ones left out, that another one at an offset shows too."""
    rows, columns = flat.shape[1:]
    sums = np.zeros((len(flat), rows + 1, columns + 1), np.int32)
    sums[:, 1:, 1:] = (~flat).cumsum(1, np.int32).cumsum(2, np.int32)
    down, right = offsets.T
    top, bottom = np.maximum(down, 0), rows + np.minimum(down, 0)
    left, end = np.maximum(right, 0), columns + np.minimum(right, 0)
    return (
        sums[patches, bottom, end]
        - sums[patches, top, end]
        - sums[patches, bottom, left]
        + sums[patches, top, left]
    )
