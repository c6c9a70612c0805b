"""The two counters that pick the masks: in the param groups, and where each executor reads them."""

import warnings
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..kernels import abi
from ..step.checks import check_count, is_capturing
from ..step.knobs import Knobs
from ..step.plan import Key
from .groups import COUNTERS, Group, values_of
from .plain import plain
from .users_line import users_line

_SEEN = itemgetter(*COUNTERS, "seed")


def agreed_counters(groups: Sequence[Group], n_steps: int) -> dict[str, int]:
    """What all groups that were loaded count from.

    Those that have parameters have to agree; empty ones, which a distributed checkpoint may leave
    as they were, follow, as do those of ``torch.optim.AdamW``, which count nothing.

    Args:
        groups: param groups, each with our counters or without.
        n_steps: the greatest ``step`` of their state. Groups that finished fewer were not loaded
            with it; more is right where steps had no gradients.

    Raises:
        ValueError: a counter outside its range, or groups with parameters that differ.
        TypeError: a counter that is no int.
    """
    counting = [group for group in groups if COUNTERS[0] in group and COUNTERS[1] in group]
    for group in counting:
        check_count("steps_finished", group["steps_finished"], n_bits=63)
        check_count("masks_begun", group["masks_begun"], n_bits=32)
    counting = [group for group in counting if group["params"]] or counting
    found = [tuple(plain(group[name]) for name in COUNTERS) for group in counting]
    if len(set(found)) > 1:
        raise ValueError(
            f"expected param groups that agree in {COUNTERS}, got {found}: all of them step "
            "together, and masks go by these numbers"
        )
    steps_finished, masks_begun = found[0] if found else (0, 0)
    return {"steps_finished": max(steps_finished, n_steps), "masks_begun": masks_begun}


class Counters:
    """Optimizer steps finished and masks begun by hand, the same numbers in every place.

    An executor advances its own, so that a step that ``found_inf`` skips is not counted and the
    replays of a CUDA graph go on to new masks. The param groups, which a checkpoint saves, follow
    on the host: at once where it knows, otherwise when they are read. Counters that somebody else
    puts into the groups are followed everywhere.
    """

    def __init__(self) -> None:
        self._on: dict[Key, Tensor] = {}
        self._seen: list[tuple[Any, ...]] = []  # counters and seed of each group, as we left them
        self._behind = False  # the groups do not know the latest steps
        self._captured = False  # and never do: a graph is replayed at any time
        self._unnamed_steps = 0  # made before any mask was begun by hand
        self._knobs: Sequence[Knobs] = ()  # those that the next line is about
        self._by_hand = False  # whether a group's masks are

    def look(self, groups: Sequence[Group]) -> None:
        """Take over counters that somebody else has put into the groups.

        Engines that load a state by hand (ZeroRedundancyOptimizer) do so.

        Raises:
            ValueError: groups that differ, a counter outside its range, or another seed that came
                with the counters: it is that of another process.
            TypeError: a counter that is no int.
            RuntimeError: a group without counters, put there by hand.
        """
        seen = values_of(groups, _SEEN)
        if seen == self._seen:
            return
        moved = not self._seen
        for index, (now, before) in enumerate(zip(seen, self._seen, strict=False)):
            if now[:2] == before[:2]:
                continue
            moved = True
            if now[2] != before[2]:
                raise ValueError(
                    f"expected the seed {before[2]} that param group {index} has had, got "
                    f"{now[2]} with other counters, put there by hand: ZeroRedundancyOptimizer "
                    "gives every process the groups of the one that saved. Set the seed of each "
                    "process in its param_groups after loading"
                )
        if moved:
            counters = agreed_counters(groups, 0)
            for group in groups:
                group.update(counters)
            for on_device in self._on.values():
                on_device.copy_(torch.tensor([counters[name] for name in COUNTERS], device="cpu"))
            self._behind = False
        self._remember(groups)

    def add(self, group: Group) -> None:
        """Know another group, which counts as the others do."""
        self._seen.append(_SEEN(group))

    def _remember(self, groups: Sequence[Group]) -> None:
        self._seen = list(map(_SEEN, groups))

    def on(self, keys: Sequence[Key], groups: Sequence[Group]) -> Mapping[Key, Tensor]:
        """The counters that executors read and advance: int64 [2] each, on their device.

        There may be those of other executors, too.

        Raises:
            RuntimeError: some are to be made while a CUDA graph is captured.
        """
        for key in keys:
            if key not in self._on:
                if is_capturing():
                    raise RuntimeError(
                        "expected a step before the one that is captured in a CUDA graph, whose "
                        "replays would set the counters of steps back: make one, also after a "
                        "state was loaded"
                    )
                self.sync(groups)
                values = [groups[0][counter] for counter in COUNTERS]
                self._on[key] = torch.tensor(values, dtype=torch.int64, device=key[0])
        return self._on

    def advance(
        self, stepped: Sequence[Key], groups: Sequence[Group], found_inf: Tensor | None = None
    ) -> None:
        """Count a step in the groups, and where no executor of this step has counted it."""
        self._captured |= is_capturing()
        for key, counters in self._on.items():
            if key not in stepped:
                made = 1 if found_inf is None else (found_inf == 0).squeeze().to(key[0])
                counters[abi.STEPS_FINISHED] += made
        if found_inf is not None and self._on:
            self._behind = True
        elif found_inf is None or not found_inf.item():  # no gradient yet, so none is waited for
            for group in groups:
                group["steps_finished"] += 1
            self._remember(groups)

    def expect_masks(self, groups: Sequence[Group], knobs: Sequence[Knobs]) -> None:
        """Warn, once, at the second step under ``period="epoch"`` before any ``new_mask``."""
        if self._unnamed_steps == 2 or groups[0]["masks_begun"]:
            return
        if knobs is not self._knobs:
            self._knobs = knobs
            self._by_hand = any(not each.period and not each.masks_nothing for each in knobs)
        self._unnamed_steps += self._by_hand
        if self._unnamed_steps == 2:
            warnings.warn(
                'period="epoch" has one mask until new_mask() is called, and drops the same '
                "entries meanwhile: call new_mask(epoch) at the beginning of each epoch, the first "
                "included",
                stacklevel=users_line(),
            )

    def begin_mask(self, draw: int, groups: Sequence[Group]) -> None:
        """Set the number of masks begun by hand."""
        self.sync(groups)
        self._unnamed_steps = 2
        for group in groups:
            group["masks_begun"] = draw
        self._remember(groups)
        for counters in self._on.values():
            counters[abi.MASKS_BEGUN] = draw

    def sync(self, groups: Sequence[Group]) -> None:
        """Write the counters into the groups where these may be behind; waits for the device.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`look`.
        """
        self.look(groups)
        self.catch_up(groups)

    def catch_up(self, groups: Sequence[Group]) -> None:
        """:meth:`sync`, but for what somebody else may have put there."""
        if (self._behind or self._captured) and self._on:
            values = dict(zip(COUNTERS, next(iter(self._on.values())).tolist(), strict=True))
            for group in groups:
                group.update(values)
            self._remember(groups)
            self._behind = False
