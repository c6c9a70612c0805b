"""Who gains from masking: the gain of each language against the size of its pretraining text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.report.comparison import ALL_TASKS, CONTROLS, at_one_rate, control_of, pairs
from graddrop.xglue.report.rates import Rates
from graddrop.xglue.report.statistics import Correlation, holm, rank_correlation
from graddrop.xglue.tasks import TRAIN_LANGUAGE


@dataclass(frozen=True)
class Gains:
    """What a masking arm gains over a control in each zero-shot language.

    Args:
        arm: What masks.
        control: What it is compared with.
        task: Name of the task, or `ALL_TASKS`.
        by_language: Fraction of the official score on test, the mean over pairs of runs with the
            same seed, then over the tasks that have the language.
        tasks: Number of tasks behind each language.
        seeds: Least and greatest number of pairs behind a task's mean.
        correlation: Of gain and size; None if there is none to make.
        p_holm: Its p, corrected for all correlations of this kind (`gains` says which).
    """

    arm: Arm
    control: Arm
    task: str | None
    by_language: Mapping[str, float]
    tasks: Mapping[str, int]
    seeds: tuple[int, int]
    correlation: Correlation | None = None
    p_holm: float | None = None


def gains(experiment: Experiment, rates: Rates, sizes: Mapping[str, float]) -> list[Gains]:
    """Compute the gains of all masking arms over its controls.

    The language that was trained on is left out: it has no zero-shot score. The correction counts
    the means over tasks as one family of tests, the single tasks as another.

    Args:
        experiment: The runs.
        rates: Their learning rates.
        sizes: Amount of pretraining text by language; a language that is missing here does not
            enter the correlation.

    Returns:
        First the means over tasks, if there are several, then the single tasks.
    """
    tasks: list[str | None] = list(experiment.tasks)
    families: list[list[str | None]] = [[ALL_TASKS], tasks] if len(tasks) > 1 else [tasks]
    found = []
    for family in families:
        members = []
        for control in CONTROLS:
            for arm in experiment.arms:
                other = control_of(experiment, arm, control) if arm.masks else None
                for task in family if other is not None else []:
                    assert other is not None
                    if not at_one_rate(experiment, rates, task, arm, other):
                        continue
                    entry = _gains(experiment, arm, other, task)
                    if entry.by_language:
                        members.append(replace(entry, correlation=_correlate(entry, sizes)))
        corrected = holm([m.correlation.p if m.correlation else None for m in members])
        found += [replace(m, p_holm=p) for m, p in zip(members, corrected, strict=True)]
    return found


def _gains(experiment: Experiment, arm: Arm, control: Arm, task: str | None) -> Gains:
    collected: dict[str, list[float]] = {}
    seeds: list[int] = []
    for name in experiment.tasks if task is ALL_TASKS else [task]:
        for language in experiment.languages(name, "test"):
            if language == TRAIN_LANGUAGE:
                continue
            ours, theirs = (_by_seed(experiment, name, a, language) for a in (arm, control))
            differences = pairs(ours, theirs).values()
            if differences:
                collected.setdefault(language, []).append(sum(differences) / len(differences))
                seeds.append(len(differences))
    means = {language: sum(values) / len(values) for language, values in collected.items()}
    counts = {language: len(values) for language, values in collected.items()}
    span = (min(seeds), max(seeds)) if seeds else (0, 0)
    return Gains(arm, control, task, means, counts, span)


def _by_seed(experiment: Experiment, task: str, arm: Arm, language: str) -> dict[int, float]:
    scores = {run.seed: run.scores("test", run.metric) for run in experiment.of(task, arm)}
    return {seed: by_code[language] for seed, by_code in scores.items() if language in by_code}


def _correlate(entry: Gains, sizes: Mapping[str, float]) -> Correlation | None:
    known = [language for language in entry.by_language if language in sizes]
    # Ranks are those of the logarithm as well.
    return rank_correlation(
        [sizes[language] for language in known], [entry.by_language[language] for language in known]
    )
