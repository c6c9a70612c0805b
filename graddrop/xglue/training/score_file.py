"""Finished runs as lines of one file: their folders are large and go, their scores are kept."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graddrop.xglue.config import BYSTANDERS, KNOBS, FinetuneConfig
from graddrop.xglue.training.result_form import problem_of
from graddrop.xglue.training.run_folder import RunFolderError

_OWN = ("task", "method", "drop_prob", "lr", "seed")
"""Settings that stand at the head of a line."""

_NEEDED = (*_OWN, "knobs", "settings", "steps", "metric", "scores", "seconds", "versions")


class ScoreFile:
    """A file of JSON lines, each a finished run (see `row_of`).

    Args:
        path: The file, which need not exist.

    Raises:
        RunFolderError: If a line is not a run's; names the file and the line.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        content = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(content.splitlines(), 1):
            self.rows.append(_checked(line, f"{path}:{number}"))
        if content and not content.endswith(b"\n"):
            raise RunFolderError(
                f"{path}:{len(self.rows)}: expected a line end after the last run; add it"
            )
        self._found = {run_key(settings_of(row)): row for row in self.rows}

    def find(self, config: FinetuneConfig) -> dict[str, Any] | None:
        """Return the line of a run with exactly the settings of this one, or None."""
        return self._found.get(run_key(config.resolved().to_json()))

    def append(self, result: Mapping[str, Any]) -> None:
        """Add a finished run as one line, in one write: two processes may do so side by side.

        Args:
            result: What `graddrop.xglue.training.run.finetune` returned.

        Raises:
            OSError: If it cannot be written; the file is then as it was.
        """
        row = row_of(result)
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self.rows.append(row)
        self._found[run_key(settings_of(row))] = row


def row_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a finished run is kept.

    Args:
        result: What `graddrop.xglue.training.run.finetune` returned.

    Returns:
        `task`, `method`, `drop_prob`, `lr`, `seed`; `knobs` (the method's other settings);
        `settings` (all others that can change a score); `steps`, `selected_step`, `train_loss`
        (the last one logged), `metric` (the official score's name), `scores` (split, language,
        metric: fraction), `missing`, `parameters`, `seconds`, `commit`, `versions`.
    """
    settings = _settings(result["config"])
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    return {
        **{name: settings.pop(name) for name in _OWN},
        "knobs": {name: settings.pop(name) for name in KNOBS},
        "settings": settings,
        "train_loss": losses[-1] if losses else None,
        **{name: result[name] for name in ("steps", "selected_step", "metric", "scores")},
        **{name: result[name] for name in ("missing", "parameters", "seconds")},
        "commit": result.get("commit"),
        "versions": result["versions"],
    }


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a line's run; those that it does not know are the defaults."""
    own = {name: row[name] for name in _OWN}
    return {**_defaults(), **own, **row["knobs"], **row["settings"]}


def result_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `row_of` kept, in the form of a run's `result.json`; it has no history."""
    config = settings_of(row)
    kept = ("task", "steps", "selected_step", "metric", "scores", "missing", "parameters")
    return {
        **{name: row.get(name) for name in kept},
        **{name: row.get(name) for name in ("seconds", "commit", "versions")},
        "config": config,
        "data": config.get("data"),
        "history": [],
    }


def run_key(config: Mapping[str, Any]) -> str:
    """Return a text that two runs share if they have the same settings.

    Args:
        config: What `FinetuneConfig.to_json` returns.
    """
    return json.dumps(_settings(config), sort_keys=True)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that can change a score, wherever data and model lie."""
    kept = {**_defaults(), **config}
    kept = {name: value for name, value in kept.items() if name not in BYSTANDERS}
    return kept | {name: _placeless(kept[name]) for name in ("data", "model")}


def _placeless(name: str) -> str:
    """Return the last part of a path; other names, as those on the Hub, stay what they are."""
    parts = Path(name).parts
    is_path = len(parts) > 2 or parts[:1] in ((os.sep,), ("..",)) or name.startswith(".")
    return Path(name).name if is_path else name


def _defaults() -> dict[str, Any]:
    without = ("task", "data", "output", "verify")
    fields = (field for field in dataclasses.fields(FinetuneConfig) if field.name not in without)
    values = {field.name: field.default for field in fields if field.name not in BYSTANDERS}
    return json.loads(json.dumps(values))


def _checked(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{where}: expected JSON ({error}); remove the line") from error
    missing = [name for name in _NEEDED if not isinstance(row, dict) or name not in row]
    if missing:
        raise RunFolderError(f"{where}: expected a finished run, found no {missing[0]!r}")
    for name in ("knobs", "settings", "scores", "seconds", "versions"):
        if not isinstance(row[name], dict):
            raise RunFolderError(f"{where}: {name}: expected a table, got {row[name]!r}")
    if problem := problem_of(result_of(row)):
        raise RunFolderError(f"{where}: {problem}; remove the line")
    return row
