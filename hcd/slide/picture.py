"""The heatmap over a slide's thumbnail."""

import io

import numpy as np
from matplotlib.figure import Figure

from .answer import SlideAnswer

WIDE, TALL = 9, 7  # inches, room for the slide
LEAST = 5.5  # inches, what the line below it needs
LINE, EDGE = 0.85, 0.3  # inches: line below, margin
DPI = 150
BAR = 1.6  # inches, the longest scale bar


def draw_answer(answer: SlideAnswer) -> bytes:
    """Return a PNG of the heatmap over the slide, with a scale bar and a colour bar.

    It has no title: the slide's name is a stranger's, in letters that a font may lack.
    """
    width, height = (side * mpp for side, mpp in zip(answer.size, answer.mpp))  # um
    inch = max(width / WIDE, height / TALL)  # um an inch
    # a line of pixels is a slide too, and axes have to have a height
    drawn = max(width / inch, 0.02), max(height / inch, 0.02)
    size = max(drawn[0], LEAST) + 2 * EDGE, drawn[1] + EDGE + LINE
    figure = Figure(figsize=size)  # its own canvas: no window, and pyplot does not hold on to it

    def box(left, bottom, wide, tall):
        return figure.add_axes((left / size[0], bottom / size[1], wide / size[0], tall / size[1]))

    axis = box((size[0] - drawn[0]) / 2, LINE, *drawn)
    axis.imshow(answer.thumbnail, extent=(0, width, height, 0), aspect="auto")
    rows, columns = answer.probabilities.shape
    ends = columns * answer.cell[0] * answer.mpp[0], rows * answer.cell[1] * answer.mpp[1]
    heat = axis.imshow(
        np.ma.masked_invalid(answer.probabilities),
        extent=(0, ends[0], ends[1], 0),
        aspect="auto",
        cmap="YlOrRd",  # light where there is little: the tissue below stays in sight
        vmin=0,
        vmax=1,
        alpha=0.55,
    )
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    colours = box(EDGE, 0.47, 2.6, 0.16)
    figure.colorbar(heat, cax=colours, orientation="horizontal", label="Tumour probability")
    _scale_bar(box(size[0] - EDGE - BAR, 0.3, BAR, 0.4), inch)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _scale_bar(axis, inch):
    """Draw the longest bar of a round length that fits into an axes of BAR inches."""
    length = round_length(BAR * inch)
    axis.set(xlim=(0, BAR * inch), ylim=(0, 1))
    axis.set_axis_off()
    ends = [BAR * inch - length, BAR * inch]
    axis.plot(ends, [0.8, 0.8], color="black", linewidth=4, solid_capstyle="butt")
    axis.text(sum(ends) / 2, 0.55, length_text(length), ha="center", va="top", fontsize=10)


def round_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50 ... that is at most `most`, above 0."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def length_text(um: float) -> str:
    """Write a length in um or mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
