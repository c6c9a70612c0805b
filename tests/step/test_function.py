"""Laws of ``graddrop_adamw_``: its arguments do what the optimizer's of the same names do."""

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
)

from graddrop import graddrop_adamw_

KNOBS = {
    "lr": 1e-3,
    "betas": (0.5, 0.9),
    "eps": 1e-1,
    "weight_decay": 0.5,
    "drop_prob": 0.1,
    "granularity": "row",
    "select": "exact",
    "site": "freeze",
    "rescale": True,
    "mask_decay": False,
    "stochastic_rounding": True,
    "maximize": True,
    "seed": (1 << 64) - 1,
}
BASE = {"lr": 1e-2, "site": "update", "seed": 8, "drop_prob": 0.2}
# Chance drops the second tensor; of two, none is dropped by number.
BASES = {"select": BASE | {"granularity": "tensor"}}


def dtype_of(knob):
    """What shows the knob."""
    return torch.bfloat16 if knob == "stochastic_rounding" else torch.float32


def by_function(knob, n_steps=2, **arguments):
    """Parameters and state of some steps by the function."""
    params = [param.detach() for param in make_params(SMALL, dtype_of(knob))]
    moments = [[torch.zeros(shape) for shape in SMALL] for _ in range(2)]
    steps = [torch.zeros(()) for _ in SMALL]
    for step in range(n_steps):
        holders = [torch.nn.Parameter(param) for param in params]
        set_grads(holders, step)
        grads = [holder.grad * arguments.get("grad_scale", 1) for holder in holders]
        graddrop_adamw_(params, grads, *moments, steps, draw=step, backend="reference", **arguments)
    state = zip(params, *moments, steps, strict=True)
    return [tensor for tensors in state for tensor in tensors]


def by_optimizer(knob, **knobs):
    """The same of two steps by the optimizer."""
    optimizer = make_optimizer("reference", shapes=SMALL, dtype=dtype_of(knob), **knobs)
    for step in range(2):
        set_grads(params_of(optimizer), step)
        optimizer.step()
    return snapshot(optimizer)


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_the_optimizers(knob):
    """Two steps, bit for bit."""
    base = BASES.get(knob, BASE)
    changed = base | {knob: KNOBS[knob]}
    assert_same(by_function(knob, **changed), by_optimizer(knob, **changed))
    assert differs(by_function(knob, **changed), by_function(knob, **base))  # control


def test_a_loss_scale_is_taken_out():
    """Of gradients that carry it; a power of two leaves no trace."""
    scaled = by_function("", grad_scale=torch.tensor([64.0]), **BASE)
    assert_same(scaled, by_function("", **BASE))


def test_an_infinity_that_was_found_skips_the_step():
    """Nothing changes; at 0 it is the step."""
    untouched = by_function("", n_steps=0, **BASE)
    assert_same(by_function("", found_inf=torch.ones(1), **BASE), untouched)
    assert_same(by_function("", found_inf=torch.zeros(1), **BASE), by_function("", **BASE))
