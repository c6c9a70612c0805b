"""The section on under-resourced languages."""

from collections.abc import Iterator, Sequence

from graddrop.xglue.config import TINY
from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Experiment
from graddrop.xglue.report.comparison import ALL_TASKS, CONTROLS
from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Table
from graddrop.xglue.report.gains import Gains, gains
from graddrop.xglue.report.pictures.scatter import draw_gains
from graddrop.xglue.report.pictures.style import picture
from graddrop.xglue.report.rates import Rates
from graddrop.xglue.report.statistics import MIN_LANGUAGES, RESAMPLES
from graddrop.xglue.report.textsizes import TextSizes
from graddrop.xglue.tasks import TRAIN_LANGUAGE


def resource_section(
    experiment: Experiment, rates: Rates, sizes: TextSizes | None
) -> Iterator[Block]:
    """Show each language's gain from masking against the size of its pretraining text.

    Args:
        experiment: The runs.
        rates: Their learning rates.
        sizes: Sizes of the pretraining texts, if they are known.
    """
    yield Heading("Under-resourced languages")
    if sizes is None and experiment.model == TINY:
        yield Paragraph("The model was not pretrained: no language has more text than another.")
        return
    if sizes is None:
        yield Paragraph(
            f"How much text the model {experiment.model} read of each language in pretraining is "
            "not known here. Name a JSON file of {language: size} with --text-sizes."
        )
        return
    entries = gains(experiment, rates, sizes.by_language)
    if not entries:
        yield Paragraph(
            "There is no pair of a masking run and a control with the same task, seed and settings "
            "and a zero-shot language."
        )
        return
    yield Paragraph(
        "Do languages with little pretraining text gain more from masking, or lose less, than "
        "those with much? A negative rank correlation of gain and size says yes."
    )
    overall = ALL_TASKS if len(experiment.tasks) > 1 else experiment.tasks[0]
    for control in CONTROLS:
        chosen = [e for e in entries if e.control.method == control and e.task == overall]
        if chosen:
            yield from _overview(chosen, control, sizes, experiment.among)
    single = [entry for entry in entries if entry.task != overall]
    if single:
        yield _correlations(
            "correlation-by-task", "Rank correlation of gain and size, task by task", single
        )
    yield Items([*_notes(experiment, entries, sizes)])


def _overview(
    entries: Sequence[Gains], control: str, sizes: TextSizes, among: str
) -> Iterator[Block]:
    known = {code for entry in entries for code in entry.by_language if code in sizes.by_language}
    if known:
        yield picture(
            f"gain-over-{control}",
            f"Gain over {control} on test by language against the size of its pretraining text, "
            f"mean over the tasks that have the language{among}",
            draw_gains(entries, sizes),
        )
    codes = sorted(
        {code for entry in entries for code in entry.by_language},
        key=lambda code: (-sizes.by_language.get(code, 0), code),
    )
    tasks = {code: max(entry.tasks.get(code, 0) for entry in entries) for code in codes}
    yield Table(
        f"gain-over-{control}",
        f"Gain over {control} on test in points of the official score{among}",
        ["language", f"text ({sizes.unit})", "tasks", *(entry.arm.label for entry in entries)],
        [
            [
                code,
                format.amount(sizes.by_language.get(code)),
                str(tasks[code]),
                *(_gain(entry, code) for entry in entries),
            ]
            for code in codes
        ],
    )
    yield _correlations(
        f"correlation-{control}", f"Rank correlation of gain over {control} and size", entries
    )


def _gain(entry: Gains, code: str) -> str:
    value = entry.by_language.get(code)
    return format.NOTHING if value is None else format.points(value)


def _correlations(name: str, caption: str, entries: Sequence[Gains]) -> Table:
    rows = []
    for entry in entries:
        found = entry.correlation
        low, high = entry.seeds
        rows.append(
            [
                f"{entry.arm.label} - {entry.control.label}",
                entry.task or "all",
                str(low) if low == high else f"{low} to {high}",
                str(found.n if found else len(entry.by_language)),
                f"{found.rho:+.2f}" if found else "none",
                f"{found.low:+.2f} to {found.high:+.2f}" if found else format.NOTHING,
                format.p_value(found.p if found else None),
                format.p_value(entry.p_holm),
            ]
        )
    heads = ["gain", "task", "pairs", "languages", "Spearman", "95 % interval", "p", "p (Holm)"]
    return Table(name, caption, heads, rows, names=2)


def _notes(experiment: Experiment, entries: Sequence[Gains], sizes: TextSizes) -> Iterator[str]:
    yield (
        f"{TRAIN_LANGUAGE} is left out: it was trained on, so its score is not zero-shot. "
        "Gains are means over pairs of runs with the same seed, then over the tasks that have the "
        "language."
    )
    yield f"Sizes of pretraining text ({sizes.unit}): from {sizes.origin}."
    unknown = {c for entry in entries for c in entry.by_language} - sizes.by_language.keys()
    if unknown:
        yield f"Without a known size, and so without a point: {', '.join(sorted(unknown))}."
    yield (
        "The interval is the percentile interval of a bootstrap over languages "
        f"({RESAMPLES} resamples, fixed seed), rough for few languages; p is that of a two-sided "
        "permutation test. Both take the languages as independent, which relatives are not."
    )
    yield (
        f"Fewer than {MIN_LANGUAGES} languages, or gains that are all the same, give no "
        "correlation."
    )
    if len(experiment.tasks) > 1:
        yield (
            "Tasks differ in their languages, so the mean over tasks mixes what a task gains with "
            "what a language gains; within a single task it does not. Holm's correction counts the "
            "means over tasks as one family of tests, the single tasks as another."
        )
