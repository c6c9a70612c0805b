"""Laws of skipping the backward pass of what is dropped, where processes train together."""

import pytest
import torch
import torch.distributed as dist
from helpers.layered_net import Net, make_net, train_net
from helpers.small_runs import assert_same
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup


def run_net(wrap, skip, **knobs):
    """The local state after some steps of a wrapped model, each process with its own batches."""
    rank = dist.get_rank()
    model, optimizer = make_net(net=lambda: wrap(Net()), **knobs)
    train_net(model, optimizer, skip, micros=range(rank, rank + 1))
    tensors = [
        *model.parameters(),
        *(s for state in optimizer.state.values() for s in state.values()),
    ]
    return [getattr(tensor, "_local_tensor", tensor).detach().clone() for tensor in tensors]


def check_ddp_skips(find_unused):
    """Whole parameters, on every process."""

    def wrap(net):
        return torch.nn.parallel.DistributedDataParallel(net, find_unused_parameters=find_unused)

    assert_same(*(run_net(wrap, skip) for skip in (False, True)))


def test_ddp_may_skip_what_is_dropped(processes):
    """The training is the same; without find_unused_parameters DDP itself stops."""
    processes.run(check_ddp_skips, True)
    with pytest.raises(AssertionError, match="find_unused_parameters=True"):
        processes.run(check_ddp_skips, False)


def check_fsdp_skips(knobs):
    """Each layer is a unit of its own, computes in bfloat16 and is reduced in float32."""
    reduced, reduce = set(), FSDPParamGroup.post_backward

    def note(self, *arguments):
        reduced.add(self._reduce_dtype)
        return reduce(self, *arguments)

    def wrap(net):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in net.layers:
            fully_shard(layer, mp_policy=policy)
        return fully_shard(net, mp_policy=policy)

    FSDPParamGroup.post_backward = note
    try:
        full, skipped = (run_net(wrap, skip, **knobs) for skip in (False, True))
    finally:
        FSDPParamGroup.post_backward = reduce
    assert_same(full, skipped)
    assert reduced == {torch.float32}


def test_fsdp2_may_skip_what_is_dropped(processes):
    """Even a unit that the first step drops as a whole is reduced in the dtype that was asked for.

    FSDP2 looks at its first forward pass for it, among what needs a gradient.
    """
    knobs = {"drop_prob": 0.6}
    assert make_net(**knobs)[1].dropped_layers()
    processes.run(check_fsdp_skips, knobs)
