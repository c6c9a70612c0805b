"""One attempt at a run of a sweep, in whatever process a scheduler has put it."""

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.training.run_folder import RunFolder, RunFolderBusyError

FINISHED = "finished"
ELSEWHERE = "at work in another process"


def attempt(config: FinetuneConfig) -> str:
    """Bring a run to its end, from its last checkpoint if there is one.

    What is printed goes to the end of a file beside the run's folder, see `log_file`.

    Args:
        config: The run.

    Returns:
        `FINISHED`, or `ELSEWHERE` if another process holds the folder.

    Raises:
        Exception: Whatever `finetune` raises.
    """
    if RunFolder(Path(config.output)).is_busy():
        return ELSEWHERE
    with _printing_to(log_file(config)):
        from tqdm import tqdm

        from graddrop.xglue.training.run import finetune

        # The default one is a semaphore of the system's, which a killed process leaves behind.
        tqdm.set_lock(threading.RLock())
        began = datetime.now(UTC).isoformat(timespec="seconds")
        print(f"--- {began}, process {os.getpid()}", flush=True)
        try:
            finetune(config, resume=True)
        except RunFolderBusyError:
            return ELSEWHERE
        finally:
            _let_go_of_memory()
    return FINISHED


def log_file(config: FinetuneConfig) -> Path:
    """Return the file that gets what a run prints: beside its folder, which is the run's own."""
    return Path(f"{config.output}.log")


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send what this process prints, libraries in C included, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    streams = ((sys.stdout, 1), (sys.stderr, 2))
    before = [os.dup(number) for _, number in streams]
    with path.open("ab") as log:
        for stream, number in streams:
            stream.flush()
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for (stream, number), old in zip(streams, before, strict=True):
            stream.flush()
            os.dup2(old, number)
            os.close(old)


def _let_go_of_memory() -> None:
    """Leave the device's memory to the next run in this process."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
