"""Processes on this machine that take jobs one after another, and may die of them."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

START_METHOD = "spawn"
"""Not a fork: neither the threads of torch nor a CUDA context would survive it."""

TICK = 1.0
"""Seconds after which a caller hears from us although nothing has ended."""


# glibc gives large tensors back to the system at each step and takes them again page by page, which
# took longer than the arithmetic of a small model (docs/xglue.md): it keeps them, in large pages.
_KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class Outcome(NamedTuple):
    """How a job has ended.

    Args:
        job: The job.
        value: What the function returned; None if it failed.
        error: The traceback, or what killed the process; None if the function returned.
    """

    job: Any
    value: Any
    error: str | None


def run_jobs(
    function: Callable[[Any], Any], jobs: Sequence[Any], environments: Sequence[Mapping[str, str]]
) -> Generator[Outcome | None, None, None]:
    """Call a function with each job, side by side, in processes that serve many jobs each.

    A process that dies takes no job but its own with it; another one takes its place.

    Args:
        function: What to call, of a module that a new process can import.
        jobs: Its argument for each call, in the order in which calls begin.
        environments: Variables of the environment that tell the processes apart; as many as there
            are to be processes at the same time.

    Yields:
        The outcomes as they come, and None every second or so in which there is none.
    """
    waiting = deque(jobs)
    free = deque(environments)
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and (idle or free):
                worker = idle.pop() if idle else _Worker(function, free.popleft())
                if worker.process.is_alive():
                    busy.append(worker)
                    worker.give(waiting.popleft())
                else:  # killed while it waited
                    worker.stop()
                    free.append(worker.environment)
            ready = wait([handle for worker in busy for handle in worker.handles], TICK)
            if not ready:
                yield None
            for worker in [worker for worker in busy if {*worker.handles} & {*ready}]:
                busy.remove(worker)
                outcome = worker.outcome()
                if worker.process.is_alive():
                    idle.append(worker)
                else:
                    worker.stop()
                    free.append(worker.environment)
                yield outcome
    finally:
        for worker in busy:  # interrupted
            worker.process.terminate()
        for worker in idle:
            worker.give(_NO_MORE)
        for worker in idle + busy:
            worker.stop()


def local_environments(count: int | None = None) -> list[dict[str, str]]:
    """Share this machine's devices out among processes.

    Args:
        count: Number of processes; None means one per GPU or, without any, one per core.

    Returns:
        Variables of the environment for each process: its GPU; or its share of the cores, and what
        makes glibc keep its memory, unless the user has set that.

    Raises:
        ValueError: If `count` is not positive.
    """
    import torch

    if count is not None and count < 1:
        raise ValueError(f"workers must be positive, got {count}")
    if torch.cuda.is_available():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = torch.cuda.device_count()
        gpus = named.split(",")[:number] if named else [str(index) for index in range(number)]
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % number]} for i in range(count or number)]
    if torch.accelerator.is_available():  # one of another kind, which takes turns
        return [{}] * (count or 1)
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = count or cores
    keeps = {name: value for name, value in _KEEPS_MEMORY.items() if name not in os.environ}
    return [{"OMP_NUM_THREADS": str(max(1, cores // count)), **keeps}] * count


class _Worker:
    """One process and what it is doing."""

    def __init__(self, function: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        self.environment = environment
        self.job: Any = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs))
        with _environment(environment), _deaf_to_ctrl_c():
            self.process.start()
        theirs.close()
        # A process of its own may outlive a worker and hold the pipe: both say that it has died.
        self.handles = (self.connection, self.process.sentinel)

    def give(self, job: Any) -> None:
        self.job = job
        try:
            self.connection.send(job)
        except (BrokenPipeError, ConnectionResetError):
            self.process.join()  # its death is the outcome

    def outcome(self) -> Outcome:
        try:
            answer = self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionResetError):
            answer = None
        if answer is None:
            self.process.join()
            ending = _ending(self.process.exitcode)
            return Outcome(self.job, None, f"the process ended without an answer: {ending}")
        value, error, goes_on = answer
        if not goes_on:
            self.process.join()
        return Outcome(self.job, value, error)

    def stop(self) -> None:
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


_NO_MORE = None


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """Take jobs until there are no more; what a process does."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    goes_on = True
    while goes_on:
        try:
            job = connection.recv()
        except EOFError:
            return
        if job is _NO_MORE:
            return
        value, trace = None, None
        try:
            value = function(job)
        except Exception as error:
            trace = traceback.format_exc()
            # Errors of the user's harm nobody else. After others, as those of a GPU, every job in
            # this process might fail.
            goes_on = isinstance(error, ValueError | OSError)
        connection.send((value, trace, goes_on))


def _end_with_the_parent() -> None:
    """End at once if the parent was killed: who starts it again must find nobody at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: the parent hears it, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows, where all hear it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
