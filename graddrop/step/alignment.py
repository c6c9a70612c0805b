"""Alignments of a step: how well the gradients of whole tensors agree with their first moments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import INITIAL_ALIGNMENT, next_alignment
from .executors.base import Executor
from .knobs import Knobs
from .slot import Slot
from .totals import Total


def initial_alignment(param: Tensor) -> Tensor:
    """The alignment of a parameter that has made no step with one: float32, 0-dim."""
    return torch.full((), INITIAL_ALIGNMENT, dtype=torch.float32, device=param.device)


class Alignments:
    """Those of one executor's tensors whose steps they scale (``rescale="alignment"``).

    Nothing waits for the device, so that a CUDA graph may hold it.

    Args:
        params: the parameters, each a tensor or a DTensor.
        slots: theirs.
        knobs: one per group.
        device: where the step is made.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        slots: Sequence[Slot],
        knobs: Sequence[Knobs],
        device: torch.device,
    ) -> None:
        self._rows: list[int] = []  # among the slots
        self._runs: list[slice] = []  # of them, which an index on the device would have to be told
        self._held: list[Tensor] = []
        for row, slot in enumerate(slots):
            if not slot.scales_by_alignment(knobs[slot.group]):
                continue
            assert slot.alignment is not None
            self._held.append(slot.alignment.reshape(()))
            goes_on = bool(self._rows) and self._rows[-1] == row - 1
            first = self._runs.pop().start if goes_on else row
            self._runs.append(slice(first, row + 1))
            self._rows.append(row)
        self._n_slots = len(slots)
        self._total = Total([params[row] for row in self._rows], device)
        self._next: list[Tensor] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._rows)

    def find(self, executor: Executor, found_inf: Tensor | None) -> Tensor:
        """Look at gradients and moments of the step to come, and at those of all shards.

        Args:
            executor: has begun the step.
            found_inf: float32, one element, on any device: unless 0, all stay as they are.

        Returns:
            float32 [n_slots]: what multiplies the slots' steps.
        """
        before = torch.stack(self._held)
        dots = executor.moment_dots()
        dots = self._total.each(torch.cat([dots[run] for run in self._runs]))
        after = next_alignment(before, dots)
        if found_inf is not None:
            after = torch.where(found_inf.reshape(()).to(after.device) == 0, after, before)
        self._next = list(after.unbind())
        scales = after.new_ones(self._n_slots)
        parts = after.split([run.stop - run.start for run in self._runs])
        for run, part in zip(self._runs, parts, strict=True):
            scales[run] = part
        return scales

    def keep(self, grads: Sequence[Tensor | None]) -> None:
        """Keep what was found, when the step has been made.

        Args:
            grads: of all slots; without one an alignment stays as it is.
        """
        moving = [i for i, row in enumerate(self._rows) if grads[row] is not None]
        if moving:
            torch._foreach_copy_([self._held[i] for i in moving], [self._next[i] for i in moving])
