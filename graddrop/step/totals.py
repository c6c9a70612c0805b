"""Sums over the shards of all processes of what each found in its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .sharding import are_plain, is_dtensor


class Total:
    """Sum of one number per parameter, over the shards of all processes.

    What lies on one mesh is added up first, then reduced once along each dimension of the mesh that
    shards any of it. What is replicated along such a dimension counts in its first process alone.

    Args:
        params: the parameters, each a tensor or a DTensor that is sharded or replicated.
        device: where the numbers will be.
    """

    def __init__(self, params: Sequence[Tensor], device: torch.device) -> None:
        members: dict[Any, list[int]] = {}  # by mesh, None: whole on each process
        for index, param in enumerate(params):
            plain = are_plain([param]) or not is_dtensor(param)
            mesh = None if plain else param.device_mesh  # type: ignore[attr-defined]
            members.setdefault(mesh, []).append(index)
        self._parts: list[tuple[Tensor | None, list[Any]]] = []
        for mesh, found in members.items():
            counted, groups = _counted(mesh, params, found)
            # All of them, the usual case, need no gathering.
            rows = None if counted == list(range(len(params))) else counted
            index_of = (
                None if rows is None else torch.tensor(rows, device=device, dtype=torch.int64)
            )
            self._parts.append((index_of, groups))

    def __call__(self, numbers: Tensor) -> Tensor:
        """The sum.

        Args:
            numbers: float [n_params], of the local data of each.

        Returns:
            0-dim, the same on all processes.
        """
        total = numbers.new_zeros(())
        for rows, groups in self._parts:
            part = (numbers if rows is None else numbers[rows]).sum()
            for group in groups:
                torch.distributed.all_reduce(part, group=group)
            total = total + part
        return total

    def each(self, numbers: Tensor) -> Tensor:
        """The sum of each parameter's numbers over its shards.

        Args:
            numbers: float [n_params, ...], of the local data of each.

        Returns:
            Likewise, the same on all processes.
        """
        totals = torch.zeros_like(numbers)
        for rows, groups in self._parts:
            part = numbers.clone()
            if rows is not None:  # the others lie on another mesh, or are counted elsewhere
                part.zero_().index_copy_(0, rows, numbers[rows])
            for group in groups:
                torch.distributed.all_reduce(part, group=group)
            totals += part
        return totals


def _counted(mesh: Any, params: Sequence[Any], members: list[int]) -> tuple[list[int], list[Any]]:
    """Which members of a mesh count in this process, and the groups that add them up."""
    coordinate = None if mesh is None else mesh.get_coordinate()
    if coordinate is None:
        return members, []
    replicated = [[place.is_replicate() for place in params[i].placements] for i in members]
    axes = [axis for axis in range(mesh.ndim) if not all(row[axis] for row in replicated)]
    counted = [
        index
        for index, row in zip(members, replicated, strict=True)
        if not any(row[axis] and coordinate[axis] for axis in axes)
    ]
    return counted, [mesh.get_group(axis) for axis in axes]
