"""Laws of site="freeze": tensors that are dropped as a whole stand still, `step` included."""

import pytest
import torch
from helpers.small_runs import SMALL, assert_same, make_params, params_of, set_grads, snapshot

from graddrop import FusedGradDropAdamW

NAMES = ("layer.0.weight", "layer.1.weight")
WHOLE = {
    "by tensor": {"granularity": "tensor", "drop_prob": 0.5},
    "by layer": {"granularity": "layer", "drop_prob": 0.5},
    "by number": {"granularity": "tensor", "select": "exact", "drop_prob": 0.5},
    "in turns": {"granularity": "layer", "select": "descending", "drop_prob": 0.5},
    "every entry": {"granularity": "element", "drop_prob": 1.0},
    "every row": {"granularity": "row", "drop_prob": 1.0},
    "a probability that rounds to 1": {"granularity": "element", "drop_prob": 1 - 1e-7},
}


def make(backend, device, **knobs):
    """An optimizer of two layers of one parameter each."""
    named = list(zip(NAMES, make_params(SMALL, device=device), strict=True))
    return FusedGradDropAdamW(named, lr=1e-2, site="freeze", seed=3, backend=backend, **knobs)


@pytest.mark.parametrize("knobs", WHOLE.values(), ids=WHOLE)
def test_a_frozen_tensor_goes_on_as_if_no_step_had_been(backend, device, knobs):
    """The run is that of an optimizer in which what is dropped has no gradient: bit for bit."""
    ours, judge = make(backend, device, **knobs), make(backend, device, **knobs)
    n_dropped = 0
    for step in range(6):
        if step == 4:  # and what was dropped at every step so far begins
            for optimizer in (ours, judge):
                optimizer.param_groups[0]["drop_prob"] = 0.0
        for optimizer in (ours, judge):
            set_grads(params_of(optimizer), step)
        for param in judge.dropped_params():
            param.grad = None
            n_dropped += 1
        ours.step()
        judge.step()
        assert ours.draws == judge.draws == [step + 1]
    assert_same(snapshot(ours), snapshot(judge))
    counts = [int(ours.state[param]["step"]) for param in params_of(ours)]
    assert sum(counts) == 12 - n_dropped
    assert n_dropped >= 3


@pytest.mark.parametrize("knobs", WHOLE.values(), ids=WHOLE)
def test_the_first_step_after_a_freeze_is_a_first_step(backend, device, knobs):
    """After 50 frozen steps a new tensor moves by lr, as the first step of AdamW does."""
    param = torch.nn.Parameter(torch.zeros(40, device=device))
    optimizer = FusedGradDropAdamW(
        [("layer.0.weight", param)],
        lr=1.0,
        weight_decay=0.0,
        site="freeze",
        backend=backend,
        **(knobs | {"drop_prob": 1.0}),
    )
    for _ in range(50):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert not param.any() and not optimizer.state[param]["step"]
    assert optimizer.draws == [50]  # control: the optimizer counts them
    optimizer.param_groups[0]["drop_prob"] = 0.0
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, -1.0))


def test_other_sites_count_the_steps_of_what_they_drop(backend, device):
    """There the moments go on, and `step` with them."""
    for site in ("grad", "update"):
        optimizer = make(backend, device, granularity="tensor", drop_prob=1.0)
        optimizer.param_groups[0]["site"] = site
        for step in range(2):
            set_grads(params_of(optimizer), step)
            optimizer.step()
        assert [int(optimizer.state[param]["step"]) for param in params_of(optimizer)] == [2, 2]
