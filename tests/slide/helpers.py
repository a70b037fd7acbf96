"""What the tests of slides share: a model whose answer anybody can compute, and slides that are not
whole."""

import numpy as np
import tifffile

from hcd.slide.opened import Slide

SIZE = 3072, 2304  # px of level 0; level 2 is the painting itself
PLACES = [(420, 300, 90)]
CARD = {"spacing_um_px": 0.972, "weights_sha256": "0" * 64, "limits": "a test's"}


class Darkness:
    """A model: how dark the centre 32 x 32 px of a patch is, in [0, 1]."""

    original_size = 96
    card = CARD

    def __init__(self):
        self.calls = []

    def probabilities(self, patches):
        assert patches.dtype == np.uint8 and patches.shape[1:] == (96, 96, 3)
        self.calls.append(len(patches))
        return 1 - patches[:, 32:64, 32:64].astype(float).mean(axis=(1, 2, 3)) / 255


def most_memory():
    """Return the most memory that this process has held, in MiB; Linux. Of a process that was
    started by a large one, getrusage tells the large one's."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def of_array(levels):
    """Return a Slide of arrays."""

    def pixels(level, x, y, width, height):
        return levels[level][y : y + height, x : x + width]

    sizes = [level.shape[1::-1] for level in levels]
    return Slide("array", sizes, (0.25, 0.25), "arrays", "", pixels, lambda: None)


def saved_levels(path):
    """Return the pixels of each level as tifffile, which wrote them, reads them."""
    with tifffile.TiffFile(path) as file:
        first = file.pages[0]
        pages = [first, *first.pages] if first.subifds else file.pages
        return [page.asarray() for page in pages]


def drop_tiles(path, level, tiles=None):
    """Take tiles out of a level, all by default, as programs do that skip what is empty."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        first = file.pages[0]
        page = [first, *first.pages][level] if first.subifds else file.pages[level]
        for name in ("TileByteCounts", "TileOffsets"):
            values = list(page.tags[name].value)
            for tile in range(len(values)) if tiles is None else tiles:
                values[tile] = 0
            page.tags[name].overwrite(values)
