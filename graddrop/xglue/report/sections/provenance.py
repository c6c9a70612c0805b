"""The section on where the numbers come from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from graddrop.xglue.report import format
from graddrop.xglue.report.collect import Experiment, Run, knobs_of
from graddrop.xglue.report.document import Block, Heading, Items, Table

_SETTINGS = (
    ("lr", "lr"),
    ("batch size", "batch_size"),
    ("epochs", "epochs"),
    ("steps", "max_steps"),
    ("length", "max_length"),
    ("precision", "precision"),
    ("weights by", "select"),
    ("training examples", "limit_train"),
    ("examples per file", "limit_eval"),
)


def origin_section(experiment: Experiment) -> Iterator[Block]:
    """Show runs, settings, times and versions."""
    yield Heading("Where it came from")
    runs = experiment.runs
    sizes = (f"{run.result['parameters']:,}" for run in runs)
    yield Items(
        [
            f"Model: {experiment.model}; parameters with a head: {_values(sizes)}.",
            f"Data: {experiment.data}.",
            f"Seeds: {_values(str(run.seed) for run in sorted(runs, key=lambda r: r.seed))}.",
            *_knobs(runs),
            "Versions: "
            + ", ".join(f"{name} {_versions(runs, name)}" for name in _packages(runs))
            + ".",
        ]
    )
    yield Table(
        "settings",
        "Settings by task, the same for all methods unless a method's name says otherwise",
        ["task", *(name for name, _ in _SETTINGS)],
        [
            [
                task,
                *(
                    _values(_setting(run, key) for run in experiment.of(task))
                    for _, key in _SETTINGS
                ),
            ]
            for task in experiment.tasks
        ],
    )
    rows = [
        _times(task, arm.label, experiment.of(task, arm))
        for task in experiment.tasks
        for arm in experiment.arms
        if experiment.of(task, arm)
    ]
    yield Table(
        "seconds",
        "Runs, and seconds in all",
        ["task", "method", "runs", "training", "evaluation"],
        [*rows, _times("all", "", runs)],
        names=2,
    )
    if experiment.failed:
        yield Heading("Failed runs", 3)
        yield Items([f"{name}: {error}" for name, error in experiment.failed.items()])
    if experiment.unfinished:
        yield Heading("Unfinished runs", 3)
        yield Items(experiment.unfinished)


def _times(task: str, method: str, runs: Sequence[Run]) -> list[str]:
    totals = [sum(run.result["seconds"][kind] for run in runs) for kind in ("train", "evaluate")]
    return [task, method, str(len(runs)), *(f"{total:,.0f}" for total in totals)]


def _knobs(runs: Sequence[Run]) -> Iterator[str]:
    """Name what was set by hand of each method, where it is not in the method's label."""
    lines: dict[str, None] = {}
    for run in runs:
        shown = dict(run.arm.knobs)
        for name, value in knobs_of(run.result["config"]).items():
            if name not in shown:
                lines[f"All runs of {run.arm.method}: {name} = {value}."] = None
    yield from lines


def _setting(run: Run, key: str) -> str:
    value: Any = run.result["config"].get(key)
    if value is None:
        return "all" if key.startswith("limit") else format.NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))


def _packages(runs: Sequence[Run]) -> list[str]:
    return sorted({name for run in runs for name in run.result["versions"]})


def _versions(runs: Sequence[Run], name: str) -> str:
    """Name the version, or each with its number of runs."""
    counts = Counter(run.result["versions"].get(name, "unknown") for run in runs)
    if len(counts) == 1:
        return next(iter(counts))
    return " or ".join(f"{version} ({count} runs)" for version, count in sorted(counts.items()))
