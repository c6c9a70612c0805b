"""The command `graddrop sweep`: many runs, each brought to its end, whatever happens to some."""

import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.sweep.attempt import ELSEWHERE, attempt
from graddrop.xglue.sweep.cluster import connect, run_jobs_on_ray
from graddrop.xglue.sweep.plan import SweepPlan
from graddrop.xglue.sweep.progress import SweepProgress
from graddrop.xglue.sweep.workers import Outcome, local_environments, run_jobs
from graddrop.xglue.training.run_folder import RunFolder
from graddrop.xglue.training.score_file import ScoreFile, result_of

__all__ = ["ENGINES", "SweepError", "SweepPlan", "run_state", "sweep"]

ENGINES = ("local", "ray")


class SweepError(RuntimeError):
    """A sweep of which not all runs have finished.

    Args:
        failed: The last line of the error of each run that failed, by the run's folder.
        elsewhere: Folders of runs that are left to other processes, which are at work in them.
    """

    def __init__(self, failed: Mapping[Path, str], elsewhere: Sequence[Path]) -> None:
        self.failed = dict(failed)
        self.elsewhere = list(elsewhere)
        lines = [f"failed: {folder}: {error}" for folder, error in failed.items()]
        lines += [f"left to another process: {folder}" for folder in elsewhere]
        super().__init__("\n".join(lines))


def sweep(
    plan: SweepPlan,
    output: str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    scores: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Bring every run of a plan to its end.

    Finished runs are not repeated; interrupted ones go on from their last checkpoint; failed ones
    are tried again. A run that fails leaves a `failure.json` in its folder (see `RunFolder.fail`)
    and stops no other. A run in whose folder another process is at work is left to it.

    Args:
        plan: The runs.
        output: Folder of the sweep: each run has a folder in `runs/`, and beside it the file with
            what it printed.
        workers: Processes on this machine; None means one per GPU or, without any, one per core.
        engine: `local`, or `ray`, which shares the runs out by itself.
        scores: File of JSON lines: runs that it holds are not run, those that finish are added.

    Returns:
        The results of all runs (see `graddrop.xglue.training.run.finetune`), in the order of
        `SweepPlan.configs`; those of runs that were not run as `result_of` makes them.

    Raises:
        SweepError: If some runs have not finished, when nothing is left to be done.
        RunFolderError: If a run's folder holds another configuration, another sweep is at work, or
            a line of `scores` is not a run's.
        ValueError: If the engine is unknown or not installed, or `workers` out of its range.
        OSError: If the output cannot be written.
    """
    output = Path(output)
    configs = plan.configs(output)
    kept = ScoreFile(Path(scores)) if scores is not None else None
    results = {}
    for config in configs:
        row = kept.find(config) if kept is not None else None
        result = result_of(row) if row is not None else _check(config)
        if result is None:
            continue
        results[config.output] = result
        if kept is not None and row is None:  # it finished before, or while nobody kept scores
            kept.append(result)
    for config in configs:
        RunFolder(Path(config.output)).tidy(config.keep_checkpoints)
    unfinished = [config for config in configs if config.output not in results]
    if unfinished:
        outcomes, places = _begin(unfinished, workers, engine)
        tasks = {config.output: config.task for config in configs}
        with (
            RunFolder(output).at_work(),
            _ended_by_sigterm(),
            closing(outcomes),
            SweepProgress(tasks, places) as progress,
        ):
            for folder, result in results.items():
                progress.finished(folder, result)
            results |= _follow(outcomes, progress, kept)
    return [results[config.output] for config in configs]


def _begin(
    unfinished: Sequence[FinetuneConfig], workers: int | None, engine: str
) -> tuple[Generator[Outcome | None, None, None], int]:
    """Return what the engine will make of the runs, and how many it takes at the same time."""
    if engine == "local":
        environments = local_environments(workers)
        return run_jobs(attempt, unfinished, environments), len(environments)
    if engine == "ray":
        if workers is not None:
            raise ValueError("workers are the cluster's affair with engine ray; leave them out")
        places = connect()
        return run_jobs_on_ray(attempt, unfinished), places
    raise ValueError(f"unknown engine {engine!r}; expected one of {', '.join(ENGINES)}")


def _follow(
    outcomes: Iterable[Outcome | None], progress: SweepProgress, kept: ScoreFile | None
) -> dict[str, dict[str, Any]]:
    """Record each outcome as it comes; return the results by the run's folder.

    Raises:
        SweepError: In the end, if there was one that is not a finished run.
    """
    results: dict[str, dict[str, Any]] = {}
    failed: dict[Path, str] = {}
    elsewhere: list[Path] = []
    for outcome in outcomes:
        if outcome is None:
            progress.tick()
            continue
        output = outcome.job.output
        folder = RunFolder(Path(output))
        result = folder.result()
        if result is not None:  # even if the process died just after it was written
            results[output] = result
            if kept is not None:
                kept.append(result)
            progress.finished(output, result)
        elif outcome.value == ELSEWHERE:
            elsewhere.append(folder.path)
            progress.left_out(output)
        else:
            failed[folder.path] = folder.fail(outcome.error or "it left no result")["error"]
            progress.failed(output, failed[folder.path])
    if failed or elsewhere:
        raise SweepError(failed, elsewhere)
    return results


def run_state(config: FinetuneConfig, kept: ScoreFile | None = None) -> str:
    """Say in some words how far a run has come.

    Args:
        config: The run.
        kept: Where the scores of finished runs are kept.

    Raises:
        RunFolderError: If its folder holds something else.
    """
    if kept is not None and kept.find(config) is not None:
        return f"finished, in {kept.path}"
    folder = RunFolder(Path(config.output))
    if _check(config) is not None:
        return "finished"
    if folder.is_busy():
        return "at work"
    failure = folder.failure()
    if failure is not None:
        return f"failed ({failure['attempts']} x): {failure['error']}"
    checkpoint = folder.last_checkpoint()
    if checkpoint is not None:
        return f"interrupted after step {checkpoint.name.rpartition('-')[2]}"
    return "to be run"


def _check(config: FinetuneConfig) -> dict[str, Any] | None:
    """Return the result of a finished run; refuse a folder that holds something else."""
    asked = config.resolved().to_json()
    return RunFolder(Path(config.output)).check(asked, resume=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that no process outlives this one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's affair
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
