"""Laws of the processes that take jobs: one that dies takes its own job with it, no other."""

import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from helpers import jobs
from helpers.root import ROOT

from graddrop.xglue.sweep import workers
from graddrop.xglue.sweep.workers import Outcome, local_environments, run_jobs

TESTS = ROOT / "tests"
GPUS = [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]


def outcomes(asked: Sequence[str], environments: Sequence[dict[str, str]]) -> dict[str, Outcome]:
    """What becomes of jobs."""
    found = [outcome for outcome in run_jobs(jobs.work, asked, environments) if outcome]
    assert len(found) == len(asked)
    return {outcome.job: outcome for outcome in found}


def test_a_worker_serves_until_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the user's costs nothing else; death or a strange error costs the process."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked = ["a", "refuse", "b", "die", "c", "break", "d", "exit", "e"]
    found = outcomes(asked, GPUS[:1])
    process = {job: found[job].value[0] for job in "abcde"}
    assert process["a"] == process["b"]
    assert len(set(process.values())) == 4
    assert {found[job].value[1:] for job in "abcde"} == {("5", job) for job in "abcde"}
    assert all(found[job].error is None for job in "abcde")
    assert "ValueError: refused" in found["refuse"].error
    assert "RuntimeError: broken" in found["break"].error
    assert "killed by SIGKILL" in found["die"].error
    assert "exit status 3" in found["exit"].error
    assert not multiprocessing.active_children()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_each_worker_has_its_own_device(tmp_path: Path) -> None:
    """One that dies is replaced on the same device; those beside it stay."""
    pairs = {when: [f"meet {n} {tmp_path / when}" for n in (1, 2)] for when in ("before", "after")}
    found = outcomes([*pairs["before"], "die", *pairs["after"]], GPUS)
    before, after = (
        {found[job].value[1]: found[job].value[0] for job in some} for some in pairs.values()
    )
    assert before.keys() == after.keys() == {"5", "7"}
    assert sum(before[device] == after[device] for device in before) == 1


def test_a_caller_that_stops_ends_the_workers(tmp_path: Path) -> None:
    """Whatever they are doing; a caller hears from us while they are at it."""
    running = run_jobs(jobs.work, [f"wait {tmp_path / 'here'}"], [{}])
    while not (tmp_path / "here").exists():
        assert next(running) is None
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


PARENT = """
import sys
from helpers import jobs
from graddrop.xglue.sweep.workers import run_jobs
if __name__ == "__main__":
    list(run_jobs(jobs.work, ["wait " + sys.argv[1]], [{}]))
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Otherwise they would hold the folders against the next attempt."""
    (tmp_path / "parent.py").write_text(PARENT)
    here = tmp_path / "here"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(here)],
        env=os.environ | {"PYTHONPATH": path},
    )
    deadline = time.monotonic() + 60
    while not (here.exists() and here.read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    worker = psutil.Process(int(here.read_text()))
    parent.kill()
    parent.wait()
    worker.wait(10)  # raises if it is still there


def test_a_worker_killed_while_it_waits_costs_nothing() -> None:
    """Nobody's job is lost with it."""
    running = run_jobs(jobs.work, ["a", "b", "c"], [{}])
    first = next(outcome for outcome in running if outcome)
    (worker,) = (p for p in multiprocessing.active_children() if p.pid == first.value[0])
    worker.kill()
    worker.join(10)
    rest = [outcome for outcome in running if outcome]
    assert [outcome.error for outcome in rest] == [None, None]
    assert {outcome.value[0] for outcome in rest}.isdisjoint({first.value[0]})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what machines without a GPU do")
def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread for each of as many processes as there are cores; more for fewer."""
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for count, threads in ((None, "1"), (2, "3"), (9, "1")):
        shares = local_environments(count)
        assert [share["OMP_NUM_THREADS"] for share in shares] == [threads] * (count or 6)
    with pytest.raises(ValueError, match="workers must be positive, got 0"):
        local_environments(0)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what machines without a GPU do")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_processes_keep_the_memory_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors that come and go cost no page a second time; what the user has set stays."""
    for name in (*workers._KEEPS_MEMORY, "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    shares = [{"OMP_NUM_THREADS": "1"}, local_environments(1)[0]]
    taken, kept = (
        next(o for o in run_jobs(jobs.page_faults, ["large"], [share]) if o).value
        for share in shares
    )
    assert taken > 10_000 and kept < 100
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert "GLIBC_TUNABLES" not in local_environments(1)[0]


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process each, those that the user names; more processes take turns."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in local_environments()] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in local_environments(3)] == ["3", "GPU-8f", "3"]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_the_engine_ray_without_ray_says_how_to_get_it() -> None:
    """One line with the command."""
    from graddrop.xglue.sweep.cluster import connect

    with pytest.raises(ValueError, match="the engine ray needs Ray.*pip install"):
        connect()
