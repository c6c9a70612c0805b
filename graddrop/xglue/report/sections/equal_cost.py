"""The section on time to quality: scores at equal cost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from graddrop.xglue.report import format
from graddrop.xglue.report.analysis_plan import AnalysisPlan
from graddrop.xglue.report.collect import Experiment
from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Table
from graddrop.xglue.report.frontier import AtCost, frontier
from graddrop.xglue.report.pictures.cost import draw_frontier
from graddrop.xglue.report.pictures.style import picture


def cost_section(experiment: Experiment, plan: AnalysisPlan) -> Iterator[Block]:
    """Show what each arm reaches for its cost; nothing where the plan knows no cost."""
    if not plan.cost:
        return
    yield Heading("Score at equal cost")
    for task in experiment.tasks:
        found = frontier(experiment, task, plan)
        if not found:
            continue
        yield picture(
            f"cost-{task}",
            f"{task}: official score on test against the cost of training; the line is standard "
            f"fine-tuning for fewer steps{experiment.among}",
            draw_frontier(found),
        )
        yield Paragraph(_reading(task, found))
        yield _table(experiment, task, found)
    yield Items(
        [
            "Cost is the number of steps times what a step takes in units of a standard one, "
            "measured apart from these runs; evaluation and what happens once are not in it.",
            "Between its runs the score of standard fine-tuning is taken to be linear in the "
            "logarithm of the cost, seed by seed; beyond them nothing is said.",
            "Intervals are Student's, 95 %, over seeds, not corrected.",
        ]
    )


def _reading(task: str, found: Sequence[AtCost]) -> str:
    """Say which arms lie above the curve, which below, and of which that cannot be said."""
    places: dict[str, list[str]] = {"above": [], "neither above nor below": [], "below": []}
    for entry in found:
        difference = entry.difference
        if difference is None or difference.half_width is None:
            continue
        apart = abs(difference.mean) > difference.half_width
        side = "above" if difference.mean > 0 else "below"
        shown = f"{_name(entry)} ({format.points(difference.mean)})"
        places[side if apart else "neither above nor below"].append(shown)
    said = [f"{place}: {', '.join(arms) or 'none'}" for place, arms in places.items()]
    return (
        f"On {task}, beside the curve of standard fine-tuning at the same cost, by the interval of "
        f"the difference: {'; '.join(said)}."
    )


def _name(entry: AtCost) -> str:
    """Return the arm's label without what the columns of its steps say."""
    told = [pair for pair in entry.arm.settings if pair[0] not in ("max_steps", "warmup_steps")]
    return replace(entry.arm, settings=tuple(told)).label


def _table(experiment: Experiment, task: str, found: list[AtCost]) -> Table:
    return Table(
        f"cost-{task}",
        f"{task}: official score on test in %, and its difference to standard fine-tuning at the "
        f"same cost in points{experiment.among}",
        [
            "method",
            "steps",
            "cost",
            "score",
            "standard at this cost",
            "difference",
            "95 % interval",
        ],
        [
            [
                _name(entry),
                str(entry.steps),
                f"{entry.cost:.1f}",
                format.score(entry.score),
                format.score(entry.standard),
                format.points(entry.difference.mean) if entry.difference else format.NOTHING,
                format.interval(entry.difference) if entry.difference else format.NOTHING,
            ]
            for entry in found
        ],
    )
