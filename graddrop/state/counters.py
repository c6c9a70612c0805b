"""The two counters that pick the masks: in the param groups, and where each executor reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import abi
from ..step.checks import is_capturing
from ..step.plan import Key
from .groups import COUNTERS, Group


class Counters:
    """Optimizer steps finished and masks begun by hand, the same numbers in every place.

    An executor advances its own, so that a step that ``found_inf`` skips is not counted and the
    replays of a CUDA graph go on to new masks. The param groups, which a checkpoint saves, follow
    on the host: at once where it knows, otherwise when they are read.
    """

    def __init__(self) -> None:
        self._on: dict[Key, Tensor] = {}
        self._behind = False  # the groups do not know the latest steps
        self._captured = False  # and never do: a graph is replayed at any time

    def on(self, keys: Sequence[Key], groups: Sequence[Group]) -> dict[Key, Tensor]:
        """The counters that executors read and advance: int64 [2] each, on their device."""
        for key in keys:
            if key not in self._on:
                self.sync(groups)
                values = [groups[0][counter] for counter in COUNTERS]
                self._on[key] = torch.tensor(values, dtype=torch.int64, device=key[0])
        return {key: self._on[key] for key in keys}

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

    def begin_mask(self, draw: int, groups: Sequence[Group]) -> None:
        """Set the number of masks begun by hand."""
        self.sync(groups)
        for group in groups:
            group["masks_begun"] = draw
        for counters in self._on.values():
            counters[abi.MASKS_BEGUN] = draw

    def sync(self, groups: Sequence[Group]) -> None:
        """Write the counters into the groups where these may be behind; waits for the device."""
        if (self._behind or self._captured) and self._on:
            values = dict(zip(COUNTERS, next(iter(self._on.values())).tolist(), strict=True))
            for group in groups:
                group.update(values)
            self._behind = False
