"""Time of one optimizer step, per workload and peer, next to torch's fused AdamW.

Before each measured step of a peer, the baseline makes and is timed on a step of fp32 parameters of
the same shapes, and memory is timed on one in-place pass: A B C A B C. What else the machine is
doing then meets all alike, and ratios are taken within rounds. Every workload is larger than the
cache, so each step finds its operands in memory. No speed is reported of ours before a step has
been judged against the reference on the very parameters.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from bench import bytes_model
from bench.footprint import Bytes, host_seconds, kernels, memory
from bench.peers import DROP_PROB, LR, PEERS, SEED, Peer, Step, one_pass
from bench.record import NOT_MEASURED
from bench.timing import seconds, synchronized
from bench.workloads import WORKLOADS, Workload
from graddrop import testing
from graddrop.mask import Shard
from graddrop.step.slot import Slot

MEASURED_ON = {
    "cpu": ("50m", "xlmr-base", "lora", "10k"),
    # What is short, or means most, comes first: the time may not suffice for all.
    "cuda": ("50m", "xlmr-large", "huge", "llama-1b", "xlmr-base", "lora", "10k"),
}
WINDOW = 4099  # entries of a tensor that the reference judges
COUNTED = 1000  # tensors of which a CPU's allocations are counted
BANDWIDTH_BUFFER = 64 << 20  # entries, 256 MiB: beyond every cache


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Measure the workloads of the device, all peers on one before the next."""
    keys = MEASURED_ON[metafunc.config.getoption("--device")]
    metafunc.parametrize("workload_key", keys, scope="module")
    metafunc.parametrize("peer_key", PEERS)


@pytest.fixture(scope="module")
def workload(workload_key: str) -> Workload:
    """The workload; records name it by its key, since its shapes are long."""
    return WORKLOADS[workload_key]


@pytest.fixture(scope="module")
def params(workload: Workload, device: torch.device) -> Iterator[list[Parameter]]:
    """The workload's parameters with gradients, in the magnitudes of fine-tuning."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in workload.shapes:
        param = Parameter(torch.empty(shape, device=device).normal_(0, 0.02, generator=generator))
        param.grad = torch.empty(shape, device=device).normal_(0, 1e-3, generator=generator)
        params.append(param)
    yield params
    for param in params:
        param.grad = None


@pytest.fixture(scope="module")
def baseline(params: list[Parameter], device: torch.device) -> Callable[[], None]:
    """A step of the baseline."""
    return synchronized(PEERS["fused"].make(params), device)


@pytest.fixture(scope="module")
def in_place_pass(device: torch.device) -> Callable[[], None]:
    """One pass over a large tensor, read and written in place."""
    buffer = torch.ones(BANDWIDTH_BUFFER, device=device)
    return synchronized(lambda: buffer.mul_(1.0), device)


def in_dtype(params: list[Parameter], dtype: torch.dtype) -> list[Parameter]:
    """The parameters and their gradients in a dtype: themselves, or copies."""
    if dtype == torch.float32:
        return params
    copies = []
    for param in params:
        assert param.grad is not None
        copies.append(Parameter(param.detach().to(dtype)))
        copies[-1].grad = param.grad.to(dtype)
    return copies


def window_of(param: Parameter, state: dict[str, torch.Tensor], stream_id: int) -> Slot:
    """A copy of a window of one parameter and its state, with its place in the whole."""
    begin = (param.numel() - WINDOW) // 2 if param.numel() > WINDOW else 0

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().flatten()[begin : begin + WINDOW].clone()

    assert param.grad is not None
    return Slot(
        param=cut(param),
        grad=cut(param.grad),
        exp_avg=cut(state["exp_avg"]),
        exp_avg_sq=cut(state["exp_avg_sq"]),
        step=state["step"].clone(),
        stream_id=stream_id,
        layer=None,
        shard=Shard((param.numel(),), (begin,)),
        group=0,
    )


def assert_step_is_the_reference(params: list[Parameter]) -> None:
    """Judge a step of ours in a window of the largest, the smallest and the last parameter."""
    optimizer = one_pass(params)
    optimizer.step()  # makes the state
    sizes = [param.numel() for param in params]
    chosen = {sizes.index(max(sizes)), sizes.index(min(sizes)), len(params) - 1}
    knobs = testing.make_knobs(
        lr=LR, drop_prob=DROP_PROB, seed=SEED, weight_decay=optimizer.defaults["weight_decay"]
    )
    befores = {i: window_of(params[i], optimizer.state[params[i]], i) for i in chosen}
    optimizer.step()
    for i, before in befores.items():
        exact = testing.exact_step(before, knobs, steps_finished=1)
        after = window_of(params[i], optimizer.state[params[i]], i)
        error = testing.excess_error(
            testing.values_of(before), after, exact, knobs, testing.FP32_ARITHMETIC
        )
        assert error <= 1, f"parameter {i} of shape {tuple(params[i].shape)}: {error}"


def _with_version(package: str) -> str:
    return f"{package} {version(package)}"


def begin(peer: Peer, params: list[Parameter]) -> tuple[Step | None, str | None]:
    """A peer that has made its first step, or the reason why there is none."""
    device = params[0].device.type
    if peer.only_on not in (None, device):
        return None, f"runs on {peer.only_on} only"
    if peer.max_tensors is not None and len(params) > peer.max_tensors:
        return None, f"compiles code per tensor: not run on more than {peer.max_tensors}"
    try:
        step = peer.make(params)
        step()
    except Exception as error:
        if peer.ours:
            raise
        return None, _reason(error)
    return step, None


@contextmanager
def what_fits(peer: Peer, unfinished: dict[str, str]) -> Iterator[None]:
    """Within it, a peer that asks for more memory than there is, is skipped with the reason.

    Args:
        peer: who is measured; a failure of ours is one.
        unfinished: its line in the record.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if peer.ours:
            raise
        unfinished["reason"] = _reason(error)
        pytest.skip(f"not measured: {unfinished['reason']}")


def _reason(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:120]}"


def renewal(params: list[Parameter]) -> Callable[[], object]:
    """Gives the gradients back their present values."""
    grads = [param.grad for param in params if param.grad is not None]
    copies = [grad.clone() for grad in grads]
    return lambda: torch._foreach_copy_(grads, copies)


def host_cost(peer: Peer, step: Step, params: list[Parameter]) -> dict[str, Any]:
    """What a step costs the host; None: not measured.

    A GPU's host works until the step returns. On the CPU its work is told from the rest by a step
    of as many tensors of few entries; not where code is compiled for the shapes.
    """
    device = params[0].device
    if device.type == "cuda":
        launches, on_device = kernels(step, device)
        found = {"launches": launches, "device_seconds": on_device}
        return {"host_seconds": host_seconds(step, params), **found}
    if peer.max_tensors is not None:
        return {"host_seconds": None}
    small = [Parameter(param.detach().flatten()[:4].clone()) for param in params]
    for param in small:
        param.grad = torch.full_like(param, 1e-3)
    small_step, _ = begin(peer, small)
    return {"host_seconds": small_step and host_seconds(small_step, small)}


def test_step(
    benchmark,
    peer_key: str,
    workload_key: str,
    workload: Workload,
    params: list[Parameter],
    baseline: Callable[[], None],
    in_place_pass: Callable[[], None],
    device: torch.device,
    quick: bool,
    request: pytest.FixtureRequest,
) -> None:
    """Measure one peer on one workload."""
    peer = PEERS[peer_key]
    # Until it is finished: where SIGINT ends the run, the record keeps the rows that are.
    not_measured = request.config.stash[NOT_MEASURED]
    unfinished = not_measured[request.node.nodeid]
    unfinished["reason"] = "begun, not finished"
    benchmark.has_error = True
    if peer_key == "graddrop":
        assert_step_is_the_reference(params)
    baseline()
    rounds = 3 if quick else peer.rounds
    baseline_seconds, pass_seconds = [], []
    with what_fits(peer, unfinished):
        own = in_dtype(params, peer.dtype)
        renew = renewal(own) if peer.writes_grads else None
        counted = device.type == "cuda" or len(own) <= COUNTED
        with memory(device) if counted else nullcontext(Bytes()) as state:
            step, reason = begin(peer, own)
        if step is None:
            unfinished["reason"] = reason
            pytest.skip(f"not measured: {reason}")
        with memory(device) if counted else nullcontext(Bytes()) as temporary:
            step()

        def run_the_others() -> None:
            if renew is not None:
                renew()
            baseline_seconds.append(seconds(baseline))
            pass_seconds.append(seconds(in_place_pass))

        benchmark.pedantic(
            synchronized(step, device), setup=run_the_others, rounds=rounds, warmup_rounds=1
        )
        costs = host_cost(peer, step, own)
    step_seconds = benchmark.stats.stats.data
    ratios = [
        step / base for step, base in zip(step_seconds, baseline_seconds[-rounds:], strict=True)
    ]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    bytes_per_second = (
        bytes_model.IN_PLACE_PASS * BANDWIDTH_BUFFER / statistics.median(pass_seconds[-rounds:])
    )
    benchmark.extra_info |= {
        "workload_key": workload_key,
        "workload": workload.name,
        "n_tensors": len(workload.shapes),
        "n_elements": workload.n_elements,
        "peer_key": peer_key,
        "peer": peer.name,
        "package": None if peer.package is None or peer.ours else _with_version(peer.package),
        "bytes_per_element": peer.bytes_per_element,
        "state_bytes": state.kept,
        "temporary_bytes": temporary.peak,
        "ratio_to_baseline": {"median": middle, "quartiles": [low, high]},
        "pass_bytes_per_second": bytes_per_second,
        "device": str(device),
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "n_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        **costs,
    }
    benchmark.has_error = False
    del not_measured[request.node.nodeid]
