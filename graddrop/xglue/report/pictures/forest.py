"""The figure of differences with their intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graddrop.xglue.report.comparison import CONTROLS, Comparison
from graddrop.xglue.report.pictures.style import WIDTH, line_style, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_differences(comparisons: Sequence[Comparison], margin: float) -> "Figure":
    """Draw one line per comparison: its mean, and its 95 % interval where there is one.

    Args:
        comparisons: At least one.
        margin: In points; differences within are shaded.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.0 + 0.28 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color="#000000", alpha=0.08, linewidth=0)
    axes.axvline(0, color="#000000", linewidth=0.8)
    names = []
    for place, comparison in enumerate(comparisons):
        difference = comparison.difference
        color, _ = line_style(CONTROLS.index(comparison.control.method))
        axes.errorbar(
            100 * difference.mean,
            place,
            xerr=None if difference.half_width is None else 100 * difference.half_width,
            fmt="o",
            markerfacecolor=color if comparison.family else "#ffffff",
            color=color,
            markersize=5,
            capsize=3,
        )
        task = comparison.task or "all tasks"
        names.append(f"{task}: {comparison.arm.label} - {comparison.control.label}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    plain_axes(axes, "", "difference in points of the official score; hollow: not tested", "")
    return figure
