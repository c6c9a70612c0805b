"""FSDP2 with its parameters on the CPU: shards draw what the whole parameters would have drawn.

torchrun --nproc-per-node 2 examples/fsdp2_offload.py
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from graddrop import FusedGradDropAdamW


def main() -> float:
    """Train a small network, of which each process holds a part; return its last loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 2))
    # On a machine without GPUs everything lies on the CPU already.
    policy = CPUOffloadPolicy() if device == "cuda" else OffloadPolicy()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    # After sharding, since an optimizer holds the parameters that are there when it is made. Every
    # process has the same seed; the norm of all shards together is the bound.
    optimizer = FusedGradDropAdamW(model.named_parameters(), lr=1e-2, seed=0, max_grad_norm=1.0)
    generator = torch.Generator().manual_seed(dist.get_rank())
    inputs = torch.randn(64, 16, generator=generator).to(device)
    labels = (inputs[:, 0] > 0).long()
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.3f}, gradient norm {float(optimizer.grad_norm):.3f}")
    return loss.item()


if __name__ == "__main__":
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    main()
    dist.destroy_process_group()
