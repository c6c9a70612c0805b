"""Where the gradients of a step lie: the one column of the tables that moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import abi
from ..checks import check_grads
from ..slot import Slot


class GradColumn:
    """The column GRAD of tensor tables, which follows the gradients wherever they lie.

    Args:
        slots: one per row, each with a tensor like its gradients.
        base_addresses: the column as it is for those: int64 [n_slots].
    """

    def __init__(self, slots: Sequence[Slot], base_addresses: Tensor) -> None:
        self._addresses = [slot.grad.data_ptr() for slot in slots]
        addresses = torch.tensor(self._addresses, dtype=torch.int64, device="cpu")
        self._before = base_addresses - addresses

    def moved(self, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The column for these gradients, None if it is what it was.

        Raises:
            RuntimeError: a gradient whose memory has been freed.
        """
        found = [abi.NO_GRAD if grad is None else grad.data_ptr() for grad in grads]
        if found == self._addresses:
            return None
        if 0 in found:  # the address of no memory
            check_grads(grads)
        self._addresses = found
        addresses = torch.tensor(found, dtype=torch.int64, device="cpu")
        return torch.where(addresses == abi.NO_GRAD, addresses, addresses + self._before)
