"""A process that has loaded everything, and makes copies of itself that begin at once.

Loading torch, transformers and datasets takes ten seconds; a copy that runs a command begins in
hundredths of one, and its own workers too, so that a test can afford to kill many.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from helpers.root import ROOT

LOADED = (
    "datasets",
    "graddrop.xglue.training.callbacks",
    "graddrop.xglue.sweep.runner",
    "graddrop.xglue.training.run",
    "graddrop.xglue.training.trainer",
    "transformers.data.data_collator",
    "transformers.models.auto.modeling_auto",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
    "transformers.trainer",
)
"""What a run needs and the zygote has."""
PATIENCE = 180
"""Seconds that a process may take; none needs so many, even on a busy machine."""


class Zygote:
    """The process that is copied.

    Args:
        process: The one that runs `serve`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, arguments: Sequence[str], screen: Path) -> int:
        """Start `graddrop` with arguments in a session of its own.

        Args:
            arguments: Of the command line.
            screen: File that gets what is printed.

        Returns:
            The number of the process, which leads a process group of the same number.
        """
        return self._ask("start", list(map(str, arguments)), str(screen))

    def wait(self, process: int) -> int:
        """Wait for a process; return its status, or minus the signal that ended it.

        One that takes longer than `PATIENCE` is killed, with its group.
        """
        assert self._process.stdout is not None
        self._tell("wait", process)
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            os.killpg(process, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def run(self, arguments: Sequence[str], screen: Path) -> int:
        """Start and wait."""
        return self.wait(self.start(arguments, screen))

    def _ask(self, *request: object) -> int:
        assert self._process.stdout is not None
        self._tell(*request)
        return int(self._process.stdout.readline())

    def _tell(self, *request: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()


@contextmanager
def zygote(cache: Path) -> Iterator[Zygote]:
    """Make a process that has loaded everything and computes with one thread.

    Args:
        cache: Folder for the cache of `datasets`.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", "from helpers import zygote; zygote.serve()"],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(cache),
            "TOKENIZERS_PARALLELISM": "false",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Zygote(process)
    finally:
        process.communicate()  # the end of its input is its end


def serve() -> None:
    """Load everything, then start and await copies as the input says."""
    from tqdm import tqdm

    from graddrop.cli import main
    from graddrop.xglue.sweep import workers

    for name in LOADED:
        import_module(name)
    workers.START_METHOD = "fork"
    # Copies would share tqdm's own lock, which one that is killed keeps; with a lock for each no
    # thread of tqdm's may hold it while a process is copied.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    print("ready", flush=True)
    for line in sys.stdin:
        request, *values = json.loads(line)
        if request == "start":
            answer = os.fork()
            if answer == 0:
                _run(main, *values)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(values[0], 0)[1])
        print(answer, flush=True)


def _run(main: Callable[[list[str]], int], arguments: list[str], screen: str) -> None:
    """Be the command, until the end of the process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(old, new)
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
