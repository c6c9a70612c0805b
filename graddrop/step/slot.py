"""One tensor of a step: its gradient, its moments, its place in the masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..mask import ROUNDING_STREAM, Shard, random_u16
from .keep_bits import KeepBits
from .knobs import ALIGNMENT, Knobs

Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Of param, grad and moments."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter, or the local shard of one, with what a step reads and writes beside it.

    Attributes:
        param: any dense strides, updated in place.
        grad: shape and device of ``param``, any strides.
        exp_avg: first moment, shape of ``param``.
        exp_avg_sq: second moment, shape, dtype and strides of ``exp_avg``.
        step: float32, 0-dim: steps finished by this tensor.
        stream_id: id of the parameter in the mask contract, in [0, 2**30).
        layer: layer number, None: in no layer.
        shard: where ``param`` lies in the whole parameter.
        group: index of its :class:`Knobs`.
        keep_bits: a loaded mask, which replaces the drawn one; None: masks are drawn.
        alignment: float32, one element, on the device of ``param``, updated in place: see
            :func:`graddrop.reference.next_alignment`; None where its group asks for none.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    stream_id: int
    layer: int | None
    shard: Shard
    group: int
    keep_bits: KeepBits | None = None
    alignment: Tensor | None = None

    @property
    def dtypes(self) -> Dtypes:
        """(param, grad, moments)."""
        return self.param.dtype, self.grad.dtype, self.exp_avg.dtype

    def keep(self, knobs: Knobs, draw: int) -> Tensor | None:
        """Its mask at a draw: bool, shape of ``param``; None: all is kept."""
        if self.keep_bits is not None:
            return self.keep_bits.unpack()
        return knobs.keep_mask(
            tuple(self.param.shape),
            stream_id=self.stream_id,
            layer=self.layer,
            shard=self.shard,
            draw=draw,
            device=self.param.device,
        )

    def keeps_any(self, knobs: Knobs, draw: int) -> bool:
        """False if one decision drops the whole tensor at a draw; a loaded mask makes none."""
        if self.keep_bits is not None:
            return True
        return knobs.keep_wholes([self.stream_id], [self.layer], draw)[0]

    def is_masked(self, knobs: Knobs) -> bool:
        """Whether it has a mask, which may keep everything; otherwise it makes AdamW's step."""
        if self.keep_bits is not None:
            return True
        return not knobs.masks_nothing and (knobs.granularity != "layer" or self.layer is not None)

    def scales_by_alignment(self, knobs: Knobs) -> bool:
        """Whether the step of what its mask keeps is multiplied by its alignment."""
        return knobs.rescale == ALIGNMENT and self.is_masked(knobs)

    def mask_scale(self, knobs: Knobs) -> float:
        """What multiplies what is kept."""
        if self.scales_by_alignment(knobs):
            assert self.alignment is not None
            return float(self.alignment)
        return 1.0 if self.keep_bits is not None else knobs.mask_scale

    def rounding_bits(self, knobs: Knobs, steps_finished: int) -> Tensor | None:
        """16 random bits per entry to round it with: int64, shape of ``param``; None: to nearest.

        Args:
            knobs: of its group.
            steps_finished: optimizer steps before this one; masks may live longer.
        """
        if not knobs.rounds(self.param.dtype):
            return None
        return random_u16(
            self.shard.elements(tuple(self.param.shape), self.param.device),
            stream=ROUNDING_STREAM + self.stream_id,
            seed=knobs.seed,
            draw=steps_finished & 0xFFFFFFFF,
        )
