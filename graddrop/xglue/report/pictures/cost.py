"""The figure of scores against the cost of training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graddrop.xglue.report.frontier import AtCost
from graddrop.xglue.report.pictures.style import WIDTH, line_style, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_frontier(entries: Sequence[AtCost]) -> "Figure":
    """Draw a point with its 95 % interval for each arm, a line through those of one method.

    Args:
        entries: Of one task, at least one.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    groups: dict[str, list[AtCost]] = {}
    for entry in entries:
        groups.setdefault(entry.arm.without_settings.label, []).append(entry)
    for index, (label, group) in enumerate(groups.items()):
        color, _ = line_style(index)
        axes.errorbar(
            [entry.cost for entry in group],
            [100 * entry.score.mean for entry in group],
            yerr=[100 * (entry.score.half_width or 0) for entry in group],
            fmt="o-" if len(group) > 1 else "os^Dv<>"[index % 7],
            color=color,
            markersize=5,
            capsize=3,
            linewidth=1.2,
            label=label,
        )
    plain_axes(axes, "", "cost of training in standard steps (log scale)", "official score (%)")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    standard = [entry for entry in entries if entry.arm.method == "standard"]
    axes.set_xticks(sorted({round(entry.cost) for entry in standard or entries}))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
