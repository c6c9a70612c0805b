"""What a report is to decide, fixed before its runs: the tests that count, and over what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from graddrop.xglue.report.collect import Arm, Experiment
from graddrop.xglue.settings import SETTINGS, read_settings, spelt
from graddrop.xglue.tasks import TASKS, TRAIN_LANGUAGE, get_task

MARGIN = 0.5
"""Points of the official score below which a difference does not matter, unless a plan says so."""


@dataclass(frozen=True)
class Primary:
    """A test of the confirmatory family.

    Args:
        task: Name of the task.
        arm: A method, or the label of an arm.
        control: Name of the control.
    """

    task: str
    arm: str
    control: str

    def is_about(self, task: str | None, arm: Arm, control: Arm) -> bool:
        """Return whether a comparison is this one."""
        return (
            task == self.task
            and self.arm in (arm.method, arm.label)
            and self.control in (control.method, control.label)
        )


@dataclass(frozen=True)
class AnalysisPlan:
    """What a report is to decide.

    Args:
        title: Of the report.
        where: Settings by name, and tables of settings by task: the report is about the runs that
            have those of all tasks and of their own.
        primary: The confirmatory family of tests; all others are secondary.
        select: Which dev chooses the learning rate of an arm that was run at several: `en-dev`,
            strictly zero-shot, or `average-dev`.
        margin: Points of the official score: a difference whose 90 % interval lies within does not
            matter.
        languages: Of a task, over which differences are averaged; for other tasks all that were
            scored on test but the training language.
        cost: Of a step, in units of one of standard fine-tuning, by method or label of an arm
            (without what its settings add): scores are then also shown at equal cost.
    """

    title: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    primary: tuple[Primary, ...] = ()
    select: str = "average-dev"
    margin: float = MARGIN
    languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    def covers(self, config: Mapping[str, Any]) -> bool:
        """Return whether a run of this configuration is one that the report is about."""
        own = self.where.get(config["task"], {})
        asked = {name: value for name, value in self.where.items() if name not in TASKS} | own
        return all(config.get(name) == value for name, value in asked.items())

    def outcome(self, experiment: Experiment, task: str) -> tuple[str, ...]:
        """Return the languages over which differences in a task are averaged."""
        if task in self.languages:
            return self.languages[task]
        scored = experiment.languages(task, "test")
        return tuple(code for code in scored if code != TRAIN_LANGUAGE) or tuple(scored)


def read_analysis_plan(path: Path) -> AnalysisPlan:
    """Read a plan from a TOML or YAML file.

    Raises:
        ValueError: If the file does not hold a plan; names the file and the setting.
        OSError: If it cannot be read.
    """
    values = read_settings(path)
    known = ("title", "where", "primary", "select", "margin", "languages", "cost")
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}; known: {', '.join(known)}")
    title, margin = values.get("title"), values.get("margin", MARGIN)
    if not isinstance(title, str | None):
        raise ValueError(f"{path}: title: expected a text, got {title!r}")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < math.inf:
        raise ValueError(f"{path}: margin: expected a positive number of points, got {margin!r}")
    select = values.get("select", AnalysisPlan.select)
    if select not in ("en-dev", "average-dev"):
        raise ValueError(f"{path}: select: expected en-dev or average-dev, got {select!r}")
    where = _where(values.get("where", {}), path)
    languages = values.get("languages", {})
    if not isinstance(languages, Mapping):
        raise ValueError(f"{path}: languages: expected a list for each task, got {languages!r}")
    for task, codes in languages.items():
        if not isinstance(codes, list | tuple) or not codes:
            raise ValueError(f"{path}: languages: expected a list for {task}, got {codes!r}")
        try:
            get_task(task).check_languages(codes)
        except ValueError as error:
            raise ValueError(f"{path}: languages: {error}") from error
    return AnalysisPlan(
        title,
        where,
        _primary(values.get("primary", []), path),
        select,
        float(margin),
        {task: tuple(codes) for task, codes in languages.items()},
        _cost(values.get("cost", {}), path),
    )


def _where(entries: Any, path: Path) -> dict[str, Any]:
    origin = f"{path}: where"
    if not isinstance(entries, Mapping):
        raise ValueError(f"{origin}: expected a table of settings, got {entries!r}")
    own = {task: spelt(entries[task], f"{origin}.{task}") for task in TASKS if task in entries}
    shared = spelt({name: entries[name] for name in entries if name not in own}, origin)
    for name in (*shared, *chain.from_iterable(own.values())):
        if name not in SETTINGS:
            raise ValueError(f"{origin}: unknown setting {name!r}")
    return shared | own


def _cost(entries: Any, path: Path) -> dict[str, float]:
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path}: cost: expected a number for each arm, got {entries!r}")
    for name, value in entries.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"{path}: cost: expected a positive number for {name}, got {value!r}")
    return {str(name): float(value) for name, value in entries.items()}


def _primary(entries: Any, path: Path) -> tuple[Primary, ...]:
    names = ("task", "arm", "control")
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{path}: primary: expected tables [[primary]], got {entries!r}")
    found = []
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != set(names):
            raise ValueError(f"{path}: primary: expected task, arm and control, got {entry!r}")
        if not all(isinstance(entry[name], str) for name in names) or entry["task"] not in TASKS:
            raise ValueError(f"{path}: primary: expected a task and two names, got {entry!r}")
        found.append(Primary(*(entry[name] for name in names)))
    return tuple(found)
