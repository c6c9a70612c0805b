"""Jobs on a Ray cluster, or on a Ray of this machine's own where there is no cluster."""

import os
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

from graddrop.xglue.sweep.workers import TICK, Outcome

MOST_NODES = 3
"""Nodes that may die under a job before it counts as failed: it may be what they die of."""


def connect() -> int:
    """Join the cluster that Ray finds (`RAY_ADDRESS`, or one on this machine), or start one.

    Returns:
        How many jobs it can run side by side now.

    Raises:
        ValueError: If Ray is not installed.
        ConnectionError: If Ray gives up on the cluster that `RAY_ADDRESS` names, after minutes.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "the engine ray needs Ray, which is not installed: in a checkout: "
            'pip install ".[cluster]"'
        ) from error
    if not ray.is_initialized():
        # What jobs print is in their logs; the driver's screen has the progress.
        ray.init(log_to_driver=False, logging_level="warning")
    resources = ray.cluster_resources()
    return int(resources.get("GPU", 0) or resources.get("CPU", 1))


def run_jobs_on_ray(
    function: Callable[[Any], Any], jobs: Sequence[Any]
) -> Generator[Outcome | None, None, None]:
    """Call a function with each job, side by side, wherever the cluster has room.

    Each call takes a GPU if the cluster has any, else one core. The nodes need this package, and
    the current folder under the same path, as on a shared file system. A node that dies is no
    fault of its jobs, which are called again on others.

    Args:
        function: What to call, of a module that the nodes can import.
        jobs: Its argument for each call, in the order in which calls are asked for.

    Yields:
        The outcomes as they come, and None every second or so in which there is none.
    """
    import ray

    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    # A job that killed its process is not tried again: it may take its neighbours with it.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
    folder = os.getcwd()
    calls = {remote.remote(function, job, folder): (job, 1) for job in jobs}
    try:
        while calls:
            done, _ = ray.wait(list(calls), timeout=TICK)
            if not done:
                yield None
            for call in done:
                job, nodes = calls.pop(call)
                try:
                    yield Outcome(job, *ray.get(call))
                except _lost_nodes() as error:
                    if nodes < MOST_NODES:
                        calls[remote.remote(function, job, folder)] = (job, nodes + 1)
                    else:
                        ending = f"{nodes} nodes died, the last one so: {_gist(error)}"
                        yield Outcome(job, None, f"{error}\n{ending}")
                except ray.exceptions.RayTaskError as error:  # of Ray's before the call
                    yield Outcome(job, None, str(error))
                except ray.exceptions.RayError as error:  # its process has died
                    yield Outcome(job, None, f"{error}\n{_gist(error)}")
    finally:
        for call in calls:
            ray.cancel(call, force=True)


def _lost_nodes() -> tuple[type[Exception], ...]:
    """Return what Ray raises where a node was lost, with whatever ran there or was kept there."""
    from ray import exceptions

    return (
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.ObjectLostError,
        exceptions.OwnerDiedError,
    )


def _gist(error: Exception) -> str:
    """Return the first line: Ray says there what happened, then at length what one may do."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _call(function: Callable[[Any], Any], job: Any, folder: str) -> tuple[Any, str | None]:
    """Call in the driver's folder, since paths may be relative to it.

    The traceback is told as we tell it everywhere, not as Ray paints it.
    """
    try:
        os.chdir(folder)
        return function(job), None
    except Exception:
        return None, traceback.format_exc()
