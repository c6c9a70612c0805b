"""Decisions that are made among units by number: on the device, before each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import abi
from ...kernels.gpu.streams import keep_for_current_stream
from ...mask import keep_units
from ..knobs import Knobs
from ..slot import Slot


@dataclass(frozen=True)
class _Batch:
    """The g groups that choose alike, each among n units of its own: of one call, however many.

    Attributes:
        select: how they choose.
        stream: of the orders.
        groups: int64 [g], rows of the group table.
        units: int64 [g, n].
        rows: int64 [r], of the tensor table.
        places: int64 [r], of those rows' units among all g n.
    """

    select: str
    stream: int
    groups: Tensor
    units: Tensor
    rows: Tensor
    places: Tensor


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
        alike: dict[tuple[str, int, int], list[int]] = {}
        for index, group in enumerate(knobs):
            if group.counts and group.units:
                key = group.select, group.order_stream, len(group.units)
                alike.setdefault(key, []).append(index)
        self._batches: list[_Batch] = []
        for (select, stream, _), groups in alike.items():
            place = {
                (index, unit): place
                for place, (index, unit) in enumerate(
                    (index, unit) for index in groups for unit in knobs[index].units
                )
            }
            found = {}
            for row, slot in enumerate(slots):
                by_layer = knobs[slot.group].granularity == "layer"
                unit = slot.group, slot.layer if by_layer else slot.stream_id
                if unit in place:
                    found[row] = place[unit]
            numbers = groups, [knobs[index].units for index in groups], list(found)
            self._batches.append(
                _Batch(
                    select,
                    stream,
                    *(
                        torch.tensor(values, dtype=torch.int64, device=device)
                        for values in (*numbers, list(found.values()))
                    ),
                )
            )

    def __bool__(self) -> bool:
        """Whether any group chooses by number."""
        return bool(self._batches)

    def decide(self, counters: Tensor, group_table: Tensor) -> Tensor:
        """The column for the step to come: int64 [n_slots].

        The realised drop probability is written into the group table, for ``rescale``; as many are
        dropped where it is read again.

        Args:
            counters: int64 [2], on the device.
            group_table: float64 [n_groups, N_GROUP_COLUMNS], on the device, written.
        """
        tables = (t for b in self._batches for t in (b.groups, b.units, b.rows, b.places))
        keep_for_current_stream(self._column.device, (self._column, *tables))
        for batch in self._batches:
            n_units = batch.units.shape[1]
            numbers = group_table[batch.groups]
            period = numbers[:, abi.PERIOD].long()
            by_step = counters[abi.STEPS_FINISHED] // period.clamp(min=1)
            draw = torch.where(period > 0, by_step, counters[abi.MASKS_BEGUN])
            seed = numbers[:, abi.SEED_HIGH].long() << 32 | numbers[:, abi.SEED_LOW].long()
            n_dropped = (numbers[:, abi.DROP_PROB] * n_units).round().long()
            keep = keep_units(
                batch.units,
                select=batch.select,
                stream=batch.stream,
                seed=seed[:, None],
                draw=draw[:, None] & 0xFFFFFFFF,
                n_dropped=n_dropped[:, None],
            )
            self._column[batch.rows] = keep.flatten()[batch.places].long()
            group_table[batch.groups, abi.DROP_PROB] = n_dropped.double() / n_units
        return self._column
