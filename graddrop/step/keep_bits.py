"""A loaded mask as kernels read it: one bit per entry, in the order in which they walk a tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import abi
from ..mask import Shard

_TILE_BYTES = abi.TILE // 8


@dataclass(frozen=True, slots=True, eq=False)
class KeepBits:
    """The keep mask of a local tensor, an eighth of a byte per entry.

    Kernels follow the parameter's memory, so bits lie in the order of its strides. The first of
    them stands within its tile of 1024 where the tensor's first entry stands in the whole
    parameter: half a tile of entries is half a tile of bits, wherever a shard begins.

    Attributes:
        bits: uint8, whole tiles; of entry i of the walk, bit i % 8 of byte i // 8, counted from the
            first entry of the first tile; 1: kept. What lies around the entries is 0.
        shape: of the local tensor.
        order: its dimensions in walking order, outermost first.
        begin: index in the whole parameter of its first entry.
    """

    bits: Tensor
    shape: tuple[int, ...]
    order: tuple[int, ...]
    begin: int

    @staticmethod
    def pack(keep: Tensor, param: Tensor, shard: Shard) -> "KeepBits":
        """Pack a mask.

        Args:
            keep: bool, shape of ``param``, on any device.
            param: the local tensor; its strides give the order, and the bits lie on its device.
            shard: where it lies in its whole parameter.
        """
        order = _order_of(param)
        before = shard.begin % abi.TILE
        n_tiles = -(-(before + param.numel()) // abi.TILE) if param.numel() else 0
        entries = torch.zeros(n_tiles * abi.TILE, dtype=torch.uint8, device=param.device)
        walked = keep.permute(order).reshape(-1)
        entries[before : before + param.numel()] = walked.to(param.device)
        by_byte = entries.view(-1, 8)
        bits = by_byte[:, 0].clone()
        for bit in range(1, 8):
            bits |= by_byte[:, bit] << bit
        return KeepBits(bits, tuple(param.shape), order, shard.begin)

    def unpack(self) -> Tensor:
        """The mask: bool, of the local tensor's shape, on its device."""
        places = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        entries = (self.bits.unsqueeze(-1) >> places & 1).bool().view(-1)
        before = self.begin % abi.TILE
        sizes = [self.shape[dim] for dim in self.order]
        walked = entries[before : before + math.prod(sizes)].view(sizes)
        return walked.permute(_inverse(self.order)).contiguous()

    def fits(self, param: Tensor, shard: Shard) -> bool:
        """Whether kernels that walk this local tensor meet its own bits."""
        return (self.shape, self.order, self.begin, self.bits.device) == (
            tuple(param.shape),
            _order_of(param),
            shard.begin,
            param.device,
        )

    @property
    def origin(self) -> int:
        """Address at which the bit of element 0 of the whole parameter would lie; 0 if empty."""
        before = self.begin // abi.TILE * _TILE_BYTES
        return self.bits.data_ptr() - before if self.bits.numel() else 0


def _order_of(param: Tensor) -> tuple[int, ...]:
    """Dimensions by stride, outermost first; those of size 1, wherever they stand, change nothing.

    That is the order of :func:`graddrop.step.walk.walk`.
    """
    strides = param.stride()
    return tuple(sorted(range(param.dim()), key=lambda dim: strides[dim], reverse=True))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda place: order[place])
