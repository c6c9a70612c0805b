"""Learning curves of fine-tuning runs as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graddrop.xglue.tasks import TRAIN_LANGUAGE, get_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind people; the dashes tell them apart in print.
_STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#56B4E9", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (1, 1))),
    ("#000000", (0, (8, 2))),
)

Curve = dict[int, float]
"""Value by optimizer step."""


def curves(result: Mapping[str, Any]) -> dict[str, Curve]:
    """Take the learning curves out of a run's history.

    Args:
        result: What `graddrop.xglue.train.finetune` returns.

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


def draw_curves(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one row of panels per task: loss, score in English, score in the other languages.

    A thin line is one run, a thick one the mean over the seeds of a method.

    Args:
        results: What `graddrop.xglue.train.finetune` returned, of any tasks, methods and seeds.
        path: File to write; its suffix chooses the format.

    Raises:
        ValueError: If there are no results, or more methods than can be told apart.
        OSError: If the file cannot be written.
    """
    # Not pyplot: no window, and nothing that lives on after the figure is written.
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result["task"] for result in results))
    methods = list(dict.fromkeys(result["config"]["method"] for result in results))
    if not results:
        raise ValueError("no results to draw")
    if len(methods) > len(_STYLES):
        raise ValueError(f"at most {len(_STYLES)} methods can be told apart, got {len(methods)}")
    figure = Figure(figsize=(9.0, 0.6 + 2.4 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 3, squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        of_task = [result for result in results if result["task"] == task]
        score = of_task[0]["metric"].replace("_", " ")
        name = get_task(task).folder
        titles = (
            ("loss", f"{name}: training loss", "loss"),
            ("trained", f"{name}: English dev", f"{score} (%)"),
            ("zero-shot", f"{name}: other languages' dev, mean", f"{score} (%)"),
        )
        for axes, (curve, title, unit) in zip(row, titles, strict=True):
            for method, style in zip(methods, _STYLES, strict=False):
                runs = [curves(r)[curve] for r in of_task if r["config"]["method"] == method]
                _draw_method(axes, runs, method, style)
            axes.set_title(title, fontsize=9)
            axes.set_ylabel(unit, fontsize=8)
            axes.set_xlabel("optimizer step", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(methods), fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=200)


def _draw_method(axes: "Axes", runs: Sequence[Curve], method: str, style: Any) -> None:
    color, dashes = style
    for run in runs:
        axes.plot(list(run), list(run.values()), color=color, linewidth=0.6, alpha=0.5)
    # Runs of one method were evaluated at the same steps; one that was cut short ends the mean.
    steps = [step for step in runs[0] if all(step in run for run in runs)] if runs else []
    means = [sum(run[step] for run in runs) / len(runs) for step in steps]
    axes.plot(steps, means, color=color, linestyle=dashes, linewidth=1.8, label=method)
