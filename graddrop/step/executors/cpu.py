"""The executor of the C++ kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import abi
from ...kernels.cpu import binding as cpu
from ..knobs import Knobs
from ..slot import Dtypes, Slot
from ..tables import tensor_tables
from .decisions import Decisions
from .grad_column import GradColumn


class CpuExecutor:
    """All slots of a dtype signature in one call of the C++ kernel."""

    def __init__(self, slots: Sequence[Slot], knobs: Sequence[Knobs]) -> None:
        members: dict[tuple[Dtypes, bool], list[int]] = {}
        for index, slot in enumerate(slots):
            signature = slot.dtypes, knobs[slot.group].rounds(slot.param.dtype)
            members.setdefault(signature, []).append(index)
        self._calls = [
            (
                *signature,
                torch.tensor(rows, device="cpu"),
                *tensor_tables([slots[row] for row in rows], knobs),
            )
            for signature, rows in members.items()
        ]
        self._grad_columns = [
            (rows, GradColumn([slots[row] for row in rows], call[3][:, abi.GRAD]))
            for rows, call in zip(members.values(), self._calls, strict=True)
        ]
        self._decisions = Decisions(slots, knobs, torch.device("cpu"))
        self._n_slots = len(slots)
        self._knobs: Sequence[Knobs] = ()
        self._group_table = self._counters = self._finished = torch.empty(0, device="cpu")
        self._loss_scale = 1.0
        self._skipped = self._counted = False

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        self._counted = False
        for rows, column in self._grad_columns:
            all_here = len(rows) == len(grads)
            column.move(grads if all_here else [grads[row] for row in rows])

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
            self._counters, self._finished = counters, counters[abi.STEPS_FINISHED]
        if self._decisions:
            decisions = self._decisions.decide(knobs, counters, self._group_table)
            for _, _, rows, tensor_table, _ in self._calls:
                tensor_table[:, abi.DECISION] = decisions[rows]
        self._loss_scale = 1.0 if grad_scale is None else grad_scale.item()
        self._skipped = found_inf is not None and found_inf.item() != 0

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        squares = torch.empty(self._n_slots, dtype=torch.float64, device="cpu")
        for dtypes, _, rows, tensor_table, layout_table in self._calls:
            squares[rows] = cpu.grad_squares(
                tensor_table,
                layout_table,
                self._group_table,
                self._counters,
                grad_dtype=dtypes[1],
                masked=masked,
            )
        return squares / self._loss_scale**2

    def step(self, clip_factor: Tensor | None) -> None:
        """See :class:`Executor`."""
        if self._skipped:
            return
        factor = 1.0 if clip_factor is None else clip_factor.item()
        for dtypes, rounds, _, tensor_table, layout_table in self._calls:
            cpu.step_(
                tensor_table,
                layout_table,
                self._group_table,
                self._counters,
                param_dtype=dtypes[0],
                grad_dtype=dtypes[1],
                moment_dtype=dtypes[2],
                stochastic_rounding=rounds,
                grad_factor=factor / self._loss_scale,
            )
        self._finished.add_(1)
        self._counted = True

    def abandon(self) -> None:
        """See :class:`Executor`."""
        if self._counted:
            self._finished.sub_(1)
            self._counted = False
