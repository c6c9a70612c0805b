"""Steps of kernels alone: judged, and masks that can be read off what they did."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graddrop.step.backends import make_executor
from graddrop.step.knobs import Knobs
from graddrop.step.slot import Slot
from graddrop.testing import Tolerance, exact_step, excess_error, make_knobs, values_of

Layout = Callable[[Tensor], Tensor]
Step = Callable[[Sequence[Slot], Sequence[Knobs], tuple[int, int]], list[int]]


def step(slots: Sequence[Slot], knobs: Sequence[Knobs], steps_finished: int = 0) -> None:
    """One step of tensors on the CPU, of the Triton kernels.

    Args:
        slots: the tensors.
        knobs: one per group.
        steps_finished: before this one.
    """
    counters = torch.tensor([steps_finished, 0], device="cpu")
    executor = make_executor("triton", slots, knobs, torch.device("cpu"))
    executor.begin(knobs, counters, None, None)
    executor.step(None)


def judge_step(
    make_step: Step,
    tolerance: Tolerance,
    slots: Sequence[Slot],
    knobs: Sequence[Knobs],
    counters: tuple[int, int] = (0, 0),
) -> None:
    """Make a step of slots and hold each against the reference's, their step counters too.

    Args:
        make_step: makes it, and returns the counters afterwards.
        tolerance: of values.
        slots: the tensors.
        knobs: one per group.
        counters: optimizer steps finished, masks begun by hand.
    """
    befores = [values_of(slot) for slot in slots]
    steps_finished, masks_begun = counters
    exact = [
        exact_step(slot, knobs[slot.group], steps_finished=steps_finished, masks_begun=masks_begun)
        for slot in slots
    ]
    steps = [slot.step.item() for slot in slots]
    assert make_step(slots, knobs, counters) == [steps_finished + 1, masks_begun]
    worst = [
        excess_error(before, slot, ideal, knobs[slot.group], tolerance)
        for before, slot, ideal in zip(befores, slots, exact, strict=True)
    ]
    assert max(worst) <= 1, worst
    for slot, n_before in zip(slots, steps, strict=True):
        group = knobs[slot.group]
        kept = slot.keeps_any(group, group.draw(*counters))
        assert slot.step.item() == n_before + (kept or group.site != "freeze")


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


def channels_last(tensor: Tensor) -> Tensor:
    """The same values, dimension 1 innermost."""
    return tensor.contiguous(memory_format=torch.channels_last)


def relaid(slot: Slot, of_param: Layout, of_grad: Layout, of_moments: Layout) -> Slot:
    """The same tensors with other layouts, each in memory of its own."""
    return replace(
        slot,
        param=of_param(slot.param),
        grad=of_grad(slot.grad),
        exp_avg=of_moments(slot.exp_avg),
        exp_avg_sq=of_moments(slot.exp_avg_sq),
        step=slot.step.clone(),
    )
