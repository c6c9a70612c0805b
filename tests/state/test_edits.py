"""Laws of what users change by hand between steps: names, views, memory, the optimizer's end."""

import gc
import re
import weakref

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW


@pytest.mark.parametrize(
    ("name", "value", "granularity"),
    [("stream_ids", 77, "element"), ("stream_ids", 77, "row"), ("layers", 5, "layer")],
)
def test_an_edited_name_makes_the_next_mask(backend, device, name, value, granularity):
    """The step drops what keep_mask shows, which follows lists that are edited in place."""
    group = {"params": make_params(((9, 8), (9, 8)), device=device), "layers": [0, 1]}
    knobs = {"site": "freeze", "granularity": granularity, "period": "epoch"}
    ours = FusedGradDropAdamW([group], backend=backend, **knobs)
    ours.new_mask(0)
    train(ours, 1)
    before = [*map(ours.keep_mask, params_of(ours))]
    for candidate in range(value, value + 9):  # one of them is kept otherwise: masks are few
        ours.param_groups[0][name][1] = candidate
        if not torch.equal(ours.keep_mask(params_of(ours)[1]), before[1]):
            break
    else:
        pytest.fail("no other mask was found")
    expected = [*map(ours.keep_mask, params_of(ours))]
    assert torch.equal(expected[0], before[0])
    values = [param.detach().clone() for param in params_of(ours)]
    train(ours, range(1, 2))
    for param, old, keep in zip(params_of(ours), values, expected, strict=True):
        assert torch.equal(param != old, keep)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("stream_ids", [3, 3], ValueError, "expected stream_ids that no other parameter has"),
        ("stream_ids", [3], ValueError, "expected 2 stream_ids in param group 0"),
        ("stream_ids", [3, 1 << 30], ValueError, "Invalid stream id"),
        ("layers", 3, TypeError, "expected layers of param group 0 as a list, .* got 3"),
    ],
)
def test_names_that_do_not_fit_change_nothing(backend, device, name, value, error, message):
    """They are refused where the step begins, and the old ones go on."""
    ours, plain = (make_optimizer(backend, device, SMALL) for _ in range(2))
    for each in (ours, plain):
        train(each, 1)
    group = ours.param_groups[0]
    names, before = group[name], snapshot(ours)
    group[name] = value
    with pytest.raises(error, match=message):
        train(ours, range(1, 2))
    assert_same(snapshot(ours), before)
    group[name] = names
    for each in (ours, plain):
        train(each, range(1, 2))
    assert_same(snapshot(ours), snapshot(plain))


def test_a_parameter_that_has_shrunk_in_place_is_refused(backend, device):
    """Its first rows lie where all of them lay; the step must not reach the others."""
    ours = make_optimizer(backend, device, SMALL)
    train(ours, 1)
    whole = params_of(ours)[0].data
    params_of(ours)[0].data = whole[:2]
    set_grads(params_of(ours), 1)
    before = [*snapshot(ours), whole.clone()]
    with pytest.raises(RuntimeError, match=re.escape("expected exp_avg of shape (2, 7)")):
        ours.step()
    assert_same([*snapshot(ours), whole], before)


def test_a_parameter_turned_in_place_is_stepped_as_it_is_now(backend, device):
    """The transposed view begins at the same address."""
    runs = [make_optimizer(name, device, ((6, 6),)) for name in (backend, "reference")]
    for ours in runs:
        train(ours, 1)
        params_of(ours)[0].data = params_of(ours)[0].data.t()
        train(ours, range(1, 3))
    turned, judge = (snapshot(ours) for ours in runs)
    for mine, theirs in zip(turned, judge, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", ["parameter", "gradient", "exp_avg"])
def test_memory_that_was_freed_is_not_touched(backend, device, which):
    """Whoever gave the memory away, as offloading does, gets an error and no crash."""
    ours = make_optimizer(backend, device, SMALL)
    train(ours, 1)
    set_grads(params_of(ours), 1)
    param, other = params_of(ours)
    owners = {"parameter": param, "gradient": param.grad, "exp_avg": ours.state[param]["exp_avg"]}
    before = snapshot(ours, [other])
    owners[which].untyped_storage().resize_(0)
    with pytest.raises(
        (RuntimeError, ValueError), match=f"expected an? .*{which} with data|{which}"
    ):
        ours.step()
    assert_same(snapshot(ours, [other]), before)
    assert ours.draws == [1]


@pytest.mark.parametrize("knobs", [{}, {"max_grad_norm": 1.0}])
def test_an_optimizer_that_goes_frees_its_memory(backend, device, knobs):
    """At once: it is part of no reference cycle, which would wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        ours = make_optimizer(backend, device, SMALL, **knobs)
        train(ours, 2)
        ours.load_state_dict(ours.state_dict())
        train(ours, 1)
        param = params_of(ours)[0]
        alive = [*map(weakref.ref, (ours, param, ours.state[param]["exp_avg"]))]
        del ours, param
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()
