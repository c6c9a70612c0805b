"""What a sweep consists of: tasks x methods x drop probabilities x seeds."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.methods import METHODS
from graddrop.xglue.settings import SETTINGS, make_config, read_settings, spelt
from graddrop.xglue.tasks import TASKS

_LISTED = {"task": "tasks", "method": "methods", "seed": "seeds", "drop_prob": "drop_probs"}
"""Settings that differ between runs, with the lists that hold their values."""


@dataclass(frozen=True)
class SweepPlan:
    """Runs that differ in task, method, drop probability and seed.

    Args:
        tasks: Names of tasks.
        methods: Names of methods.
        settings: Values of `FinetuneConfig` for all runs; `data` must be among them.
        seeds: One run per task, method, drop probability and seed.
        drop_probs: For the methods that drop, and for `lr-matched`, whose learning rate follows
            from it; the others get one run per seed. None means each method's preset.
        task: Settings of single tasks by name, in place of those for all.
        method: Settings of single methods by name, in place of those for all and of the task's;
            `drop_probs` may be among them.

    Raises:
        ValueError: If a list is empty or names something twice, or any run's setting is unknown,
            of the wrong type or out of its range.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    settings: Mapping[str, Any]
    seeds: Sequence[int] = (0,)
    drop_probs: Sequence[float] | None = None
    task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    method: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_list("tasks", self.tasks, str, tuple(TASKS))
        _check_list("methods", self.methods, str, tuple(METHODS))
        _check_list("seeds", self.seeds, int)
        if self.drop_probs is not None:
            _check_list("drop_probs", self.drop_probs, float)
            if not any(METHODS[name].drop_prob for name in self.methods):
                raise ValueError("drop_probs: none of the methods drops anything; leave it out")
        _check_settings("", self.settings)
        for kind, tables, known in (("task", self.task, TASKS), ("method", self.method, METHODS)):
            for name, values in tables.items():
                if name not in known:
                    raise ValueError(
                        f"[{kind}.{name}]: unknown {kind}; expected one of {', '.join(known)}"
                    )
                if kind == "method" and "drop_probs" in values:
                    _check_list(f"[method.{name}] drop_probs", values["drop_probs"], float)
                    if not METHODS[name].drop_prob:
                        raise ValueError(f"[method.{name}] drop_probs: it drops nothing")
                    values = {key: values[key] for key in values if key != "drop_probs"}
                _check_settings(f"[{kind}.{name}] ", values)
        self.configs(Path("output"))

    def configs(self, output: Path) -> list[FinetuneConfig]:
        """Return the runs, each with a folder of its own in `output/runs`.

        All methods come next to each other for one task and seed, and all tasks for one seed, so
        that what has been finished at any time can be compared.

        Args:
            output: Folder of the sweep.
        """
        return [
            self._config(output, task, method, drop_prob, seed)
            for seed, task, method in product(self.seeds, self.tasks, self.methods)
            for drop_prob in self._drop_probs(method)
        ]

    def _drop_probs(self, method: str) -> Sequence[float | None]:
        preset = METHODS[method].drop_prob
        if not preset:
            return (None,)
        listed = self.method.get(method, {}).get("drop_probs", self.drop_probs)
        return (preset,) if listed is None else listed

    def _config(
        self, output: Path, task: str, method: str, drop_prob: float | None, seed: int
    ) -> FinetuneConfig:
        # The whole value, not a rounded one: no two runs have the same folder.
        drop = "" if drop_prob is None else f"-p{float(drop_prob)!r}"
        name = f"{task}-{method}{drop}-s{seed}"
        values = {**self.settings, **self.task.get(task, {}), **self.method.get(method, {})}
        values.pop("drop_probs", None)
        values |= {"task": task, "method": method, "drop_prob": drop_prob, "seed": seed}
        return make_config(values | {"output": str(output / "runs" / name)}, f"run {name}")


def read_plan(path: Path) -> tuple[SweepPlan, str | None]:
    """Read a sweep from a TOML or YAML file.

    Returns:
        The plan, and the setting `output`, which is a folder, if it is there.

    Raises:
        ValueError: If the file does not hold a plan; names the file and the setting.
        OSError: If it cannot be read.
    """
    values = read_settings(path)
    output = values.pop("output", None)
    if not isinstance(output, str | None):
        raise ValueError(f"{path}: output: expected a folder, got {output!r}")
    lists: dict[str, Any] = {name: values.pop(name) for name in _LISTED.values() if name in values}
    for name in ("tasks", "methods"):
        if name not in lists:
            raise ValueError(f"{path}: expected a list {name}")
    overrides: dict[str, Any] = {}
    for kind in ("task", "method"):
        tables = values.pop(kind, {})
        if not isinstance(tables, Mapping):
            raise ValueError(f"{path}: {kind}: expected tables [{kind}.NAME], got {tables!r}")
        overrides[kind] = {
            name: spelt(table, f"{path}: [{kind}.{name}]") for name, table in tables.items()
        }
    try:
        return SweepPlan(**lists, settings=values, **overrides), output
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_list(name: str, values: Any, of: type, known: Sequence[str] = ()) -> None:
    """Refuse what is no list of distinct values of one type."""
    allowed = (int, float) if of is float else of
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name}: expected a list with at least one {of.__name__}, got {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(f"{name}: expected a list of {of.__name__}, got {value!r} in it")
        if known and value not in known:
            raise ValueError(f"{name}: unknown {value!r}; expected some of {', '.join(known)}")
        if list(values).count(value) > 1:
            raise ValueError(f"{name}: {value!r} stands there twice")


def _check_settings(where: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that do not exist, and those that the lists hold."""
    for name in values:
        if name in _LISTED:
            raise ValueError(f"{where}{name}: list the values as {_LISTED[name]} for the sweep")
        if name == "output":
            raise ValueError(f"{where}output: runs get folders of their own; leave it out")
        if name not in SETTINGS:
            raise ValueError(f"{where}{name}: unknown setting; known: {', '.join(_free())}")


def _free() -> Iterator[str]:
    return (name for name in SETTINGS if name not in _LISTED and name != "output")
