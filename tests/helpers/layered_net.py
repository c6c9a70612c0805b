"""A small network with layers, as masks of whole layers want it, and how it is trained."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graddrop import FusedGradDropAdamW

N_STEPS = 5


class Layer(nn.Module):
    """Two weights and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.outer(torch.tanh(self.inner(x)))


class Net(nn.Module):
    """Embedding, layers, head; its output is the loss."""

    def __init__(self, n_layers: int = 3, width: int = 6, checkpointed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(n_layers))
        self.head = nn.Linear(width, 3)
        self.checkpointed = checkpointed

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.head(x).square().mean()


def batch(step: int, micro: int = 0) -> Tensor:
    """Tokens, a function of the step."""
    return torch.randint(10, (4, 5), generator=torch.Generator().manual_seed(10 * step + micro))


def make_net(
    backend: str = "auto", net: Callable[[], nn.Module] = Net, **knobs: Any
) -> tuple[Any, FusedGradDropAdamW]:
    """A model, whose layers are masked, and its optimizer."""
    torch.manual_seed(1)
    model = net()
    knobs = {"lr": 1e-2, "granularity": "layer", "seed": 3, "weight_decay": 0.1} | knobs
    return model, FusedGradDropAdamW(model.named_parameters(), backend=backend, **knobs)


def train_net(
    model: Callable[[Tensor], Tensor],
    optimizer: FusedGradDropAdamW,
    skip: bool,
    steps: int = N_STEPS,
    micros: int | range = 1,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[int]:
    """Train, with or without the backward pass of what is dropped.

    Args:
        model: gives the loss of a batch.
        optimizer: the model's.
        skip: leave out what is dropped.
        steps: how many.
        micros: micro-batches of a step, how many or which.
        around: context of the forward pass.

    Returns:
        How many gradients there were, at each step.
    """
    counts = []
    for step in range(steps):
        optimizer.zero_grad()
        for micro in range(micros) if isinstance(micros, int) else micros:
            with optimizer.skip_dropped() if skip else nullcontext():
                with around():
                    loss = model(batch(step, micro))
                loss.backward()
        grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
        counts.append(sum(grad is not None for grad in grads))
        optimizer.step()
    return counts
