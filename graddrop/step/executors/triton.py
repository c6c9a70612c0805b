"""The executor of the Triton kernels."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...kernels import abi
from ..checks import is_capturing
from ..knobs import Knobs
from ..slot import Slot
from ..tables import tensor_tables
from .decisions import Decisions
from .grad_column import GradColumn


@cache
def triton_launcher() -> Any | None:
    """The Triton launcher, None where Triton is not installed."""
    if find_spec("triton") is None:
        return None
    from ...kernels.gpu import launch

    return launch


class TritonExecutor:
    """All slots of a dtype signature in one launch; nothing waits for the device."""

    def __init__(self, slots: Sequence[Slot], knobs: Sequence[Knobs], device: torch.device) -> None:
        launcher = triton_launcher()
        assert launcher is not None
        tensor_table, layout_table = tensor_tables(slots, knobs)
        self._base_addresses = tensor_table[:, abi.GRAD].clone()
        self._grad_column = GradColumn(slots, self._base_addresses)
        self._decisions = Decisions(slots, knobs, device)
        self._launcher = launcher.TritonStep(
            tensor_table,
            layout_table,
            [
                (*slot.dtypes, group.rounds(slot.param.dtype), slot.scales_by_alignment(group))
                for slot, group in ((slot, knobs[slot.group]) for slot in slots)
            ],
            len(knobs),
            device,
        )
        self._device = device
        self._knobs: Sequence[Knobs] = ()
        # The replays of a graph use them as long as it lives.
        self._counters: Tensor | None = None
        self._grad_scale: Tensor | None = None
        self._found_inf: Tensor | None = None
        self._steps = [slot.step for slot in slots]
        self._counted = False

    @property
    def n_launches(self) -> int:
        """Kernel launches per step, without clipping."""
        return self._launcher.n_launches

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        self._counted = False
        if self._grad_column.move(grads):
            self._launcher.set_grads(self._base_addresses)

    def begin(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        if knobs is not self._knobs:
            self._launcher.set_groups([group.row() for group in knobs])
            self._knobs = knobs
        for index, group in enumerate(knobs):
            for column, value in ((abi.LR, group.lr), (abi.DROP_PROB, group.drop_prob)):
                if isinstance(value, Tensor):
                    self._launcher.group_table[index, column].copy_(value.reshape(()))
        if self._decisions:
            decisions = self._decisions.decide(counters, self._launcher.group_table)
            self._launcher.set_decisions(decisions)
        self._counters = counters
        self._grad_scale, self._found_inf = self._here(grad_scale), self._here(found_inf)
        self._launcher.prepare(counters, self._grad_scale, self._found_inf)
        self._counted = True

    def moment_dots(self) -> Tensor:
        """See :class:`Executor`."""
        return self._launcher.moment_dots()

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        return self._launcher.grad_squares(masked, self._grad_scale)

    def step(self, clip_factor: Tensor | None, step_scales: Tensor | None = None) -> None:
        """See :class:`Executor`."""
        self._launcher.step(self._here(clip_factor), step_scales)

    def _here(self, scalar: Tensor | None) -> Tensor | None:
        """A scalar of another device on this one; the host waits for neither."""
        return None if scalar is None else scalar.to(self._device, non_blocking=True)

    def abandon(self) -> None:
        """See :class:`Executor`."""
        if not self._counted or is_capturing():
            return
        self._counted = False
        assert self._counters is not None
        made = 1 if self._found_inf is None else int(self._found_inf.item() == 0)
        self._counters[abi.STEPS_FINISHED].sub_(made)
        for step, waits in zip(self._steps, self._launcher.waiting(), strict=True):
            if waits:
                step.sub_(1)
