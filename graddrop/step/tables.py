"""The tables that the fast kernels read (``kernels/abi.py``): one row of numbers per slot."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import abi
from ..mask import LAYER_STREAM, ROUNDING_STREAM, ROW_STREAM, TENSOR_STREAM
from .knobs import Knobs
from .slot import Slot
from .walk import walk

_WALK_COLUMNS = (  # of the layout table, in the order of `walk`
    abi.SIZES,
    abi.PARAM_STRIDES,
    abi.GRAD_STRIDES,
    abi.MOMENT_STRIDES,
    abi.ELEMENT_STRIDES,
)
_SITES = {"grad": abi.SITE_GRAD, "update": abi.SITE_UPDATE, "freeze": abi.SITE_FREEZE}


def _mode(slot: Slot, knobs: Knobs) -> tuple[int, int, int]:
    """(mode, stream, unit) of the slot's decisions."""
    if not slot.is_masked(knobs):
        return 0, 0, 0
    site = _SITES[knobs.site]
    if site == abi.SITE_UPDATE and not knobs.mask_decay:
        site = abi.SITE_UPDATE_DECAY_ALL
    if slot.keep_bits is not None:
        return abi.SOURCE_LOADED * abi.N_SITES + site, 0, 0
    if knobs.granularity == "element":
        return abi.SOURCE_ELEMENT * abi.N_SITES + site, slot.stream_id, 0
    if knobs.granularity == "row":
        # A row of one entry is an element of the row stream.
        source = abi.SOURCE_ROW if slot.shard.row_size > 1 else abi.SOURCE_ELEMENT
        return source * abi.N_SITES + site, ROW_STREAM + slot.stream_id, 0
    mode = abi.SOURCE_TENSOR * abi.N_SITES + site
    if knobs.granularity == "layer":
        assert slot.layer is not None
        return mode, LAYER_STREAM, slot.layer
    return mode, TENSOR_STREAM, slot.stream_id


def tensor_tables(slots: Sequence[Slot], knobs: Sequence[Knobs]) -> tuple[Tensor, Tensor]:
    """Tensor table and layout table of a step (see ``kernels/abi.py``).

    Args:
        slots: all on one device.
        knobs: one per group.

    Returns:
        int64 CPU tensors ``[len(slots), N_TENSOR_COLUMNS]`` and ``[n, N_LAYOUT_COLUMNS]``.

    Raises:
        ValueError: a tensor has more than ``MAX_DIMS`` dimensions that cannot be merged.
    """
    rows: list[list[int]] = []
    layouts: list[list[int]] = []
    for slot in slots:
        mode, stream, unit = _mode(slot, knobs[slot.group])
        row_size = max(slot.shard.row_size, 1)
        by_row = mode // abi.N_SITES == abi.SOURCE_ROW
        # The contiguous kernels decide for a quad of neighbours at once.
        quads = not by_row or (row_size % 4 == 0 and row_size < 2**31)
        whole = slot.shard.global_shape == slot.param.shape
        begin = 0 if whole else slot.shard.begin
        # Most tensors are seen to be one range at a glance, without a walk.
        glance = whole and all(t.is_contiguous() for t in (slot.param, slot.grad, slot.exp_avg))
        dims = [] if glance and quads else walk(slot)
        contiguous = quads and (not dims or (len(dims) == 1 and set(dims[0][1:]) == {1}))
        if len(dims) > abi.MAX_DIMS:
            raise ValueError(
                f"expected at most {abi.MAX_DIMS} strided dimensions, got a parameter of shape "
                f"{tuple(slot.param.shape)} with strides {slot.param.stride()}: use "
                'backend="reference" or a contiguous parameter'
            )
        row = [0] * abi.N_TENSOR_COLUMNS
        for column, tensor in (
            (abi.PARAM, slot.param),
            (abi.GRAD, slot.grad),
            (abi.EXP_AVG, slot.exp_avg),
            (abi.EXP_AVG_SQ, slot.exp_avg_sq),
        ):
            row[column] = base_address(tensor, begin if contiguous else 0)
        row[abi.STEP] = slot.step.data_ptr()
        row[abi.BEGIN], row[abi.END] = begin, begin + slot.param.numel()
        row[abi.MODE], row[abi.STREAM], row[abi.UNIT] = mode, stream, unit
        row[abi.ROUNDING] = ROUNDING_STREAM + slot.stream_id
        row[abi.ROW_SIZE] = row_size
        row[abi.GROUP] = slot.group
        row[abi.DECISION] = abi.UNDECIDED
        row[abi.KEEP_BITS] = 0 if slot.keep_bits is None else slot.keep_bits.origin
        row[abi.LAYOUT] = -1 if contiguous else len(layouts)
        rows.append(row)
        if not contiguous:
            layout = [len(dims)] + [0] * (abi.N_LAYOUT_COLUMNS - 1)
            for i, column in enumerate(_WALK_COLUMNS):
                layout[column : column + len(dims)] = [dim[i] for dim in dims]
            layouts.append(layout)
    return (
        torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, abi.N_TENSOR_COLUMNS),
        torch.tensor(layouts, dtype=torch.int64, device="cpu").view(-1, abi.N_LAYOUT_COLUMNS),
    )


def base_address(tensor: Tensor, begin: int) -> int:
    """Address at which element 0 of the whole parameter would lie, were it all in memory.

    An empty shard has the address 0: nothing is read through it.
    """
    return tensor.data_ptr() - begin * tensor.element_size() if tensor.numel() else 0
