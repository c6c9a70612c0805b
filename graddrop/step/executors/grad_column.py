"""The one column of the tables that moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.cpu.objects import Follower
from ..checks import check_grads
from ..slot import Slot


class GradColumn:
    """The column GRAD of tensor tables, which follows the gradients wherever they lie.

    Args:
        slots: one per row, each with a tensor like its gradients.
        column: as it is for those: int64 [n_slots], on the CPU; written in place.
    """

    def __init__(self, slots: Sequence[Slot], column: Tensor) -> None:
        found = [slot.grad.data_ptr() for slot in slots]
        addresses = torch.tensor(found, dtype=torch.int64, device="cpu")
        self._follower = Follower(addresses, column - addresses, column)

    def move(self, grads: Sequence[Tensor | None]) -> bool:
        """Write where these gradients lie; whether that is elsewhere than before.

        Raises:
            RuntimeError: a gradient whose memory has been freed.
        """
        moved = self._follower.follow(grads)
        if moved is None:
            check_grads(grads)
        return bool(moved)
