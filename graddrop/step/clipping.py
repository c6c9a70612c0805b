"""Bound of the norm of all gradients together."""

from dataclasses import dataclass
from numbers import Real

from torch import Tensor


@dataclass(frozen=True)
class Clipping:
    """What gradients are clipped at (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1).

    Attributes:
        max_norm: bound, > 0; infinity measures the norm and does not clip.
        masked: whether the norm is that of the gradients as they enter the moments, without what
            the masks drop.

    Raises:
        ValueError: ``max_norm`` is not positive (NaN included).
        TypeError: ``max_norm`` is no number, or ``masked`` no bool.
    """

    max_norm: float
    masked: bool

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

    def factor(self, norm: Tensor) -> Tensor:
        """What multiplies every gradient, as in ``torch.nn.utils.clip_grad_norm_``.

        Args:
            norm: of all gradients, 0-dim; infinite or NaN gives NaN gradients, as in torch.
        """
        return (self.max_norm / (norm + 1e-6)).clamp(max=1.0)


def clipping_of(max_norm: float | None, masked: bool) -> Clipping | None:
    """The clipping that an optimizer's arguments ask for, None for none.

    Raises:
        ValueError: as :class:`Clipping`.
        TypeError: as :class:`Clipping`.
    """
    return None if max_norm is None else Clipping(max_norm, masked)
