"""Steps of the Triton kernels alone, and masks that can be read off what they did."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graddrop.step.backends import make_executor
from graddrop.step.knobs import Knobs
from graddrop.step.slot import Slot
from graddrop.testing import make_knobs


def step(slots: Sequence[Slot], knobs: Sequence[Knobs], steps_finished: int = 0) -> None:
    """One step of tensors on the CPU.

    Args:
        slots: the tensors.
        knobs: one per group.
        steps_finished: before this one.
    """
    counters = torch.tensor([steps_finished, 0], device="cpu")
    executor = make_executor("triton", slots, knobs, torch.device("cpu"))
    executor.begin(knobs, counters, None, None)
    executor.step(None)


def halving(**changes: object) -> Knobs:
    """Knobs with which a step halves each kept entry of a `still` slot and leaves the others."""
    return make_knobs(site="freeze", lr=1.0, weight_decay=0.5, **changes)


def still(slot: Slot, **changes: object) -> Slot:
    """A slot, with changes, that only weight decay moves."""
    slot = replace(slot, **changes)
    slot.grad.zero_()
    slot.exp_avg.zero_()
    return slot


def kept(slots: Sequence[Slot], knobs: Sequence[Knobs], steps_finished: int = 0) -> list[Tensor]:
    """Step slots that are still; which entries moved."""
    before = [slot.param.detach().clone() for slot in slots]
    step(slots, knobs, steps_finished)
    return [slot.param.detach() != old for slot, old in zip(slots, before, strict=True)]


def unaligned(tensor: Tensor) -> Tensor:
    """The same values, one entry behind a boundary of 16 bytes."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return room[1:].view(tensor.shape).copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """The same values, dimension 0 innermost."""
    return tensor.t().contiguous().t()


def every_second(tensor: Tensor) -> Tensor:
    """The same values, with gaps."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]
