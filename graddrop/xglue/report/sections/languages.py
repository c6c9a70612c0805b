"""The section on single languages: every score of each of them."""

from collections.abc import Iterator, Mapping, Sequence

from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.report.document import Block, Heading, Table
from graddrop.xglue.report.textsizes import TextSizes
from graddrop.xglue.scores.text_table import mean_over_languages
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS, TRAIN_LANGUAGE

Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Score of a trivial answer on test, as a fraction: task, metric, language."""


def table_name(task: str, split: str, metric: str) -> str:
    """Return the name of the table of a task's languages."""
    return f"{task}-{split}-{metric}"


def language_section(
    experiment: Experiment, sizes: TextSizes | None, baselines: Baselines
) -> Iterator[Block]:
    """Show all scores of every language, those with much pretraining text first."""
    yield Heading("Languages")
    for task in experiment.tasks:
        yield Heading(task, 3)
        for metric in TASKS[task].metrics:
            for split in reversed(EVAL_SPLITS):
                if experiment.languages(task, split):
                    yield language_table(experiment, task, metric, split, sizes, baselines)


def language_table(
    experiment: Experiment,
    task: str,
    metric: str,
    split: str,
    sizes: TextSizes | None,
    baselines: Baselines,
) -> Table:
    """Make the table of a task's languages by arms, in per cent, means over seeds.

    Args:
        experiment: The runs.
        task: Name of the task.
        metric: One of its metrics.
        split: `dev` or `test`.
        sizes: Sizes of the pretraining texts, if they are known.
        baselines: Scores of a trivial answer; they are shown beside those on test.
    """
    amounts = sizes.by_language if sizes else {}
    codes = sorted(experiment.languages(task, split), key=lambda code: -amounts.get(code, 0))
    columns: dict[str, Mapping[str, float]] = {}
    trivial = baselines.get(task, {}).get(metric)
    if trivial and split == "test":
        columns["majority label"] = trivial
    arms = [arm for arm in experiment.arms if experiment.of(task, arm)]
    for arm in arms:
        columns[arm.label] = _means(experiment, task, arm, split, metric)
    rows = [
        [
            code,
            *([format.amount(amounts.get(code))] if sizes else []),
            *(format.percent(column.get(code)) for column in columns.values()),
        ]
        for code in codes
    ]
    zero_shot = [code for code in codes if code != TRAIN_LANGUAGE]
    for name, group in (("mean", codes), ("zero-shot mean", zero_shot)):
        cells = [_mean_of(column, group) for column in columns.values()]
        rows.append([name, *([""] if sizes else []), *map(format.percent, cells)])
    official = "official score, " if metric == TASKS[task].score else ""
    counts = {
        sum(bool(run.scores(split, metric)) for run in experiment.of(task, arm)) for arm in arms
    }
    return Table(
        table_name(task, split, metric),
        f"{task}, {split}: {official}{metric.replace('_', ' ')} in %, "
        f"mean over seeds ({_span(counts)}){experiment.among}",
        ["language", *([f"text ({sizes.unit})"] if sizes else []), *columns],
        rows,
    )


def _means(
    experiment: Experiment, task: str, arm: Arm, split: str, metric: str
) -> dict[str, float]:
    by_language: dict[str, list[float]] = {}
    for run in experiment.of(task, arm):
        for code, value in run.scores(split, metric).items():
            by_language.setdefault(code, []).append(value)
    return {code: sum(values) / len(values) for code, values in by_language.items()}


def _mean_of(column: Mapping[str, float], codes: Sequence[str]) -> float | None:
    if not codes or any(code not in column for code in codes):
        return None
    return mean_over_languages({code: {"score": column[code]} for code in codes})["score"]


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
