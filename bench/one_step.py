"""A few steps of ours on one workload, for a profiler to look at.

python -m bench.one_step cuda xlmr-large
"""

import sys

import torch
from torch.nn import Parameter

from bench.peers import one_pass
from bench.workloads import WORKLOADS


def main(device: str, workload_key: str) -> None:
    """Make three steps."""
    params = [Parameter(torch.randn(s, device=device)) for s in WORKLOADS[workload_key].shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = one_pass(params)
    for _ in range(3):
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
