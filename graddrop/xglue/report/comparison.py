"""Each arm's official scores, next to those of its controls under the same seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.report.statistics import Estimate, estimate, holm, paired_p

CONTROLS = ("standard", "lr-matched")

ALL_TASKS = None
"""Stands for the mean over all tasks of the experiment."""


@dataclass(frozen=True)
class Comparison:
    """An arm less a control, in pairs of runs with the same task, seed and settings.

    Args:
        task: Name of the task, or `ALL_TASKS`.
        arm: What is compared.
        control: With what.
        difference: Of the official scores on test, as a fraction.
        p: Of the paired t test over seeds; None if it could not be made.
        p_holm: The same, corrected for all comparisons of the experiment.
    """

    task: str | None
    arm: Arm
    control: Arm
    difference: Estimate
    p: float | None
    p_holm: float | None = None


def scores_by_seed(experiment: Experiment, task: str | None, arm: Arm) -> dict[int, float]:
    """Return the official test scores of an arm.

    Args:
        experiment: The runs.
        task: Name of the task, or `ALL_TASKS`: the mean over tasks, of the seeds that have all.
        arm: What was run.

    Returns:
        Fractions by seed.
    """
    if task is not ALL_TASKS:
        found = {run.seed: run.score("test") for run in experiment.of(task, arm)}
        return {seed: score for seed, score in found.items() if score is not None}
    by_task = [scores_by_seed(experiment, name, arm) for name in experiment.tasks]
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
        control: A name in `CONTROLS`; `lr-matched` is a control of what masks gradients, at the
            same drop probability.

    Returns:
        None if there is no such control, or no run of it.
    """
    if arm.method == control or (control == "lr-matched" and not arm.masks):
        return None
    drop_prob = arm.drop_prob if control == "lr-matched" else None
    wanted = Arm(control, drop_prob, (), arm.settings)
    return wanted if wanted in experiment.arms else None


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Return the differences of what both have, by seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def compare(experiment: Experiment) -> list[Comparison]:
    """Compare every arm with its controls in every task and over all tasks.

    Args:
        experiment: The runs.

    Returns:
        One comparison wherever at least one pair of runs exists.
    """
    found = []
    for control in CONTROLS:
        for task in rows_of(experiment):
            for arm in experiment.arms:
                other = control_of(experiment, arm, control)
                if other is None:
                    continue
                ours, theirs = (scores_by_seed(experiment, task, a) for a in (arm, other))
                differences = pairs(ours, theirs)
                if differences:
                    p = paired_p(differences)
                    found.append(Comparison(task, arm, other, estimate(differences), p))
    corrected = holm([comparison.p for comparison in found])
    return [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]
