"""The figure of scores against the cost of training."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graddrop.xglue.report.frontier import AtCost
from graddrop.xglue.report.pictures.style import WIDTH, line_style, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "s^Dv<>PX"
"""One more than there are colours, so that the first 56 arms look different."""


def draw_frontier(entries: Sequence[AtCost]) -> "Figure":
    """Draw a point with its 95 % interval for each arm, a line through those of one method.

    An arm far below all runs of standard fine-tuning stands at the lower edge, and its score beside
    its name: the others could not be told apart otherwise.

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
    edge = _lower_edge(entries)
    for index, (label, group) in enumerate(groups.items()):
        color, _ = line_style(index)
        below = [entry for entry in group if 100 * entry.score.mean < edge]
        if below:
            label += f" ({', '.join(f'{100 * entry.score.mean:.1f}' for entry in below)}, below)"
        axes.errorbar(
            [entry.cost for entry in group],
            [edge if entry in below else 100 * entry.score.mean for entry in group],
            yerr=[0 if entry in below else 100 * (entry.score.half_width or 0) for entry in group],
            fmt="o-" if len(group) > 1 else _MARKERS[index % len(_MARKERS)],
            color=color,
            markersize=5,
            capsize=3,
            linewidth=1.2,
            label=label,
        )
    plain_axes(axes, "", "cost of training in standard steps (log scale)", "official score (%)")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    standard = _standard(entries)
    axes.set_xticks(sorted({round(entry.cost) for entry in standard or entries}))
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _standard(entries: Sequence[AtCost]) -> list[AtCost]:
    return [entry for entry in entries if entry.arm.method == "standard"]


def _lower_edge(entries: Sequence[AtCost]) -> float:
    """Return the score, in per cent, below which an arm would squeeze the others together."""
    curve = [100 * entry.score.mean for entry in _standard(entries)]
    if len(curve) < 2:
        return -math.inf
    top = max(100 * entry.score.mean for entry in entries)
    return min(curve) - 0.25 * (top - min(curve))
