"""The page of a report: one HTML file with its pictures inside, which needs no network."""

import base64
import io

from jinja2 import Environment, PackageLoader

from .judge import plural

INCHES = 100  # px an inch


def write_page(numbers: dict, figures: dict) -> str:
    """Return a report as HTML.

    Args:
        numbers: see `write_report`. figures: matplotlib Figures by name.
    Returns:
        the page; every text in it is escaped.
    """
    pages = Environment(
        loader=PackageLoader("hcd", "evidence"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"share": _share, "number": _number, "interval": _interval, "plural": plural}
    pictures = {name: _picture(figure) for name, figure in figures.items()}
    return pages.get_template("report.html").render(**numbers, pictures=pictures)


def _picture(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=INCHES)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _share(value, digits=1):
    return "" if value is None else f"{value:.{digits}%}".replace("%", " %")


def _number(value, digits=4):
    return "cannot be told" if value is None else f"{value:,.{digits}f}"


def _interval(value, digits=4):
    return "cannot be told" if value is None else " to ".join(f"{end:.{digits}f}" for end in value)
