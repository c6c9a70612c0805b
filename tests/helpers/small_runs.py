"""Small training runs whose gradients are a function of the step: the same in every process."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from graddrop import FusedGradDropAdamW

# A matrix whose rows are no multiple of four, one whose are, a vector beyond one tile, a scalar,
# nothing.
SHAPES = ((5, 7), (6, 4), (1027,), (), (0, 3))
SMALL = ((5, 7), (70,))  # for the interpreter, whose time goes by the element
NAMES = tuple(f"encoder.layer.{i // 2}.weight{i}" for i in range(len(SHAPES)))


def make_params(
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[torch.nn.Parameter]:
    """Parameters with values of their own."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(tuple(shape), generator=generator).to(device, dtype))
        for shape in shapes
    ]


def make_optimizer(
    backend: str = "reference",
    device: torch.device | str = "cpu",
    shapes: Sequence[Sequence[int]] = SHAPES,
    dtype: torch.dtype = torch.float32,
    **knobs: Any,
) -> FusedGradDropAdamW:
    """An optimizer of small parameters."""
    knobs = {"lr": 1e-2, "drop_prob": 0.5, "seed": 3} | knobs
    return FusedGradDropAdamW(make_params(shapes, dtype, device), backend=backend, **knobs)


def make_grad(param: Tensor, index: int, step: int) -> Tensor:
    """The gradient of parameter number ``index`` at a step; contiguous."""
    generator = torch.Generator().manual_seed(1000 * step + index)
    grad = torch.randn(tuple(param.shape), generator=generator)
    return grad.to(param.device, param.dtype)


def set_grads(params: Iterable[Tensor], step: int) -> None:
    """New gradients for all parameters."""
    for index, param in enumerate(params):
        param.grad = make_grad(param, index, step)


def train(optimizer: Optimizer, steps: int | range, params: Sequence[Tensor] | None = None) -> None:
    """Make steps, each with its gradients.

    Args:
        optimizer: whose parameters are trained.
        steps: which ones; a number stands for the first so many.
        params: in the order of their gradients; None: all, in the optimizer's order.
    """
    if params is None:
        params = params_of(optimizer)
    for step in range(steps) if isinstance(steps, int) else steps:
        set_grads(params, step)
        optimizer.step()


def frozen_steps(
    optimizer: FusedGradDropAdamW, steps: Iterable[int]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Steps under site="freeze": after each one, which entries should have moved and which did."""
    for step in steps:
        set_grads(params_of(optimizer), step)
        keeps = [optimizer.keep_mask(param) for param in params_of(optimizer)]
        before = [param.detach().clone() for param in params_of(optimizer)]
        optimizer.step()
        moved = [p.detach() != old for p, old in zip(params_of(optimizer), before, strict=True)]
        yield keeps, moved


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters in the optimizer's order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def snapshot(optimizer: Optimizer, params: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Copies of all parameters, and of their state in the order of its keys' names."""
    tensors = []
    for param in params_of(optimizer) if params is None else params:
        state = optimizer.state.get(param, {})
        tensors += [param, *(state[key] for key in sorted(state))]
    return [tensor.detach().clone() for tensor in tensors]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Equal to the last bit, dtypes included; NaN equals NaN."""
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, i=index: f"{i}: {m}"
        )


def differs(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether any entry of any tensor is another one."""
    return any(not torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def copy_params(source: Optimizer, target: Optimizer) -> None:
    """The parameters' values, beside the optimizer's state."""
    with torch.no_grad():
        for a, b in zip(params_of(source), params_of(target), strict=True):
            b.copy_(a)


def through_a_file(state_dict: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a checkpoint in a file gives back, by torch's safe loader."""
    torch.save(state_dict, folder / "optimizer.pt")
    return torch.load(folder / "optimizer.pt", weights_only=True)
