"""How deep the black corners that a turn leaves can reach into a crop: geometry, before any patch
is read."""

import math
from bisect import bisect
from functools import lru_cache

from .errors import InputError


@lru_cache(maxsize=1024)
def corner_depth(original_size, crop_size, max_rotation, max_shift, quarter_turns):
    """Return how far, in px, the worst turn and shift push the crop over the turned patch's edge;
    0.0: no corner ever shows.

    A pixel of the crop comes from a point of the patch; the depth is the farthest that such a point
    lies outside. Turns are linear, so the farthest is a corner of the square that all shifts of the
    crop cover. The turn is about (size // 2, size // 2), which for an even size lies half a pixel
    off the centre (K2), so the two quarter turns do not reach equally far.

    Args:
        original_size, crop_size, max_shift: px. max_rotation: degrees. quarter_turns: whether 90
            degrees either way are added.
    """
    middle = original_size // 2
    first = (original_size - crop_size) // 2 - max_shift
    last = first + 2 * max_shift + crop_size - 1
    corners = [(x - middle, y - middle) for x in (first, last) for y in (first, last)]
    quarters = (-90, 0, 90) if quarter_turns else (0,)
    worst = 0.0
    for degrees in {
        turn + quarter for turn in range(-max_rotation, max_rotation + 1) for quarter in quarters
    }:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        for x, y in corners:
            for offset in (cos * x - sin * y, sin * x + cos * y):
                worst = max(worst, -offset - middle, offset - (original_size - 1 - middle))
    # OpenCV rounds the points to 1/32 px: half of that outside is the edge itself
    return worst if worst > 1 / 64 else 0.0


def require_shallow_corners(original_size, crop_size, max_rotation, max_shift, quarter_turns):
    """Refuse what would show deeper corners than the walkthrough's 3 degrees can at any crop and
    shift, 3.4 px on 96 px.

    CHANGED C21: the walkthrough takes any value, and turns of 45 degrees would put black triangles
    into most crops.

    Raises:
        InputError: corners would show deeper than that; says what to lower to which value.
    """
    # the walkthrough's own 2.4 px stay, as KEPT K2
    most = corner_depth(96, 96, 3, 0, True) * max(1, original_size / 96)

    def fits(crop, rotation):
        return corner_depth(original_size, crop, rotation, max_shift, quarter_turns) <= most

    if fits(crop_size, max_rotation):
        return
    depth = corner_depth(original_size, crop_size, max_rotation, max_shift, quarter_turns)
    # both grow with what they are asked for; a card may ask for tens of thousands of pixels, so
    # they are not tried one by one
    rotation = bisect(range(max_rotation), 0, key=lambda turn: not fits(crop_size, turn)) - 1
    crop = bisect(range(1, crop_size), 0, key=lambda size: not fits(size, max_rotation))
    remedies = [f"max_rotation to {rotation}"] * (rotation >= 0) + [f"crop_size to {crop}"] * (
        crop > 0
    )
    raise InputError(
        f"max_rotation={max_rotation} would show black corners up to {depth:.1f} px deep in a crop"
        f" of {crop_size} px; lower {' or '.join(remedies) or 'max_shift'}"
    )
