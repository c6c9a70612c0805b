"""Masks to load: the entries of the highest scores at a density, and the scores.

A score is a number per entry, under the name of its parameter: names of
``model.named_parameters()`` fit ``FusedGradDropAdamW.load_masks``. Parameters that are left out
have their masks drawn. ::

    chosen = {n: p for n, p in model.named_parameters() if "layer" in n}
    scores = fisher_scores(chosen, (model(**batch).loss for batch in batches))
    optimizer.load_masks(top_masks(scores, density=0.3))

Memory beside the model: the scores, four bytes per entry, and one gradient at a time (all of them
where a loss comes in parts).
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .step.sharding import is_dtensor

Loss = Tensor | Iterable[Tensor]
_INT32_MAX = 2**31 - 1


def fisher_scores(params: Mapping[str, Tensor], losses: Iterable[Loss]) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean of squared gradients.

    Sung et al. 2021, arXiv 2111.09839, equation 4, where each loss is that of one example; of
    batches, Xu et al. 2021, arXiv 2109.05687.

    Args:
        params: by name; those that get no gradient score 0. Their ``grad`` stays as it is.
        losses: scalars, each of a forward pass of its own, best made by a generator: the pass of
            the next one begins when the last one's gradients are gone. A loss whose pass would not
            fit into memory may come in parts, an iterable of scalars that add up to it.

    Returns:
        float32 per parameter, of its shape and on its device, >= 0.

    Raises:
        ValueError: no loss, one that is no scalar or needs no gradient, a parameter that needs
            none, or a DTensor.
        TypeError: ``params`` that is no mapping to tensors, or a loss that is no tensor.
    """
    return _accumulated(params, losses, squared=True)


def gradient_scores(params: Mapping[str, Tensor], losses: Iterable[Loss]) -> dict[str, Tensor]:
    """Magnitudes of the mean gradient over some batches (Song et al. 2023, arXiv 2312.11875).

    Arguments, result and errors are those of :func:`fisher_scores`.
    """
    return {name: mean.abs_() for name, mean in _accumulated(params, losses, squared=False).items()}


@torch.no_grad()
def magnitude_scores(
    params: Mapping[str, Tensor], start: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Magnitudes of parameters, or how far they have moved.

    Args:
        params: by name.
        start: where each of them was, as a training of everything began: the scores of lottery
            tickets (Ansell et al. 2022, arXiv 2110.07560). None: at 0.

    Returns:
        float32 per parameter, of its shape and on its device, >= 0.

    Raises:
        ValueError: a DTensor; a parameter without its start, or one of another shape.
        TypeError: ``params`` that is no mapping to tensors.
    """
    _check_plain(params)
    scores = {}
    for name, param in params.items():
        score = param.detach().to(torch.float32, copy=True)
        if start is not None:
            if name not in start or start[name].shape != param.shape:
                raise ValueError(
                    f"expected a start of shape {tuple(param.shape)} for {name!r}, got "
                    f"{tuple(start[name].shape) if name in start else None}"
                )
            score -= start[name].to(param.device, torch.float32)
        scores[name] = score.abs_()
    return scores


def random_scores(params: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Scores at random, the same on every device.

    Args:
        params: by name, in an order that matters.
        seed: of torch's generator.

    Returns:
        float32 per parameter, of its shape and on its device, in [0, 1).

    Raises:
        ValueError: a DTensor.
        TypeError: ``params`` that is no mapping to tensors.
    """
    _check_plain(params)
    generator = torch.Generator("cpu").manual_seed(seed)
    return {
        name: torch.rand(tuple(param.shape), generator=generator, device="cpu").to(param.device)
        for name, param in params.items()
    }


@torch.no_grad()
def top_masks(
    scores: Mapping[str, Tensor], density: float, *, per_tensor: bool = False
) -> dict[str, Tensor]:
    """Masks that keep ``round(density n)`` of n entries, those of the highest scores.

    Of equal scores at the edge the first ones are kept, in the order of parameters and entries. The
    lowest score that is kept is found by halving, so that no more than one tensor is copied.

    Args:
        scores: float32 tensors by name, on any devices.
        density: what is kept, in [0, 1].
        per_tensor: of each tensor by itself, instead of all entries together.

    Returns:
        bool per parameter, of its shape and on its device, True where kept.

    Raises:
        ValueError: a density outside [0, 1], NaN among the scores, or a DTensor.
        TypeError: scores of another dtype or in no mapping, or a density that is no number.
    """
    if not isinstance(density, Real) or isinstance(density, bool):
        raise TypeError(f"Invalid density: {density!r}: expected a number, got {type(density)}")
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"Invalid density: {density}: expected a fraction in [0, 1]")
    _check_plain(scores)
    for name, score in scores.items():
        if score.dtype != torch.float32:
            raise TypeError(f"expected float32 scores for {name!r}, got {score.dtype}")
        if score.isnan().any():
            raise ValueError(f"expected scores for {name!r} that can be compared, got NaN")
    sets = [{name: score} for name, score in scores.items()] if per_tensor else [dict(scores)]
    masks = {}
    for together in sets:
        n_kept = round(density * sum(score.numel() for score in together.values()))
        lowest = _lowest_kept(list(together.values()), n_kept)
        n_equal = n_kept - _n_above(list(together.values()), lowest)
        for name, score in together.items():
            keep = _ordered(score) > lowest
            equal = (_ordered(score) == lowest).flatten().nonzero()[: max(n_equal, 0)]
            n_equal -= len(equal)
            keep.view(-1)[equal] = True
            masks[name] = keep
    return masks


def broadcast_masks(masks: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """The masks of the first process, in every process.

    Processes that make masks of batches of their own, or whose sums are rounded otherwise, would
    train different entries: load what this returns. All of them call it together, with masks of the
    same names and shapes. In a single process it returns its own.

    Args:
        masks: by name: bool, on the devices that the group's backend takes.
        group: process group; None: all processes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return dict(masks)
    found = {}
    for name, mask in masks.items():
        sent = mask.to(torch.uint8)
        torch.distributed.broadcast(sent, group=group, group_src=0)
        found[name] = sent.bool()
    return found


def _ordered(score: Tensor) -> Tensor:
    """int32 numbers in the order of float32 ones, contiguous; zeros of both signs are equal."""
    bits = (score + 0.0).contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ _INT32_MAX, bits)


def _n_above(scores: list[Tensor], bound: int) -> int:
    return sum(int((_ordered(score) > bound).count_nonzero()) for score in scores)


def _lowest_kept(scores: list[Tensor], n_kept: int) -> int:
    """The least number, as of `_ordered`, with at most ``n_kept`` scores above it."""
    low, high = -_INT32_MAX - 1, _INT32_MAX
    while low < high:
        middle = (low + high) // 2
        if _n_above(scores, middle) <= n_kept:
            high = middle
        else:
            low = middle + 1
    return low


def _accumulated(
    params: Mapping[str, Tensor], losses: Iterable[Loss], *, squared: bool
) -> dict[str, Tensor]:
    """Means over the losses of gradients, or of their squares."""
    _check_plain(params)
    if isinstance(losses, Tensor):
        raise TypeError(
            f"expected an iterable of losses, got one tensor of shape {tuple(losses.shape)}: pass "
            "a list or a generator, each loss of a forward pass of its own"
        )
    for name, param in params.items():
        if not (param.requires_grad and param.is_leaf):
            raise ValueError(f"expected parameters that get gradients, got {name!r} without")
    sums = {
        name: torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
        for name, param in params.items()
    }
    before = [param.grad for param in params.values()]
    in_parts = False

    def take(param: Tensor, total: Tensor) -> None:
        if not in_parts:
            _take(param, into=total, squared=squared)

    hooks = [
        param.register_post_accumulate_grad_hook(partial(take, total=sums[name]))
        for name, param in params.items()
    ]
    n_losses = 0
    try:
        for param in params.values():
            param.grad = None
        inputs = list(params.values())
        for loss in losses:
            in_parts = not isinstance(loss, Tensor)
            for part in _parts(loss):
                part.backward(inputs=inputs)
            in_parts = False
            for name, param in params.items():
                if param.grad is not None:
                    take(param, sums[name])
            n_losses += 1
    finally:
        for hook in hooks:
            hook.remove()
        for param, grad in zip(params.values(), before, strict=True):
            param.grad = grad
    if not n_losses:
        raise ValueError("expected at least one loss to take gradients of, got none")
    return {name: total.div_(n_losses) for name, total in sums.items()}


def _parts(loss: Any) -> Iterator[Tensor]:
    """The scalars of a loss, each checked when its turn comes."""
    parts = loss if isinstance(loss, Iterable) and not isinstance(loss, Tensor) else (loss,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"expected a loss as a scalar tensor, or an iterable of them, got {type(part)} in "
                f"{type(loss)}: of a model's output pass its .loss"
            )
        if part.numel() != 1 or not part.requires_grad:
            raise ValueError(
                f"expected a loss as a scalar that backward() can start from, got shape "
                f"{tuple(part.shape)} with requires_grad={part.requires_grad}"
            )
        yield part


@torch.no_grad()
def _take(param: Tensor, *, into: Tensor, squared: bool) -> None:
    """Add a gradient, or its square, as soon as it is there, and let its memory go."""
    assert param.grad is not None
    grad = param.grad.float()
    if squared:
        into.addcmul_(grad, grad)
    else:
        into.add_(grad)
    param.grad = None


def _check_plain(tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"expected a mapping from names to tensors, got {type(tensors)}: of parameters pass "
            "dict(model.named_parameters())"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"expected a tensor for {name!r}, got {type(tensor)}")
        if is_dtensor(tensor):
            raise ValueError(
                f"expected whole tensors, got a DTensor for {name!r}: make masks before the model "
                "is sharded; load_masks gives each process its part of them"
            )
