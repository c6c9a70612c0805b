"""Laws of CUDA graphs that hold steps."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_optimizer,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import graddrop_adamw_, schedules
from graddrop.kernels.gpu import capture


def captured_step(optimizer):
    """A CUDA graph of one step; the step before it warms up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"max_grad_norm": 1.0},
        {"site": "update", "rescale": "alignment"},
        {"granularity": "tensor", "select": "shuffled"},
    ],
)
def test_replays_of_a_graph_are_steps(knobs):
    """Each replay of a captured step draws the next mask, as the eager step does."""
    knobs = {"capturable": True, **knobs}
    eager, captured = (make_optimizer("triton", "cuda", **knobs) for _ in range(2))
    for optimizer in (eager, captured):
        train(optimizer, 2)
    graph = captured_step(captured)
    eager.step()
    for _ in range(3):
        graph.replay()
        eager.step()
    assert_same(snapshot(captured), snapshot(eager))
    assert captured.draws == eager.draws
    assert captured.state_dict()["param_groups"] == eager.state_dict()["param_groups"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replays_and_steps_take_turns():
    """A replay reads the gradients of its capture, a step those that are there now."""
    eager, mixed = (make_optimizer("triton", "cuda", capturable=True) for _ in range(2))
    for optimizer in (eager, mixed):
        train(optimizer, 2)
    graph = captured_step(mixed)
    eager.step()
    at_capture = [param.grad for param in params_of(mixed)]
    for step in range(4):
        set_grads(params_of(eager), step)
        if step % 2:
            set_grads(params_of(mixed), step)  # elsewhere
            mixed.step()
        else:
            for kept, param in zip(at_capture, params_of(eager), strict=True):
                kept.copy_(param.grad)
            graph.replay()
        eager.step()
    assert_same(snapshot(mixed), snapshot(eager))
    assert mixed.draws == eager.draws


def test_a_capture_has_a_plan_of_its_own(monkeypatch):
    """What a graph will replay is kept apart from the tables of later steps, and alive."""
    optimizer, plain = (make_optimizer("reference", capturable=True) for _ in range(2))
    for each in (optimizer, plain):
        train(each, 2)
    latest = optimizer._plan_cache.latest
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        train(optimizer, range(2, 3))
    ((captured, _),) = optimizer._plan_cache._captured
    assert captured is not latest and optimizer._plan_cache.latest is latest
    train(optimizer, range(3, 5))
    assert optimizer._plan_cache.latest is latest
    train(plain, range(2, 5))
    assert_same(snapshot(optimizer), snapshot(plain))


def test_a_graph_keeps_what_it_writes_to(monkeypatch, backend, device):
    """Its replays advance the counters of its capture, also when a state has been loaded since."""
    optimizer = make_optimizer(backend, device, SMALL, capturable=True)
    train(optimizer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        if backend == "triton":
            patch.setattr("graddrop.kernels.gpu.launch.relaxed_capture", nullcontext)
        train(optimizer, range(1, 2))
    (counters,) = map(weakref.ref, optimizer._counters._on.values())
    moment = weakref.ref(optimizer.state[params_of(optimizer)[0]]["exp_avg"])
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, range(2, 3))
    gc.collect()
    assert counters() is not None and moment() is not None
    optimizer._plan_cache._captured.clear()  # control: the graph's plan was what kept them
    gc.collect()
    assert counters() is None and moment() is None


def test_counters_follow_replays(monkeypatch):
    """However often they are read; the host is told of none."""
    optimizer = make_optimizer("reference", capturable=True)
    train(optimizer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        train(optimizer, range(1, 2))
    for replay in range(1, 4):
        for counters in optimizer._counters._on.values():
            counters[0] += 1  # what a replay does
        assert optimizer.draws == [2 + replay]
        assert optimizer.state_dict()["param_groups"][0]["steps_finished"] == 2 + replay


def test_the_function_in_a_capture_is_refused(monkeypatch):
    """Its tables are gone when it returns; it says who keeps them, and changes nothing."""
    param = torch.ones(4)
    state = [torch.zeros(4), torch.zeros(4), torch.zeros(())]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"FusedGradDropAdamW\(capturable=True\) keeps them"):
        graddrop_adamw_([param], [torch.ones(4)], *([tensor] for tensor in state), lr=0.1, draw=0)
    monkeypatch.undo()
    assert_same([param, *state], [torch.ones(4), torch.zeros(4), torch.zeros(4), torch.zeros(())])
    assert torch.Tag.cudagraph_unsafe in torch.ops.graddrop.adamw_.default.tags


class Driver:
    """CUDA's, as far as :mod:`graddrop.kernels.gpu.capture` calls it."""

    def __init__(self, mode, status=0):
        self.mode, self.status = mode, status

    def exchange(self, reference):
        """Swap the thread's mode with the caller's."""
        held = reference._obj
        held.value, self.mode = self.mode, held.value
        return self.status


def test_a_relaxed_capture_ends_as_it_began(monkeypatch):
    """Within, the thread may allocate; afterwards, also after an error, its mode is the old one."""
    driver = Driver(mode=0)
    monkeypatch.setattr(capture, "_exchange_of_driver", lambda: driver.exchange)
    with pytest.raises(KeyError), capture.relaxed_capture():
        assert driver.mode == capture.RELAXED
        raise KeyError
    assert driver.mode == 0
    refusing = Driver(mode=0, status=1)
    monkeypatch.setattr(capture, "_exchange_of_driver", lambda: refusing.exchange)
    with pytest.raises(RuntimeError, match="refused .*error 1"), capture.relaxed_capture():
        pytest.fail("the driver refused")


@pytest.mark.parametrize("hip", [None, "7.0"])
def test_each_driver_is_asked_by_its_own_name(hip, monkeypatch):
    """CUDA's, or HIP's below torch's library."""
    asked = []

    class Library:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, function):
            asked.append((self.name, function))
            return function

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(capture.ctypes, "CDLL", Library)
    capture._exchange_of_driver.cache_clear()
    capture._exchange_of_driver()
    capture._exchange_of_driver.cache_clear()
    prefix, library = ("hip", "libtorch_hip.so") if hip else ("cu", "libcuda.so.1")
    assert asked == [(library, f"{prefix}ThreadExchangeStreamCaptureMode")]


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({}, "expected capturable=True in every param group"),
        (
            {"capturable": True, "drop_prob": schedules.Linear(0.0, 1.0, 9)},
            "expected a tensor as drop_prob .*, got a schedule",
        ),
        ({"capturable": True, "lr": torch.tensor(0.1)}, "expected lr as a tensor on the GPU"),
        (
            {"capturable": True, "betas": (torch.tensor(0.9), torch.tensor(0.99))},
            "expected betas as a tensor on the GPU",
        ),
    ],
)
def test_a_capture_that_would_freeze_a_number_is_refused(monkeypatch, knobs, message):
    """While a CUDA graph is captured the step says what it needs, and changes nothing."""
    optimizer = make_optimizer(**knobs)
    train(optimizer, 1)
    before = snapshot(optimizer)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    monkeypatch.undo()
    assert_same(snapshot(optimizer), before)


def test_a_capture_that_would_make_alignments_or_counters_is_refused(monkeypatch):
    """Also where others are there: of a knob that was set since, or a state that was loaded."""

    def align(optimizer):
        optimizer.param_groups[0]["rescale"] = "alignment"

    def load(optimizer):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for change, message in (
        (align, "make a step with these gradients before"),
        (load, "make one, also after a state was loaded"),
    ):
        optimizer = make_optimizer(shapes=SMALL, capturable=True, site="update")
        train(optimizer, 1)
        change(optimizer)
        before = snapshot(optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            with pytest.raises(RuntimeError, match=message):
                train(optimizer, range(1, 2))
        assert_same(snapshot(optimizer), before)
        assert optimizer.draws == [1]
        train(optimizer, range(1, 2))  # control: once it has been made, a capture may follow
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            train(optimizer, range(2, 3))
        assert optimizer.draws == [3]


@pytest.mark.parametrize("which", [0, 1])
def test_a_capture_of_a_first_step_is_refused(monkeypatch, which):
    """State that is made in a capture would be zeroed at each replay; nothing has changed."""
    optimizer = make_optimizer(shapes=SMALL, capturable=True)
    params = params_of(optimizer)
    params[1 - which].grad = torch.ones_like(params[1 - which])
    optimizer.step()
    before = snapshot(optimizer)
    set_grads(params, 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="make a step with these gradients before") as caught:
            optimizer.step()
        assert caught.value.__notes__ == [f"This is parameter {which} of param group 0."]
        assert_same(snapshot(optimizer), before)
        params[which].grad = None  # control: without a gradient it needs no state
        optimizer.step()
    assert params[which] not in optimizer.state
