"""What every executor can do."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..knobs import Knobs


class Executor(Protocol):
    """One step of a fixed set of slots on one device, in its three parts."""

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """Take over the next step's gradients, one per slot, of dtypes and strides as before.

        A slot whose gradient is None stands still in this step, of which nothing is counted yet.

        Raises:
            RuntimeError: a gradient whose memory has been freed.
        """

    def begin(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Begin a step, which ``found_inf`` may skip; it advances ``counters``.

        Both scalars may lie on any device, as may the one of :meth:`step`.
        """

    def moment_dots(self) -> Tensor:
        """:func:`graddrop.reference.moment_dots` of each slot: float64 [n_slots, 3].

        Up to a positive factor of its gradient. Zeros where there is no gradient, anything where
        the slot's step is not scaled by its alignment. Where it is asked for, that is before
        :meth:`grad_squares`.
        """

    def grad_squares(self, masked: bool) -> Tensor:
        """Sum of squares of each slot's gradient without the loss scale: float [n_slots].

        ``masked``: as it enters the moments, so without what the masks drop of it.
        """

    def step(self, clip_factor: Tensor | None, step_scales: Tensor | None = None) -> None:
        """Make the step that was begun.

        Args:
            clip_factor: one element, multiplies all gradients.
            step_scales: float32 [n_slots], multiply the updates of the slots that their alignments
                scale, not their decay.
        """

    def abandon(self) -> None:
        """Take back what has been counted of a step that an error, or Ctrl-C, has ended.

        Tensors that have moved keep their ``step``; ``counters`` are as they were before.
        """
