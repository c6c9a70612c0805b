"""Laws of the judge of numbers: it passes what rounding explains, and refuses what it does not."""

import math
from dataclasses import replace

import pytest
import torch

from graddrop import graddrop_adamw_
from graddrop.testing import (
    FP32_ARITHMETIC,
    INTERPRETED,
    exact_step,
    excess_error,
    make_knobs,
    random_slot,
    values_of,
)


def excess(slot, backend="reference", before_judging=lambda slot: None, tolerance=None, **knobs):
    """Make a step by a backend, and judge it."""
    before, exact = values_of(slot), exact_step(slot, make_knobs(**knobs))
    asked = make_knobs(**knobs)
    graddrop_adamw_(
        *([tensor] for tensor in (slot.param, slot.grad, slot.exp_avg, slot.exp_avg_sq)),
        [slot.step],
        lr=asked.lr,
        draw=0,
        betas=(asked.beta1, asked.beta2),
        eps=asked.eps,
        weight_decay=asked.weight_decay,
        drop_prob=asked.drop_prob,
        seed=asked.seed,
        backend=backend,
    )
    before_judging(slot)
    of_backend = FP32_ARITHMETIC if backend != "triton" else INTERPRETED
    return excess_error(before, slot, exact, asked, tolerance or of_backend)


def test_strong_decay_is_within_the_tolerance(backend, device):
    """Where lr times weight decay is large the factor of the decay rounds, too."""
    size = 4_003 if backend == "triton" else 400_003
    for seed in range(3):
        slot = random_slot((size,), (torch.float32,) * 3, seed=seed, device=device)
        assert excess(slot, backend, lr=1.0, weight_decay=0.3) <= 1


@pytest.mark.parametrize("left_out", ["update", "moments"])
def test_no_more_is_allowed_than_has_to_be(left_out):
    """Of 200,000 entries the worst update, and the worst moment, takes a fifth of its tolerance."""
    slot = random_slot((200_003,), (torch.float32,) * 3, seed=0)
    slot.param.zero_()  # or roundings of the parameter would hide the update's
    tolerance = replace(FP32_ARITHMETIC, **{left_out: math.inf})
    assert 0.2 < excess(slot, tolerance=tolerance, drop_prob=0.0) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_that_stay_are_right(dtype):
    """Of zeros no error is allowed, and none is made."""
    slot = random_slot((13,), (dtype,) * 3, seed=1)
    for tensor in (slot.param, slot.grad, slot.exp_avg, slot.exp_avg_sq):
        tensor.zero_()
    assert excess(slot, drop_prob=0.0) == 0


@pytest.mark.parametrize("name", ["param", "exp_avg", "exp_avg_sq"])
def test_an_entry_that_is_off_is_refused(name):
    """One entry of a thousand is wrong by a part in a thousand, or is NaN."""

    def spoil(slot, factor):
        getattr(slot, name)[500] *= factor

    for factor in (1.001, float("nan")):
        slot = random_slot((1000,), (torch.float32,) * 3, seed=2)
        assert excess(slot, before_judging=lambda slot, by=factor: spoil(slot, by)) > 10
