"""How far a sweep has come, on the screen, with the time that is left."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from graddrop.xglue.textfile import printable


def seconds_left(
    seconds: Mapping[str, Sequence[float]], unfinished: Iterable[str], places: int
) -> float | None:
    """Estimate how long runs will take from how long others took.

    Args:
        seconds: Seconds of each finished run, by task.
        unfinished: The task of each run that is left.
        places: How many run side by side.

    Returns:
        Seconds, taking a run to last as long as the mean run of its task or, if none of its task
        has finished, as the mean run; None while none at all has finished.
    """
    everything = [value for of_task in seconds.values() for value in of_task]
    if not everything:
        return None
    tasks = list(unfinished)
    samples = [seconds.get(task) or everything for task in tasks]
    total = sum(sum(sample) / len(sample) for sample in samples)
    return total / max(1, min(places, len(tasks)))


class SweepProgress:
    """A bar with the runs that have finished, those that have failed, and the time left.

    Args:
        tasks: The task of each run, by the run's folder.
        places: How many run side by side.
    """

    def __init__(self, tasks: Mapping[str, str], places: int) -> None:
        from tqdm.auto import tqdm

        self._unfinished = dict(tasks)
        self._places = places
        self._seconds: dict[str, list[float]] = {}
        self._failed = 0
        self._estimate: float | None = None
        self._estimated_at = time.monotonic()
        self._bar = tqdm(
            total=len(tasks),
            desc="Sweep",
            dynamic_ncols=True,
            bar_format="{desc}: {n_fmt}/{total_fmt} runs |{bar}| {elapsed}{postfix}",
        )

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def finished(self, folder: str, result: Mapping[str, Any]) -> None:
        """Count a run that has finished, now or before."""
        seconds = sum(result["seconds"].values())
        self._seconds.setdefault(self._unfinished[folder], []).append(seconds)
        self._bar.update()
        self._ended(folder)

    def failed(self, folder: str, error: str) -> None:
        """Count a run that has failed, and say so."""
        self._failed += 1
        self._bar.write(printable(f"failed: {folder}: {error}"), file=sys.stderr)
        self._ended(folder)

    def left_out(self, folder: str) -> None:
        """Count a run that another process is at work on."""
        self._bar.write(f"left to another process: {folder}", file=sys.stderr)
        self._ended(folder)

    def tick(self) -> None:
        """Let the clock go on, where somebody may look at it."""
        if sys.stderr.isatty():
            self._show()

    def _ended(self, folder: str) -> None:
        del self._unfinished[folder]
        self._estimate = seconds_left(self._seconds, self._unfinished.values(), self._places)
        self._estimated_at = time.monotonic()
        self._show()

    def _show(self) -> None:
        parts = [f"{self._failed} failed"] if self._failed else []
        if self._unfinished and self._estimate is not None:
            left = max(0.0, self._estimate - (time.monotonic() - self._estimated_at))
            parts.append(f"{timedelta(seconds=round(left))} left")
        self._bar.set_postfix_str(", ".join(parts))
