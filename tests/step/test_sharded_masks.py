"""Loaded masks under any sharding: each process has its part, and checkpoints go to any other."""

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.small_runs import make_grad, make_params, params_of
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from graddrop import FusedGradDropAdamW
from graddrop.mask_makers import broadcast_masks

# Rows that four processes share unevenly; one row, so that some have none; a vector beyond a tile.
SHAPES = {"uneven": (5, 12), "one": (1, 9), "vector": (1030,), "three": (4, 3, 5)}
KNOBS = {"lr": 1e-2, "drop_prob": 1.0, "weight_decay": 0.1, "max_grad_norm": 0.1}
PLACEMENTS = [
    ((4,), [Shard(0)]),
    ((4,), [Shard(1)]),
    ((2, 2), [Replicate(), Shard(0)]),
    ((2, 2), [Shard(0), Shard(1)]),
    ((2, 2), [Shard(0), Shard(0)]),
]


def masks_by_name(seed=0):
    """The same on every process, of the whole parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in SHAPES.items()}


def place_like(whole, mesh, placements):
    """This process's part of a tensor that all have; a vector has no second dimension to cut."""
    own = [
        Shard(min(place.dim, whole.dim() - 1)) if isinstance(place, Shard) else place
        for place in placements
    ]
    return distribute_tensor(whole, mesh, own, src_data_rank=None)


class Parts(torch.nn.Module):
    """Parameters with names, each sharded on a mesh, or whole."""

    def __init__(self, mesh=None, placements=None):
        super().__init__()
        for name, value in zip(SHAPES, make_params(tuple(SHAPES.values())), strict=True):
            value = value.detach()
            if mesh is not None:
                value = place_like(value, mesh, placements)
            self.register_parameter(name, torch.nn.Parameter(value))


def make_optimizer(module, backend, site):
    """An optimizer that would drop everything, were there no masks."""
    return FusedGradDropAdamW(
        module.named_parameters(), backend=backend, site=site, masked_norm=True, **KNOBS
    )


def train(optimizer, steps):
    """Step on given gradients, sharded as their parameters."""
    for step in steps:
        for index, param in enumerate(params_of(optimizer)):
            grad = make_grad(torch.empty(param.shape), index, step)
            if isinstance(param, DTensor):
                grad = place_like(grad, param.device_mesh, param.placements)
            param.grad = grad
        optimizer.step()


def assert_parts_are(module, optimizer, whole, expected, exact):
    """Parameters, moments and masks are parts of those of one process, and the norm is its."""
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-7}
    for param, full in zip(module.parameters(), whole.parameters(), strict=True):
        pairs = [(param, full)]
        for key in ("exp_avg", "exp_avg_sq"):
            pairs.append((optimizer.state[param][key], expected.state[full][key]))
        for shard, tensor in pairs:
            part = place_like(tensor.detach(), param.device_mesh, param.placements)
            torch.testing.assert_close(shard.detach().to_local(), part.to_local(), **tolerance)
        keep = place_like(expected.keep_mask(full), param.device_mesh, param.placements)
        assert torch.equal(optimizer.keep_mask(param), keep.to_local())
    torch.testing.assert_close(optimizer.grad_norm, expected.grad_norm)
    ours, theirs = (each.log_values(wait=True)["kept_fraction"] for each in (optimizer, expected))
    assert ours == theirs


def check_placements(backend):
    """Masks as whole tensors, as DTensors like their parameters, and placed otherwise."""
    masks = masks_by_name()
    for mesh_shape, placements in PLACEMENTS:
        mesh = init_device_mesh("cpu", mesh_shape)
        for site in ("grad", "update", "freeze"):
            whole, module = Parts(), Parts(mesh, placements)
            optimizers = [make_optimizer(each, backend, site) for each in (whole, module)]
            optimizers[0].load_masks(masks)
            given = dict(masks)
            named = dict(module.named_parameters())
            given["uneven"] = place_like(masks["uneven"], mesh, named["uneven"].placements)
            given["vector"] = place_like(masks["vector"], mesh, [Replicate()] * mesh.ndim)
            optimizers[1].load_masks(given)
            for optimizer in optimizers:
                train(optimizer, range(2))
            # The norm's last bit depends on the order of sums, and a clipped gradient on the norm.
            assert_parts_are(module, optimizers[1], whole, optimizers[0], exact=False)


def check_a_part_as_the_whole():
    """Control: a mask of the local shape, or on another mesh, is refused."""
    mesh, other = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    module = Parts(mesh, [Shard(0)])
    optimizer = make_optimizer(module, "reference", "grad")
    keep = masks_by_name()["uneven"]
    with pytest.raises(ValueError, match=r"mask of the whole parameter's shape \(5, 12\)"):
        optimizer.load_masks({"uneven": keep[:2]})
    with pytest.raises(ValueError, match="on its parameter's mesh"):
        optimizer.load_masks({"uneven": place_like(keep, other, [Shard(0), Shard(1)])})
    assert not any(optimizer.param_groups[0]["loaded_masks"])


def check_resharding(backend, folder):
    """Saved by four shards, read by other meshes, by fully_shard and by whole parameters."""
    whole = Parts()
    expected = make_optimizer(whole, backend, "freeze")
    expected.load_masks(masks_by_name())
    train(expected, range(4))
    module = Parts(init_device_mesh("cpu", (4,)), [Shard(0)])
    ours = make_optimizer(module, backend, "freeze")
    ours.load_masks(masks_by_name())
    train(ours, range(2))
    saved = checkpoint.get_state_dict(module, ours)
    assert all(isinstance(s["keep_mask"], DTensor) for s in saved[1]["state"].values())
    dcp.save({"model": saved[0], "optimizer": saved[1]}, checkpoint_id=folder)
    for mesh_shape, placements in [*PLACEMENTS[1:], (None, None)]:
        if mesh_shape is None:
            again = Parts()
            fully_shard(again)
        else:
            again = Parts(init_device_mesh("cpu", mesh_shape), placements)
        fresh = make_optimizer(again, backend, "freeze")
        fresh.load_masks({name: torch.ones_like(keep) for name, keep in masks_by_name().items()})
        parts = checkpoint.get_state_dict(again, fresh)
        state = {"model": parts[0], "optimizer": parts[1]}
        dcp.load(state, checkpoint_id=folder)
        checkpoint.set_state_dict(
            again, fresh, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        train(fresh, range(2, 4))
        assert_parts_are(again, fresh, whole, expected, exact=False)
    full = checkpoint.StateDictOptions(full_state_dict=True)
    everything = checkpoint.get_optimizer_state_dict(module, ours, options=full)
    for name, keep in masks_by_name().items():
        assert torch.equal(everything["state"][name]["keep_mask"], keep)
    dist.barrier()


def check_masks_of_the_first():
    """Each process has made others; all have those of the first in the end."""
    rank = dist.get_rank()
    own, first = masks_by_name(seed=rank), masks_by_name(seed=0)
    found = broadcast_masks(own)
    assert all(torch.equal(found[name], first[name]) for name in SHAPES)
    assert found["uneven"].dtype == torch.bool
    assert rank == 0 or not torch.equal(own["uneven"], first["uneven"])  # control


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_shards_read_their_part(processes, backend):
    """Shards step as one process does, whatever the placements of parameter and mask."""
    if backend == "cpu":
        from graddrop.kernels.cpu import binding

        if not binding.LIBRARY.exists():
            pytest.skip(f"{binding.LIBRARY} is not built")
    processes.run(check_placements, backend)


def test_parts_are_not_taken_for_wholes(processes):
    """Control of the shapes."""
    processes.run(check_a_part_as_the_whole)


def test_all_processes_have_the_masks_of_the_first(processes):
    """Whatever each has made; where there is one process, it keeps its own."""
    processes.run(check_masks_of_the_first)
    alone = masks_by_name()
    assert all(mask is alone[name] for name, mask in broadcast_masks(alone).items())


def test_checkpoints_go_to_any_sharding(processes):
    """torch.distributed.checkpoint cuts masks as it cuts moments."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        processes.run(check_resharding, "auto", Path(folder) / "checkpoint")
