"""The two counters that pick the masks: in the param groups, and where each executor reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .groups import COUNTERS, Group
from .plan import Key


class Counters:
    """Optimizer steps finished and masks begun by hand, the same numbers in every place.

    An executor advances its own, so that the replays of a CUDA graph go on to new masks. The param
    groups, which a checkpoint saves, follow on the host.

    Args:
        groups: the optimizer's param groups, which hold :data:`graddrop.groups.COUNTERS`.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._on: dict[Key, Tensor] = {}
        self._captured = False

    def on(self, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """The counters that executors read and advance: int64 [2] each, on their device."""
        for key in keys:
            if key not in self._on:
                self.sync()
                values = [self._groups[0][counter] for counter in COUNTERS]
                self._on[key] = torch.tensor(values, dtype=torch.int64, device=key[0])
        return {key: self._on[key] for key in keys}

    def advance(self, stepped: Sequence[Key]) -> None:
        """Count a step in the groups, and where no executor of this step has counted it."""
        self._captured |= any(
            key[0].type == "cuda" and torch.cuda.is_current_stream_capturing() for key in stepped
        )
        for key, counters in self._on.items():
            if key not in stepped:
                counters[0] += 1
        for group in self._groups:
            group["steps_finished"] += 1

    def begin_mask(self, draw: int) -> None:
        """Set the number of masks begun by hand."""
        self.sync()
        for group in self._groups:
            group["masks_begun"] = draw
        for counters in self._on.values():
            counters[1] = draw

    def sync(self) -> None:
        """Write the counters into the groups, if a CUDA graph may have advanced them unseen."""
        if self._captured:
            for counters in self._on.values():
                values = dict(zip(COUNTERS, counters.tolist(), strict=True))
                for group in self._groups:
                    group.update(values)
                return
