"""The executor in plain torch, which judges the others."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import abi
from ...reference import adamw_step_, masked_squares, moment_dots
from ..checks import check_grads
from ..knobs import Knobs
from ..slot import Slot


class ReferenceExecutor:
    """Slot by slot in plain torch; the definition, on any device and dtype."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._grads: Sequence[Tensor | None] = []
        gone = torch.empty(0, device="cpu")
        self._slots = [replace(slot, grad=gone) for slot in slots]
        self._knobs: Sequence[Knobs] = []
        self._counters: Tensor | None = None
        self._loss_scale = 1.0
        self._skipped = self._counted = False

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        check_grads(grads)
        self._grads = grads
        self._counted = False

    def begin(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        self._knobs, self._counters = knobs, counters
        self._loss_scale = 1.0 if grad_scale is None else grad_scale.item()
        self._skipped = found_inf is not None and found_inf.item() != 0

    def moment_dots(self) -> Tensor:
        """See :class:`Executor`."""
        dots = []
        for slot, grad in zip(self._slots, self._grads, strict=True):
            group = self._knobs[slot.group]
            if grad is None or not slot.scales_by_alignment(group):
                dots.append(slot.param.new_zeros(3, dtype=torch.float64))
            else:
                sign = -1.0 if group.maximize else 1.0
                dots.append(moment_dots(grad, slot.exp_avg, grad_factor=sign))
        return torch.stack(dots)

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        squares = []
        for slot, grad in zip(self._slots, self._grads, strict=True):
            if grad is None:
                squares.append(slot.param.new_zeros((), dtype=torch.float64))
                continue
            group = self._knobs[slot.group]
            keep = slot.keep(group, self._draw(group)) if masked else None
            scale = slot.mask_scale(group)
            total = masked_squares(grad, keep, site=group.site, mask_scale=scale)
            squares.append(total / self._loss_scale**2)
        return torch.stack(squares)

    def step(self, clip_factor: Tensor | None, step_scales: Tensor | None = None) -> None:
        """See :class:`Executor`."""
        grads, self._grads = self._grads, []
        if self._skipped:
            return
        assert self._counters is not None
        factor = 1.0 if clip_factor is None else clip_factor.item()
        for row, (slot, grad) in enumerate(zip(self._slots, grads, strict=True)):
            if grad is None:
                continue
            group = self._knobs[slot.group]
            draw = self._draw(group)
            scale = slot.mask_scale(group)
            if step_scales is not None and slot.scales_by_alignment(group):
                scale = step_scales[row].item()
            if group.site == "freeze" and not slot.keeps_any(group, draw):
                continue
            adamw_step_(
                slot.param,
                grad,
                slot.exp_avg,
                slot.exp_avg_sq,
                slot.keep(group, draw),
                step=int(slot.step.item()) + 1,
                lr=float(group.lr),
                beta1=group.beta1,
                beta2=group.beta2,
                eps=group.eps,
                weight_decay=group.weight_decay,
                site=group.site,
                mask_decay=group.mask_decay,
                mask_scale=scale,
                grad_factor=(-factor if group.maximize else factor) / self._loss_scale,
                rounding_bits=slot.rounding_bits(group, int(self._counters[abi.STEPS_FINISHED])),
            )
            slot.step.add_(1)
        self._counters[abi.STEPS_FINISHED].add_(1)
        self._counted = True

    def abandon(self) -> None:
        """See :class:`Executor`."""
        if self._counted and self._counters is not None:
            self._counters[abi.STEPS_FINISHED].sub_(1)
            self._counted = False

    def _draw(self, group: Knobs) -> int:
        assert self._counters is not None
        steps_finished, masks_begun = self._counters.tolist()
        return group.draw(steps_finished, masks_begun)
