"""Laws of a step that an error or Ctrl-C ends half-way: what was not made is not counted."""

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    differs,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW
from graddrop.step.alignment import Alignments
from graddrop.step.executors.cpu import CpuExecutor
from graddrop.step.executors.reference import ReferenceExecutor
from graddrop.step.executors.triton import TritonExecutor

EXECUTORS = {"reference": ReferenceExecutor, "cpu": CpuExecutor, "triton": TritonExecutor}
KNOBS = {"site": "freeze", "max_grad_norm": 1.0}


def fail(*arguments, **options):
    """What the user does while a kernel compiles."""
    raise KeyboardInterrupt


def interrupt(monkeypatch, optimizer, executor, moment, step):
    """A step that is ended at a moment of an executor."""
    set_grads(params_of(optimizer), step)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(executor, moment, fail)
        optimizer.step()


def assert_goes_on_alike(optimizer, judge, step):
    """The mask that is shown is used, and all is as if the step that failed had not been tried."""
    assert_same(snapshot(optimizer), snapshot(judge))
    assert optimizer.draws == judge.draws
    for counters in optimizer._counters._on.values():
        assert counters[0] == judge.draws[0]
    keeps = [*map(optimizer.keep_mask, params_of(optimizer))]
    before = snapshot(optimizer, params_of(optimizer))[::4]
    for each in (optimizer, judge):
        train(each, range(step, step + 1))
    moved = [p.detach() != old for p, old in zip(params_of(optimizer), before, strict=True)]
    assert_same(moved, keeps)
    assert_same(snapshot(optimizer), snapshot(judge))


@pytest.mark.parametrize("moment", ["begin", "grad_squares", "step"])
def test_a_step_that_was_not_made_is_not_counted(monkeypatch, backend, device, moment):
    """Neither for the optimizer nor for a tensor; the next step is the one that was to be."""
    optimizer, judge = (make_optimizer(backend, device, SMALL, **KNOBS) for _ in range(2))
    for each in (optimizer, judge):
        train(each, 2)
    for _ in range(2):
        interrupt(monkeypatch, optimizer, EXECUTORS[backend], moment, step=2)
    assert_goes_on_alike(optimizer, judge, 2)
    train(optimizer, range(3, 4))
    assert differs(snapshot(optimizer), snapshot(judge))  # control: a step that is made counts


def test_a_skipped_step_that_fails_is_not_taken_back(monkeypatch, backend, device):
    """What found_inf left uncounted stays so."""
    optimizer, judge = (make_optimizer(backend, device, SMALL, **KNOBS) for _ in range(2))
    for each in (optimizer, judge):
        train(each, 2)
    optimizer.found_inf = torch.ones(1, device=device)
    interrupt(monkeypatch, optimizer, EXECUTORS[backend], "step", step=2)
    del optimizer.found_inf
    assert_goes_on_alike(optimizer, judge, 2)


@pytest.mark.parametrize("failing", ["reference", "cpu", "alignments"])
def test_executors_agree_when_one_fails(monkeypatch, failing):
    """The counts of those that had stepped are taken back, be it all: masks stay in step."""
    dtypes = (torch.float32, torch.float64)
    params = [param for dtype in dtypes for param in make_params(SMALL, dtype)]
    at_the_end = failing == "alignments"
    knobs = {"site": "update", "rescale": "alignment"} if at_the_end else {"site": "freeze"}
    optimizer = FusedGradDropAdamW(params, **knobs)
    train(optimizer, 2)
    if len(optimizer._plan_cache.latest.executors) < 2:
        pytest.skip("the CPU kernel is not built: one executor serves all")
    part, moment = (Alignments, "keep") if at_the_end else (EXECUTORS[failing], "step")
    interrupt(monkeypatch, optimizer, part, moment, step=2)
    assert optimizer.draws == [2]
    assert [counters[0].item() for counters in optimizer._counters._on.values()] == [2, 2]
    steps = [int(optimizer.state[param]["step"]) for param in params]
    assert steps == {"reference": [3, 3, 2, 2], "cpu": [2] * 4, "alignments": [3] * 4}[failing]
    train(optimizer, range(2, 4))
    assert [counters[0].item() for counters in optimizer._counters._on.values()] == [4, 4]


def test_launches_that_were_made_stay_counted(monkeypatch):
    """Of several launches of a step, the tensors of the first have moved and keep their step."""
    pytest.importorskip("triton")
    from graddrop.kernels.gpu import launch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = [p for d in (torch.float32, torch.bfloat16) for p in make_params(SMALL, d, device)]
    optimizer = FusedGradDropAdamW(params, backend="triton")
    train(optimizer, 1)
    made = []
    real = launch.vector_width

    def second_fails(*arguments):
        made.append(arguments)
        return real(*arguments) if len(made) == 1 else fail()

    before = snapshot(optimizer, params)[::4]
    set_grads(params, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(launch, "vector_width", second_fails)
        optimizer.step()
    moved = [not torch.equal(p.detach(), old) for p, old in zip(params, before, strict=True)]
    assert moved == [True, True, False, False]
    assert [int(optimizer.state[param]["step"]) for param in params] == [2, 2, 1, 1]
    assert optimizer.draws == [1]
