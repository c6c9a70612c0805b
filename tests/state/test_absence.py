"""Laws of gradients that come and go from step to step."""

import pytest
import torch
from helpers.small_runs import assert_same, make_grad, make_params, params_of, snapshot

from graddrop import FusedGradDropAdamW

SHAPES = ((5, 7), (1300,), (0, 3), (6, 4))


def make(backend, device, **knobs):
    """An optimizer of parameters of several layouts; the last is not contiguous."""
    *params, last = make_params(SHAPES, device=device)
    params.append(torch.nn.Parameter(last.detach().t()))
    return FusedGradDropAdamW(params, lr=1e-2, seed=3, backend=backend, **knobs)


def step(optimizer, number):
    """A step in which the binary digits of its number say whose gradients are missing."""
    absent = []
    for index, param in enumerate(params_of(optimizer)):
        param.grad = None if number >> index & 1 else make_grad(param, index, number)
        if param.grad is None:
            absent.append(param)
    before = snapshot(optimizer, absent)
    optimizer.step()
    assert_same(snapshot(optimizer, absent), before)


@pytest.mark.parametrize("masked_norm", [False, True])
def test_who_has_none_stands_still(backend, device, masked_norm):
    """Nothing of it changes, its counter included; the norm is that of the others."""
    ours = make(backend, device, max_grad_norm=1.0, masked_norm=masked_norm)
    judge = make("reference", "cpu", max_grad_norm=1.0, masked_norm=masked_norm)
    for number in (0, 1, 2, 3, 8, 9, 15, 6, 0):
        step(ours, number)
        step(judge, number)
        assert float(ours.grad_norm) == pytest.approx(float(judge.grad_norm), rel=1e-5)
    counts = [int(ours.state[param]["step"]) for param in params_of(ours)]
    assert counts == [5, 5, 7, 6]
    for mine, theirs in zip(params_of(ours), params_of(judge), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


def test_who_stands_still_is_not_written(backend, device):
    """Autograd may go on to use what it holds of a parameter without a gradient."""
    ours = make(backend, device)
    step(ours, 0)
    params = params_of(ours)
    versions = [param._version for param in params]
    step(ours, 0b0101)
    counts = [now._version - before for now, before in zip(params, versions, strict=True)]
    assert [count > 0 for count in counts] == [False, True, False, True]


def test_one_plan_serves_them_all(backend, device):
    """Tables are made once, whichever of the gradients a step has."""
    ours = make(backend, device)
    step(ours, 0)
    plan = ours._plan_cache.latest
    for number in (1, 8, 15, 0):
        step(ours, number)
        assert ours._plan_cache.latest is plan
    first = params_of(ours)[0]
    first.grad = torch.zeros(7, 5, device=device).t()  # control: another layout is another plan
    ours.step()
    assert ours._plan_cache.latest is not plan


def test_state_that_was_loaded_waits_for_its_gradient(backend, device):
    """Who has state is part of the plan before its first gradient here."""
    before, ours = make(backend, device), make(backend, device)
    step(before, 0)
    ours.load_state_dict(before.state_dict())
    for mine, theirs in zip(params_of(ours), params_of(before), strict=True):
        mine.data.copy_(theirs.data)
    step(ours, 2)
    plan = ours._plan_cache.latest
    step(ours, 0)
    assert ours._plan_cache.latest is plan
    for number in (2, 0):
        step(before, number)
    assert_same(snapshot(ours), snapshot(before))


@pytest.mark.parametrize("kept", [0, 3])
def test_who_has_lost_its_state_begins_anew(backend, device, kept):
    """All of them, or the last alone: its next step is its first one, the others go on."""
    ours, whole = make(backend, device, drop_prob=0.0), make(backend, device, drop_prob=0.0)
    for optimizer in (ours, whole):
        step(optimizer, 0)
    for param in params_of(ours)[kept:]:
        del ours.state[param]
    fresh = make(backend, device, drop_prob=0.0)
    for param, now in zip(params_of(fresh), params_of(ours), strict=True):
        param.data.copy_(now.data)
    for optimizer in (ours, whole, fresh):
        step(optimizer, 16)
    expected = [whole] * kept + [fresh] * (len(SHAPES) - kept)
    for index, other in enumerate(expected):
        mine, theirs = params_of(ours)[index], params_of(other)[index]
        assert_same(snapshot(ours, [mine]), snapshot(other, [theirs]))
