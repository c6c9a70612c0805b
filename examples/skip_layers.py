"""Layer masks that save time: what the next step drops needs no backward pass, the training is one.

python examples/skip_layers.py
"""

import contextlib
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graddrop import FusedGradDropAdamW


class Network(nn.Module):
    """Twelve residual layers, which their names tell, and a head, which is in none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(12)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of two classes, [batch, 2], of vectors, [batch, width]."""
        for layer in self.layers:
            inputs = inputs + layer(inputs)
        return self.head(inputs)


def train(skip: bool, width: int, steps: int) -> tuple[Network, int, float]:
    """Train with masks that keep 2 of 12 layers for two steps each.

    Returns:
        The network, the floating-point operations of forward and backward passes, the seconds.
    """
    torch.manual_seed(0)
    model = Network(width)
    optimizer = FusedGradDropAdamW(
        model.named_parameters(),
        lr=1e-3,
        drop_prob=1 - 2 / 12,
        granularity="layer",
        select="exact",
        period=2,
        site="freeze",
    )
    inputs = torch.randn(128, width)
    labels = (inputs[:, 0] > 0).long()
    begin = time.perf_counter()
    with FlopCounterMode(display=False) as operations:
        for _ in range(steps):
            with optimizer.skip_dropped() if skip else contextlib.nullcontext():
                nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, operations.get_total_flops(), time.perf_counter() - begin


def main(width: int = 256, steps: int = 8) -> tuple[Network, Network, float]:
    """Train with and without skipping; return both networks and the share of operations left."""
    full, all_operations, all_seconds = train(False, width, steps)
    skipped, operations, seconds = train(True, width, steps)
    share = operations / all_operations
    print(f"{share:.0%} of the operations, {seconds / all_seconds:.0%} of the time")
    return full, skipped, share


if __name__ == "__main__":
    main()
