"""The figure of a task's learning curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graddrop.xglue.report.collect import Arm, Run
from graddrop.xglue.report.pictures.style import WIDTH, Style, line_style, plain_axes
from graddrop.xglue.tasks import TRAIN_LANGUAGE, get_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[int, float]
"""Value by optimizer step."""

_PANELS = (
    ("loss", "training loss"),
    ("trained", "English dev"),
    ("zero-shot", "other languages' dev, mean"),
)


def curves(result: Mapping[str, Any]) -> dict[str, Curve]:
    """Take the learning curves out of a run's history.

    Args:
        result: What `graddrop.xglue.training.run.finetune` returns.

    Returns:
        `loss` of training, and the dev score in per cent of the training language (`trained`) and
        averaged over all others (`zero-shot`); a curve without points where nothing was recorded.
    """
    found: dict[str, Curve] = {"loss": {}, "trained": {}, "zero-shot": {}}
    for row in result["history"]:
        if "loss" in row:
            found["loss"][row["step"]] = row["loss"]
        scores = {
            name.removeprefix("eval_"): 100 * value
            for name, value in row.items()
            if len(name) == len("eval_xx") and name.startswith("eval_")
        }
        others = [value for language, value in scores.items() if language != TRAIN_LANGUAGE]
        if TRAIN_LANGUAGE in scores:
            found["trained"][row["step"]] = scores[TRAIN_LANGUAGE]
        if others:
            found["zero-shot"][row["step"]] = sum(others) / len(others)
    return found


def draw_curves(runs: Sequence[Run], arms: Sequence[Arm]) -> "Figure":
    """Draw loss, score in English, score in the other languages.

    A thin line is one run, a thick one the mean over the seeds of an arm. A panel of which no run
    recorded anything is left out.

    Args:
        runs: Of one task; at least one.
        arms: All arms of the report, so that each looks the same in every figure.
    """
    # Not pyplot: no window, and nothing that lives on after the figure is written.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    recorded = [(run.arm, curves(run.result)) for run in runs]
    shown = [(key, what) for key, what in _PANELS if any(found[key] for _, found in recorded)]
    shown = shown or [_PANELS[0]]
    present = [arm for arm in arms if any(arm == run.arm for run in runs)]
    columns = max(1, min(len(present), int(_CHARACTERS // max(len(a.label) + 6 for a in present))))
    height = 2.9 + 0.2 * -(-len(present) // columns)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    score = f"{runs[0].metric.replace('_', ' ')} (%)"
    for axes, (key, what) in zip(panels, shown, strict=True):
        for arm in present:
            of_arm = [found[key] for other, found in recorded if other == arm]
            _draw_arm(axes, of_arm, arm.label, line_style(arms.index(arm)))
        title = f"{get_task(runs[0].task).folder}: {what}"
        plain_axes(axes, title, "optimizer step", "loss" if key == "loss" else score)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
        handlelength=3.5,
    )
    return figure


_CHARACTERS = 115
"""As many fit into one line of the legend."""


def _draw_arm(axes: "Axes", runs: Sequence[Curve], label: str, style: Style) -> None:
    color, dashes = style
    for run in runs if len(runs) > 1 else ():
        axes.plot(list(run), list(run.values()), color=color, linewidth=0.6, alpha=0.5)
    # Runs of one arm were evaluated at the same steps; one that was cut short ends the mean.
    steps = [step for step in runs[0] if all(step in run for run in runs)] if runs else []
    means = [sum(run[step] for run in runs) / len(runs) for step in steps]
    # A line through one point cannot be seen.
    marker = "o" if len(steps) == 1 else None
    axes.plot(
        steps, means, color=color, linestyle=dashes, linewidth=1.8, marker=marker, label=label
    )
