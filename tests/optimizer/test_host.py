"""Laws of the host: what Python does grows neither with the tensors nor with other groups."""

import sys
from collections import Counter

import pytest
import torch
from torch.nn import Parameter

from graddrop import FusedGradDropAdamW
from graddrop.kernels.cpu import objects
from graddrop.state import groups
from graddrop.step import overlap


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


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_group_costs_the_same_among_many(monkeypatch, one_by_one):
    """To add one looks closely at its own parameters, not at all the others again."""
    looked_at = []
    for module, name in ((groups, "check_ids"), (overlap, "find_overlap")):
        real = getattr(module, name)

        def counting(listed, *others, real=real):
            looked_at.append(len(listed))
            return real(listed, *others)

        monkeypatch.setattr(module, name, counting)
    params = [torch.nn.Parameter(torch.zeros(8)) for _ in range(200)]
    every = [{"params": [param], "lr": 1e-3} for param in params]
    optimizer = FusedGradDropAdamW(every[:1] if one_by_one else every)
    for group in every[1:] if one_by_one else ():
        optimizer.add_param_group(group)
    # The constructor looks again at its own, all together.
    assert sum(looked_at) == 400 + (1 if one_by_one else 200)
    assert [group["stream_ids"] for group in optimizer.param_groups] == [[i] for i in range(200)]


def test_of_many_groups_only_torch_makes_pairs():
    """Calls that grow with the square of the number of groups are torch's own, but for as many."""
    calls: dict[str, list[int]] = {}
    for optimizer in (FusedGradDropAdamW, torch.optim.AdamW):
        for n_groups in (1, 30, 60, 90):  # the first loads what is loaded once
            every = [{"params": [torch.nn.Parameter(torch.zeros(8))]} for _ in range(n_groups)]
            count = [0]

            def look(frame, event, argument, count=count):
                count[0] += event in ("call", "c_call")

            sys.setprofile(look)
            try:
                optimizer(every)
            finally:
                sys.setprofile(None)
            calls.setdefault(optimizer.__name__, []).append(count[0])
    # Second differences are those of the square alone.
    squares = {name: few - 2 * some + many for name, (_, few, some, many) in calls.items()}
    assert 0 < squares["FusedGradDropAdamW"] < 2 * squares["AdamW"], calls
