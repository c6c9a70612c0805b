"""Laws of nodes that die, with a Ray that does so on demand."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from graddrop.xglue.sweep.cluster import run_jobs_on_ray
from graddrop.xglue.sweep.workers import Outcome


class RayError(Exception):
    """Base of Ray's errors."""


class RayTaskError(RayError):
    """What was called has raised, or could not be called."""


class WorkerCrashedError(RayError):
    """The process is gone."""


class OutOfMemoryError(RayError):
    """The process is gone, since memory ran out."""


class NodeDiedError(RayError):
    """The machine is gone."""


class LocalRayletDiedError(RayError):
    """The machine's part of Ray is gone."""


class ObjectLostError(RayError):
    """The machine that kept an answer is gone."""


class OwnerDiedError(RayError):
    """The machine that an answer belonged to is gone."""


ERRORS = (RayError, *RayError.__subclasses__())
LOST = (NodeDiedError, LocalRayletDiedError, ObjectLostError, OwnerDiedError)
Fates = dict[str, list[type[Exception] | None]]


class FakeRay(ModuleType):
    """A Ray whose jobs end as they are fated, call by call.

    Args:
        fates: How each call of a job ends; None: well.
        gpus: Of the cluster.
    """

    def __init__(self, fates: Fates, gpus: int = 0) -> None:
        super().__init__("ray")
        self.fates = fates
        self.gpus = gpus
        self.exceptions: Any = ModuleType("ray.exceptions")
        for error in ERRORS:
            setattr(self.exceptions, error.__name__, error)
        self.options: list[dict[str, Any]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.cancelled: list[Any] = []
        self.busy = False

    def cluster_resources(self) -> dict[str, int]:
        """What there is, whether it is free or not."""
        return {"CPU": 8} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Keep the options."""
        self.options.append(options)
        return lambda task: Remote(self)

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        """The first call is done, unless all go on."""
        return ([], calls) if self.busy else (calls[:1], calls[1:])

    def get(self, call: "Call") -> tuple[Any, None]:
        """End as fated."""
        fate = self.fates[call.job].pop(0)
        if fate is not None:
            raise fate(f"{fate.__name__} of {call.job}.\n\nWhat one may do.\nWhere one may read.")
        return "done", None

    def cancel(self, call: "Call", force: bool) -> None:
        """Keep what was cancelled by force."""
        assert force
        self.cancelled.append(call)


class Remote:
    """A function that is called elsewhere."""

    def __init__(self, ray: FakeRay) -> None:
        self.ray = ray

    def remote(self, *arguments: Any) -> "Call":
        """Call it."""
        self.ray.asked.append(arguments)
        return Call(arguments[1])


class Call:
    """One call of a job."""

    def __init__(self, job: str) -> None:
        self.job = job


def install(patch: pytest.MonkeyPatch, fates: Fates, gpus: int = 0) -> FakeRay:
    """Let `import ray` find one with such fates."""
    ray = FakeRay(fates, gpus)
    patch.setitem(sys.modules, "ray", ray)
    patch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    return ray


def outcomes(ray: FakeRay) -> dict[str, Outcome]:
    """What becomes of its jobs."""
    jobs = list(ray.fates)
    found: Sequence[Outcome] = [o for o in run_jobs_on_ray(print, jobs) if o is not None]
    assert sorted(o.job for o in found) == sorted(jobs)
    return {o.job: o for o in found}


def last_line(outcome: Outcome) -> str:
    """What a summary shows of an error."""
    assert outcome.error is not None
    return outcome.error.splitlines()[-1]


@pytest.mark.parametrize("lost", LOST)
def test_a_job_whose_node_died_is_called_again(
    lost: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was, whatever of the node is missed; the third in a row is a failure, and named."""
    fates: Fates = {
        "well": [None],
        "once": [lost, None],
        "twice": [lost, NodeDiedError, None],
        "always": [NodeDiedError, NodeDiedError, lost, None],
    }
    ray = install(monkeypatch, fates)
    found = outcomes(ray)
    assert all(found[job] == Outcome(job, "done", None) for job in ("well", "once", "twice"))
    name = lost.__name__
    assert last_line(found["always"]) == (
        f"3 nodes died, the last one so: {name}: {name} of always."
    )
    assert "What one may do." in str(found["always"].error)
    assert fates == {"well": [], "once": [], "twice": [], "always": [None]}
    assert sorted(ray.asked, key=str) == sorted(
        ((print, job, os.getcwd()) for job in ("well", *["once"] * 2, *["twice", "always"] * 3)),
        key=str,
    )
    assert [options["max_retries"] for options in ray.options] == [0]  # Ray tells no node


@pytest.mark.parametrize("death", [WorkerCrashedError, OutOfMemoryError])
def test_a_job_whose_process_died_is_not(
    death: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be what the process died of, and its neighbours next; neither after a lost node."""
    fates: Fates = {"crash": [death, None], "both": [NodeDiedError, death, None]}
    found = outcomes(install(monkeypatch, fates))
    for job in fates:
        assert last_line(found[job]) == f"{death.__name__}: {death.__name__} of {job}."
        assert "What one may do." in str(found[job].error)
    assert fates == {"crash": [None], "both": [None]}


def test_what_ray_could_not_call_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a traceback does: it is one."""
    found = outcomes(install(monkeypatch, {"a": [RayTaskError, None]}))
    assert last_line(found["a"]) == "Where one may read."


def test_a_folder_that_a_node_lacks_is_told_as_any_error(tmp_path: Path) -> None:
    """By a traceback, and the job's alone."""
    from graddrop.xglue.sweep import cluster

    value, error = cluster._call(print, "a", str(tmp_path / "absent"))
    assert value is None and error is not None
    assert error.startswith("Traceback") and "FileNotFoundError" in error.splitlines()[-1]


@pytest.mark.parametrize("gpus", [0, 3])
def test_a_job_takes_a_gpu_where_there_is_one(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them, and a core."""
    ray = install(monkeypatch, {"a": [None], "b": [None]}, gpus)
    outcomes(ray)
    assert ray.options == [{"num_cpus": 1, "num_gpus": min(gpus, 1), "max_retries": 0}]


def test_a_caller_that_stops_cancels_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were called again, too, and none that has ended."""
    ray = install(monkeypatch, {"a": [NodeDiedError], "b": [None], "c": [None]})
    running = run_jobs_on_ray(print, ["a", "b", "c"])
    assert next(running) == Outcome("b", "done", None)
    ray.busy = True
    assert next(running) is None
    running.close()
    assert [call.job for call in ray.cancelled] == ["c", "a"]
