"""Decisions that are made among units by number: on the device, before each step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import abi
from ...kernels.gpu.streams import keep_for_current_stream
from ...mask import count_dropped, keep_units
from ..knobs import Knobs
from ..slot import Slot


class Decisions:
    """The column DECISION of tensor tables, for the groups that choose by number (``select``).

    Nothing waits for the device, so that a CUDA graph may hold it.

    Args:
        slots: one per row.
        knobs: one per group.
        device: where the step is made.
    """

    def __init__(self, slots: Sequence[Slot], knobs: Sequence[Knobs], device: torch.device) -> None:
        self._column = torch.full((len(slots),), abi.UNDECIDED, dtype=torch.int64, device=device)
        self._members: list[tuple[int, Tensor, Tensor, Tensor]] = []  # group, rows, places, units
        for index, group in enumerate(knobs):
            if not group.counts:
                continue
            place = {unit: place for place, unit in enumerate(group.units)}
            found = {}
            for row, slot in enumerate(slots):
                unit = slot.layer if group.granularity == "layer" else slot.stream_id
                if slot.group == index and unit is not None:
                    found[row] = place[unit]
            rows, places, units = (
                torch.tensor(list(numbers), dtype=torch.int64, device=device)
                for numbers in (found, found.values(), group.units)
            )
            self._members.append((index, rows, places, units))

    def __bool__(self) -> bool:
        """Whether any group chooses by number."""
        return bool(self._members)

    def decide(self, knobs: Sequence[Knobs], counters: Tensor, group_table: Tensor) -> Tensor:
        """The column for the step to come: int64 [n_slots].

        The realised drop probability is written into the group table, for ``rescale``.

        Args:
            knobs: one per group.
            counters: int64 [2], on the device.
            group_table: float64 [n_groups, N_GROUP_COLUMNS], on the device, written.
        """
        tables = (table for member in self._members for table in member[1:])
        keep_for_current_stream(self._column.device, (self._column, *tables))
        for index, rows, places, units in self._members:
            group, n_units = knobs[index], len(units)
            draw = counters[abi.MASKS_BEGUN]
            if group.period:
                draw = counters[abi.STEPS_FINISHED] // group.period
            n_dropped = count_dropped(n_units, group.drop_prob, units.device)
            keep = keep_units(
                units,
                select=group.select,
                stream=group.order_stream,
                seed=group.seed,
                draw=draw & 0xFFFFFFFF,
                n_dropped=n_dropped,
            )
            self._column[rows] = keep[places].long()
            group_table[index, abi.DROP_PROB] = n_dropped.double() / max(n_units, 1)
        return self._column
