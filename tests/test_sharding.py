"""The same masks under any sharding: FSDP2 on gloo processes against one process, bit for bit."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from graddrop import FusedGradDropAdamW

KNOBS = {"lr": 1e-2, "weight_decay": 0.1, "drop_prob": 0.5, "seed": 7}
N_STEPS = 3
# Rows that two processes share unevenly, one row (an empty shard), a vector, an odd matrix
SHAPES = {"uneven": (5, 12), "one row": (1, 9), "vector": (1030,), "odd": (7, 33)}
MASKS = [
    {"granularity": granularity, "site": site}
    for granularity in ("element", "row", "tensor")
    for site in ("grad", "freeze")
]


def _values(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _make_params():
    return {name: _values(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}


def _make_grads(step):
    return {name: _values(shape, 100 * step + i) for i, (name, shape) in enumerate(SHAPES.items())}


def train(params, place, backend, **mask):
    """Step on given gradients; ``place`` shards one like its parameter."""
    optimizer = FusedGradDropAdamW(params.values(), backend=backend, **KNOBS, **mask)
    for step in range(1, N_STEPS + 1):
        for name, grad in _make_grads(step).items():
            params[name].grad = place(grad, params[name])
        optimizer.step()
    return optimizer


def _one_process(backend, **mask):
    params = {name: torch.nn.Parameter(value) for name, value in _make_params().items()}
    train(params, lambda grad, _: grad, backend, **mask)
    return {name: param.detach() for name, param in params.items()}


def _whole(param):
    return param.detach().full_tensor() if isinstance(param, DTensor) else param.detach()


def _assert_alike(params, backend, mask):
    expected = _one_process(backend, **mask)
    for name, param in params.items():
        assert torch.equal(_whole(param), expected[name]), (name, mask)


def _like(grad, param):
    return distribute_tensor(grad, param.device_mesh, param.placements)


def check_fully_shard(backend):
    """Dimension 0 over two processes, as fully_shard does it."""
    for mask in MASKS:
        module = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(value) for name, value in _make_params().items()}
        )
        fully_shard(module)
        params = {name: module[name] for name in SHAPES}
        assert all(isinstance(param, DTensor) for param in params.values())
        optimizer = train(params, _like, backend, **mask)
        _assert_alike(params, backend, mask)
        moments = optimizer.state[params["odd"]]["exp_avg"]
        assert isinstance(moments, DTensor) and moments.placements == params["odd"].placements


def check_dimension_1(backend):
    """Dimension 1 over two processes: no shard is a contiguous range of its parameter."""
    mesh = init_device_mesh("cpu", (2,))
    for mask in MASKS:
        params = {
            name: torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(value.dim() - 1)]))
            for name, value in _make_params().items()
        }
        train(params, _like, backend, **mask)
        _assert_alike(params, backend, mask)


def check_a_wrong_place(backend):
    """Control: shards stepped as if each were the whole parameter draw other masks."""
    rank = dist.get_rank()
    expected = _one_process(backend)["odd"].chunk(2)[rank]
    param = torch.nn.Parameter(_make_params()["odd"].chunk(2)[rank].clone())
    optimizer = FusedGradDropAdamW(
        [{"params": [param], "stream_ids": [3]}], backend=backend, **KNOBS
    )
    for step in range(1, N_STEPS + 1):
        param.grad = _make_grads(step)["odd"].chunk(2)[rank].clone()
        optimizer.step()
    # the first process holds the beginning of the parameter, where the place is right by chance
    assert torch.allclose(param.detach(), expected, rtol=1e-6) == (rank == 0)


def _process(rank, backend, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for check in (check_fully_shard, check_dimension_1, check_a_wrong_place):
            check(backend)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_sharded_step_is_the_step_of_one_process(backend):
    """Given the same gradients, shards on two processes add up to one process, to the last bit."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(_process, args=(backend, port), nprocs=2)
