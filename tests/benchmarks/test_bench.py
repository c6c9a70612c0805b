"""Laws of a measurement: each peer makes its step, is judged, and its costs are what they say."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.root import ROOT
from torch.nn import Parameter

from bench import bench_step, footprint, render
from bench.peers import PEERS, Peer


@pytest.fixture
def params():
    """Small parameters with gradients; two are longer than the window that is judged."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(n) * 0.02) for n in (9001, 5, 6000, 700)]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    return params


# Other packages are not installed here, and a compiler takes a minute for each of its rows.
OWN_PEERS = [
    key
    for key, peer in PEERS.items()
    if peer.package in (None, "graddrop") and "compil" not in key and peer.only_on is None
]


@pytest.mark.parametrize("key", OWN_PEERS)
def test_every_peer_steps(key, params):
    """Each changes every parameter; the gradients are as they were, or are renewed."""
    peer = PEERS[key]
    params = bench_step.in_dtype(params, peer.dtype)
    before = [param.detach().clone() for param in params]
    grads = [param.grad.clone() for param in params]
    renew = bench_step.renewal(params)
    _, reason = bench_step.begin(peer, params)
    assert reason is None
    assert peer.writes_grads or all(map(torch.equal, grads, [p.grad for p in params]))
    renew()
    for param, old, grad in zip(params, before, grads, strict=True):
        assert not torch.equal(param, old)
        assert torch.equal(param.grad, grad)


def test_a_peer_that_cannot_run_is_a_row_that_says_why(params):
    """Another package's error becomes a reason; an error of ours is one."""

    def fail(_):
        raise RuntimeError("no such device\nand more")

    peer = Peer("another", fail)
    assert bench_step.begin(peer, params) == (None, "RuntimeError: no such device")
    with pytest.raises(RuntimeError, match="no such device"):
        bench_step.begin(replace(peer, package="graddrop"), params)
    reason = bench_step.begin(replace(peer, max_tensors=3), params)[1]
    assert reason == "compiles code per tensor: not run on more than 3"
    reason = bench_step.begin(replace(peer, only_on="cuda"), params)[1]
    assert reason == "runs on cuda only"


def test_a_peer_that_asks_for_too_much_memory_is_a_row_that_says_so():
    """At any time while it is measured; where ours does, it is a failure."""
    others, unfinished = Peer("another", lambda params: None), {"reason": "begun, not finished"}
    with pytest.raises(pytest.skip.Exception), bench_step.what_fits(others, unfinished):
        raise torch.OutOfMemoryError("tried to allocate\nand more")
    assert unfinished == {"reason": "OutOfMemoryError: tried to allocate"}
    ours = replace(others, package="graddrop")
    with pytest.raises(torch.OutOfMemoryError), bench_step.what_fits(ours, unfinished):
        raise torch.OutOfMemoryError("tried to allocate")
    with pytest.raises(ValueError), bench_step.what_fits(others, unfinished):
        raise ValueError("something else")


def test_memory_is_what_tensors_take():
    """What stays, and the most at a time: two of three thousand entries stay, four were there."""
    device, entry = torch.device("cpu"), 4
    with footprint.memory(device) as found:
        kept = torch.empty(1000)
        other = torch.empty(2000)
        for _ in range(2):
            torch.empty(1000)
        del other
        other = torch.empty(1000)
    assert (found.kept, found.peak) == (2000 * entry, 4000 * entry)
    del kept, other


@pytest.mark.parametrize("key", ["fused", "graddrop", "eager-rand", "clip-graddrop", "foreach"])
def test_a_step_takes_the_memory_that_is_promised(key):
    """Two moments; nothing else while it runs, where masks written by hand take 5 bytes more."""
    param = Parameter(torch.randn(100_000))
    param.grad = torch.randn(100_000)
    with footprint.memory(param.device) as state:
        step, _ = bench_step.begin(PEERS[key], [param])
    with footprint.memory(param.device) as temporary:
        step()
    scalars = 4096  # bytes: step number, tables, norm
    assert 0 <= state.kept - 8 * param.numel() < scalars
    expected = {"eager-rand": 5, "foreach": 4}.get(key, 0) * param.numel()
    assert 0 <= temporary.peak - expected < scalars


def test_the_host_is_timed_with_gradients_that_move(params):
    """Each step finds the same gradients elsewhere than the step before."""
    seen = []

    def step():
        seen.append([(param.grad.data_ptr(), param.grad.sum().item()) for param in params])

    footprint.host_seconds(step, params)
    assert len(seen) == footprint.CALLS
    for before, after in pairwise(seen):
        for (place, total), (new_place, new_total) in zip(before, after, strict=True):
            assert place != new_place
            assert total == new_total


def test_the_judge_passes_the_step_and_refuses_another_mask(params, monkeypatch):
    """No speed is reported of a wrong step: with another seed the judge fails."""
    bench_step.assert_step_is_the_reference(params)
    monkeypatch.setattr(bench_step, "SEED", bench_step.SEED + 1)
    with pytest.raises(AssertionError, match="parameter 0"):
        bench_step.assert_step_is_the_reference(params)


INTERRUPTING = """
import os, signal
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from bench.peers import PEERS
from bench.workloads import WORKLOADS, Workload

WORKLOADS["50m"] = Workload("small", ((5000,),))
steps = iter(range(1, 100))

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def step():
    if next(steps) == int(os.environ["INTERRUPTED_STEP"]):
        interrupt()

def pytest_keyboard_interrupt():
    interrupt()  # again, as `timeout` does

PEERS["foreach"] = replace(PEERS["foreach"], make=lambda params: step)
"""


@pytest.mark.parametrize("interrupted_step", [1, 2, 4], ids=["first", "warm-up", "measured"])
def test_an_interrupted_run_keeps_the_rows_that_are_whole(tmp_path, interrupted_step):
    """As at a time limit: the row that was begun says so, and the others have their table."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    peers = ("fused", "foreach", "clip-fused")
    rows = [f"bench/bench_step.py::test_step[50m-{peer}]" for peer in peers]
    options = ["--quick", "-p", "interrupting", "-p", "no:cacheprovider", "-o", "addopts="]
    path = tmp_path / "record.json"
    # Not a worker's child: pytest-benchmark measures nothing under pytest-xdist.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env |= {
        "INTERRUPTED_STEP": str(interrupted_step),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "GRADDROP_COMMIT": "0123456789abcdef-dirty",
    }
    command = [sys.executable, "-m", "pytest", *options, "--benchmark-json", str(path), *rows]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, run.stdout + run.stderr
    record = json.loads(path.read_text())
    assert [row["extra_info"]["peer_key"] for row in record["benchmarks"]] == ["fused"]
    table = render.render(record)
    assert "| torch AdamW fused, no mask |" in table
    assert "| torch AdamW foreach, no mask | not measured: begun, not finished |" in table
    assert "| `clip_grad_norm_`, torch AdamW fused | not measured: not begun |" in table
    assert "commit 0123456789 with changes" in table
