"""The knobs of the step to come, group by group: schedules followed, values checked."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_, itemgetter
from typing import Any

from torch import Tensor

from ..schedules import Schedule
from ..step.checks import check_knobs
from ..step.knobs import Knobs, with_units
from .groups import CONSTANTS, KNOBS, Group, check_numbers, knobs_of, make_plain, values_of
from .plain import plain
from .users_line import users_line

_VALUES = itemgetter(*KNOBS, *CONSTANTS)
_BETAS = KNOBS.index("betas")


def _are_same(values: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> bool:
    return len(values) == len(others) and all(map(is_, chain(*values), chain(*others)))


def _may_change(values: tuple[Any, ...]) -> bool:
    """Whether a value may become another one and stay the same object."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    betas = values[_BETAS]
    return (
        not isinstance(betas, tuple)
        or any(isinstance(beta, Tensor) for beta in betas)
        or any(tensor.device.type == "cpu" for tensor in tensors)
    )


@dataclass
class _Followed:
    """A param group, and the schedule that gives its ``drop_prob``, None: it stays.

    Another value than the one that was given last is the user's, unless it is the schedule's own
    of the last or the next step: a state that was loaded by hand brings it.
    """

    group: Group
    schedule: Schedule | None
    given: float | Tensor

    def follow(self) -> None:
        """Write the schedule's value of the step to come into the group, or end the schedule."""
        schedule, found = self.schedule, self.group["drop_prob"]
        if schedule is None:
            return
        steps = self.group["steps_finished"]
        if found != self.given and all(found != schedule(n) for n in (max(steps - 1, 0), steps)):
            self.schedule = None  # the user has set another value
        else:
            self.group["drop_prob"] = self.given = plain(schedule(steps))


class GroupKnobs:
    """Follows the schedules of an optimizer's param groups, and reads their knobs.

    A schedule belongs to its group, wherever that stands among them. It ends when the group's
    ``drop_prob`` is set to another value.

    Args:
        groups: the param groups.
        schedules: one per group; None: its ``drop_prob`` stays as it is.
    """

    def __init__(
        self, groups: Sequence[Group] = (), schedules: Sequence[Schedule | None] = ()
    ) -> None:
        self.has_schedules = False  # any of the groups
        self._groups: list[Group] = []
        self._followed: list[_Followed] = []  # one per group
        self._knobs: list[Knobs] = []  # checked, and what they were made of
        self._values: list[tuple[Any, ...]] = []
        self._units: list[Any] = []  # by group; empty where none chooses by number
        self._may_change = False
        self._lacks_layers = False  # and has been warned about
        for group, schedule in zip(groups, schedules, strict=True):
            self.add(group, schedule)

    def add(self, group: Group, schedule: Schedule | None) -> None:
        """Follow another group."""
        self._groups.append(group)
        self._followed.append(_Followed(group, schedule, group["drop_prob"]))
        self.has_schedules |= schedule is not None

    def schedules(self, groups: Sequence[Group]) -> list[Schedule | None]:
        """The schedule of each group, None where it has none."""
        return [followed.schedule for followed in self._of(groups)]

    def read(self, groups: Sequence[Group]) -> list[Knobs]:
        """The knobs of the step to come, the same list while they are the same.

        Scheduled values are written into the groups.

        Raises:
            RuntimeError: other groups than those that were added, or one that lacks a knob.
            ValueError: a value outside its range; lists of a group that differ in length.
            TypeError: a value of the wrong type.
        """
        of_groups = self._of(groups)
        if self.has_schedules:
            for followed in of_groups:
                followed.follow()
            self.has_schedules = any(followed.schedule is not None for followed in of_groups)
        check_numbers(groups)
        values = values_of(groups, _VALUES)
        same = _are_same(values, self._values)
        if (
            same
            and not self._may_change
            and (not self._units or self._units == _units(groups, self._knobs))
        ):
            return self._knobs
        for group in groups:
            make_plain(group)
        values = [_VALUES(group) for group in groups]
        knobs = [knobs_of(group) for group in groups]
        for group_knobs in knobs:
            check_knobs(group_knobs)
        names = [[group[key] for group in groups] for key in ("stream_ids", "layers")]
        knobs = with_units(knobs, *names)
        if not same or knobs != self._knobs:
            lacked, self._lacks_layers = self._lacks_layers, _lacks_layers(groups, knobs)
            if self._lacks_layers and not lacked:
                _warn_without_layers()
            self._knobs, self._values = knobs, values
            self._may_change = any(map(_may_change, values))
        self._units = _units(groups, knobs) if any(k.counts for k in knobs) else []
        return self._knobs

    def _of(self, groups: Sequence[Group]) -> list[_Followed]:
        followed = self._followed
        if len(groups) == len(followed) and all(map(is_, groups, self._groups)):
            return followed
        by_group = {id(f.group): f for f in followed}
        if by_group.keys() != set(map(id, groups)) or len(groups) != len(followed):
            raise RuntimeError(
                f"expected the {len(followed)} param groups that were added, got {len(groups)}, "
                "or others: use add_param_group, or make another optimizer"
            )
        return [by_group[id(group)] for group in groups]


def _units(groups: Sequence[Group], knobs: Sequence[Knobs]) -> list[Any]:
    """What the units of each group are made of: its lists, which may be edited."""
    return [
        (*group["stream_ids"], *group["layers"]) if group_knobs.counts else None
        for group, group_knobs in zip(groups, knobs, strict=True)
    ]


def _lacks_layers(groups: Sequence[Group], knobs: Sequence[Knobs]) -> bool:
    """Whether layers shall be dropped, and no parameter is in one."""
    by_layer = [
        group
        for group, group_knobs in zip(groups, knobs, strict=True)
        if group_knobs.granularity == "layer" and not group_knobs.masks_nothing
    ]
    return bool(by_layer) and all(layer is None for group in by_layer for layer in group["layers"])


def _warn_without_layers() -> None:
    warnings.warn(
        'granularity="layer" drops nothing here: no parameter is in a layer, by its name or '
        'by "layers" in its param group (an int, or one per parameter)',
        stacklevel=users_line(),
    )
