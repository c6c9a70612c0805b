"""Whether a value from a file has the form of a run's result, part by part."""

import math
from collections.abc import Iterator
from typing import Any, get_type_hints

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.methods import METHODS
from graddrop.xglue.settings import fits
from graddrop.xglue.tasks import TASKS
from graddrop.xglue.textfile import brief

NEEDED = ("task", "config", "data", "metric", "scores", "history", "seconds", "versions")


def problem_of(result: Any) -> str | None:
    """Return what is wrong with a result, None if nothing is.

    What readers of results go by is looked at: settings of a newer version, and other parts that it
    may have, are left alone.

    Args:
        result: What a file holds in place of what `graddrop.xglue.training.run.finetune` returned.

    Returns:
        What was expected and what was found, with its place in the result.
    """
    return next(_problems(result), None)


def _problems(result: Any) -> Iterator[str]:
    for name in NEEDED:
        if not isinstance(result, dict) or name not in result:
            yield f"expected the result of a fine-tuning run, found no {name!r}"
            return
    config = result["config"]
    if not isinstance(config, dict):
        yield _wrong("config", "a table of settings", config)
        return
    for name, table in (("task", TASKS), ("method", METHODS)):
        value = config.get(name)
        if not isinstance(value, str) or value not in table:
            yield f"unknown {name} {brief(value)}; expected one of {', '.join(table)}"
            return
    task = TASKS[config["task"]]
    if result["task"] != task.name:
        yield _wrong("task", f"{task.name!r}, as in its settings", result["task"])
    hints = get_type_hints(FinetuneConfig)
    for name, value in config.items():
        if name in hints and not fits(value, hints[name]):
            yield _wrong(f"config.{name}", f"a value of type {_called(hints[name])}", value)
    for name in ("lr", "seed"):
        if not _is_number(config.get(name)):
            yield _wrong(f"config.{name}", "a finite number", config.get(name))
    drop_prob = config.get("drop_prob")
    for value in drop_prob if isinstance(drop_prob, list) else [drop_prob]:
        if value is not None and not 0 <= value <= 1:
            yield _wrong("config.drop_prob", "probabilities in [0, 1]", drop_prob)
    if not isinstance(result["data"], str):
        yield _wrong("data", "a text", result["data"])
    if result["metric"] not in list(task.metrics):
        yield _wrong("metric", f"one of {', '.join(task.metrics)}", result["metric"])
    for name in ("steps", "parameters"):
        if not (isinstance(result.get(name), int) and _is_number(result[name])):
            yield _wrong(name, "a whole number", result.get(name))
    yield from _problems_of_scores(result["scores"], result["metric"])
    yield from _problems_of_records(result)


def _problems_of_scores(scores: Any, metric: str) -> Iterator[str]:
    if not isinstance(scores, dict):
        yield _wrong("scores", "a table of splits", scores)
        return
    for split, languages in scores.items():
        if not isinstance(languages, dict):
            yield _wrong(f"scores.{split}", "a table of languages", languages)
            return
        for language, row in languages.items():
            place = f"scores.{split}.{language}"
            if not isinstance(row, dict) or metric not in row:
                yield _wrong(place, f"a table of metrics with {metric}", row)
                return
            for name, value in row.items():
                if not _is_number(value) or not 0 <= value <= 1:
                    yield _wrong(f"{place}.{name}", "a fraction in [0, 1]", value)


def _problems_of_records(result: dict[str, Any]) -> Iterator[str]:
    seconds, versions, history = (result[name] for name in ("seconds", "versions", "history"))
    for kind in ("train", "evaluate"):
        if not isinstance(seconds, dict) or not _is_number(seconds.get(kind)):
            yield _wrong("seconds", f"a table with a finite number of {kind}", seconds)
            return
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        yield _wrong("versions", "a table of texts", versions)
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        yield _wrong("history", "a list of tables", history)
        return
    for number, row in enumerate(history):
        if not _is_number(row.get("step")):
            yield _wrong(f"history[{number}].step", "a finite number", row.get("step"))
        for name, value in row.items():
            # A loss that is not finite is what a log has to tell.
            if not isinstance(value, int | float) or isinstance(value, bool):
                yield _wrong(f"history[{number}].{name}", "a number", value)
    if not isinstance(result.get("commit"), str | None):
        yield _wrong("commit", "a text", result["commit"])


def _is_number(value: Any) -> bool:
    of_kind = isinstance(value, int | float) and not isinstance(value, bool)
    return of_kind and abs(value) < 1 << 63 and not math.isnan(value)


def _called(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def _wrong(place: str, expected: str, found: Any) -> str:
    return f"{brief(place)[1:-1]}: expected {expected}, found {brief(found)}"
