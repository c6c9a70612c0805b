"""The section on official scores, as the benchmark counts them."""

from collections.abc import Iterator

from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Experiment
from graddrop.xglue.report.comparison import ALL_TASKS, rows_of, scores_by_seed
from graddrop.xglue.report.document import Block, Heading, Items, Table
from graddrop.xglue.report.published import ORIGIN, PUBLISHED
from graddrop.xglue.report.sections.differences import task_name
from graddrop.xglue.report.statistics import estimate
from graddrop.xglue.tasks import TASKS

XGLUE_TABLE = "xglue"
"""Name of the table of all official scores."""


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
        rows.append([task_name(experiment, task), *cells, *others])
    heads = [f"published: {entry.name} ({entry.parameters})" for entry in published]
    yield Table(
        XGLUE_TABLE,
        "Official score on test, mean over languages, in %: mean over seeds ± half of the 95 % "
        f"interval (number of seeds){experiment.among}",
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
            f"(from {ORIGIN}). Another model, not a run of ours; for orientation only."
        )
    yield "The numbers of the GradDrop paper are not known to us; none of these columns is theirs."
