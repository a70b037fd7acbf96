"""Overlaps are found in patches that were cut out of a slide which the test has made up."""

import itertools

import cv2
import numpy as np
import pytest

from hcd import InputError, Recipe, find_overlaps, leaked_share

SIDE, GRID = 96, 16


@pytest.fixture(scope="module")
def slide():
    """A slide of (1600, 1600, 3) uint8 with structure everywhere."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1600, 1600, 3), dtype=np.uint8)


def cut(slide, corners):
    return np.stack([slide[y : y + SIDE, x : x + SIDE] for y, x in corners])


def truth(corners):
    """Return {(a, b): (down, right)} of all patches that overlap, from where they were cut."""
    found = {}
    for (a, first), (b, second) in itertools.combinations(enumerate(corners), 2):
        down, right = second[0] - first[0], second[1] - first[1]
        if abs(down) < SIDE and abs(right) < SIDE and down % GRID == right % GRID == 0:
            found[a, b] = (down, right)
    return found


def found_pairs(overlaps):
    return dict(zip(map(tuple, overlaps.pairs.tolist()), map(tuple, overlaps.offsets.tolist())))


@pytest.mark.parametrize("start", [(0, 0), (5, 11)], ids=["grid at 0", "grid at (5, 11)"])
def test_all_pairs_on_a_grid_are_found_and_none_is_invented(slide, start):
    rng = np.random.default_rng(1)
    corners = np.unique(rng.integers(0, 30, (150, 2)), axis=0) * GRID + start
    corners = [tuple(corner) for corner in rng.permutation(corners).tolist()]
    wanted = truth(corners)
    assert len(wanted) > 500
    overlaps = find_overlaps(cut(slide, corners), progress=False)
    assert found_pairs(overlaps) == wanted
    assert overlaps.pairs.tolist() == sorted(overlaps.pairs.tolist())


def test_off_the_grid_nothing_is_claimed(slide):
    """Only offsets of whole blocks can be seen; the docstring says so."""
    corners = [(0, 0), (8, 0), (3, 17), (160, 160), (175, 160)]
    assert not len(find_overlaps(cut(slide, corners), progress=False).pairs)


def test_one_corner_block_is_enough(slide):
    overlaps = find_overlaps(cut(slide, [(0, 0), (80, 80), (160, 0)]), progress=False)
    assert found_pairs(overlaps) == {(0, 1): (80, 80), (1, 2): (80, -80)}
    assert overlaps.islands.tolist() == [0, 0, 0]


def test_islands_are_the_connected_patches(slide):
    corners = [(0, 0), (400, 0), (0, 64), (0, 128), (464, 0), (900, 900)]
    overlaps = find_overlaps(cut(slide, corners), [*"abcdef"], progress=False)
    assert overlaps.islands.tolist() == [0, 1, 0, 0, 1, 2]
    assert overlaps.ids == (*"abcdef",)
    assert overlaps.neighbours.tolist() == [1, 1, 2, 1, 1, 0]


def test_the_first_patches_alone(slide):
    corners = [(0, 0), (0, 128), (0, 64)]  # the third connects the others
    overlaps = find_overlaps(cut(slide, corners), progress=False)
    assert overlaps.islands.tolist() == [0, 0, 0]
    assert overlaps.first(2).islands.tolist() == [0, 1] and not len(overlaps.first(2).pairs)


def test_jpeg_copies_match_but_for_the_rim_of_their_blocks(slide):
    """Chroma is smoothed across the edges of a copy's blocks, and differs there by what lies
    beyond."""
    smooth = cv2.GaussianBlur(slide, (0, 0), 3)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    patches = cut(smooth, [(0, 0), (0, 32), (48, 16), (800, 800)])
    copies = np.stack(
        [
            cv2.imdecode(cv2.imencode(".jpg", patch, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], 1)
            for patch in patches
        ]
    )
    assert (copies[0][:, 32:] != copies[1][:, :-32]).any()
    assert set(found_pairs(find_overlaps(copies, progress=False))) == {(0, 1), (0, 2), (1, 2)}


def test_glass_and_black_say_nothing(slide):
    rng = np.random.default_rng(2)
    glass = rng.integers(250, 253, (20, SIDE, SIDE, 3), dtype=np.uint8)
    black = np.zeros((20, SIDE, SIDE, 3), np.uint8)
    black[:, 0, 0, 0] = np.arange(20)  # not one equal to another
    pink = np.full((2, SIDE, SIDE, 3), (230, 120, 190), np.uint8)
    pink[1, 0, 0] = 0
    overlaps = find_overlaps(np.concatenate([glass, black, pink]), progress=False)
    assert not len(overlaps.pairs) and len(set(overlaps.islands)) == 42


def test_a_patch_that_is_glass_but_for_one_block_is_found(slide):
    bare = np.full((2000, 2000, 3), 245, np.uint8)
    bare[480:496, 480:496] = slide[:16, :16]
    corners = [(400, 400), (480, 480), (416, 464), (1000, 1000)]
    overlaps = find_overlaps(cut(bare, corners), progress=False)
    assert set(found_pairs(overlaps)) == {(0, 1), (0, 2), (1, 2)}


def test_half_of_the_blocks_must_be_equal(slide):
    """One block that was pasted into other tissue is no overlap."""
    first, second = cut(slide, [(0, 0), (800, 800)])
    second[:16, :16] = first[:16, :16]
    assert not len(find_overlaps(np.stack([first, second]), progress=False).pairs)
    second[:16, :64] = first[:16, :64]
    second[16:48] = first[16:48]
    assert len(find_overlaps(np.stack([first, second]), progress=False).pairs) == 0  # 16 of 36
    second[48:64] = first[48:64]
    assert len(find_overlaps(np.stack([first, second]), progress=False).pairs) == 1  # 22 of 36


def test_equal_patches_are_copies_of_the_first(slide):
    patches = cut(slide, [(0, 0), (900, 0), (0, 0), (32, 0), (0, 0), (900, 0)])
    overlaps = find_overlaps(patches, progress=False)
    assert overlaps.copies.tolist() == [0, 1, 0, 3, 0, 1]
    assert found_pairs(overlaps) == {(0, 3): (32, 0)}
    assert overlaps.islands.tolist() == [0, 1, 0, 0, 0, 1]
    assert overlaps.neighbours.tolist() == [3, 1, 3, 3, 3, 1]


def test_ten_thousand_equal_patches_are_one_island():
    white = np.broadcast_to(np.full((SIDE, SIDE, 3), 255, np.uint8), (10_000, SIDE, SIDE, 3))
    overlaps = find_overlaps(white, progress=False)
    assert not overlaps.copies.any() and not overlaps.islands.any() and not len(overlaps.pairs)


def test_a_pattern_in_many_patches_does_not_blow_up(slide):
    """A scanner's mark in 2,000 patches would be two million pairs."""
    rng = np.random.default_rng(3)
    patches = rng.integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    patches[:, :16] = slide[:16, :32]
    assert not len(find_overlaps(patches, progress=False).pairs)


def test_leaked_share_is_the_mean_over_random_splits(slide):
    rng = np.random.default_rng(4)
    corners = np.unique(rng.integers(0, 40, (120, 2)), axis=0) * GRID
    overlaps = find_overlaps(cut(slide, corners.tolist()), progress=False)
    count, shares = len(corners), []
    n_valid = int(np.ceil(0.2 * count))
    for _ in range(4000):
        train = np.ones(count, bool)
        train[rng.permutation(count)[:n_valid]] = False
        leaks = np.zeros(count, bool)
        for a, b in (overlaps.pairs.T, overlaps.pairs.T[::-1]):
            leaks[a[train[b]]] = True
        shares.append(leaks[~train].mean())
    expected = leaked_share(overlaps.neighbours, 0.2)
    assert 0.3 < expected < 0.999
    assert abs(np.mean(shares) - expected) < 5 * np.std(shares) / len(shares) ** 0.5


def test_files_and_arrays_give_the_same(sample):
    paths = sample.train_paths
    pixels = np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])
    from_files, from_pixels = (find_overlaps(what, progress=False) for what in (paths, pixels))
    assert from_files.islands.tolist() == from_pixels.islands.tolist()
    assert from_files.ids == tuple(sample.labels["id"])


def test_what_cannot_be_compared(refused, sample):
    with refused(InputError, "float64"):
        find_overlaps(np.zeros((2, 96, 96, 3)))
    with refused(InputError, "0 patches"):
        find_overlaps([])
    with refused(InputError, "15 x 15 px"):
        find_overlaps(np.zeros((2, 15, 15, 3), np.uint8))
    with refused(InputError, "1 ids were given for 2 patches"):
        find_overlaps(np.zeros((2, 96, 96, 3), np.uint8), ["a"])
    with refused(InputError, "96"):
        find_overlaps(
            sample.train_paths, recipe=Recipe(original_size=64, crop_size=60), progress=False
        )
