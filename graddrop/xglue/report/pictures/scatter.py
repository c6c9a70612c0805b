"""The figure of gains against sizes of pretraining text."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from graddrop.xglue.report.format import amount
from graddrop.xglue.report.gains import Gains
from graddrop.xglue.report.pictures.style import WIDTH, line_style, plain_axes
from graddrop.xglue.report.textsizes import TextSizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT = 9.0
_COLUMNS = 2

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def draw_gains(entries: Sequence[Gains], sizes: TextSizes) -> "Figure":
    """Draw one panel per arm: a point per language, named by its code.

    Args:
        entries: Gains over one control.
        sizes: Sizes of the pretraining texts; languages without one are left out.
    """
    from matplotlib.figure import Figure

    rows = -(-len(entries) // _COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.4 + 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True, sharex=True)
    for axes in panels.flat:
        axes.margins(0.08, 0.18)  # of all: panels share their limits
    for axes in panels.flat[len(entries) :]:
        axes.set_visible(False)
    named: list[tuple[Axes, list[str], list[tuple[float, float]]]] = []
    for axes, entry in zip(panels.flat, entries, strict=False):
        codes = [code for code in entry.by_language if code in sizes.by_language]
        points = [(sizes.by_language[code], 100 * entry.by_language[code]) for code in codes]
        axes.axhline(0, color="#000000", linewidth=0.8)
        x, y = ([point[axis] for point in points] for axis in (0, 1))  # maybe none of either
        axes.scatter(x, y, color=line_style(0)[0], s=18, zorder=3)
        axes.set_xscale("log")
        title = f"{entry.arm.label} - {entry.control.label}\n{_verdict(entry)}"
        unit = f"pretraining text ({sizes.unit}, log scale)"
        plain_axes(axes, title, unit, "gain (points)")
        axes.tick_params(labelleft=True, labelbottom=True)
        axes.xaxis.set_major_formatter(lambda size, _: amount(size))
        named.append((axes, codes, points))
    # Where the points lie on the page is known only now, and must not change any more.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, codes, points in named:
        _name_points(axes, codes, points)
    return figure


def _verdict(entry: Gains) -> str:
    found = entry.correlation
    if found is None:
        return "no correlation: too few languages, or no spread"
    return f"Spearman {found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}], n={found.n}"


def _name_points(axes: "Axes", codes: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write each code beside its point where it covers nothing, with a line if that is far."""
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = 72 / figure.dpi
    places = [tuple(scale * axes.transData.transform(point)) for point in points]
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    for code, point, (x, y) in zip(codes, points, places, strict=True):
        width, height = 0.62 * _FONT * len(code), _FONT
        offset, box = min(
            _candidates(x, y, width, height), key=lambda c: _overlap(c[1], taken) + 0.02 * abs(c[0])
        )
        taken.append(box)
        axes.annotate(
            code,
            point,
            (offset.real, offset.imag),
            textcoords="offset points",
            fontsize=_FONT,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops=(
                {"arrowstyle": "-", "linewidth": 0.5, "color": "#666666", "shrinkA": 3}
                if abs(offset) > 1.2 * _FONT
                else None
            ),
        )


def _candidates(x: float, y: float, width: float, height: float) -> Iterator[tuple[complex, Box]]:
    """Yield places around a point, as an offset of the label's centre and the box it takes."""
    for ring, (right, up) in product((1.0, 2.0, 3.0, 4.0), _DIRECTIONS):
        dx, dy = right * (ring * width / 2 + 5), up * (ring * height / 2 + 4)
        yield (
            complex(dx, dy),
            (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2),
        )


_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


def _overlap(box: Box, taken: Sequence[Box]) -> float:
    """Return the area in square points that a box shares with others."""
    left, bottom, right, top = box
    return sum(
        max(0.0, min(right, r) - max(left, x)) * max(0.0, min(top, t) - max(bottom, b))
        for x, b, r, t in taken
    )
