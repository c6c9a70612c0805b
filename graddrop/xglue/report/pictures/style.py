"""How the figures of a report look, and how they become files."""

from io import BytesIO
from typing import TYPE_CHECKING

from graddrop.xglue.report.document import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches; text of 9 points is then readable on a page of A4."""

# Okabe and Ito's colours, told apart by colour-blind people; the dashes tell them apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

Style = tuple[str, str | tuple[int, tuple[int, ...]]]
"""A colour, and dashes as matplotlib takes them."""


def line_style(index: int) -> Style:
    """Return the look of a line.

    Args:
        index: Number of the line, from 0. The first seven differ in colour and in dashes; the next
            ones repeat the colours with other dashes, 49 in all.
    """
    rounds, place = divmod(index, len(_COLORS))
    return _COLORS[place], _DASHES[(place + rounds) % len(_DASHES)]


def plain_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Label a panel, and take away what carries no information."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


_POWER_OF_TEN = r"$\mathdefault{"  # how matplotlib begins the names of ticks on a logarithmic axis


def picture(name: str, caption: str, figure: "Figure") -> Picture:
    """Return a figure as part of a document, in every format; equal figures give equal bytes.

    Args:
        name: Name of its files, without a suffix.
        caption: What it shows.
        figure: What is drawn.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # A dollar in a name is a dollar; powers of ten on an axis, maybe not there yet, are not.
        if "$" in text.get_text() and not text.get_text().startswith(_POWER_OF_TEN):
            text.set_parse_math(False)
    svg, png = BytesIO(), BytesIO()
    # The names inside an SVG file hang on the salt, which is random by default.
    with matplotlib.rc_context({"svg.hashsalt": "graddrop", "svg.fonttype": "path"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=200)
    return Picture(name, caption, {"svg": svg.getvalue(), "png": png.getvalue()})
