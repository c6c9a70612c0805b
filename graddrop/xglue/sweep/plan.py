"""What a sweep consists of: tasks x arms x learning rates x drop probabilities x seeds."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.methods import METHODS
from graddrop.xglue.names import meant
from graddrop.xglue.settings import SETTINGS, make_config, read_settings, spelt
from graddrop.xglue.tasks import TASKS

_AXES = {"lr": "lrs", "drop_prob": "drop_probs", "seed": "seeds"}
"""Settings that may have several values, with the lists that hold them."""

_OTHER = {**_AXES, **{several: one for one, several in _AXES.items()}}


@dataclass(frozen=True)
class SweepPlan:
    """Runs of every arm in every task.

    An arm is a set of settings under a name. In any table of settings `lrs`, `drop_probs` and
    `seeds` may list several values in place of the one of `lr`, `drop_prob` and `seed`: one run
    for each combination.

    Args:
        tasks: Names of tasks.
        arms: Names of arms: any name that has a table in `arm`, or a method, which needs none.
        settings: Values of `FinetuneConfig` for all runs; `data` must be among them. The drop
            probability concerns the methods that drop, and their controls; without one each method
            has its preset.
        task: Settings of single tasks by name, in place of those for all.
        arm: Settings of single arms by name, in place of those for all and of the task's; `method`
            is the arm's name unless it is among them.

    Raises:
        ValueError: If a list is empty or names something twice, any run's setting is unknown, of
            the wrong type or out of its range, or two runs are the same.
    """

    tasks: Sequence[str]
    arms: Sequence[str]
    settings: Mapping[str, Any]
    task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    arm: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_list("tasks", self.tasks, known=tuple(TASKS))
        _check_list("arms", self.arms, known=(*METHODS, *self.arm))
        _check_settings("", self.settings)
        for name, values in self.task.items():
            if name not in TASKS:
                raise ValueError(f"[task.{name}]: unknown task; expected one of {', '.join(TASKS)}")
            _check_settings(f"[task.{name}] ", values)
        for name, values in self.arm.items():
            if not name or set(name) & set("/\\"):
                raise ValueError(f"[arm.{name}]: expected a name that a folder can have")
            method = values.get("method", name)
            if method not in METHODS:
                raise ValueError(
                    f"[arm.{name}]: unknown method {method!r}; expected method to be one of "
                    f"{', '.join(METHODS)}"
                )
            _check_settings(
                f"[arm.{name}] ", {key: values[key] for key in values if key != "method"}
            )
            _check_drops(f"[arm.{name}] ", values, [method])
        methods = [self._method(name) for name in self.arms]
        _check_drops("", self.settings, methods)
        for name, values in self.task.items():
            _check_drops(f"[task.{name}] ", values, methods)
        configs = self.configs(Path("output"))
        names: dict[str, str] = {}
        for config in configs:
            name = Path(config.output).name
            other = names.setdefault(json.dumps(config.resolved().to_json()), name)
            if other != name:
                raise ValueError(f"{other} and {name} are the same run; leave out one of the arms")

    def configs(self, output: Path) -> list[FinetuneConfig]:
        """Return the runs, each with a folder of its own in `output/runs`.

        All arms come next to each other for one task and seed, and all tasks for one seed, so
        that what has been finished at any time can be compared.

        Args:
            output: Folder of the sweep.
        """
        found = []
        for order, (task, arm) in enumerate(product(self.tasks, self.arms)):
            values = self._merged(task, arm)
            lists = {one: values.pop(several, None) for one, several in _AXES.items()}
            if not METHODS[values["method"]].drop_prob:
                lists["drop_prob"] = None
                values.pop("drop_prob", None)
            elif lists["drop_prob"] is None:
                values.setdefault("drop_prob", METHODS[values["method"]].drop_prob)
            values.setdefault("seed", 0)
            chosen = [[values.get(one)] if lists[one] is None else lists[one] for one in _AXES]
            for lr, drop_prob, seed in product(*chosen):
                # Whole values, not rounded ones: no two runs have the same folder.
                name = f"{task}-{arm}"
                name += "" if drop_prob is None else f"-p{_spelling(drop_prob)}"
                name += "" if lists["lr"] is None else f"-lr{_spelling(lr)}"
                name += f"-s{seed}"
                values |= {"task": task, "lr": lr, "drop_prob": drop_prob, "seed": seed}
                values["output"] = str(output / "runs" / name)
                found.append((order, make_config(values, f"run {name}")))
        seeds = list(dict.fromkeys(config.seed for _, config in found))
        # The sort is stable: within a seed everything stays as it was made.
        found.sort(key=lambda entry: (seeds.index(entry[1].seed), entry[0]))
        return [config for _, config in found]

    def _method(self, arm: str) -> str:
        return self.arm.get(arm, {}).get("method", arm)

    def _merged(self, task: str, arm: str) -> dict[str, Any]:
        """Return the settings of an arm in a task: the closer table wins, with one or several."""
        merged: dict[str, Any] = {}
        for table in (self.settings, self.task.get(task, {}), self.arm.get(arm, {})):
            for name, value in table.items():
                merged.pop(_OTHER.get(name, ""), None)
                merged[name] = value
        return {**merged, "method": self._method(arm)}


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
    for name in ("tasks", "arms"):
        if name not in values:
            raise ValueError(f"{path}: expected a list {name}")
    lists = {name: values.pop(name) for name in ("tasks", "arms")}
    tables: dict[str, Any] = {}
    for kind in ("task", "arm"):
        found = values.pop(kind, {})
        if not isinstance(found, Mapping):
            raise ValueError(f"{path}: {kind}: expected tables [{kind}.NAME], got {found!r}")
        tables[kind] = {
            name: spelt(table, f"{path}: [{kind}.{name}]") for name, table in found.items()
        }
    try:
        return SweepPlan(**lists, settings=values, **tables), output
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _spelling(value: Any) -> str:
    """Spell a number, or one for each epoch, in a folder's name."""
    if isinstance(value, list | tuple):
        return ",".join(map(_spelling, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if is_number else str(value)  # the latter is refused by its type


def _check_list(name: str, values: Any, known: Sequence[str] = ()) -> None:
    """Refuse what is no list of distinct values."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name}: expected a list with at least one value, got {values!r}")
    for value in values:
        if known and value not in known:
            raise ValueError(
                f"{name}: unknown {value!r}; expected some of {', '.join(known)}"
                f"{meant(value, known)}"
            )
        if list(values).count(value) > 1:
            raise ValueError(f"{name}: {value!r} stands there twice")


def _check_settings(where: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that do not exist, and those that have another place."""
    for name in values:
        if name in _AXES.values():
            _check_list(f"{where}{name}", values[name])
            if _OTHER[name] in values:
                raise ValueError(f"{where}{name}: {_OTHER[name]} is there as well; leave out one")
        elif name == "task":
            raise ValueError(f"{where}task: list the values as tasks for the sweep")
        elif name == "method":
            raise ValueError(f"{where}method: list the arms, or name it in a table [arm.NAME]")
        elif name == "output":
            raise ValueError(f"{where}output: runs get folders of their own; leave it out")
        elif name not in SETTINGS:
            raise ValueError(
                f"{where}{name}: unknown setting; known: {', '.join(_free())}{meant(name, _free())}"
            )


def _check_drops(where: str, values: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse a drop probability of which no method would take notice."""
    for name in ("drop_prob", "drop_probs"):
        if name in values and not any(METHODS[method].drop_prob for method in methods):
            raise ValueError(f"{where}{name}: no arm here drops anything; leave it out")


def _free() -> Iterator[str]:
    yield from (name for name in SETTINGS if name not in ("task", "method", "output"))
    yield from _AXES.values()
