"""The verdict, and the section on differences to the controls that it rests on."""

from collections.abc import Iterator, Sequence

from graddrop.xglue.report import format
from graddrop.xglue.report.analysis_plan import AnalysisPlan
from graddrop.xglue.report.collect import Experiment
from graddrop.xglue.report.comparison import (
    ALL_TASKS,
    CONTROLS,
    PRIMARY,
    SECONDARY,
    Comparison,
)
from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Picture, Table
from graddrop.xglue.report.pictures.forest import draw_differences
from graddrop.xglue.report.pictures.style import picture
from graddrop.xglue.report.statistics import CONFIDENCE, MIN_PAIRS, POWER, SIGN_FLIPS, pairs_needed

DIFFERENCES_TABLE = "differences"
"""Name of the table of the confirmatory family, and beginning of the names of the others."""


def task_name(experiment: Experiment, task: str | None) -> str:
    """Name a task, or the mean over all."""
    return task or f"mean of {len(experiment.tasks)} tasks"


def verdict(comparisons: Sequence[Comparison], plan: AnalysisPlan) -> str:
    """Return one sentence on what the runs decide, or how many seeds it would take.

    Args:
        comparisons: All of the report.
        plan: Its confirmatory family is what is spoken of; without one it is the first masking
            method less standard fine-tuning, in each task.
    """
    parts = []
    for primary in plan.primary:
        found = [c for c in comparisons if primary.is_about(c.task, c.arm, c.control)]
        if not found:
            parts.append(
                f"on {primary.task} there is no pair of {primary.arm} and {primary.control} yet"
            )
        parts += [_sentence(c, plan) for c in found]
    if not plan.primary:
        masking = [c for c in comparisons if c.arm.masks and c.control.method == "standard"]
        parts = [_sentence(c, plan) for c in masking if c.arm == masking[0].arm and c.task]
    if not parts:
        return (
            "Verdict: none, since no masking method ran with the settings of standard fine-tuning."
        )
    return f"Verdict: {'; '.join(parts)}."


def _sentence(comparison: Comparison, plan: AnalysisPlan) -> str:
    difference = comparison.difference
    about = f"{comparison.arm.label} less {comparison.control.label} is"
    numbers = [f"{difference.n} pair{'s' if difference.n > 1 else ''}"]
    if difference.half_width is not None:
        numbers.insert(0, f"95 % interval {format.interval(difference)}")
    if comparison.p_holm is not None:
        numbers.append(f"p {format.p_value(comparison.p_holm)} after Holm")
    return (
        f"on {comparison.task} {about} {format.points(difference.mean)} points "
        f"({', '.join(numbers)}): {reading(comparison, plan)}"
    )


def reading(comparison: Comparison, plan: AnalysisPlan) -> str:
    """Say in some words what a comparison shows."""
    if comparison.family is None:
        return "not tested"
    within = comparison.within(plan.margin)
    if comparison.differs:
        more = "more" if comparison.difference.mean > 0 else "less"
        return f"{more}, by less than matters" if within else more
    if within:
        return "no difference that matters"
    tests = len(plan.primary) if comparison.family == PRIMARY else 1
    values = list(comparison.differences.values())
    needed = pairs_needed(values, plan.margin / 100, (1 - CONFIDENCE) / tests)
    if needed is None or needed <= len(values):
        return "undecided"
    return f"undecided, {needed} pairs would show {plan.margin:g} points"


def difference_picture(
    experiment: Experiment, comparisons: Sequence[Comparison], plan: AnalysisPlan
) -> Picture:
    """Draw how the arms differ from their controls; there is at least one pair."""
    return picture(
        "differences",
        "Score on test less that of the control: mean over pairs and 95 % interval, in points; "
        f"grey: less than {plan.margin:g} points{experiment.among}",
        draw_differences(comparisons, plan.margin),
    )


def difference_section(
    experiment: Experiment, comparisons: Sequence[Comparison], plan: AnalysisPlan
) -> Iterator[Block]:
    """Show how the arms differ from their controls, pair by pair."""
    yield Heading("Differences to the controls")
    if not comparisons:
        yield Paragraph(
            "There is no pair: no run of standard, lr-matched or batch-matched has the task, seed "
            "and settings of another run."
        )
        return
    for task in experiment.tasks:
        languages = plan.outcome(experiment, task)
        yield Paragraph(f"{task}: official score, mean over {', '.join(languages)}.")
    primary = [c for c in comparisons if c.family == PRIMARY]
    if primary:
        yield _table(experiment, DIFFERENCES_TABLE, "Confirmatory family", primary, plan)
    for control in CONTROLS:
        chosen = [c for c in comparisons if c.control.method == control and c.family != PRIMARY]
        if chosen:
            title = "Secondary: score" if primary else "Score"
            yield _table(
                experiment,
                f"{DIFFERENCES_TABLE}-{control}",
                f"{title} on test less that of {control}",
                chosen,
                plan,
            )
    yield Items([*_notes(comparisons, plan)])


def _table(
    experiment: Experiment,
    name: str,
    caption: str,
    comparisons: Sequence[Comparison],
    plan: AnalysisPlan,
) -> Table:
    heads = ["task", "method", "less", "difference", "95 % interval", "pairs", "p", "p (Holm)"]
    return Table(
        name,
        f"{caption}, in points{experiment.among}",
        [*heads, "reading"],
        [
            [
                task_name(experiment, comparison.task),
                comparison.arm.label,
                comparison.control.label,
                format.points(comparison.difference.mean),
                format.interval(comparison.difference),
                str(comparison.difference.n),
                format.paired_p_value(comparison.p, comparison.difference)
                if comparison.family
                else format.NOTHING,
                format.p_value(comparison.p_holm),
                reading(comparison, plan),
            ]
            for comparison in comparisons
        ],
        names=3,
    )


def _notes(comparisons: Sequence[Comparison], plan: AnalysisPlan) -> Iterator[str]:
    yield (
        "A pair are two runs of the same task, seed and settings but for what the method sets, "
        "each method at its own learning rate; the seed decides the head's first weights and the "
        "order of the examples, which both runs share. Seeds are all that is sampled: languages "
        "and texts are fixed, so they are averaged."
    )
    yield (
        f"p (two-sided, over seeds) is from {SIGN_FLIPS} pairs on that of the sign-flip test, with "
        f"fewer of Student's paired t test; fewer than {MIN_PAIRS} are too few. Intervals are "
        "Student's and not corrected."
    )
    counts = {
        family: sum(c.p is not None and c.family == family for c in comparisons)
        for family in (PRIMARY, SECONDARY)
    }
    if plan.primary:
        yield (
            f"Holm's correction counts the {counts[PRIMARY]} tests of the confirmatory family, "
            f"named before the runs, as one family, and the {counts[SECONDARY]} others as another."
        )
    else:
        yield (
            f"Holm's correction counts all tests of this section, {counts[SECONDARY]} here, as one "
            "family: none of them was named before the runs."
        )
    if any(c.family is None for c in comparisons):
        untested = "A control is not tested against another control"
        several = any(c.task is ALL_TASKS for c in comparisons)
        yield f"{untested}{', nor a mean over tasks beside its parts' if several else ''}."
    yield (
        f"A difference whose 90 % interval lies within ± {plan.margin:g} points does not matter "
        "(two one-sided tests at 5 %). How many pairs it would take counts with the spread of the "
        f"pairs at hand, power {POWER:g} and a t test at the level of the first of the family."
    )
    yield (
        "lr-matched is standard fine-tuning at the learning rate that gives the masks' mean step; "
        "batch-matched is standard fine-tuning on (1 - drop) of the batch, whose gradients have "
        "the same two moments as masked ones. What remains beside it is the masks' own."
    )
