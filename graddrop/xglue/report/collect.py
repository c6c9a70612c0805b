"""The runs below a folder, as one experiment whose parts can be compared."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from graddrop.xglue.config import BYSTANDERS, KNOBS
from graddrop.xglue.methods import METHODS, drop_probs_of
from graddrop.xglue.mini import is_mini_xglue
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS
from graddrop.xglue.textfile import printable
from graddrop.xglue.training.result_form import problem_of
from graddrop.xglue.training.run_folder import (
    CONFIG_FILE,
    FAILURE_FILE,
    RESULT_FILE,
    RunFolder,
    read_json,
)
from graddrop.xglue.training.score_file import ScoreFile, result_of

_IDENTITY = frozenset(
    (
        "task",
        "method",
        "drop_prob",
        "seed",
        "lr",
        "data",
        "model",
        "evaluate",
        "languages",
        *KNOBS,
    )
)


class ReportError(ValueError):
    """A folder of which no report can be made."""


@dataclass(frozen=True)
class Arm:
    """What is compared: a method with all that its runs share, whatever their task and seed.

    A learning rate is no part of it: each arm has its own in each task (see `report.rates`).

    Args:
        method: Name of the method.
        drop_prob: Its drop probability, or several that follow each other; None for methods that
            have none.
        knobs: Settings of the method (`KNOBS`) in which its runs differ, by name.
        settings: Other settings in which the runs of some task differ, by name.
    """

    method: str
    drop_prob: float | tuple[float, ...] | None = None
    knobs: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """Name of the arm in tables and figures, such as `graddrop drop=0.5`."""
        rates = ",".join(f"{rate:g}" for rate in self.drop_probs)
        rate = (f"drop={rates}",) if rates else ()
        others = (f"{name}={value}" for name, value in self.knobs + self.settings)
        return printable(" ".join([self.method, *rate, *others]))

    @property
    def drop_probs(self) -> tuple[float, ...]:
        """The drop probabilities: none, one, or several that follow each other."""
        return drop_probs_of(self.drop_prob)

    @property
    def without_settings(self) -> "Arm":
        """The method alone, whatever the batch, the steps or the schedule."""
        return replace(self, settings=())

    @property
    def masks(self) -> bool:
        """Whether gradients are masked."""
        return METHODS[self.method].masks is not None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        name: Its folder, relative to that of the report.
        arm: What it does.
        result: What `graddrop.xglue.training.run.finetune` returned.
    """

    name: str
    arm: Arm
    result: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.result["task"]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.result["config"]["seed"]

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.result["config"]["lr"]

    @property
    def metric(self) -> str:
        """Name of the task's official score."""
        return self.result["metric"]

    def scores(self, split: str, metric: str) -> dict[str, float]:
        """Return a metric of a split by language, as fractions."""
        scores = self.result["scores"].get(split, {})
        return {code: row[metric] for code, row in scores.items()}

    def score(self, split: str, languages: Collection[str] | None = None) -> float | None:
        """Return the official score, a mean over languages; None where one of them has none.

        Args:
            split: `dev` or `test`.
            languages: Over which; None means all that were scored.
        """
        scores = self.scores(split, self.metric)
        codes = list(scores) if languages is None else languages
        if not codes or any(code not in scores for code in codes):
            return None
        return math.fsum(scores[code] for code in codes) / len(codes)


@dataclass(frozen=True)
class Experiment:
    """Runs on the same data from the same model.

    Args:
        runs: The finished ones, by task, arm and seed.
        failed: Last line of the error of each failed run, by name.
        unfinished: Names of the runs that were begun.
        invented: Whether the data are in invented languages, as those of `graddrop demo`.
    """

    runs: tuple[Run, ...]
    failed: Mapping[str, str]
    unfinished: tuple[str, ...]
    invented: bool = False

    @property
    def among(self) -> str:
        """What the captions of tables of scores add where they must not be taken for real."""
        return " (invented languages)" if self.invented else ""

    @property
    def model(self) -> str:
        """Model that was fine-tuned, as the runs name it."""
        return self.runs[0].result["config"]["model"]

    @property
    def data(self) -> str:
        """Data, as the runs name them."""
        return self.runs[0].result["data"]

    @property
    def tasks(self) -> list[str]:
        """Tasks in the benchmark's order."""
        return sorted({run.task for run in self.runs}, key=list(TASKS).index)

    @property
    def arms(self) -> list[Arm]:
        """What is compared, in the order of the table of methods."""
        return sorted({run.arm for run in self.runs}, key=_arm_order)

    def masking(self, arm: Arm) -> dict[str, Any]:
        """Return where and when an arm masks; of a control, what the masks do that it matches."""
        config = next(run.result["config"] for run in self.runs if run.arm == arm)
        found: dict[str, Any] = {"granularity": "element", "period": "step", "site": "grad"}
        found |= {"rescale": False}
        if preset := METHODS[arm.method].masks:
            found |= preset.knobs
            if preset.made is not None:  # and loaded for good
                found["period"] = "run"
        # `select` of a run is another thing: which checkpoint.
        names = found.keys() - {"select"}
        found |= {name: config[name] for name in names if config.get(name) is not None}
        # AdamW does not see its gradients' scale.
        found["rescale"] = found["rescale"] and found["site"] == "update"
        return {**found, "exempt": sorted(config.get("exempt", ()))}

    def of(self, task: str, arm: Arm | None = None) -> list[Run]:
        """Return the runs of a task, or of an arm in it, by seed."""
        return [run for run in self.runs if run.task == task and arm in (None, run.arm)]

    def languages(self, task: str, split: str) -> list[str]:
        """Return the languages scored in a task, in the benchmark's order."""
        scored = {code for run in self.of(task) for code in run.result["scores"].get(split, ())}
        order = TASKS[task].languages
        return [code for code in order if code in scored] + sorted(scored - set(order))


def collect(
    place: Path, covers: Callable[[Mapping[str, Any]], bool] = lambda config: True
) -> Experiment:
    """Read every run below a folder, or in a file of scores.

    Args:
        place: A folder with run folders at any depth, or a file of JSON lines (see
            `graddrop.xglue.training.score_file.ScoreFile`).
        covers: Says of a configuration whether the experiment is about it: other runs are passed
            over.

    Raises:
        ReportError: If no run has finished; if runs differ in data or model; if two runs are the
            same; if runs of a task that agree in their settings were scored in other languages; if
            a result is not of the expected form.
        RunFolderError: If a file is not JSON.
        OSError: If a file cannot be read.
    """
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    unfinished: tuple[str, ...] = ()
    if place.is_file():
        for number, row in enumerate(ScoreFile(place).rows, 1):
            name = f"{place.name}:{number}"
            results[name] = _checked(Path(name), result_of(row))
    elif place.is_dir():
        for path in sorted(place.rglob(RESULT_FILE)):
            results[_name(path, place)] = _checked(path, read_json(path))
        failed, unfinished = _not_finished(place, results)
    else:
        raise ReportError(
            f"{place}: expected a folder of runs or a file of scores, found none; check the path"
        )
    results = {name: result for name, result in results.items() if covers(result["config"])}
    if not results:
        begun = failed or unfinished
        found = f"{len(failed)} failed, {len(unfinished)} unfinished" if begun else "none"
        raise ReportError(
            f"{place}: expected finished runs ({RESULT_FILE}), found {found}; "
            "finish a run, or name the folder above your runs"
        )
    _refuse_mixture(results, "data", lambda result: result["data"])
    _refuse_mixture(results, "model", lambda result: result["config"]["model"])
    configs = [result["config"] for result in results.values()]
    knobs = _varying(configs, "method", KNOBS)
    settings = _varying(configs, "task", set().union(*configs) - _IDENTITY - BYSTANDERS)
    runs = [
        Run(name, _arm(result["config"], knobs, settings), result)
        for name, result in results.items()
    ]
    runs.sort(key=lambda run: (list(TASKS).index(run.task), _arm_order(run.arm), run.lr, run.seed))
    _refuse_repetition(runs)
    _refuse_other_languages(runs)
    return Experiment(tuple(runs), failed, unfinished, is_mini_xglue(Path(runs[0].result["data"])))


def _not_finished(
    folder: Path, finished: Mapping[str, Any]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the errors of the runs that failed, the names of those that were only begun."""
    failed: dict[str, str] = {}
    for path in sorted(folder.rglob(FAILURE_FILE)):
        name = _name(path, folder)
        failure = RunFolder(path.parent).failure()
        if name not in finished and failure is not None:
            failed[name] = failure["error"]
    begun = []
    for path in sorted(folder.rglob(CONFIG_FILE)):
        name = _name(path, folder)
        config = read_json(path) if name not in finished and name not in failed else {}
        # A model's folder has a file of this name as well.
        if {"task", "method", "seed"} <= config.keys():
            begun.append(name)
    return failed, tuple(begun)


def _name(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _checked(path: Path, result: Any) -> dict[str, Any]:
    """Refuse what `graddrop finetune` did not write."""
    problem = problem_of(result)
    if problem is not None:
        raise ReportError(f"{path}: {problem}; move the file away")
    return result


def _refuse_mixture(results: Mapping[str, dict[str, Any]], what: str, value: Any) -> None:
    """A mean over several models or benchmarks would mean nothing."""
    examples: dict[str, str] = {}
    for name, result in results.items():
        examples.setdefault(value(result), name)
    if len(examples) > 1:
        found = "; ".join(f"{key} in {name}" for key, name in examples.items())
        raise ReportError(
            f"expected runs that share their {what}, found {len(examples)} ({found}); "
            "make a report of each folder"
        )


def _refuse_repetition(runs: Sequence[Run]) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    for run in runs:
        key = (run.task, run.arm, run.lr, run.seed, _text(run.result["config"].get("evaluate")))
        if key in seen:
            raise ReportError(
                f"{seen[key]} and {run.name} are the same run ({run.task}, {run.arm.label}, "
                f"seed {run.seed}); move one of them away"
            )
        seen[key] = run.name


def _refuse_other_languages(runs: Sequence[Run]) -> None:
    """A mean over languages compares only with one over the same languages."""
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        for split in EVAL_SPLITS:
            asked = _text(run.result["config"].get("evaluate"))
            other = first.setdefault((run.task, run.arm.settings, split, asked), run)
            ours, theirs = (set(some.scores(split, some.metric)) for some in (run, other))
            if ours != theirs:
                raise ReportError(
                    f"{other.name} and {run.name} were scored in other languages "
                    f"({split}: {', '.join(sorted(ours ^ theirs))}); run one of them again"
                )


def _varying(configs: Sequence[Mapping[str, Any]], within: str, names: Iterable[str]) -> list[str]:
    """Return the settings in which runs that agree in another one differ, in alphabetical order."""
    values: dict[tuple[str, str], set[str]] = {}
    for config, name in product(configs, names):
        values.setdefault((config[within], name), set()).add(_text(config.get(name)))
    return sorted({name for (_, name), found in values.items() if len(found) > 1})


def knobs_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the knobs of a run's method that were set by hand.

    Without masks those of masking decide nothing: such runs are the same.
    """
    method = METHODS[config["method"]]
    masks = method.masks is not None or method.shrinks_step
    unfreezes = method.trains == "gradually"
    relevant = [name for name in KNOBS if (unfreezes if name == "unfreeze_over" else masks)]
    unset: tuple[Any, ...] = (None, [], "epochs")
    return {name: _text(config[name]) for name in relevant if config.get(name) not in unset}


def _arm(config: Mapping[str, Any], knobs: Sequence[str], settings: Sequence[str]) -> Arm:
    return Arm(
        config["method"],
        _rate(config["drop_prob"]) if METHODS[config["method"]].drop_prob else None,
        tuple((name, value) for name, value in knobs_of(config).items() if name in knobs),
        tuple((name, _text(config.get(name))) for name in settings),
    )


def _rate(value: Any) -> float | tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else value


def _arm_order(arm: Arm) -> tuple[Any, ...]:
    return (list(METHODS).index(arm.method), arm.drop_probs, arm.knobs, arm.settings)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
