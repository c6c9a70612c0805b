"""What each way to train reaches, beside standard fine-tuning at the same cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from graddrop.xglue.report.analysis_plan import AnalysisPlan
from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.report.comparison import scores_by_seed
from graddrop.xglue.report.statistics import Estimate, estimate

Points = list[tuple[float, float]]
"""Cost, in standard steps, and score, a fraction: in the order of costs."""


@dataclass(frozen=True)
class AtCost:
    """An arm at its cost, beside standard fine-tuning at the same.

    Args:
        task: Name of the task.
        arm: What was run.
        cost: Of its training, in standard steps.
        score: Official score on test, the mean over seeds.
        standard: That of standard fine-tuning at this cost, over the seeds of `difference`; None
            where no seed has runs of it that cost less and more.
        difference: Arm less standard at this cost, in pairs of seeds.
    """

    task: str
    arm: Arm
    cost: float
    score: Estimate
    standard: Estimate | None = None
    difference: Estimate | None = None


def frontier(experiment: Experiment, task: str, plan: AnalysisPlan) -> list[AtCost]:
    """Hold every arm against what standard fine-tuning reaches at the same cost.

    Standard fine-tuning was run for several numbers of steps, each with its schedule scaled to it.
    Between two neighbours its score is taken to be linear in the logarithm of the cost, seed by
    seed; beyond the ends nothing is said.

    Args:
        experiment: The runs, those of the other arms for any number of steps.
        task: Name of the task.
        plan: Has the cost of a step by arm; an arm without one is left out.

    Returns:
        Standard fine-tuning first, by cost.
    """
    curve: dict[float, Mapping[int, float]] = {}
    found = []
    for arm in experiment.arms:
        cost, scores = (
            _cost(experiment, task, arm, plan),
            scores_by_seed(experiment, task, arm, plan),
        )
        if cost is None or not scores:
            continue
        if arm.method == "standard":
            curve[cost] = scores
        found.append((arm, cost, scores))
    order = sorted(found, key=lambda entry: (entry[0].method != "standard", entry[1]))
    return [_at_cost(task, *entry, curve) for entry in order]


def _cost(experiment: Experiment, task: str, arm: Arm, plan: AnalysisPlan) -> float | None:
    names = (arm.label, arm.without_settings.label, arm.method)
    per_step = next((plan.cost[name] for name in names if name in plan.cost), None)
    if arm.method == "standard":
        per_step = 1.0
    runs = experiment.of(task, arm)
    return None if per_step is None or not runs else per_step * runs[0].result["steps"]


def _at_cost(
    task: str,
    arm: Arm,
    cost: float,
    scores: Mapping[int, float],
    curve: Mapping[float, Mapping[int, float]],
) -> AtCost:
    mean = estimate(list(scores.values()))
    if arm.method == "standard":
        return AtCost(task, arm, cost, mean)
    theirs = {seed: interpolated(cost, curve, seed) for seed in scores}
    seeds = [seed for seed in sorted(scores) if theirs[seed] is not None]
    values = [value for seed in seeds if (value := theirs[seed]) is not None]
    if not seeds:
        return AtCost(task, arm, cost, mean)
    differences = [scores[seed] - value for seed, value in zip(seeds, values, strict=True)]
    return AtCost(task, arm, cost, mean, estimate(values), estimate(differences))


def interpolated(
    cost: float, curve: Mapping[float, Mapping[int, float]], seed: int
) -> float | None:
    """Return the score of a seed at a cost, linear in its logarithm between two neighbours.

    Args:
        cost: In standard steps.
        curve: Scores of standard fine-tuning by cost and seed.
        seed: Of the run.

    Returns:
        None beyond the ends of the curve, and where the seed lacks one of the neighbours.
    """
    below = max((known for known in curve if known <= cost), default=None)
    above = min((known for known in curve if known >= cost), default=None)
    if below is None or above is None or seed not in curve[below] or seed not in curve[above]:
        return None
    if below == above:
        return curve[below][seed]
    share = math.log(cost / below) / math.log(above / below)
    return (1 - share) * curve[below][seed] + share * curve[above][seed]
