"""The knobs of one param group at one step: declared here, once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..kernels import abi
from ..mask import LAYER_STREAM, TENSOR_STREAM, Shard, keep_elements, keep_mask, threshold


@dataclass(frozen=True, slots=True)
class Knobs:
    """What all tensors of one param group share; meanings as in ``FusedGradDropAdamW``.

    Each field is a key of a param group (``beta1`` and ``beta2`` are its ``betas``), a number of
    the step and an argument of the operator; lists of knobs elsewhere follow from this one.
    ``lr`` and ``drop_prob`` are floats or 0-dim tensors, which a device reads for itself.
    ``period`` is K for a new mask every K steps, 0 for masks begun by hand.
    """

    lr: float | Tensor = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    maximize: bool = False
    drop_prob: float | Tensor = 0.5
    granularity: str = "element"
    period: int = 1
    site: str = "grad"
    rescale: bool = False
    mask_decay: bool = True
    stochastic_rounding: bool = False
    seed: int = 0

    @property
    def masks_nothing(self) -> bool:
        """True for an exempt group: plain AdamW, with no randomness drawn."""
        return not isinstance(self.drop_prob, Tensor) and self.drop_prob == 0.0

    @property
    def drops_wholes(self) -> bool:
        """Whether one decision may drop a parameter as a whole."""
        if self.masks_nothing:
            return False
        return (
            self.granularity in ("tensor", "layer") or threshold(float(self.drop_prob)) == 1 << 16
        )

    def has_tensors(self) -> bool:
        """Whether a device holds a number that may change in place."""
        return isinstance(self.lr, Tensor) or isinstance(self.drop_prob, Tensor)

    def draw(self, steps_finished: int, masks_begun: int) -> int:
        """Index of the mask of the next step (mask contract: 32 bits)."""
        return (steps_finished // self.period if self.period else masks_begun) & 0xFFFFFFFF

    def keep_mask(
        self,
        local_shape: tuple[int, ...],
        *,
        stream_id: int,
        layer: int | None,
        shard: Shard | None,
        draw: int,
        device: torch.device,
    ) -> Tensor | None:
        """The parameter's mask at a draw, see :func:`graddrop.mask.keep_mask`; None: all kept."""
        if self.masks_nothing or (self.granularity == "layer" and layer is None):
            return None
        return keep_mask(
            local_shape,
            granularity=self.granularity,
            stream_id=stream_id,
            layer=layer,
            seed=self.seed,
            draw=draw,
            drop_prob=float(self.drop_prob),
            shard=shard,
            device=device,
        )

    def rounds(self, dtype: torch.dtype) -> bool:
        """Whether parameters of this dtype are rounded at random."""
        return self.stochastic_rounding and dtype == torch.bfloat16

    def keep_wholes(
        self, stream_ids: Sequence[int], layers: Sequence[int | None], draw: int
    ) -> list[bool]:
        """Of each parameter, False where one decision drops it as a whole.

        That is its own or its layer's, or ``drop_prob=1``, which drops all that is masked. What
        chance drops entry by entry or row by row is not looked for: shards would disagree.
        """
        if not self.drops_wholes:
            return [True] * len(stream_ids)
        by_layer = self.granularity == "layer"
        units: Sequence[int | None] = layers if by_layer else stream_ids
        keep = keep_elements(
            torch.tensor([unit or 0 for unit in units], dtype=torch.int64, device="cpu"),
            stream=LAYER_STREAM if by_layer else TENSOR_STREAM,
            seed=self.seed,
            draw=draw,
            drop_threshold=threshold(float(self.drop_prob)),
        )
        return [unit is None or kept for unit, kept in zip(units, keep.tolist(), strict=True)]

    def row(self) -> list[float]:
        """Row of the group table; 0 where a tensor has to be copied in."""
        row = [0.0] * abi.N_GROUP_COLUMNS
        row[abi.LR] = 0.0 if isinstance(self.lr, Tensor) else self.lr
        row[abi.BETA1], row[abi.BETA2], row[abi.EPS] = self.beta1, self.beta2, self.eps
        row[abi.WEIGHT_DECAY] = self.weight_decay
        row[abi.GRAD_SIGN] = -1.0 if self.maximize else 1.0
        row[abi.DROP_PROB] = 0.0 if isinstance(self.drop_prob, Tensor) else self.drop_prob
        row[abi.RESCALE] = float(self.rescale)
        row[abi.SEED_LOW], row[abi.SEED_HIGH] = self.seed & 0xFFFFFFFF, self.seed >> 32
        row[abi.PERIOD] = self.period
        return row

    @property
    def structure(self) -> tuple[object, ...]:
        """What the kernels' tables depend on; the other knobs are numbers in them."""
        names = ("granularity", "site", "mask_decay", "masks_nothing", "stochastic_rounding")
        return tuple(getattr(self, name) for name in names)


KNOBS = tuple(field.name for field in fields(Knobs))
SWITCHES = tuple(field.name for field in fields(Knobs) if field.type is bool)
# Those that torch.optim.AdamW lacks.
MASK_KNOBS = tuple(
    name
    for name in KNOBS
    if name not in ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize")
)
