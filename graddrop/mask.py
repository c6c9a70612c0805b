"""The mask contract, version 1: which entries of which parameter are dropped at which draw.

A mask is a pure function of ``(seed, draw, stream, element)``. Nothing is stored and no generator
is advanced, so every backend, every resumed run and every shard of a parameter sees the same bits.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11)
with key ``(seed & 0xffffffff, seed >> 32)`` and counter
``(group & 0xffffffff, group >> 32, stream, draw)``. With tiles of 1024 elements,
``element = 1024 t + 512 h + 4 c + w`` where h in {0, 1}, c in [0, 128), w in [0, 4);
``group = 128 t + c``, and the entry's 16 random bits are half h (0 = low) of word w of that call.
An entry is dropped iff those bits, as an integer, are below ``threshold(drop_prob)``.

Tensors and layers may be chosen by number instead (``select``), see :func:`keep_units`: by their
order, or by 64 random bits of a call of their own.

A mask may be loaded instead of drawn: a bool per element of the whole parameter, True where it is
kept. It replaces the drawn one whatever ``drop_prob``, at each draw, until another is loaded; a
shard has its own part of it. Nothing about it is random, and what is kept is not rescaled.

This file is the definition. The kernels are judged against it, bit for bit.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

# A process's first vectorised maths call that two threads share can give one of them wrong values
# (torch 2.13 on CPUs, in 7 % of processes): this small call sets the maths library up alone.
torch.ones(1, device="cpu").sqrt()

CONTRACT_VERSION = 1
"""Of the masks; another one draws other bits."""
TILE = 1024
"""Elements that share the high words of their counters."""
GRANULARITIES = ("element", "row", "tensor", "layer")
"""What shares one decision."""
SELECTIONS = ("bernoulli", "exact", "ascending", "descending", "shuffled")
"""What tells the tensors or layers that are dropped (chance, or a count)."""

# Streams: one per parameter and purpose. Parameter ids stay below 2**30.
MAX_STREAM_ID = 1 << 30
ROW_STREAM = 1 << 30  # + id: row decisions of that parameter
TENSOR_STREAM = 1 << 31  # element index = id of the parameter
LAYER_STREAM = (1 << 31) + 1  # element index = layer number
TENSOR_ORDER_STREAM = (1 << 31) + 2
"""Its groups are ids of parameters, whose 64 bits make an order."""
LAYER_ORDER_STREAM = (1 << 31) + 3
"""Its groups are layer numbers, whose 64 bits make an order."""
ROUNDING_STREAM = 3 << 30  # + id: random bits for stochastic rounding

_LOW32 = 0xFFFFFFFF
_PHILOX_M = (0xD2511F53, 0xCD9E8D57)
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)
_LAYER_NAME = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BLOCK = 1 << 16  # elements per pass: the int64 temporaries stay in the cache


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int | Tensor, n_rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 block cipher (Salmon et al., SC11, section 3.3).

    Args:
        counter: four int64 tensors of one broadcastable shape, values in [0, 2**32).
        seed: 64-bit key, in [0, 2**64); of several, their bits as int64 that broadcasts with the
            counter.
        n_rounds: number of rounds; the mask contract uses 10.

    Returns:
        Four int64 tensors, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(n_rounds):
        # int64 products wrap modulo 2**64, and the mask after >> removes the sign extension, so
        # both halves are those of the unsigned product.
        product0, product1 = c0 * _PHILOX_M[0], c2 * _PHILOX_M[1]
        high0, low0 = (product0 >> 32) & _LOW32, product0 & _LOW32
        high1, low1 = (product1 >> 32) & _LOW32, product1 & _LOW32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _PHILOX_W[0]) & _LOW32, (k1 + _PHILOX_W[1]) & _LOW32
    return c0, c1, c2, c3


def random_u16(elements: Tensor, *, stream: int, seed: int, draw: int) -> Tensor:
    """The 16 random bits of each element.

    Args:
        elements: int64 tensor of any shape, row-major indices in the whole parameter, >= 0.
        stream: which parameter and purpose, in [0, 2**32).
        seed: in [0, 2**64).
        draw: index of the mask, in [0, 2**32).

    Returns:
        int64 tensor of the shape of ``elements``, values in [0, 65536).
    """
    tile, inside = elements >> 10, elements & 1023
    half, call, word = inside >> 9, (inside & 511) >> 2, inside & 3
    group = 128 * tile + call
    constant = torch.zeros_like(group)
    words = philox4x32((group & _LOW32, group >> 32, constant + stream, constant + draw), seed)
    chosen = torch.stack(words, dim=-1).gather(-1, word.unsqueeze(-1)).squeeze(-1)
    return (chosen >> (16 * half)) & 0xFFFF


def threshold(drop_prob: float) -> int:
    """``round(65536 * drop_prob)``, ties to even: an entry is dropped iff its bits are below it.

    Raises:
        ValueError: ``drop_prob`` is not in [0, 1] (NaN included).
    """
    if not 0.0 <= drop_prob <= 1.0:
        raise ValueError(f"Invalid drop_prob value: {drop_prob}: expected a probability in [0, 1]")
    return round(drop_prob * 65536)


def rescale_factor(drop_prob: float) -> float:
    """``1 / q`` with the realised keep probability ``q = 1 - threshold / 65536``.

    Raises:
        ValueError: ``drop_prob`` is not in [0, 1], or so close to 1 that nothing is kept.
    """
    kept = 65536 - threshold(drop_prob)
    if kept == 0:
        raise ValueError(
            f"rescale=True divides by the keep probability, which is 0 at drop_prob={drop_prob}: "
            "use a drop_prob below 1 or rescale=False"
        )
    return 65536 / kept


def keep_elements(
    elements: Tensor, *, stream: int, seed: int, draw: int, drop_threshold: int
) -> Tensor:
    """Keep decisions: False where the element's 16 bits are below ``drop_threshold``.

    Args:
        elements: int64 tensor of any shape, see :func:`random_u16`.
        stream: in [0, 2**32).
        seed: in [0, 2**64).
        draw: in [0, 2**32).
        drop_threshold: in [0, 65536], see :func:`threshold`.

    Returns:
        bool tensor of the shape of ``elements``.
    """
    flat = elements.reshape(-1)
    keep = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    for block, out in zip(flat.split(_BLOCK), keep.split(_BLOCK), strict=True):
        out.copy_(random_u16(block, stream=stream, seed=seed, draw=draw) >= drop_threshold)
    return keep.view(elements.shape)


def count_dropped(
    n_units: int, drop_prob: float | Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """``round(n_units * drop_prob)``, ties to even: int64, 0-dim.

    Args:
        n_units: how many there are.
        drop_prob: in [0, 1]; of a tensor on a device nothing is read on the host.
        device: where the result lies.
    """
    if not isinstance(drop_prob, Tensor):
        return torch.full((), round(n_units * drop_prob), dtype=torch.int64, device=device)
    return (drop_prob.detach().reshape(()).double() * n_units).round().long().to(device)


def keep_units(
    units: Tensor,
    *,
    select: str,
    stream: int,
    seed: int | Tensor,
    draw: int | Tensor,
    n_dropped: Tensor,
) -> Tensor:
    """Of all units, which are kept: as many at each draw.

    With n units of which k are kept::

        "exact":       the n - k that come first in the draw's order are dropped
        "ascending":   in the order of their numbers, those at places d k to d k + k - 1 (modulo n)
        "descending":  the same from the highest number down
        "shuffled":    the same in an order drawn anew for each round of n / gcd(n, k) draws, in
                       which each unit has its turn k / gcd(n, k) times

    An order is that of 64 random bits, the unit's number where they are equal: words 1 (high) and 0
    (low) of the Philox call with counter ``(unit & 0xffffffff, unit >> 32, stream, index)``, whose
    index is the draw, or the number of the round.

    Args:
        units: int64 [n] or [sets, n], ascending, on any device: ids of parameters, or layer
            numbers. Of several sets each is chosen from by itself.
        select: one of :data:`SELECTIONS` but ``"bernoulli"``.
        stream: :data:`TENSOR_ORDER_STREAM` or :data:`LAYER_ORDER_STREAM`.
        seed: in [0, 2**64); of several sets int64 [sets, 1], the same bits.
        draw: index of the mask, in [0, 2**32); int64, 0-dim or [sets, 1], is not read on the host.
        n_dropped: n - k, int64, 0-dim or [sets, 1], on the device of ``units``.

    Returns:
        bool of the shape of ``units``, True where the unit is kept.
    """
    n = units.shape[-1]
    place = torch.arange(n, device=units.device).expand_as(units)
    n_kept = n - n_dropped
    if select in ("exact", "shuffled"):
        draws_per_round = n // torch.gcd(n_kept, torch.full_like(n_kept, n))
        index = draw if select == "exact" else draw // draws_per_round
        constant = torch.zeros_like(units)
        words = philox4x32((units & _LOW32, units >> 32, constant + stream, constant + index), seed)
        order = words[0].argsort(dim=-1, stable=True)
        order = order.gather(-1, words[1].gather(-1, order).argsort(dim=-1, stable=True))
        place = torch.empty_like(order).scatter_(-1, order, place)
    if select == "exact":
        return place >= n_dropped
    if select == "descending":
        place = n - 1 - place
    return (place - draw * n_kept) % n < n_kept


@dataclass(frozen=True)
class Shard:
    """Where a local tensor lies in its whole, unsharded parameter.

    Attributes:
        global_shape: shape of the whole parameter.
        offset: index, per dimension, of the local tensor's first entry in the whole parameter.
    """

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> "Shard":
        """The shard that is the parameter itself."""
        return Shard(tuple(shape), (0,) * len(shape))

    @property
    def strides(self) -> tuple[int, ...]:
        """Row-major strides of the whole parameter, in elements."""
        return tuple(
            math.prod(self.global_shape[dim + 1 :]) for dim in range(len(self.global_shape))
        )

    @property
    def begin(self) -> int:
        """Index in the whole parameter of the shard's first entry."""
        return sum(index * stride for index, stride in zip(self.offset, self.strides, strict=True))

    @property
    def row_size(self) -> int:
        """Elements per row (dimension 0) of the whole parameter; a scalar is one row."""
        return math.prod(self.global_shape[1:])

    def elements(
        self, local_shape: tuple[int, ...], device: torch.device | str | None = None
    ) -> Tensor:
        """Indices in the whole parameter of the local entries.

        Args:
            local_shape: of the tensor that lies here.
            device: of the indices.

        Returns:
            int64, shape ``local_shape``.
        """
        if 0 in local_shape:  # its other sizes may be larger than any memory
            return torch.empty(local_shape, dtype=torch.int64, device=device)
        indices = torch.zeros((), dtype=torch.int64, device=device)
        for size, first, stride in zip(local_shape, self.offset, self.strides, strict=True):
            along = torch.arange(first, first + size, dtype=torch.int64, device=device) * stride
            indices = indices.unsqueeze(-1) + along
        return indices


def keep_mask(
    local_shape: tuple[int, ...],
    *,
    granularity: str,
    stream_id: int,
    layer: int | None,
    seed: int,
    draw: int,
    drop_prob: float,
    shard: Shard | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The keep mask of one (shard of a) parameter at one draw.

    Args:
        local_shape: shape of the local tensor.
        granularity: what shares one decision: ``"element"``, ``"row"`` (dimension 0),
            ``"tensor"`` or ``"layer"``.
        stream_id: id of the parameter, in [0, 2**30).
        layer: layer number of the parameter, >= 0; None: in no layer, kept when
            ``granularity="layer"``.
        seed: in [0, 2**64).
        draw: index of the mask, in [0, 2**32).
        drop_prob: in [0, 1].
        shard: where the local tensor lies in the whole parameter; None: it is the whole.
        device: where the mask is made.

    Returns:
        bool tensor of shape ``local_shape``; True: the entry is kept.

    Raises:
        ValueError: unknown granularity, or ``drop_prob`` outside [0, 1].
    """
    shard = shard if shard is not None else Shard.whole(local_shape)
    random = {"seed": seed, "draw": draw, "drop_threshold": threshold(drop_prob)}
    if granularity == "element":
        return keep_elements(shard.elements(local_shape, device), stream=stream_id, **random)
    if granularity in GRANULARITIES and 0 in local_shape:
        return torch.empty(local_shape, dtype=torch.bool, device=device)
    if granularity == "row":
        n_rows = local_shape[0] if local_shape else 1
        first = shard.offset[0] if local_shape else 0
        rows = torch.arange(first, first + n_rows, dtype=torch.int64, device=device)
        keep = keep_elements(rows, stream=ROW_STREAM + stream_id, **random)
        return keep.view(local_shape[:1] + (1,) * (len(local_shape) - 1)).expand(local_shape)
    if granularity not in GRANULARITIES:
        raise ValueError(f"Invalid granularity: {granularity!r}: expected one of {GRANULARITIES}")
    if granularity == "layer" and layer is None:
        return torch.ones(local_shape, dtype=torch.bool, device=device)
    unit, stream = (layer, LAYER_STREAM) if granularity == "layer" else (stream_id, TENSOR_STREAM)
    decision = keep_elements(
        torch.tensor([unit], dtype=torch.int64, device=device), stream=stream, **random
    )
    return decision.expand(local_shape) if local_shape else decision[0]


def layer_of(name: str) -> int | None:
    """Layer number that a parameter's name gives, None where it gives none.

    A layer is the first ``layer.N.``, ``layers.N.``, ``h.N.``, ``block.N.`` or ``blocks.N.`` of the
    name, as transformers and timm spell them: ``"roberta.encoder.layer.3.output.dense.weight"`` is
    3. So layers of one number in an encoder and a decoder are one.
    """
    found = _LAYER_NAME.search(name)
    return int(found.group(1)) if found else None
