"""The section on learning rates: what each arm was tried at, and which one was taken."""

from collections.abc import Iterator, Mapping

from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Experiment
from graddrop.xglue.report.document import Block, Heading, Items, Table
from graddrop.xglue.report.rates import Rates


def tuning_section(experiment: Experiment, rates: Rates, select: str) -> Iterator[Block]:
    """Show the choice of each arm in each task; nothing where all runs of a task agree.

    Args:
        experiment: All runs, those at other learning rates included.
        rates: What was chosen of them.
        select: Which dev decided, see `choose_rates`.
    """
    tried = {task: {run.lr for run in experiment.of(task)} for task in experiment.tasks}
    if all(len(found) < 2 for found in tried.values()):
        return
    yield Heading("Learning rates")
    yield Table(
        "rates",
        "Learning rate of each method in each task, and the score on dev at those that were "
        "tried, in %",
        ["task", "method", "taken", "tried: English dev", "tried: mean dev of all languages"],
        [
            [
                task,
                arm.label,
                f"{rates[task, arm].lr:.3g}",
                _tried(rates[task, arm].english),
                _tried(rates[task, arm].dev),
            ]
            for task in experiment.tasks
            for arm in experiment.arms
            if (task, arm) in rates
        ],
        names=2,
    )
    yield Items([*_notes(experiment, rates, select)])


def _tried(scores: Mapping[float, float]) -> str:
    listed = (f"{lr:.3g}: {format.percent(score)}" for lr, score in scores.items())
    return ", ".join(listed) or format.NOTHING


def _notes(experiment: Experiment, rates: Rates, select: str) -> Iterator[str]:
    which = "English dev" if select == "en-dev" else "dev, mean over languages"
    yield (
        "Where a method was run at several learning rates, it is compared at the one with the best "
        f"official score on {which}, mean over the seeds that were scored there; of equal ones the "
        "lowest. Runs at other rates are in no other table."
    )
    for task in experiment.tasks:
        found = {rate.languages for (name, _), rate in rates.items() if name == task} - {()}
        for languages in sorted(found):
            yield f"{task}: dev of {', '.join(languages)}."
    followed = {(a.label, rate.follows.label) for (_, a), rate in rates.items() if rate.follows}
    for arm, leader in sorted(followed):
        yield f"{arm} is taken at the learning rate of {leader}, whose control it is."
    edges = [
        f"{arm.label} on {task}"
        for (task, arm), rate in rates.items()
        if len(rate.dev) > 1 and not rate.follows and rate.lr in (min(rate.dev), max(rate.dev))
    ]
    if edges:
        yield f"The best lies at an edge of what was tried: {', '.join(edges)}; try further rates."
