"""Whether param groups still hold the whole parameters that they were made of."""

from collections.abc import Sequence
from math import prod

from ..step.sharding import INSTEAD_OF_PARTITIONS, check_whole
from .groups import Group

_Shapes = list[tuple[int, ...]]


class WholeShapes:
    """Shapes of the parameters of each group at the time when it was added, those of the whole.

    Engines that partition an optimizer's state (DeepSpeed ZeRO 1 and 2) put flat pieces, which bear
    no mark, in the place of the parameters. Others (accelerate with FSDP2) put DTensors there,
    whose shape is still that of the whole.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Group, _Shapes]] = []

    def add(self, group: Group) -> None:
        """Remember the parameters of another group."""
        self._known.append((group, _shapes(group)))

    def check(self, groups: Sequence[Group]) -> None:
        """Check that no parameter is gone, or a piece of what it was.

        Groups that were not added, as those of an unpickled optimizer, are taken as they are.

        Raises:
            ValueError: one is, or names itself a partition.
        """
        by_group = {id(group): shapes for group, shapes in self._known}
        if not by_group.keys() >= set(map(id, groups)):  # loading a state puts new ones in order
            known = [shapes for _, shapes in self._known]
            added = [_shapes(group) for group in groups[len(known) :]]
            by_group = dict(zip(map(id, groups), known + added, strict=False))
            self._known = [(group, by_group[id(group)]) for group in groups]
        for index, group in enumerate(groups):
            for param in group["params"]:
                check_whole(param)
            shapes, found = by_group[id(group)], _shapes(group)
            wrong: list[tuple[object, object]] = [
                (whole, piece)
                for whole, piece in zip(shapes, found, strict=False)
                if len(piece) != len(whole) or prod(piece) < prod(whole)
            ]
            if len(shapes) != len(found):
                wrong = [(f"{len(shapes)} parameters", len(found))]
            if wrong:
                expected, got = wrong[0]
                raise ValueError(
                    f"expected {expected} in param group {index}, as when it was added, got {got}: "
                    "add_param_group adds parameters; engines that put their partitions in place "
                    f"of parameters (DeepSpeed ZeRO) are not served: {INSTEAD_OF_PARTITIONS}"
                )


def _shapes(group: Group) -> _Shapes:
    return [tuple(param.shape) for param in group["params"]]
