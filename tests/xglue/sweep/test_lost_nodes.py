"""Laws of nodes that die, with a Ray that does so on demand."""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from graddrop.xglue.sweep.cluster import run_jobs_on_ray
from graddrop.xglue.sweep.workers import Outcome


class RayError(Exception):
    """Base of Ray's errors."""


class NodeDiedError(RayError):
    """The machine is gone."""


class WorkerCrashedError(RayError):
    """The process is gone."""


class OtherError(RayError):
    """Stands for what these tests do not raise."""


def make_ray(fates: dict[str, list[type[Exception] | None]]) -> ModuleType:
    """A Ray whose jobs end as they are fated, call by call."""
    ray: Any = ModuleType("ray")
    ray.exceptions = ModuleType("ray.exceptions")
    for error in (RayError, NodeDiedError, WorkerCrashedError):
        setattr(ray.exceptions, error.__name__, error)
    for name in ("LocalRayletDiedError", "ObjectLostError", "OwnerDiedError"):
        setattr(ray.exceptions, name, OtherError)

    def remote(**options: Any) -> Callable[..., Any]:
        assert options["max_retries"] == 0  # Ray would not tell a node from a process
        return lambda task: SimpleNamespace(remote=lambda function, job, folder: Call(job))

    def get(call: Any) -> tuple[Any, None]:
        fate = fates[call.job].pop(0)
        if fate is not None:
            raise fate(f"{fate.__name__} of {call.job}")
        return "done", None

    ray.remote, ray.get = remote, get
    ray.wait = lambda calls, timeout: (calls[:1], calls[1:])
    ray.cluster_resources = lambda: {"CPU": 2}
    ray.cancel = lambda call, force: None
    return ray


class Call:
    """One call of a job."""

    def __init__(self, job: str) -> None:
        self.job = job


def outcomes(
    fates: dict[str, list[type[Exception] | None]], patch: pytest.MonkeyPatch
) -> dict[str, Outcome]:
    """What becomes of jobs with such fates."""
    ray = make_ray(fates)
    patch.setitem(sys.modules, "ray", ray)
    patch.setitem(sys.modules, "ray.exceptions", ray.exceptions)  # type: ignore[attr-defined]
    found: Sequence[Outcome] = [o for o in run_jobs_on_ray(print, list(fates)) if o is not None]
    assert sorted(o.job for o in found) == sorted(fates)
    return {o.job: o for o in found}


def test_a_job_whose_node_died_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of the job's; the third node in a row is, and is recorded as what it was."""
    fates: dict[str, list[type[Exception] | None]] = {
        "well": [None],
        "once": [NodeDiedError, None],
        "twice": [NodeDiedError, NodeDiedError, None],
        "always": [NodeDiedError] * 9,
    }
    found = outcomes(fates, monkeypatch)
    assert all(found[job].error is None for job in ("well", "once", "twice"))
    assert found["always"].error == "3 nodes died, the last one so: NodeDiedError of always"
    assert len(fates["always"]) == 6


def test_a_job_whose_process_died_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be what the process died of, and its neighbours next; neither after a lost node."""
    fates: dict[str, list[type[Exception] | None]] = {
        "crash": [WorkerCrashedError, None],
        "both": [NodeDiedError, WorkerCrashedError, None],
    }
    found = outcomes(fates, monkeypatch)
    assert found["crash"].error == "WorkerCrashedError of crash"
    assert found["both"].error == "WorkerCrashedError of both"
    assert fates == {"crash": [None], "both": [None]}
