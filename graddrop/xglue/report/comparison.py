"""Each arm's zero-shot scores, next to those of its controls under the same seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graddrop.xglue.report.analysis_plan import AnalysisPlan
from graddrop.xglue.report.collect import Arm, Experiment, ReportError
from graddrop.xglue.report.rates import Rates, is_relative, matches
from graddrop.xglue.report.statistics import (
    CONFIDENCE,
    Estimate,
    estimate,
    holm,
    paired_p,
)

CONTROLS = ("standard", "lr-matched", "batch-matched")

EQUIVALENCE = 0.9
"""Confidence of the interval that is held against the margin: two one-sided tests at 5 %."""

ALL_TASKS = None
"""Stands for the mean over all tasks of the experiment."""

PRIMARY, SECONDARY = "primary", "secondary"


@dataclass(frozen=True)
class Comparison:
    """An arm less a control, in pairs of runs with the same task, seed and settings.

    Args:
        task: Name of the task, or `ALL_TASKS`.
        arm: What is compared.
        control: With what.
        differences: Of the official score on test, as fractions, by seed.
        difference: Their mean with the 95 % interval.
        narrow: Their mean with the 90 % interval.
        family: Of tests, `PRIMARY` or `SECONDARY`; None for what is shown and not tested.
        p: Of the paired test over seeds; None if it was not made.
        p_holm: The same, corrected for all comparisons of the family.
    """

    task: str | None
    arm: Arm
    control: Arm
    differences: Mapping[int, float]
    difference: Estimate
    narrow: Estimate
    family: str | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the test says that there is a difference."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE

    def within(self, margin: float) -> bool:
        """Return whether the 90 % interval says that the difference is smaller than a margin.

        Args:
            margin: In points.
        """
        if self.narrow.half_width is None:
            return False
        return abs(100 * self.narrow.mean) + 100 * self.narrow.half_width < margin


def scores_by_seed(
    experiment: Experiment, task: str | None, arm: Arm, plan: AnalysisPlan | None = None
) -> dict[int, float]:
    """Return the official test scores of an arm.

    Args:
        experiment: The runs.
        task: Name of the task, or `ALL_TASKS`: the mean over tasks, of the seeds that have all.
        arm: What was run.
        plan: Names the languages of the mean; None takes all, as the benchmark does.

    Returns:
        Fractions by seed.
    """
    if task is not ALL_TASKS:
        languages = plan.outcome(experiment, task) if plan else None
        found = {run.seed: run.score("test", languages) for run in experiment.of(task, arm)}
        return {seed: score for seed, score in found.items() if score is not None}
    by_task = [scores_by_seed(experiment, name, arm, plan) for name in experiment.tasks]
    complete = set.intersection(*map(set, by_task))
    return {
        seed: sum(scores[seed] for scores in by_task) / len(by_task) for seed in sorted(complete)
    }


def rows_of(experiment: Experiment) -> list[str | None]:
    """Return the tasks and, if they are several, their mean."""
    tasks: list[str | None] = list(experiment.tasks)
    return [*tasks, ALL_TASKS] if len(tasks) > 1 else tasks


def control_of(experiment: Experiment, arm: Arm, control: str) -> Arm | None:
    """Return the arm that another one is compared with.

    Args:
        experiment: The runs.
        arm: What is compared.
        control: A name in `CONTROLS`; those other than `standard` are controls of masks, at the
            same drop probability and with the same knobs.

    Returns:
        None if there is no such control, or no run of it.
    """
    for other in experiment.arms:
        if other.method == control and other != arm:
            if is_relative(other):
                if matches(experiment, other, arm):
                    return other
            elif arm.method != control and other.settings == arm.settings:
                return other
    return None


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Return the differences of what both have, by seed."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def at_one_rate(
    experiment: Experiment, rates: Rates, task: str | None, arm: Arm, other: Arm
) -> bool:
    """Return whether a control that has the masks' learning rate has that of this arm."""
    tasks = experiment.tasks if task is ALL_TASKS else [task]
    return not is_relative(other) or all(
        rates[name, arm].lr == rates[name, other].lr
        for name in tasks
        if (name, arm) in rates and (name, other) in rates
    )


def compare(experiment: Experiment, rates: Rates, plan: AnalysisPlan) -> list[Comparison]:
    """Compare every arm with its controls in every task and over all tasks.

    Args:
        experiment: The runs.
        rates: Their learning rates.
        plan: Which tests count as one family, and over which languages scores are averaged.

    Returns:
        One comparison wherever at least one pair of runs exists. Of a mean over tasks whose parts
        are tested, and of a control against another, there is no test.

    Raises:
        ReportError: If a test of the confirmatory family is about several arms.
    """
    found = []
    for control in CONTROLS:
        for task in rows_of(experiment):
            for arm in experiment.arms:
                other = control_of(experiment, arm, control)
                if other is None or not at_one_rate(experiment, rates, task, arm, other):
                    continue
                ours, theirs = (scores_by_seed(experiment, task, a, plan) for a in (arm, other))
                differences = pairs(ours, theirs)
                if differences:
                    found.append(_comparison(plan, task, arm, other, differences))
    for primary in plan.primary:
        meant = [c for c in found if primary.is_about(c.task, c.arm, c.control)]
        if len(meant) > 1:  # the family would grow with every arm that is run later
            names = ", ".join(f"{c.arm.label} less {c.control.label}" for c in meant)
            raise ReportError(
                f"expected one comparison on {primary.task} for {primary.arm} and "
                f"{primary.control} of the plan's [[primary]], got {names}: name one of them there"
            )
    for family in (PRIMARY, SECONDARY):
        members = [index for index, c in enumerate(found) if c.family == family]
        corrected = holm([found[index].p for index in members])
        for index, p in zip(members, corrected, strict=True):
            found[index] = replace(found[index], p_holm=p)
    return found


def _comparison(
    plan: AnalysisPlan, task: str | None, arm: Arm, other: Arm, differences: dict[int, float]
) -> Comparison:
    values = list(differences.values())
    family: str | None = SECONDARY
    if any(primary.is_about(task, arm, other) for primary in plan.primary):
        family = PRIMARY
    elif task is ALL_TASKS or arm.method in CONTROLS:
        family = None
    return Comparison(
        task,
        arm,
        other,
        differences,
        estimate(values),
        estimate(values, EQUIVALENCE),
        family,
        paired_p(values) if family else None,
    )
