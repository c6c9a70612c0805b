"""The masked AdamW step in Triton: one pass over memory, one launch for all tensors.

Never autotuned: the step is in place, and an autotuner would apply it several times.
"""

import triton
import triton.language as tl

from .. import abi
from .philox import u16_of_element, words_of_tile
from .prepare import ACTIVE, FLOATS, INTS
from .walk import (
    TILES,
    chunk_tiles,
    keep_elements,
    keep_half_tile,
    load_key,
    load_rounding_key,
    locate,
)

# kernels see globals only as constexpr
_TILES, _TILE, _HALF = tl.constexpr(TILES), tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_PARAM, _GRAD = tl.constexpr(abi.PARAM), tl.constexpr(abi.GRAD)
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(abi.EXP_AVG), tl.constexpr(abi.EXP_AVG_SQ)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_MODE, _LAYOUT = tl.constexpr(abi.MODE), tl.constexpr(abi.LAYOUT)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)
_SOURCE_NONE, _SOURCE_ELEMENT = tl.constexpr(abi.SOURCE_NONE), tl.constexpr(abi.SOURCE_ELEMENT)
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
    """One block's new param, exp_avg, exp_avg_sq: graddrop.reference.adamw_step_, line by line.

    Where products and sums fuse is said here: a compiler's choice would differ between the copies
    of the loop, and an entry's result would depend on where its tensor is cut.
    """
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
    new_exp_avg = tl.fma(grad - exp_avg, lerp1, exp_avg)
    new_exp_avg_sq = tl.fma(exp_avg_sq, beta2, lerp2 * grad * grad)
    # update
    denom = tl.fma(tl.sqrt(new_exp_avg_sq), inv_bias_correction2_sqrt, eps)
    new_param = tl.fma(new_exp_avg / denom, -step_size, decayed)
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
def _round_to_bfloat16(value, bits):
    """graddrop.reference.round_to_bfloat16: fp32 [n] with 16 bits each, uint32 [n]."""
    cut = (value.to(tl.uint32, bitcast=True) + bits) >> 16
    return tl.where(value == value, cut, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _step_block(
    param_ptrs,  # [n] pointers
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    exp_avg_sq_ptrs,  # [n] pointers
    in_bounds,  # [n] bool, or None: all of them
    keep,  # as in _adamw
    rounding_bits,  # uint32 [n], 16 random bits each to round a bfloat16 param; None: to nearest
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
    if rounding_bits is None:
        rounded = new_param.to(param.dtype)
    else:
        rounded = _round_to_bfloat16(new_param, rounding_bits)
    tl.store(param_ptrs, rounded, mask=in_bounds)
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
    STOCHASTIC: tl.constexpr,
    BOUNDED: tl.constexpr,  # entries may lie out of bounds; the check costs the 128-bit loads
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
    key = load_key(row, ints)
    threshold, stream, draw, seed, row_size, decision = key
    rounding_stream, rounding_draw = load_rounding_key(row, ints)

    for i in range(n_tiles):
        tile = first_tile + i
        words = None
        rounding_words = None
        if STOCHASTIC:
            rounding_words = words_of_tile(
                tile.to(tl.uint64), rounding_stream, rounding_draw, seed, VECTOR
            )
        if SOURCE == _SOURCE_ELEMENT:
            words = words_of_tile(tile.to(tl.uint64), stream, draw, seed, VECTOR)
        for half in tl.static_range(2):
            start = tile * _TILE + half * _HALF
            offset = tl.arange(0, _HALF)
            in_bounds = None
            if BOUNDED:
                in_bounds = (start + offset >= begin) & (start + offset < end)
            keep = keep_half_tile(start, words, key, half, SOURCE)
            rounding_bits = None
            if STOCHASTIC:
                rounding_bits = (rounding_words >> (16 * half)) & 0xFFFF
            _step_block(
                param + start + offset,
                grad + start + offset,
                exp_avg + start + offset,
                exp_avg_sq + start + offset,
                in_bounds,
                keep,
                rounding_bits,
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
    STOCHASTIC: tl.constexpr,  # parameters are bfloat16 and rounded at random
):
    """Step one chunk of a tensor that is one contiguous range of its whole parameter."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    row = tensor_table + tensor * _N_TENSOR_COLUMNS
    floats = floats + tensor * FLOATS
    ints = ints + tensor * INTS
    if tl.load(ints + ACTIVE) != 0:
        mode = tl.load(row + _MODE)
        first_tile, n_tiles, full = chunk_tiles(row, tl.load(chunk + 1))
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        # Two copies of the loop: bounds would cost the main one its wide loads.
                        for bounded in tl.static_range(2):
                            if full != bounded:
                                _dense_chunk(
                                    row,
                                    floats,
                                    ints,
                                    first_tile,
                                    n_tiles if bounded else _TILES,
                                    PARAM_DTYPE,
                                    GRAD_DTYPE,
                                    MOMENT_DTYPE,
                                    source,
                                    site,
                                    ALIGNED,
                                    VECTOR,
                                    STOCHASTIC,
                                    bounded,
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
    STOCHASTIC: tl.constexpr,  # as in dense_step
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
        in_bounds, at_param, at_grad, at_moment, element = locate(row, layout, tl.load(chunk + 1))
        param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE)) + at_param
        grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE)) + at_grad
        exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        scalars = _load_scalars(floats)
        key = load_key(row, ints)
        threshold, stream, draw, seed, row_size, decision = key
        rounding_bits = None
        if STOCHASTIC:
            rounding_stream, rounding_draw = load_rounding_key(row, ints)
            rounding_bits = u16_of_element(
                element.to(tl.uint64), rounding_stream, rounding_draw, seed
            )
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        keep = keep_elements(element, key, source)
                        _step_block(
                            param,
                            grad,
                            exp_avg,
                            exp_avg_sq,
                            in_bounds,
                            keep,
                            rounding_bits,
                            scalars,
                            source,
                            site,
                        )
