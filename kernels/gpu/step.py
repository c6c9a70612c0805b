"""The masked AdamW step in Triton: one pass over memory, one launch for all tensors.

Never autotuned: the step is in place, and an autotuner would apply it several times.
"""

import triton
import triton.language as tl

from .. import abi
from .philox import interleave4, u16_of_element, words_of_tile
from .prepare import ACTIVE, DRAW, FLOATS, INTS, KEEP, KEY_HIGH, KEY_LOW, THRESHOLD

TILES = 16  # tiles of 1024 elements per chunk: what one program of dense_step walks
BLOCK = 512  # entries per program of strided_step

# kernels see globals only as constexpr
_TILES, _TILE, _HALF = tl.constexpr(TILES), tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_BLOCK = tl.constexpr(BLOCK)
_PARAM, _GRAD = tl.constexpr(abi.PARAM), tl.constexpr(abi.GRAD)
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(abi.EXP_AVG), tl.constexpr(abi.EXP_AVG_SQ)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_STREAM = tl.constexpr(abi.STREAM)
_ROW_SIZE, _MODE = tl.constexpr(abi.ROW_SIZE), tl.constexpr(abi.MODE)
_LAYOUT = tl.constexpr(abi.LAYOUT)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_DIMS, _SIZES = tl.constexpr(abi.N_DIMS), tl.constexpr(abi.SIZES)
_PARAM_STRIDES = tl.constexpr(abi.PARAM_STRIDES)
_GRAD_STRIDES = tl.constexpr(abi.GRAD_STRIDES)
_MOMENT_STRIDES = tl.constexpr(abi.MOMENT_STRIDES)
_ELEMENT_STRIDES = tl.constexpr(abi.ELEMENT_STRIDES)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)
_SOURCE_NONE, _SOURCE_ELEMENT = tl.constexpr(abi.SOURCE_NONE), tl.constexpr(abi.SOURCE_ELEMENT)
_SOURCE_ROW, _SOURCE_TENSOR = tl.constexpr(abi.SOURCE_ROW), tl.constexpr(abi.SOURCE_TENSOR)
_SITE_GRAD, _SITE_UPDATE = tl.constexpr(abi.SITE_GRAD), tl.constexpr(abi.SITE_UPDATE)
_SITE_UPDATE_DECAY_ALL = tl.constexpr(abi.SITE_UPDATE_DECAY_ALL)
_SITE_FREEZE = tl.constexpr(abi.SITE_FREEZE)
_N_SITES, _N_SOURCES = tl.constexpr(abi.N_SITES), tl.constexpr(abi.N_SOURCES)
_ONE = tl.constexpr(1)


@triton.jit
def _adamw(
    param,  # [n] fp32
    grad,  # [n] fp32
    exp_avg,  # [n] fp32
    exp_avg_sq,  # [n] fp32
    keep,  # bool, [n] or scalar; not read where SOURCE is none
    scalars,  # the tensor's floats from `prepare`
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """One block's new param, exp_avg, exp_avg_sq: graddrop.reference.adamw_step_, line by line."""
    grad_factor, lerp1, beta2, lerp2, eps, decay_factor, step_size, inv_bias_correction2_sqrt = (
        scalars
    )
    MASKED: tl.constexpr = SOURCE != _SOURCE_NONE
    # gradient: scale, mask
    grad = grad * grad_factor
    if MASKED and (SITE == _SITE_GRAD or SITE == _SITE_FREEZE):
        grad = tl.where(keep, grad, 0.0)
    # decoupled weight decay
    decayed = param * decay_factor
    # moments
    new_exp_avg = exp_avg + lerp1 * (grad - exp_avg)
    new_exp_avg_sq = beta2 * exp_avg_sq + lerp2 * grad * grad
    # update
    denom = tl.sqrt(new_exp_avg_sq) * inv_bias_correction2_sqrt + eps
    new_param = decayed - step_size * (new_exp_avg / denom)
    # select
    if MASKED and SITE == _SITE_UPDATE:
        new_param = tl.where(keep, new_param, param)
    if MASKED and SITE == _SITE_UPDATE_DECAY_ALL:
        new_param = tl.where(keep, new_param, decayed)
    if MASKED and SITE == _SITE_FREEZE:
        new_param = tl.where(keep, new_param, param)
        new_exp_avg = tl.where(keep, new_exp_avg, exp_avg)
        new_exp_avg_sq = tl.where(keep, new_exp_avg_sq, exp_avg_sq)
    return new_param, new_exp_avg, new_exp_avg_sq


@triton.jit
def _step_block(
    param_ptrs,  # [n] pointers
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    exp_avg_sq_ptrs,  # [n] pointers
    in_bounds,  # [n] bool, or None: all of them
    keep,  # as in _adamw
    scalars,  # as in _adamw
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Load, step, store one block."""
    # load, in fp32
    param = tl.load(param_ptrs, mask=in_bounds)
    grad = tl.load(grad_ptrs, mask=in_bounds)
    exp_avg = tl.load(exp_avg_ptrs, mask=in_bounds)
    exp_avg_sq = tl.load(exp_avg_sq_ptrs, mask=in_bounds)
    new_param, new_exp_avg, new_exp_avg_sq = _adamw(
        param.to(tl.float32),
        grad.to(tl.float32),
        exp_avg.to(tl.float32),
        exp_avg_sq.to(tl.float32),
        keep,
        scalars,
        SOURCE,
        SITE,
    )
    # store
    tl.store(param_ptrs, new_param.to(param.dtype), mask=in_bounds)
    tl.store(exp_avg_ptrs, new_exp_avg.to(exp_avg.dtype), mask=in_bounds)
    tl.store(exp_avg_sq_ptrs, new_exp_avg_sq.to(exp_avg_sq.dtype), mask=in_bounds)


@triton.jit
def _load_scalars(floats):
    """The tensor's floats, in the order of _adamw."""
    return (
        tl.load(floats + 0),
        tl.load(floats + 1),
        tl.load(floats + 2),
        tl.load(floats + 3),
        tl.load(floats + 4),
        tl.load(floats + 5),
        tl.load(floats + 6),
        tl.load(floats + 7),
    )


@triton.jit
def _load_key(row, ints):
    """(threshold, stream, draw, seed) of the tensor: three uint32 and one uint64 scalar."""
    low = tl.load(ints + KEY_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(ints + KEY_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (
        tl.load(ints + THRESHOLD).to(tl.uint32),
        tl.load(row + _STREAM).to(tl.uint32),
        tl.load(ints + DRAW).to(tl.uint32, bitcast=True),
        (high << 32) | low,
    )


@triton.jit
def _keep_rows(start, row_size, key):
    """Keep of the 512 elements from `start` on: rows are multiples of 4, a quad shares its row."""
    threshold, stream, draw, seed = key
    start = start.to(tl.uint64)
    # Only the way from the row of `start` is divided element by element, hence in 32 bits.
    inside = (start % row_size).to(tl.uint32) + tl.arange(0, _HALF // 4).to(tl.uint32) * 4
    rows = start // row_size + (inside // row_size.to(tl.uint32)).to(tl.uint64)
    bits = u16_of_element(rows, stream, draw, seed)
    return interleave4(bits, bits, bits, bits) >= threshold


@triton.jit
def _dense_chunk(
    row,  # int64*: the tensor's row of the tensor table
    floats,  # fp32*: its scalars
    ints,  # int32*: its integers
    first_tile,  # int64 scalar: first tile of the chunk, counted in the whole parameter
    n_tiles,  # int32 scalar
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,  # no bounds to check; a mask would cost the 128-bit loads
):
    """Step the elements of n_tiles tiles."""
    param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE))
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE))
    exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE))
    if ALIGNED:
        param, grad = tl.multiple_of(param, 16), tl.multiple_of(grad, 16)
        exp_avg, exp_avg_sq = tl.multiple_of(exp_avg, 16), tl.multiple_of(exp_avg_sq, 16)
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    scalars = _load_scalars(floats)
    key = _load_key(row, ints)
    threshold, stream, draw, seed = key
    row_size = tl.load(row + _ROW_SIZE).to(tl.uint64)
    decision = tl.load(ints + KEEP) != 0

    for i in range(n_tiles):
        tile = first_tile + i
        if SOURCE == _SOURCE_ELEMENT:
            words = words_of_tile(tile.to(tl.uint64), stream, draw, seed, VECTOR)
        for half in tl.static_range(2):
            start = tile * _TILE + half * _HALF
            offset = tl.arange(0, _HALF)
            in_bounds = None
            if not FULL:
                in_bounds = (start + offset >= begin) & (start + offset < end)
            if SOURCE == _SOURCE_ELEMENT:
                keep = ((words >> (16 * half)) & 0xFFFF) >= threshold
            elif SOURCE == _SOURCE_ROW:
                keep = _keep_rows(start, row_size, key)
            else:
                keep = decision
            _step_block(
                param + start + offset,
                grad + start + offset,
                exp_avg + start + offset,
                exp_avg_sq + start + offset,
                in_bounds,
                keep,
                scalars,
                SOURCE,
                SITE,
            )


@triton.jit
def dense_step(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    floats,  # fp32 [n_tensors, FLOATS], from `prepare`
    ints,  # int32 [n_tensors, INTS], from `prepare`
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    MODES: tl.constexpr,  # bit m is set iff a tensor of the launch has mode m
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
    VECTOR: tl.constexpr,  # neighbouring elements per thread: 8 where all dtypes have 16 bits
):
    """Step one chunk of a tensor that is one contiguous range of its whole parameter."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    row = tensor_table + tensor * _N_TENSOR_COLUMNS
    floats = floats + tensor * FLOATS
    ints = ints + tensor * INTS
    if tl.load(ints + ACTIVE) != 0:
        mode = tl.load(row + _MODE)
        begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
        first_tile = begin // _TILE + tl.load(chunk + 1).to(tl.int64) * _TILES
        full = (first_tile * _TILE >= begin) & ((first_tile + _TILES) * _TILE <= end)
        n_tiles = tl.minimum((end - 1) // _TILE + 1 - first_tile, _TILES).to(tl.int32)
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        # Two copies of the loop: bounds would cost the main one its wide loads.
                        if full:
                            _dense_chunk(
                                row,
                                floats,
                                ints,
                                first_tile,
                                _TILES,
                                PARAM_DTYPE,
                                GRAD_DTYPE,
                                MOMENT_DTYPE,
                                source,
                                site,
                                ALIGNED,
                                VECTOR,
                                True,
                            )
                        else:
                            _dense_chunk(
                                row,
                                floats,
                                ints,
                                first_tile,
                                n_tiles,
                                PARAM_DTYPE,
                                GRAD_DTYPE,
                                MOMENT_DTYPE,
                                source,
                                site,
                                ALIGNED,
                                VECTOR,
                                False,
                            )


@triton.jit
def strided_step(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, block within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    layout_table,  # int64 [n_strided, N_LAYOUT_COLUMNS]
    floats,  # fp32 [n_tensors, FLOATS], from `prepare`
    ints,  # int32 [n_tensors, INTS], from `prepare`
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    MODES: tl.constexpr,  # as in dense_step
):
    """Step one block of a tensor of any strides, each entry finding its own bits."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    row = tensor_table + tensor * _N_TENSOR_COLUMNS
    floats = floats + tensor * FLOATS
    ints = ints + tensor * INTS
    if tl.load(ints + ACTIVE) != 0:
        mode = tl.load(row + _MODE)
        layout = layout_table + tl.load(row + _LAYOUT) * _N_LAYOUT_COLUMNS
        entry = tl.load(chunk + 1).to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)
        in_bounds = entry < tl.load(row + _END) - tl.load(row + _BEGIN)
        rest = entry.to(tl.uint64)
        at_param = tl.zeros_like(entry)
        at_grad = tl.zeros_like(entry)
        at_moment = tl.zeros_like(entry)
        element = tl.zeros_like(entry) + tl.load(row + _BEGIN)
        n_dims = tl.load(layout + _N_DIMS).to(tl.int32)
        for i in range(n_dims):
            dim = layout + (n_dims - 1 - i)
            size = tl.load(dim + _SIZES).to(tl.uint64)
            index = (rest % size).to(tl.int64)
            rest = rest // size
            at_param += index * tl.load(dim + _PARAM_STRIDES)
            at_grad += index * tl.load(dim + _GRAD_STRIDES)
            at_moment += index * tl.load(dim + _MOMENT_STRIDES)
            element += index * tl.load(dim + _ELEMENT_STRIDES)
        param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE)) + at_param
        grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE)) + at_grad
        exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        scalars = _load_scalars(floats)
        threshold, stream, draw, seed = _load_key(row, ints)
        row_size = tl.load(row + _ROW_SIZE).to(tl.uint64)
        decision = tl.load(ints + KEEP) != 0
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        keep = decision
                        if source == _SOURCE_ELEMENT:
                            bits = u16_of_element(element.to(tl.uint64), stream, draw, seed)
                            keep = bits >= threshold
                        if source == _SOURCE_ROW:
                            rows = element.to(tl.uint64) // row_size
                            keep = u16_of_element(rows, stream, draw, seed) >= threshold
                        _step_block(
                            param,
                            grad,
                            exp_avg,
                            exp_avg_sq,
                            in_bounds,
                            keep,
                            scalars,
                            source,
                            site,
                        )
