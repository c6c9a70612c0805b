"""Bound of the norm of all gradients together."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clipping:
    """What gradients are clipped at (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).

    Attributes:
        max_norm: bound, > 0; infinity measures the norm and does not clip.
        masked: whether the norm is that of the gradients as they enter the moments, without what
            the masks drop.
        group: process group whose members hold different parameters and add up their squares;
            None: this process, and those that share its DTensors, hold all.

    Raises:
        ValueError: ``max_norm`` is not positive (NaN included).
        TypeError: ``max_norm`` is no number, ``masked`` no bool, or ``group`` no process group.
    """

    max_norm: float
    masked: bool
    group: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_norm, Real) or isinstance(self.max_norm, bool):
            raise TypeError(
                f"Invalid max_grad_norm: {self.max_norm!r}: expected a number > 0, or None"
            )
        if not self.max_norm > 0:
            raise ValueError(
                f"Invalid max_grad_norm: {self.max_norm}: expected a number > 0, or None for no "
                "clipping"
            )
        if not isinstance(self.masked, bool):
            raise TypeError(f"Invalid masked_norm: {self.masked!r}: expected a bool")
        if self.group is not None and not _is_group(self.group):
            raise TypeError(
                f"Invalid norm_group: {self.group!r}: expected a process group that this process "
                "is in, or None"
            )

    def over_group(self, squares: Tensor | None) -> Tensor | None:
        """Sum over the group's members, of whom some may have no gradient at all.

        Args:
            squares: sum of the squares that this process has, 0-dim; None: it has no gradient.
        """
        if self.group is None:
            return squares
        if squares is None:
            on_gpu = torch.distributed.get_backend(self.group) == "nccl"
            squares = torch.zeros((), device="cuda" if on_gpu else "cpu")
        total = squares.to(torch.float64)  # members' backends add up in different dtypes
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def factor(self, norm: Tensor) -> Tensor | None:
        """What multiplies every gradient, as in ``torch.nn.utils.clip_grad_norm_``.

        Args:
            norm: of all gradients, 0-dim. An infinite one makes finite gradients 0 and infinite
                ones NaN, a NaN makes all NaN, as in torch; but it is of float64, where the norm of
                finite gradients of fewer bits is finite.

        Returns:
            0-dim, on the norm's device; None for an infinite bound, which nothing exceeds.
        """
        if math.isinf(self.max_norm):
            return None
        return (self.max_norm / (norm + 1e-6)).clamp(max=1.0)


def _is_group(group: object) -> bool:
    return torch.distributed.is_available() and isinstance(group, torch.distributed.ProcessGroup)


def clipping_of(max_norm: float | None, masked: bool, group: Any = None) -> Clipping | None:
    """The clipping that an optimizer's arguments ask for, None for none.

    Raises:
        ValueError: as :class:`Clipping`.
        TypeError: as :class:`Clipping`; without a bound the others are looked at all the same.
    """
    if max_norm is None and masked is False and group is None:  # as in most steps
        return None
    clipping = Clipping(math.inf if max_norm is None else max_norm, masked, group)
    return None if max_norm is None else clipping
