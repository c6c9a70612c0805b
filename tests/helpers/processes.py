"""Processes that work together over gloo, started once for all tests of a module."""

import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 300  # seconds for one check, the start of the processes included


class Gang:
    """Processes of one gloo group that all run what they are given.

    Args:
        connections: one to each process.
    """

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def run(self, check: Callable[..., None], *arguments: Any) -> None:
        """Call ``check(*arguments)`` in every process.

        Raises:
            AssertionError: it failed in some; carries their tracebacks.
        """
        for connection in self._connections:
            connection.send((check, arguments))
        failures = []
        for rank, connection in enumerate(self._connections):
            answer = connection.recv() if connection.poll(TIMEOUT) else "no answer"
            if answer is not None:
                failures.append(f"process {rank}: {answer}")
        assert not failures, "\n".join(failures)


@contextmanager
def gang(n_processes: int) -> Iterator[Gang]:
    """Start processes, and stop them in the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    connections, processes = [], []
    for rank in range(n_processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, rank, n_processes, port))
        process.start()
        connections.append(ours)
        processes.append(process)
    try:
        yield Gang(connections)
    finally:
        for connection, process in zip(connections, processes, strict=True):
            connection.close()  # which ends the process
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(connection: Connection, rank: int, n_processes: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", rank=rank, world_size=n_processes, init_method=f"tcp://127.0.0.1:{port}"
    )
    while True:
        try:
            check, arguments = connection.recv()
        except EOFError:
            return
        try:
            check(*arguments)
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
