"""The numbers of one optimizer step, written into the tables that the fast kernels read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import abi
from ..mask import (
    LAYER_STREAM,
    ROUNDING_STREAM,
    ROW_STREAM,
    TENSOR_STREAM,
    Shard,
    keep_elements,
    keep_mask,
    random_u16,
    threshold,
)

_WALK_COLUMNS = (  # of the layout table, in the order of `_walk`
    abi.SIZES,
    abi.PARAM_STRIDES,
    abi.GRAD_STRIDES,
    abi.MOMENT_STRIDES,
    abi.ELEMENT_STRIDES,
)
_SITES = {"grad": abi.SITE_GRAD, "update": abi.SITE_UPDATE, "freeze": abi.SITE_FREEZE}


@dataclass(frozen=True, slots=True)
class Knobs:
    """What the entries of one parameter group share; meanings as in ``FusedGradDropAdamW``.

    ``lr`` and ``drop_prob`` are floats or 0-dim tensors, which a device reads for itself.
    ``period`` is K for a new mask every K steps, 0 for masks begun by hand.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    drop_prob: float | Tensor
    granularity: str
    site: str
    rescale: bool
    mask_decay: bool
    seed: int
    period: int
    stochastic_rounding: bool = False

    @property
    def masks_nothing(self) -> bool:
        """True for an exempt group: plain AdamW, with no randomness drawn."""
        return not isinstance(self.drop_prob, Tensor) and self.drop_prob == 0.0

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
        """Of each parameter, whether a decision of its own or its layer's keeps it as a whole.

        True where there is none: finer granularities, exempt groups, parameters in no layer.
        """
        if self.masks_nothing or self.granularity not in ("tensor", "layer"):
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One (local) parameter tensor of a step, with its state and its place in the masks.

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

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        """(param, grad, moments)."""
        return self.param.dtype, self.grad.dtype, self.exp_avg.dtype

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


def _walk(entry: Entry) -> list[tuple[int, ...]]:
    """Dimensions in walking order: (size, param, grad, moment, element stride), outermost first.

    The walk follows the parameter's memory. Neighbouring dimensions that all four strides step
    through alike are merged, so a tensor that is one contiguous range gives at most one dimension.
    """
    dims = sorted(
        (
            dim
            for dim in zip(
                entry.param.shape,
                entry.param.stride(),
                entry.grad.stride(),
                entry.exp_avg.stride(),
                entry.shard.strides,
                strict=True,
            )
            if dim[0] != 1
        ),
        key=lambda dim: dim[1],
        reverse=True,
    )
    merged: list[tuple[int, ...]] = []
    for size, *strides in dims:
        if merged and all(
            outer == size * inner for outer, inner in zip(merged[-1][1:], strides, strict=True)
        ):
            size *= merged.pop()[0]
        merged.append((size, *strides))
    return merged


def _mode(entry: Entry, knobs: Knobs) -> tuple[int, int, int]:
    """(mode, stream, unit) of the entry's decisions."""
    if knobs.masks_nothing or (knobs.granularity == "layer" and entry.layer is None):
        return 0, 0, 0
    site = _SITES[knobs.site]
    if site == abi.SITE_UPDATE and not knobs.mask_decay:
        site = abi.SITE_UPDATE_DECAY_ALL
    if knobs.granularity == "element":
        return abi.SOURCE_ELEMENT * abi.N_SITES + site, entry.stream_id, 0
    if knobs.granularity == "row":
        # A row of one entry is an element of the row stream.
        source = abi.SOURCE_ROW if entry.shard.row_size > 1 else abi.SOURCE_ELEMENT
        return source * abi.N_SITES + site, ROW_STREAM + entry.stream_id, 0
    mode = abi.SOURCE_TENSOR * abi.N_SITES + site
    if knobs.granularity == "layer":
        assert entry.layer is not None
        return mode, LAYER_STREAM, entry.layer
    return mode, TENSOR_STREAM, entry.stream_id


def tensor_tables(entries: Sequence[Entry], knobs: Sequence[Knobs]) -> tuple[Tensor, Tensor]:
    """Tensor table and layout table of a step (see ``kernels/abi.py``).

    Args:
        entries: the tensors, all on one device.
        knobs: one per group.

    Returns:
        int64 CPU tensors ``[len(entries), N_TENSOR_COLUMNS]`` and ``[n, N_LAYOUT_COLUMNS]``.

    Raises:
        ValueError: a tensor has more than ``MAX_DIMS`` dimensions that cannot be merged.
    """
    rows: list[list[int]] = []
    layouts: list[list[int]] = []
    for entry in entries:
        mode, stream, unit = _mode(entry, knobs[entry.group])
        row_size = max(entry.shard.row_size, 1)
        by_row = mode // abi.N_SITES == abi.SOURCE_ROW
        # The contiguous kernels decide for a quad of neighbours at once.
        quads = not by_row or (row_size % 4 == 0 and row_size < 2**31)
        whole = entry.shard.global_shape == entry.param.shape
        begin = 0 if whole else entry.shard.begin
        # Most tensors are seen to be one range at a glance, without a walk.
        glance = whole and all(t.is_contiguous() for t in (entry.param, entry.grad, entry.exp_avg))
        walk = [] if glance and quads else _walk(entry)
        contiguous = quads and (not walk or (len(walk) == 1 and set(walk[0][1:]) == {1}))
        if len(walk) > abi.MAX_DIMS:
            raise ValueError(
                f"expected at most {abi.MAX_DIMS} strided dimensions, got a parameter of shape "
                f"{tuple(entry.param.shape)} with strides {entry.param.stride()}: use "
                'backend="reference" or a contiguous parameter'
            )
        row = [0] * abi.N_TENSOR_COLUMNS
        for column, tensor in (
            (abi.PARAM, entry.param),
            (abi.GRAD, entry.grad),
            (abi.EXP_AVG, entry.exp_avg),
            (abi.EXP_AVG_SQ, entry.exp_avg_sq),
        ):
            row[column] = origin(tensor, begin if contiguous else 0)
        row[abi.STEP] = entry.step.data_ptr()
        row[abi.BEGIN], row[abi.END] = begin, begin + entry.param.numel()
        row[abi.MODE], row[abi.STREAM], row[abi.UNIT] = mode, stream, unit
        row[abi.ROUNDING] = ROUNDING_STREAM + entry.stream_id
        row[abi.ROW_SIZE] = row_size
        row[abi.GROUP] = entry.group
        row[abi.LAYOUT] = -1 if contiguous else len(layouts)
        rows.append(row)
        if not contiguous:
            layout = [len(walk)] + [0] * (abi.N_LAYOUT_COLUMNS - 1)
            for i, column in enumerate(_WALK_COLUMNS):
                layout[column : column + len(walk)] = [dim[i] for dim in walk]
            layouts.append(layout)
    return (
        torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, abi.N_TENSOR_COLUMNS),
        torch.tensor(layouts, dtype=torch.int64, device="cpu").view(-1, abi.N_LAYOUT_COLUMNS),
    )


def origin(tensor: Tensor, begin: int) -> int:
    """Address at which element 0 of the whole parameter would lie, were it all in memory.

    An empty shard has the address 0: nothing is read through it.
    """
    return tensor.data_ptr() - begin * tensor.element_size() if tensor.numel() else 0
