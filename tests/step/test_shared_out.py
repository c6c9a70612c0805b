"""Laws of parameters that processes share out by hand, as ZeroRedundancyOptimizer does."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers.sharded_runs import (
    N_PROCESSES,
    N_STEPS,
    SHAPES,
    in_one_process,
    make_optimizer,
    train,
    values_of,
)
from helpers.small_runs import assert_same, make_grad, params_of, snapshot

from graddrop import FusedGradDropAdamW


def check_norms_split_by_hand(backend, max_norm=0.1):
    """Each process holds some parameters, one of them none: the norm is that of all."""
    whole = in_one_process(backend, max_grad_norm=max_norm, eps=1e-2)
    owned = [index for index in range(len(SHAPES)) if index % 3 == dist.get_rank()]
    params = [torch.nn.Parameter(value) for value in values_of().values()]
    own = [params[index] for index in owned]
    for group in (None, dist.group.WORLD):
        optimizer = make_optimizer(
            [{"params": own, "stream_ids": owned}],
            backend,
            max_grad_norm=max_norm,
            norm_group=group,
            eps=1e-2,
        )
        for step in range(N_STEPS):
            for index, param in enumerate(params):
                param.grad = make_grad(param, index, step)
            optimizer.step()
        if group is None:  # control: a norm of its own, None where there is no gradient
            assert optimizer.grad_norm is None or optimizer.grad_norm < 0.9 * whole.grad_norm
            for param, value in zip(params, values_of().values(), strict=True):
                param.data.copy_(value)
    torch.testing.assert_close(float(optimizer.grad_norm), float(whole.grad_norm))
    for index in owned:
        torch.testing.assert_close(params[index], params_of(whole)[index], rtol=1e-5, atol=1e-7)


def check_zero_redundancy(backend):
    """Arguments of the whole optimizer arrive; the norm of all parameters is the bound."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    params = [torch.nn.Parameter(value) for value in values_of().values()]
    arguments = {
        "max_grad_norm": 0.1,
        "masked_norm": False,
        "norm_group": dist.group.WORLD,
        "state_dtype": torch.bfloat16,
        "backend": backend,
        "drop_prob": 0.25,
    }
    zero = ZeroRedundancyOptimizer(params, FusedGradDropAdamW, **arguments)
    whole = make_optimizer([p.detach().clone().requires_grad_() for p in params], backend, lr=1e-3)
    whole.max_grad_norm = 0.1
    train(whole)
    for step in range(N_STEPS):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, step)
        zero.step()
    torch.testing.assert_close(float(zero.optim.grad_norm), float(whole.grad_norm))
    assert (zero.optim._backend, zero.optim._state_dtype) == (backend, torch.bfloat16)
    assert all(group["drop_prob"] == 0.25 for group in zero.optim.param_groups)
    # What holds for all groups is in none of them, so that a state goes anywhere.
    saved = zero.optim.state_dict()
    assert not arguments.keys() - {"drop_prob"} & saved["param_groups"][0].keys()
    with pytest.raises(ValueError, match="expected backend as an argument of the optimizer"):
        make_optimizer([{"params": [torch.ones(2)], "backend": "triton"}], backend)


def check_consolidated_zero(backend):
    """A consolidated state brings all processes the groups of the first: who has others is told.

    torch puts them into the groups by hand, so that the next step is the first to see them.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    params = [torch.nn.Parameter(value) for value in values_of().values()]
    zero = ZeroRedundancyOptimizer(params, FusedGradDropAdamW, backend=backend)

    def step(number):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, number)
        zero.step()

    step(0)
    zero.consolidate_state_dict(to=0)
    sent = [zero.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(sent)
    zero.load_state_dict(sent[0])
    own, first = (len(zero._partition_parameters()[r][0]["params"]) for r in (dist.get_rank(), 0))
    before = snapshot(zero.optim)
    if own == first:
        zero.optim.step()  # alone: the others would be waited for
        assert zero.optim.param_groups[0]["stream_ids"] == list(range(own))
        return
    assert dist.get_rank() > 0
    message = f"expected {own} stream_ids in param group 0, .* got {first}: .*ZeRO.*fully_shard"
    with pytest.raises(ValueError, match=message):
        zero.optim.step()
    assert_same(snapshot(zero.optim), before)


def check_consolidated_seeds(backend):
    """Where the lists fit, the first process's seed is told, and set again it is the same run."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    rank = dist.get_rank()

    def make():
        params = [torch.nn.Parameter(torch.full((33,), float(i))) for i in range(2 * N_PROCESSES)]
        zero = ZeroRedundancyOptimizer(
            params, FusedGradDropAdamW, backend=backend, seed=rank, site="freeze"
        )
        assert zero.optim.param_groups[0]["stream_ids"] == [0, 1]
        return params, zero

    def step(params, zero, number):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, number)
        zero.step()

    params, zero = make()
    step(params, zero, 0)
    zero.consolidate_state_dict(to=0)
    sent = [zero.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(sent)
    resumed, fresh = make()
    for param, value in zip(resumed, params, strict=True):
        param.data.copy_(value)
    fresh.load_state_dict(copy.deepcopy(sent[0]))  # torch would share its tensors
    if rank:
        for index, param in enumerate(resumed):
            param.grad = make_grad(param, index, 1)
        before = snapshot(fresh.optim)
        with pytest.raises(ValueError, match=f"seed {rank} that param group 0 has had, got 0"):
            fresh.optim.step()  # alone: it ends before the others are waited for
        assert_same(snapshot(fresh.optim), before)
    fresh.param_groups[0]["seed"] = rank
    for number in (1, 2):
        step(params, zero, number)
        step(resumed, fresh, number)
    assert_same(resumed, params)
    assert len({tuple((p != i).tolist()) for i, p in enumerate(params)}) == len(params)


@pytest.mark.parametrize(
    "check",
    [
        check_norms_split_by_hand,
        check_zero_redundancy,
        check_consolidated_zero,
        check_consolidated_seeds,
    ],
)
def test_what_is_shared_out_by_hand(processes, process_backend, check):
    """Norms are of all, masks of each; states that go to the wrong process are told."""
    processes.run(check, process_backend)
