"""Who makes the step: GradDrop in one pass, and what people write today."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import Parameter

from bench import bytes_model
from graddrop import FusedGradDropAdamW

LR = 1e-3
DROP_PROB = 0.5
SEED = 0


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stepper:
    """A peer at work on certain parameters.

    Attributes:
        step: makes one step of all of them.
        renew: undoes what a step did to the gradients; not part of the measured time.
    """

    step: Callable[[], object]
    renew: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Peer:
    """One way to make a step.

    Attributes:
        name: as the tables print it.
        make: sets up the step of parameters that have gradients.
        bytes_per_element: memory traffic of a step (:mod:`bench.bytes_model`); None: not modelled.
        rounds: how often a full run measures it; slow peers less often.
    """

    name: str
    make: Callable[[Sequence[Parameter]], Stepper]
    bytes_per_element: int | None
    rounds: int = 15


def one_pass(params: Sequence[Parameter], drop_prob: float = DROP_PROB) -> FusedGradDropAdamW:
    """Our optimizer; like every peer, with torch's defaults but for the mask."""
    return FusedGradDropAdamW(params, lr=LR, drop_prob=drop_prob, seed=SEED)


def _graddrop(params: Sequence[Parameter]) -> Stepper:
    return Stepper(one_pass(params).step)


def _exempt(params: Sequence[Parameter]) -> Stepper:
    return Stepper(one_pass(params, drop_prob=0.0).step)


def _torch_fused(params: Sequence[Parameter]) -> Stepper:
    return Stepper(torch.optim.AdamW(params, lr=LR, fused=True).step)


def _torch_foreach(params: Sequence[Parameter]) -> Stepper:
    return Stepper(torch.optim.AdamW(params, lr=LR, foreach=True).step)


def _eager(params: Sequence[Parameter], draw: Callable[[torch.Tensor], torch.Tensor]) -> Stepper:
    """GradDrop as it is written by hand: mask the gradients, then torch's fused AdamW."""
    fused = _torch_fused(params)
    grads = [param.grad for param in params if param.grad is not None]
    fresh = [grad.clone() for grad in grads]

    def step() -> None:
        for grad in grads:
            grad.mul_(draw(grad))
        fused.step()

    def renew() -> None:
        torch._foreach_copy_(grads, fresh)

    return Stepper(step, renew)


def _eager_rand(params: Sequence[Parameter]) -> Stepper:
    return _eager(params, lambda grad: torch.rand_like(grad) >= DROP_PROB)


def _eager_bernoulli(params: Sequence[Parameter]) -> Stepper:
    return _eager(params, lambda grad: torch.empty_like(grad).bernoulli_(1 - DROP_PROB))


PEERS = {
    # What everything is compared with, itself too: torch's fastest AdamW, which masks nothing.
    "fused": Peer("torch AdamW fused, no mask", _torch_fused, bytes_model.ADAMW),
    "graddrop": Peer("GradDrop, one pass", _graddrop, bytes_model.ADAMW),
    "graddrop-exempt": Peer("GradDrop, drop_prob=0", _exempt, bytes_model.ADAMW),
    "foreach": Peer("torch AdamW foreach, no mask", _torch_foreach, None, rounds=3),
    "eager-rand": Peer(
        "eager GradDrop: rand_like, mul_, fused", _eager_rand, bytes_model.EAGER_RAND, rounds=3
    ),
    "eager-bernoulli": Peer(
        "eager GradDrop: bernoulli_, mul_, fused",
        _eager_bernoulli,
        bytes_model.EAGER_BERNOULLI,
        rounds=3,
    ),
}
