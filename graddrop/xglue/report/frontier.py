"""What each way to train reaches, beside standard fine-tuning at the same cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
        steps: Of its training.
        cost: Of its training, in standard steps.
        score: Official score on test, the mean over seeds.
        standard: That of standard fine-tuning at this cost, over the seeds of `difference`; None
            where no seed has runs of it that cost less and more.
        difference: Arm less standard at this cost, in pairs of seeds.
    """

    task: str
    arm: Arm
    steps: int
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
    by_seed: dict[Arm, Mapping[int, float]] = {}
    found = []
    for arm in experiment.arms:
        per_step, runs = _per_step(arm, plan), experiment.of(task, arm)
        scores = scores_by_seed(experiment, task, arm, plan)
        if per_step is None or not scores:
            continue
        steps = runs[0].result["steps"]
        if arm.method == "standard":
            curve[steps] = scores
        found.append(AtCost(task, arm, steps, per_step * steps, estimate(list(scores.values()))))
        by_seed[arm] = scores
    order = sorted(found, key=lambda entry: (entry.arm.method != "standard", entry.cost))
    return [_beside_curve(entry, by_seed[entry.arm], curve) for entry in order]


def _per_step(arm: Arm, plan: AnalysisPlan) -> float | None:
    if arm.method == "standard":
        return 1.0
    names = (arm.label, arm.without_settings.label, arm.method)
    return next((plan.cost[name] for name in names if name in plan.cost), None)


def _beside_curve(
    entry: AtCost, scores: Mapping[int, float], curve: Mapping[float, Mapping[int, float]]
) -> AtCost:
    if entry.arm.method == "standard":
        return entry
    theirs = {seed: interpolated(entry.cost, curve, seed) for seed in scores}
    seeds = [seed for seed in sorted(scores) if theirs[seed] is not None]
    values = [value for seed in seeds if (value := theirs[seed]) is not None]
    if not seeds:
        return entry
    differences = [scores[seed] - value for seed, value in zip(seeds, values, strict=True)]
    return replace(entry, standard=estimate(values), difference=estimate(differences))


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
