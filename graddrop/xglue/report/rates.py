"""Each arm's own learning rate in each task: the one whose runs were best on dev."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from graddrop.xglue.methods import METHODS
from graddrop.xglue.report.collect import Arm, Experiment, Run
from graddrop.xglue.report.statistics import DIGITS
from graddrop.xglue.tasks import TASKS, TRAIN_LANGUAGE


@dataclass(frozen=True)
class Rate:
    """The learning rate of an arm in a task.

    Args:
        lr: The one that was chosen.
        dev: Official score on dev by learning rate, a fraction: the mean over seeds of the mean
            over languages, those that all of these runs were scored in.
        english: The same on English dev alone.
        languages: Those of `dev`.
        follows: What the arm is a control of, if it was taken at that arm's learning rate.
    """

    lr: float
    dev: Mapping[float, float]
    english: Mapping[float, float] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    follows: Arm | None = None


Rates = Mapping[tuple[str, Arm], Rate]
"""By task and arm."""


def is_relative(arm: Arm) -> bool:
    """Return whether an arm is defined beside masks, at their learning rate."""
    method = METHODS[arm.method]
    return method.shrinks_step or method.shrinks_batch


def matches(experiment: Experiment, control: Arm, arm: Arm) -> bool:
    """Return whether a relative control is that of the masks of an arm."""
    if not arm.masks or control.drop_prob != arm.drop_prob or control.settings != arm.settings:
        return False
    masking = experiment.masking(arm)
    if METHODS[control.method].shrinks_batch:  # what is exempt, too, has the smaller batch
        return all(
            masking[name] == value
            for name, value in (("granularity", "element"), ("period", "step"), ("site", "grad"))
        )
    return experiment.masking(control) == masking


def choose_rates(experiment: Experiment, select: str = "average-dev") -> Rates:
    """Choose a learning rate for each arm in each task.

    Where an arm was run at several, it is the one with the best mean official score on dev; of
    equal ones the lowest. A control that is defined beside masks is taken at their arm's rate.

    Args:
        experiment: The runs at all rates.
        select: Which dev decides: `average-dev`, of all languages, or `en-dev`.
    """
    chosen: dict[tuple[str, Arm], Rate] = {}
    arms = sorted(experiment.arms, key=is_relative)  # stable: what they follow comes first
    for task in experiment.tasks:
        for arm in arms:
            runs = experiment.of(task, arm)
            if not runs:
                continue
            rate = _best(task, runs, select)
            if is_relative(arm):
                followed = [a for a in arms if (task, a) in chosen and matches(experiment, arm, a)]
                there = {run.lr for run in runs}
                leader = next((a for a in followed if chosen[task, a].lr in there), None)
                if leader is not None:
                    rate = replace(rate, lr=chosen[task, leader].lr, follows=leader)
            chosen[task, arm] = rate
    return chosen


def at_chosen_rates(experiment: Experiment, rates: Rates) -> Experiment:
    """Return the runs that are compared: those at the learning rate of their arm."""
    runs = [run for run in experiment.runs if run.lr == rates[run.task, run.arm].lr]
    return replace(experiment, runs=tuple(runs))


def _best(task: str, runs: Collection[Run], select: str) -> Rate:
    tried = sorted({run.lr for run in runs})
    if len(tried) == 1:
        return Rate(tried[0], {})
    # Runs that were scored on English dev alone do not narrow what others say of all languages.
    leaking = TASKS[task].leaking
    widest = max((set(run.scores("dev", run.metric)) - leaking for run in runs), key=len)
    tuning = [run for run in runs if run.score("dev", widest) is not None]
    dev, english = (_by_rate(tuning, languages) for languages in (widest, {TRAIN_LANGUAGE}))
    decides = english if select == "en-dev" else dev
    best = max(decides, key=lambda lr: (round(decides[lr], DIGITS), -lr), default=tried[0])
    order = [code for code in TASKS[task].languages if code in widest]
    return Rate(best, dev, english, tuple(order))


def _by_rate(runs: Collection[Run], languages: Collection[str]) -> dict[float, float]:
    """Return the official score on dev, mean over languages, then over runs, by learning rate."""
    found: dict[float, list[float]] = {}
    for run in sorted(runs, key=lambda run: run.lr):
        score = run.score("dev", languages)
        if score is not None:
            found.setdefault(run.lr, []).append(score)
    return {lr: math.fsum(scores) / len(scores) for lr, scores in found.items()}
