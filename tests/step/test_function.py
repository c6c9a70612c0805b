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


SITES = {"grad": {}, "update": {"mask_decay": False}, "freeze": {"site": "freeze"}}


def keep_masks():
    """Of all tensors but the last, whose mask is drawn."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(shape, generator=generator) < 0.5 for shape in SMALL]
    return [*masks[:-1], None]


@pytest.mark.parametrize("site", SITES)
def test_masks_that_are_given_are_those_that_are_loaded(backend, device, site):
    """Two steps, bit for bit, beside a tensor whose mask is drawn."""
    knobs = BASE | {"site": site, "rescale": True} | SITES[site]
    optimizer = make_optimizer(backend, device, shapes=SMALL, **knobs)
    params = params_of(optimizer)
    optimizer.load_masks(dict(zip(params[:-1], keep_masks()[:-1], strict=True)))
    given = [param.detach().clone() for param in params]
    moments = [[torch.zeros_like(param) for param in given] for _ in range(2)]
    drawn = [[param.clone() for param in part] for part in (given, *moments)]
    steps = [torch.zeros((), device=device) for _ in SMALL]
    drawn_steps = [count.clone() for count in steps]
    for step in range(2):
        set_grads(params, step)
        grads = [param.grad.clone() for param in params]
        optimizer.step()
        masks = [None if mask is None else mask.to(device) for mask in keep_masks()]
        settings = {"draw": step, "backend": backend, **knobs}
        graddrop_adamw_(given, grads, *moments, steps, keep_masks=masks, **settings)
        graddrop_adamw_(drawn[0], grads, *drawn[1:], drawn_steps, **settings)
    found = [t for tensors in zip(given, *moments, steps, strict=True) for t in tensors]
    expected = snapshot(optimizer)
    assert_same([t.cpu() for t in found], [t.cpu() for t in expected])
    assert torch.equal(given[-1], drawn[0][-1]) and not torch.equal(given[0], drawn[0][0])


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([None], ValueError, f"expected {len(SMALL)} keep_masks, one per parameter, got 1"),
        ([torch.ones(2).bool()], ValueError, "a mask of the whole parameter's shape"),
        ([torch.ones(SMALL[0])], TypeError, "as a bool tensor, True where kept, or None, got"),
        (torch.ones(2).bool(), TypeError, r"expected keep_masks as a list of tensors, got one"),
        (["all"], TypeError, "as a bool tensor, True where kept, or None, got"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, error, message):
    """With what came; nothing changes."""
    params = [param.detach() for param in make_params(SMALL)]
    before = [param.clone() for param in params]
    others = [[torch.ones_like(param) for param in params] for _ in range(3)]
    steps = [torch.zeros(()) for _ in SMALL]
    if isinstance(masks, list) and masks != [None]:
        masks = masks + [None] * (len(SMALL) - 1)
    with pytest.raises(error, match=message):
        graddrop_adamw_(params, *others, steps, lr=0.1, draw=0, keep_masks=masks)
    assert_same(params, before)
