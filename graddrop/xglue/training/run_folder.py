"""The output folder of a run: what is in it is whole, whenever the run was killed.

config.json     what was asked for; written first
head.json       names of the head's parameters, as the first attempt loaded the model
checkpoint-N/   the Trainer's checkpoint of step N, with a seal once it is whole
model/          final weights and tokenizer
predictions/    predictions in the official format, if asked for
runs/           what TensorBoard shows, if asked for: the Trainer's own place for it
failure.json    why the last attempt failed, if a sweep saw it fail; gone once the run has finished
result.json     scores; written last, so a folder with it is finished
"""

import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graddrop.xglue.locks import Lock, take
from graddrop.xglue.textfile import TextFileError, brief
from graddrop.xglue.textfile import read_json as read_any_json
from graddrop.xglue.training.seal import is_whole
from graddrop.xglue.whole_file import write_json

CONFIG_FILE = "config.json"
HEAD_FILE = "head.json"
RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"
LOCK_FILE = ".lock"

GLANCE = 0.1
"""Seconds for which one who only asks whether somebody is at work may seem to be so himself."""


class RunFolderError(ValueError):
    """An output folder that this run must not touch."""


class RunFolderBusyError(RunFolderError):
    """An output folder in which another process is at work."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run, which holds an object.

    Raises:
        RunFolderError: If it holds something else.
        OSError: If it cannot be read.
    """
    try:
        value = read_any_json(path)
    except TextFileError as error:
        raise RunFolderError(f"{error}; remove the file") from error
    if not isinstance(value, dict):
        raise RunFolderError(
            f"{path}: expected a JSON object, found {brief(value)}; remove the file"
        )
    return value


class RunFolder:
    """The output folder of one run.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.predictions = path / "predictions"

    def check(self, config: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Refuse the folder unless it is free or this run's own; change nothing.

        Args:
            config: What the run was asked for, as JSON has it.
            resume: Whether an earlier attempt at the same run may be continued.

        Returns:
            The result, if the run has finished already.

        Raises:
            RunFolderError: If the folder holds another configuration, a run of this configuration
                while `resume` is False, or files that are no run's.
            OSError: If it cannot be read.
        """
        file = self.path / CONFIG_FILE
        if file.exists():
            stored = read_json(file)
            if stored != config:
                raise RunFolderError(
                    f"{self.path} holds a run of another configuration "
                    f"({_difference(stored, config)}); choose another output folder"
                )
            result = self.result()
            if not resume:
                state = "an unfinished" if result is None else "a finished"
                raise RunFolderError(
                    f"{self.path} holds {state} run of this configuration; "
                    "pass --resume to go on with it, or choose another output folder"
                )
            return result
        if self.path.exists():
            if not self.path.is_dir():
                raise RunFolderError(f"{self.path} is a file; expected a folder for the output")
            # A run killed while it wrote its configuration leaves its lock and a draft; one that
            # failed before it began, as for lack of data, leaves the record of that.
            own = (LOCK_FILE, FAILURE_FILE)
            names = (entry.name for entry in self.path.iterdir())
            strangers = sorted(n for n in names if n not in own and not n.endswith(".tmp"))
            if strangers:
                raise RunFolderError(
                    f"{self.path} is not empty and holds no {CONFIG_FILE} "
                    f"(found {strangers[0]}); choose another output folder"
                )
        return None

    def head(self) -> frozenset[str] | None:
        """Return the names of the head's parameters, as recorded with `claim`, or None.

        Raises:
            RunFolderError: If the file holds something else.
        """
        file = self.path / HEAD_FILE
        if not file.exists():
            return None
        try:
            names = read_any_json(file)
        except TextFileError as error:
            raise RunFolderError(f"{error}; remove the file") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunFolderError(f"{file}: expected a list of names; remove the file")
        return frozenset(names)

    def claim(
        self,
        config: dict[str, Any],
        checkpoint: Path | None = None,
        head: Collection[str] | None = None,
    ) -> None:
        """Make the folder this run's own, unless it has become another's since it was checked.

        Args:
            config: What the run was asked for, as JSON has it.
            checkpoint: The last one when the run began to load it; None if there was none.
            head: Names of the head's parameters; recorded unless an attempt has gone before.

        Raises:
            RunFolderBusyError: If another process has gone on with the run since then.
            RunFolderError: If another process has made something else of the folder since then.
            OSError: If it cannot be written.
        """
        finished = self.check(config, resume=True) is not None
        if finished or self.last_checkpoint() != checkpoint:
            raise RunFolderBusyError(
                f"another process was at work in {self.path} while this one began; start again "
                "with --resume to go on from where it came"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG_FILE, config)
        if head is not None and checkpoint is None:
            write_json(self.path / HEAD_FILE, sorted(head))
        self.discard_checkpoints(self._whole_checkpoints())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep other processes out of the folder, which is made where it does not exist.

        Raises:
            RunFolderBusyError: If another process is at work in it.
            OSError: If it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK_FILE).open("w") as lock:
            deadline = time.monotonic() + GLANCE
            while take(lock) is Lock.BUSY:
                if time.monotonic() > deadline:
                    raise RunFolderBusyError(
                        f"another process is at work in {self.path}; wait for it, or choose "
                        "another output folder"
                    )
                time.sleep(GLANCE / 10)
            yield

    def is_busy(self) -> bool:
        """Return whether some process is at work in the folder; change nothing."""
        try:
            lock = (self.path / LOCK_FILE).open()
        except FileNotFoundError:
            return False
        with lock:
            return take(lock, shared=True) is Lock.BUSY

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None.

        Raises:
            RunFolderError: If the file holds no result.
            OSError: If it cannot be read.
        """
        file = self.path / RESULT_FILE
        if not file.exists():
            return None
        result = read_json(file)
        for name in ("scores", "missing", "seconds"):
            if not isinstance(result.get(name), dict):
                raise RunFolderError(
                    f"{file}: expected the result of a run, found {name} to be "
                    f"{brief(result.get(name))}; remove the file"
                )
        return result

    def finish(self, result: dict[str, Any], keep_checkpoints: bool) -> None:
        """Write the result, then remove the checkpoints unless they are to be kept."""
        # First, so that no finished run is ever also a failed one.
        (self.path / FAILURE_FILE).unlink(missing_ok=True)
        write_json(self.path / RESULT_FILE, result)
        if not keep_checkpoints:
            self.discard_checkpoints()

    def tidy(self, keep_checkpoints: bool) -> None:
        """Remove what a process that was killed after the result was written has left to remove."""
        finished = (self.path / RESULT_FILE).exists()
        if keep_checkpoints or not finished or not self._checkpoints():
            return
        # Nothing depends on it: whoever is at work, or may write here, does it another time.
        with suppress(RunFolderBusyError, OSError), self.at_work():
            self.discard_checkpoints()

    def failure(self) -> dict[str, Any] | None:
        """Return the record of a failed last attempt (see `fail`), or None.

        Nothing depends on it: what is none is passed over, and the next failure replaces it.
        """
        try:
            record = read_json(self.path / FAILURE_FILE)
        except (FileNotFoundError, RunFolderError):
            return None
        of_kind = type(record.get("attempts")) is int and isinstance(record.get("error"), str)
        return record if of_kind else None

    def fail(self, error: str) -> dict[str, Any]:
        """Record that an attempt has failed.

        Args:
            error: A traceback, or another account of what happened.

        Returns:
            What `failure.json` holds: `attempts` (how many have failed so far), `time` (UTC),
            `error` (the last line) and `traceback` (all of it).

        Raises:
            OSError: If it cannot be written.
        """
        before = self.failure()
        self.path.mkdir(parents=True, exist_ok=True)
        record = {
            "attempts": 1 + (before["attempts"] if before else 0),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": error.strip().rpartition("\n")[2],
            "traceback": error,
        }
        write_json(self.path / FAILURE_FILE, record)
        return record

    def checkpoint(self, step: int) -> Path:
        """Return where the Trainer keeps the checkpoint of a step."""
        return self.path / f"checkpoint-{step}"

    def last_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint."""
        whole = self._whole_checkpoints()
        return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    def discard_checkpoints(self, but: Collection[Path] = ()) -> None:
        """Remove all checkpoints but some; what the system does not let go of stays."""
        for folder in self._checkpoints():
            if folder not in but:
                shutil.rmtree(folder, ignore_errors=True)

    def _whole_checkpoints(self) -> list[Path]:
        return [folder for folder in self._checkpoints() if is_whole(folder)]

    def _checkpoints(self) -> list[Path]:
        """Return the Trainer's; a copy with another name is the user's own."""
        named = self.path.glob("checkpoint-*")
        return [folder for folder in named if re.fullmatch("checkpoint-[0-9]+", folder.name)]


def _difference(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    names = sorted(
        name for name in stored.keys() | asked.keys() if stored.get(name) != asked.get(name)
    )
    return "; ".join(
        f"{name}: there {brief(stored.get(name))}, asked {brief(asked.get(name))}"
        for name in names[:4]
    )
