"""The executor of the C++ kernel."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import abi
from ...kernels.cpu.binding import Tables
from ..knobs import Knobs
from ..slot import Dtypes, Slot
from ..tables import tensor_tables
from .decisions import Decisions
from .grad_column import GradColumn


class _Call:
    """The slots of one dtype signature, scaled by alignments all or none; ``rows`` among all."""

    def __init__(
        self,
        slots: Sequence[Slot],
        knobs: Sequence[Knobs],
        rows: list[int],
        dtypes: Dtypes,
        rounds: bool,
        by_alignment: bool,
    ) -> None:
        self.by_alignment = by_alignment
        tensor_table, layout_table = tensor_tables(slots, knobs)
        self.rows = rows
        self.tables = Tables(tensor_table, layout_table, dtypes, stochastic_rounding=rounds)
        self.grad_column = GradColumn(slots, tensor_table[:, abi.GRAD])
        self.decisions = tensor_table[:, abi.DECISION]


class CpuExecutor:
    """All slots of a dtype signature in one call of the C++ kernel."""

    def __init__(self, slots: Sequence[Slot], knobs: Sequence[Knobs]) -> None:
        members: dict[tuple[Dtypes, bool, bool], list[int]] = {}
        for index, slot in enumerate(slots):
            group = knobs[slot.group]
            signature = slot.dtypes, group.rounds(slot.param.dtype), slot.scales_by_alignment(group)
            members.setdefault(signature, []).append(index)
        self._calls = [
            _Call([slots[row] for row in rows], knobs, rows, *signature)
            for signature, rows in members.items()
        ]
        self._decisions = Decisions(slots, knobs, torch.device("cpu"))
        self._n_slots = len(slots)
        self._groups = [slot.group for slot in slots]
        self._squares: dict[int, Tensor] = {}  # by call: of this step, found with the dots
        self._knobs: Sequence[Knobs] = ()
        self._group_table = self._counters = torch.empty(0, device="cpu")
        self._finished = ctypes.c_int64()  # one of the counters
        self._loss_scale = 1.0
        self._skipped = self._counted = False

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        self._counted = False
        for call in self._calls:
            all_here = len(call.rows) == len(grads)
            call.grad_column.move(grads if all_here else [grads[row] for row in call.rows])

    def begin(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        if knobs is not self._knobs or any(map(Knobs.has_tensors, knobs)):
            numbers = [group.row() for group in knobs]
            for row, group in zip(numbers, knobs, strict=True):
                row[abi.LR], row[abi.DROP_PROB] = float(group.lr), float(group.drop_prob)
            self._group_table = torch.tensor(numbers, dtype=torch.float64, device="cpu")
            self._knobs = knobs
        if counters is not self._counters:
            self._counters = counters
            self._finished = ctypes.c_int64.from_address(counters[abi.STEPS_FINISHED].data_ptr())
        if self._decisions:
            decisions = self._decisions.decide(counters, self._group_table)
            for call in self._calls:
                call.decisions.copy_(decisions[call.rows])
        self._loss_scale = 1.0 if grad_scale is None else grad_scale.item()
        self._skipped = found_inf is not None and found_inf.item() != 0

    def moment_dots(self) -> Tensor:
        """See :class:`Executor`."""
        dots = torch.zeros((self._n_slots, 3), dtype=torch.float64, device="cpu")
        for index, call in enumerate(self._calls):
            if call.by_alignment:
                found = call.tables.moment_dots(self._group_table, self._counters)
                dots[call.rows], self._squares[index] = found, found[:, 0]
        dots[:, 1] *= self._group_table[self._groups, abi.GRAD_SIGN]
        return dots

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        squares = torch.empty(self._n_slots, dtype=torch.float64, device="cpu")
        for index, call in enumerate(self._calls):
            # Their site is the update, where masks drop nothing of the gradients.
            squares[call.rows] = (
                self._squares[index]
                if call.by_alignment
                else call.tables.grad_squares(self._group_table, self._counters, masked)
            )
        return squares / self._loss_scale**2

    def step(self, clip_factor: Tensor | None, step_scales: Tensor | None = None) -> None:
        """See :class:`Executor`."""
        if self._skipped:
            return
        factor = 1.0 if clip_factor is None else clip_factor.item()
        for call in self._calls:
            scales = None
            if call.by_alignment and step_scales is not None:
                scales = step_scales[call.rows].double()
            call.tables.step_(self._group_table, self._counters, factor / self._loss_scale, scales)
        self._finished.value += 1
        self._counted = True

    def abandon(self) -> None:
        """See :class:`Executor`."""
        if self._counted:
            self._finished.value -= 1
            self._counted = False
