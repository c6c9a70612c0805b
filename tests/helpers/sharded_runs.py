"""Small training runs of shards, and what one process makes of the whole parameters."""

import torch
import torch.distributed as dist
from helpers.small_runs import make_grad, make_params, params_of
from torch.distributed.tensor import DTensor, distribute_tensor

from graddrop import FusedGradDropAdamW

N_PROCESSES = 4
N_STEPS = 2
# Rows that four processes share unevenly; one row, and six, so that some shards are empty; a
# vector; an odd matrix; three dimensions.
SHAPES = {"uneven": (5, 12), "one": (1, 9), "six": (6, 8), "vector": (1030,), "odd": (7, 33)}
SHAPES |= {"three": (4, 3, 5)}


def values_of(shapes=SHAPES):
    """Values of the whole parameters."""
    params = make_params(tuple(shapes.values()))
    return {name: param.detach() for name, param in zip(shapes, params, strict=True)}


def make_optimizer(params, backend, **knobs):
    """The optimizer, of whole parameters or of shards."""
    knobs = {"lr": 1e-2, "weight_decay": 0.1, "drop_prob": 0.5, "seed": 7} | knobs
    return FusedGradDropAdamW(params, backend=backend, **knobs)


def train(optimizer, steps=N_STEPS, place=None):
    """Step on given gradients, sharded as their parameters, or as ``place`` says."""
    for step in range(steps) if isinstance(steps, int) else steps:
        for index, param in enumerate(params_of(optimizer)):
            whole = torch.empty(param.shape)  # of a DTensor too
            grad = make_grad(whole, index, step)
            if isinstance(param, DTensor):
                grad = (place or place_like)(grad, param.device_mesh, param.placements)
            param.grad = grad
        optimizer.step()


def in_one_process(backend, steps=N_STEPS, **knobs):
    """What one process makes of the whole parameters."""
    optimizer = make_optimizer(
        [torch.nn.Parameter(v) for v in values_of().values()], backend, **knobs
    )
    train(optimizer, steps)
    return optimizer


def place_like(whole, mesh, placements):
    """This process's part of a tensor that all have; nothing is sent."""
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def assert_shards_are(optimizer, expected, exact):
    """The shards' parameters, moments and next masks are parts of those of one process.

    The compiled kernels are exact to the last bit, but for alignments, whose sums round as shards
    lie; torch's own loops, of which the reference is made, round the last few entries of a tensor
    differently, wherever that ends.
    """
    for param, whole in zip(params_of(optimizer), params_of(expected), strict=True):
        state, whole_state = optimizer.state[param], expected.state[whole]
        pairs = [(param, whole)] + [
            (state[key], whole_state[key]) for key in ("exp_avg", "exp_avg_sq")
        ]
        same_bits = exact and "alignment" not in whole_state
        tolerance = {"rtol": 0, "atol": 0} if same_bits else {"rtol": 1e-6, "atol": 1e-9}
        for shard, tensor in pairs:
            part = place_like(tensor.detach(), param.device_mesh, param.placements)
            torch.testing.assert_close(shard.detach().to_local(), part.to_local(), **tolerance)
        assert state["exp_avg"].placements == param.placements
        assert state["step"] == whole_state["step"]
        if "alignment" in whole_state:
            close = {"rtol": 0, "atol": 1e-7}
            torch.testing.assert_close(state["alignment"], whole_state["alignment"], **close)
            everywhere = [torch.zeros(()) for _ in range(dist.get_world_size())]
            dist.all_gather(everywhere, state["alignment"])
            assert len(set(map(float, everywhere))) == 1
        keep = place_like(expected.keep_mask(whole), param.device_mesh, param.placements)
        assert torch.equal(optimizer.keep_mask(param), keep.to_local())
