"""Laws of CUDA graphs that hold steps."""

import pytest
import torch
from small_runs import (
    assert_same,
    make_optimizer,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import schedules


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
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_replays_of_a_graph_are_steps(max_grad_norm):
    """Each replay of a captured step draws the next mask, as the eager step does."""
    knobs = {"capturable": True, "max_grad_norm": max_grad_norm}
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
    latest = optimizer._planner.latest
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        train(optimizer, range(2, 3))
    ((captured, _),) = optimizer._planner._captured
    assert captured is not latest and optimizer._planner.latest is latest
    train(optimizer, range(3, 5))
    assert optimizer._planner.latest is latest
    train(plain, range(2, 5))
    assert_same(snapshot(optimizer), snapshot(plain))


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({}, "expected capturable=True in every param group"),
        (
            {"capturable": True, "drop_prob": schedules.Linear(0.0, 1.0, 9)},
            "expected a tensor as drop_prob .*, got a schedule",
        ),
        ({"capturable": True, "lr": torch.tensor(0.1)}, "expected lr as a tensor on the GPU"),
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
