"""The knobs of one param group at one step: declared here, once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import abi
from ..mask import (
    LAYER_ORDER_STREAM,
    LAYER_STREAM,
    TENSOR_ORDER_STREAM,
    TENSOR_STREAM,
    Shard,
    count_dropped,
    keep_elements,
    keep_mask,
    keep_units,
    rescale_factor,
    threshold,
)

ALIGNMENT = "alignment"
"""Value of ``rescale``, and key of a parameter's state: see ``graddrop.reference``."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What all tensors of one param group share; meanings as in ``FusedGradDropAdamW``.

    Each field is a key of a param group (``beta1`` and ``beta2`` are its ``betas``), a number of
    the step and an argument of the operator; lists of knobs elsewhere follow from this one.
    ``lr`` and ``drop_prob`` are floats or 0-dim tensors, which a device reads for itself.
    ``period`` is K for a new mask every K steps, 0 for masks begun by hand. ``rescale`` is a bool,
    or :data:`ALIGNMENT`.

    ``units`` is no knob: the tensors or layers among which ``select`` chooses by number, those of
    all groups that agree (:func:`with_units`).
    """

    lr: float | Tensor = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    maximize: bool = False
    drop_prob: float | Tensor = 0.5
    granularity: str = "element"
    select: str = "bernoulli"
    period: int = 1
    site: str = "grad"
    rescale: bool | str = False
    mask_decay: bool = True
    stochastic_rounding: bool = False
    seed: int = 0
    units: tuple[int, ...] = ()

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

    @property
    def counts(self) -> bool:
        """Whether it chooses among units by number."""
        return self.select != "bernoulli" and not self.masks_nothing

    @property
    def order_stream(self) -> int:
        """Stream of the random orders of its units."""
        return LAYER_ORDER_STREAM if self.granularity == "layer" else TENSOR_ORDER_STREAM

    @property
    def mask_scale(self) -> float:
        """What multiplies what is kept: the inverse of the realised keep probability, or 1.

        An alignment is a tensor's own: :meth:`graddrop.step.slot.Slot.mask_scale`.
        """
        if self.rescale is not True:
            return 1.0
        if not self.counts or not self.units:
            return rescale_factor(float(self.drop_prob))
        n, dropped = len(self.units), int(count_dropped(len(self.units), self.drop_prob))
        return 1.0 if dropped == n else rescale_factor(dropped / n)

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
        if self.counts:
            (keep,) = self.keep_wholes([stream_id], [layer], draw)
            return torch.full(local_shape, keep, device=device)
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
        if self.counts:
            dropped = _dropped_units(
                self.units,
                self.select,
                self.order_stream,
                self.seed,
                draw,
                int(count_dropped(len(self.units), self.drop_prob)),
            )
            return [unit not in dropped for unit in units]
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
        row[abi.RESCALE] = float(self.rescale is True)
        row[abi.SEED_LOW], row[abi.SEED_HIGH] = self.seed & 0xFFFFFFFF, self.seed >> 32
        row[abi.PERIOD] = self.period
        return row

    @property
    def structure(self) -> tuple[object, ...]:
        """What the kernels' tables depend on; the other knobs are numbers in them."""
        names = ("granularity", "site", "mask_decay", "masks_nothing", "stochastic_rounding")
        by_alignment = self.rescale == ALIGNMENT
        return (*(getattr(self, name) for name in names), self.select, self.units, by_alignment)


@lru_cache(maxsize=64)
def _dropped_units(
    units: tuple[int, ...], select: str, stream: int, seed: int, draw: int, n_dropped: int
) -> frozenset[int]:
    keep = keep_units(
        torch.tensor(units, dtype=torch.int64, device="cpu"),
        select=select,
        stream=stream,
        seed=seed,
        draw=draw,
        n_dropped=torch.tensor(n_dropped, device="cpu"),
    )
    return frozenset(unit for unit, kept in zip(units, keep.tolist(), strict=True) if not kept)


def with_units(
    knobs: Sequence[Knobs],
    stream_ids: Sequence[Sequence[int]],
    layers: Sequence[Sequence[int | None]],
) -> list[Knobs]:
    """The same knobs, which know their units where they choose among them by number.

    Groups that agree in granularity, select, drop_prob, period and seed have their units together,
    as one layer's weights and biases may be in two groups.

    Args:
        knobs: one per group.
        stream_ids: of each group's parameters.
        layers: of each group's parameters.
    """

    def key(group: Knobs) -> tuple[object, ...]:
        of_device = isinstance(group.drop_prob, Tensor)
        drop_prob = id(group.drop_prob) if of_device else group.drop_prob
        return group.granularity, group.select, of_device, drop_prob, group.period, group.seed

    units: dict[tuple[object, ...], set[int]] = {}
    for group, ids, numbers in zip(knobs, stream_ids, layers, strict=True):
        if group.counts:
            found = numbers if group.granularity == "layer" else ids
            units.setdefault(key(group), set()).update(unit for unit in found if unit is not None)
    return [
        replace(group, units=tuple(sorted(units[key(group)]))) if group.counts else group
        for group in knobs
    ]


KNOBS = tuple(field.name for field in fields(Knobs) if field.name != "units")
SWITCHES = tuple(field.name for field in fields(Knobs) if field.type is bool)
# Those that torch.optim.AdamW lacks.
MASK_KNOBS = tuple(
    name
    for name in KNOBS
    if name not in ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize")
)
