"""Law of the host: what Python does in a step does not grow with the number of tensors."""

import sys
from collections import Counter

import pytest
import torch
from torch.nn import Parameter

from graddrop import FusedGradDropAdamW
from graddrop.kernels.cpu import objects


def calls_of_a_step(make, n_tensors: int) -> Counter[str]:
    """Calls of Python functions, and by Python of functions in C, in a step with new gradients."""
    params = [Parameter(torch.zeros(3)) for _ in range(n_tensors)]
    step = make(params).step
    for _ in range(3):
        for param in params:
            param.grad = torch.ones(3)
        counts: Counter[str] = Counter()
        sys.setprofile(lambda frame, event, argument, counts=counts: counts.update([event]))
        try:
            step()
        finally:
            sys.setprofile(None)
    return Counter({event: counts[event] for event in ("call", "c_call")})


@pytest.mark.skipif(objects._looker() is None, reason="tensors are asked one by one in Python")
@pytest.mark.parametrize("knobs", [{}, {"max_grad_norm": 1.0}], ids=["plain", "clipped"])
def test_a_step_of_many_tensors_makes_the_calls_of_a_step_of_one(knobs):
    """As few as torch's fused AdamW makes for ten, which makes more for more."""
    few, many = (
        calls_of_a_step(lambda params: FusedGradDropAdamW(params, **knobs), n) for n in (1, 199)
    )
    print(f"ours, 1 and 199 tensors: {few}, {many}")
    assert few == many
    few, many = (
        calls_of_a_step(lambda params: torch.optim.AdamW(params, fused=True), n) for n in (10, 199)
    )
    print(f"torch's fused AdamW, 10 and 199 tensors: {few}, {many}")
    assert many.total() > 2 * few.total()  # negative control
    if not knobs:
        assert calls_of_a_step(FusedGradDropAdamW, 10).total() <= few.total()
