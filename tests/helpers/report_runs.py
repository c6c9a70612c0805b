"""Results of runs that never were, for reports on them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.tasks import TASKS

Score = Callable[[str, str, str, int], float]
"""Task, method, language, seed: fraction of the official score."""

HISTORY = [
    row
    for step in (10, 20)
    for row in (
        {"step": step, "loss": 1 / step, "learning_rate": 0.1},
        {"step": step, "eval_en": 0.8, "eval_de": 0.4, "eval_ru": 0.2, "eval_average": 9.9},
    )
]
"""What the Trainer logs of a training of twenty steps that is evaluated twice."""


def make_result(
    task: str,
    method: str,
    seed: int,
    scores: Mapping[str, float],
    *,
    history: Iterable[Mapping[str, float]] = (),
    **settings: Any,
) -> dict[str, Any]:
    """What `finetune` would return.

    Args:
        task: Name of the task.
        method: Name of the method.
        seed: Of the run.
        scores: Fraction by language, of every metric on test; dev is a tenth less.
        history: The Trainer's log.
        settings: Of `FinetuneConfig`.
    """
    values: dict[str, Any] = {"data": "hub", "model": "xlm-roberta-base", **settings}
    config = FinetuneConfig(task=task, method=method, seed=seed, output="x", **values).resolved()
    row = TASKS[task]
    by_split = {
        split: {code: dict.fromkeys(row.metrics, less * s) for code, s in scores.items()}
        for split, less in (("dev", 0.9), ("test", 1.0))
    }
    return {
        "task": task,
        "config": config.to_json(),
        "data": config.data,
        "metric": row.score,
        "scores": by_split,
        "history": list(history),
        "missing": {"dev": [], "test": []},
        "steps": config.max_steps or 10,
        "selected_step": 10,
        "parameters": 1000,
        "seconds": {"train": 60.0, "evaluate": 6.0},
        "commit": "0123abc",
        "versions": {"torch": "2.13.0", "graddrop": "0.1.0"},
    }


def flat(value: float) -> dict[str, float]:
    """The same score in the languages of QADSM."""
    return dict.fromkeys(TASKS["qadsm"].languages, value)


def qadsm(method: str, seed: int, value: float, **settings: Any) -> dict[str, Any]:
    """A run of a task with three languages."""
    return make_result("qadsm", method, seed, flat(value), **settings)


def put(folder: Path, *results: Mapping[str, Any]) -> Path:
    """Write results as a sweep would lay them out; return the folder."""
    for result in results:
        config = result["config"]
        rate = f"-{config['drop_prob']}" if config["drop_prob"] else ""
        name = f"{result['task']}-{config['method']}{rate}-{config['seed']}"
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps(config))
        (run / "result.json").write_text(json.dumps(result))
    return folder


def sweep(
    folder: Path,
    tasks: Iterable[str],
    methods: Iterable[str],
    seeds: Iterable[int],
    score: Score,
    **settings: Any,
) -> Path:
    """Write a run for each task, method and seed; return the folder."""
    methods, seeds = tuple(methods), tuple(seeds)
    for task in tasks:
        for method in methods:
            for seed in seeds:
                scores = {code: score(task, method, code, seed) for code in TASKS[task].languages}
                put(folder, make_result(task, method, seed, scores, **settings))
    return folder
