"""Laws of many groups that choose by number: each by itself, all at the price of one."""

import pytest
import torch
from helpers.small_runs import params_of, train
from torch.utils._python_dispatch import TorchDispatchMode

from graddrop import FusedGradDropAdamW
from graddrop.mask import SELECTIONS, TENSOR_ORDER_STREAM, count_dropped, keep_units

BY_NUMBER = SELECTIONS[1:]


class Operators(TorchDispatchMode):
    """Counts torch's operators, each of which is a launch on a device."""

    n = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        """Count one and call it."""
        self.n += 1
        return operator(*args, **(kwargs or {}))


def many_groups(backend, device, n_groups, **knobs):
    """Groups of 2 or 3 tensors, each of which chooses by its own seed, one of them at its own p."""
    groups = [
        {
            "params": [
                torch.nn.Parameter(torch.ones(3, device=device)) for _ in range(2 + index % 2)
            ],
            "seed": (1 << 64) - 1 - index * 3**33,
            "drop_prob": 0.9 if index == 3 else 0.5,
        }
        for index in range(n_groups)
    ]
    knobs = {"granularity": "tensor", "select": "exact", "site": "freeze"} | knobs
    return FusedGradDropAdamW(groups, backend=backend, **knobs)


@pytest.mark.parametrize("select", BY_NUMBER)
def test_each_of_many_groups_chooses_as_if_it_were_alone(select, backend, device):
    """By its own seed, of its own units, as many as its own p says."""
    optimizer = many_groups(backend, device, 9, select=select)
    for step in range(3):
        dropped = {id(param) for param in optimizer.dropped_params()}
        before = [param.detach().clone() for param in params_of(optimizer)]
        expected = []
        for group in optimizer.param_groups:
            ids, p = torch.tensor(group["stream_ids"]), group["drop_prob"]
            keep = keep_units(
                ids,
                select=select,
                stream=TENSOR_ORDER_STREAM,
                seed=group["seed"],
                draw=step,
                n_dropped=count_dropped(len(ids), p),
            )
            expected += keep.tolist()
        train(optimizer, range(step, step + 1))
        params = params_of(optimizer)
        moved = [not torch.equal(a, b) for a, b in zip(before, params, strict=True)]
        assert moved == expected == [id(param) not in dropped for param in params]


@pytest.mark.parametrize("backend", ["cpu", "triton"], indirect=True)
def test_a_choice_costs_as_many_operators_for_any_number_of_groups(backend, device):
    """On a GPU each is a launch: those of half fine-tuning, six groups a layer, were thousands."""
    counts = []
    for n_groups in (4, 40):
        optimizer = many_groups(backend, device, n_groups)
        train(optimizer, 2)
        with Operators() as seen:
            optimizer.step()
        counts.append(seen.n)
    assert 100 < counts[0] == counts[1]
