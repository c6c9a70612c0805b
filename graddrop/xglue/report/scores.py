"""The sections on official scores: the XGLUE table, what differs, every language."""

from collections.abc import Iterator, Mapping, Sequence

from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.report.comparison import (
    ALL_TASKS,
    CONTROLS,
    Comparison,
    compare,
    rows_of,
    scores_by_seed,
)
from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Table
from graddrop.xglue.report.published import PUBLISHED, SOURCE
from graddrop.xglue.report.statistics import MIN_PAIRS, estimate
from graddrop.xglue.report.textsizes import TextSizes
from graddrop.xglue.scores.text_table import mean_over_languages
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS, TRAIN_LANGUAGE

Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Score of a trivial answer on test, as a fraction: task, metric, language."""

XGLUE_TABLE = "xglue"
"""Name of the table of all official scores."""


def table_name(task: str, split: str, metric: str) -> str:
    """Return the name of the table of a task's languages."""
    return f"{task}-{split}-{metric}"


def xglue_section(experiment: Experiment, with_published: bool) -> Iterator[Block]:
    """Show the official scores of every task and arm.

    Args:
        experiment: The runs.
        with_published: Whether published scores stand beside them, in columns of their own.
    """
    yield Heading("XGLUE scores")
    published = PUBLISHED if with_published else ()
    rows = []
    for task in rows_of(experiment):
        cells = []
        for arm in experiment.arms:
            scores = list(scores_by_seed(experiment, task, arm).values())
            cells.append(format.score(estimate(scores) if scores else None))
        others = [f"{entry.score(task):.1f}" for entry in published]
        if task is ALL_TASKS and set(experiment.tasks) != set(TASKS):
            others = [format.NOTHING] * len(published)
        rows.append([_task_name(experiment, task), *cells, *others])
    heads = [f"published: {entry.name} ({entry.parameters})" for entry in published]
    yield Table(
        XGLUE_TABLE,
        "Official score on test, mean over languages, in %: mean over seeds ± half of the 95 % "
        "interval (number of seeds)",
        ["task", *(arm.label for arm in experiment.arms), *heads],
        rows,
        apart=len(heads),
    )
    yield Items([*_score_notes(experiment), *(_published_notes() if with_published else ())])


def _score_notes(experiment: Experiment) -> Iterator[str]:
    yield (
        "The interval is Student's over seeds: it speaks of other seeds on the same test sets, not "
        "of other languages or texts. One seed has no interval."
    )
    if len(experiment.tasks) > 1:
        yield "The mean over tasks takes the seeds that have a run in every task of the table."
    limits = {run.result["config"].get("limit_eval") for run in experiment.runs} - {None}
    if limits:
        shown = ", ".join(map(str, sorted(limits)))
        yield f"Not whole test sets: only the first {shown} examples of each file were scored."
    for task in experiment.tasks:
        scored = experiment.languages(task, "test")
        lacking = [code for code in TASKS[task].languages if code not in scored]
        if lacking:
            yield (
                f"{task}: mean over {len(scored)} of the {len(TASKS[task].languages)} official "
                f"languages; without {', '.join(lacking)}."
            )


def _published_notes() -> Iterator[str]:
    for entry in PUBLISHED:
        yield (
            f"Published, {entry.name}: {entry.parameters} parameters, {entry.remark} "
            f"(source: {SOURCE}). Another model, not a run of ours; for orientation only."
        )
    yield "The numbers of the GradDrop paper are not known to us; none of these columns is theirs."


def difference_section(experiment: Experiment) -> Iterator[Block]:
    """Show how the arms differ from their controls, pair by pair."""
    yield Heading("Differences to the controls")
    comparisons = compare(experiment)
    if not comparisons:
        yield Paragraph(
            "There is no pair: no run of standard or lr-matched has the task, seed and settings of "
            "another run."
        )
        return
    tests = sum(comparison.p is not None for comparison in comparisons)
    for control in CONTROLS:
        chosen = [c for c in comparisons if c.control.method == control]
        if chosen:
            yield Table(
                f"difference-to-{control}",
                f"Official score on test less that of {control}, in points",
                ["task", "method", "difference", "95 % interval", "pairs", "p", "p (Holm)"],
                [_difference_row(experiment, comparison) for comparison in chosen],
                names=2,
            )
    yield Items(
        [
            "A pair are two runs of the same task, seed and settings; the seed decides the head's "
            "first weights and the order of the examples, which both runs share.",
            "p is that of a two-sided paired t test over seeds. It assumes that seeds are "
            "independent and the differences about normal, and speaks of other seeds on these test "
            "sets alone, which is why languages are averaged and not counted as observations.",
            f"Holm's correction counts all tests of this section, {tests} here, as one family. "
            "Intervals are not corrected.",
            f"Fewer than {MIN_PAIRS} pairs are too few for a test; equal differences leave no "
            "spread to test against.",
            "lr-matched is standard fine-tuning at lr * sqrt(1 - p): masking shortens Adam's mean "
            "step by this factor, and what remains is the masks' own.",
        ]
    )


def _difference_row(experiment: Experiment, comparison: Comparison) -> list[str]:
    difference = comparison.difference
    return [
        _task_name(experiment, comparison.task),
        comparison.arm.label,
        format.points(difference.mean),
        format.interval(difference),
        str(difference.n),
        format.paired_p_value(comparison.p, difference),
        format.p_value(comparison.p_holm),
    ]


def _task_name(experiment: Experiment, task: str | None) -> str:
    return task or f"mean of {len(experiment.tasks)} tasks"


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
    counts = {len(experiment.of(task, arm)) for arm in arms}
    return Table(
        table_name(task, split, metric),
        f"{task}, {split}: {official}{metric.replace('_', ' ')} in %, "
        f"mean over seeds ({_span(counts)})",
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
