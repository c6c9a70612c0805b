"""A few steps of ours on the shapes of XLM-R Large, for a profiler to look at."""

import torch
from torch.nn import Parameter

from bench.peers import one_pass
from bench.workloads import WORKLOADS


def main() -> None:
    """Make three steps on the GPU."""
    params = [Parameter(torch.randn(s, device="cuda")) for s in WORKLOADS["xlmr-large"].shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = one_pass(params)
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
