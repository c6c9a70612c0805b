"""The masked AdamW step in Triton: one pass over memory, one launch for all tensors.

Never autotuned: the step is in place, and an autotuner would apply it several times.
"""

import triton
import triton.language as tl

from .. import abi
from .adamw import adamw, load_scalars, round_to_bfloat16
from .decide import decide_tile, keep_elements, keep_half_tile, load_key, locate_rows
from .modes import call_for_mode
from .philox import u16_of_element, words_of_tile
from .prepare import ACTIVE, FLOATS, INTS, ROUNDING_DRAW
from .walk import beside_vectors, chunk_tiles, load_chunk, locate, whole_vectors

# kernels see globals only as constexpr
_TILE, _HALF = tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_PARAM, _GRAD = tl.constexpr(abi.PARAM), tl.constexpr(abi.GRAD)
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(abi.EXP_AVG), tl.constexpr(abi.EXP_AVG_SQ)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_MODE, _LAYOUT = tl.constexpr(abi.MODE), tl.constexpr(abi.LAYOUT)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)
_ROUNDING = tl.constexpr(abi.ROUNDING)


@triton.jit
def _step_block(
    param_ptrs,  # [n] pointers
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    exp_avg_sq_ptrs,  # [n] pointers
    in_bounds,  # [n] bool, or None: all of them
    keep,  # as in adamw
    rounding_bits,  # uint32 [n], 16 random bits each to round a bfloat16 param; None: to nearest
    scalars,  # as in adamw
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Load, step, store one block."""
    # load, in fp32
    p = tl.load(param_ptrs, mask=in_bounds).to(tl.float32)
    g = tl.load(grad_ptrs, mask=in_bounds).to(tl.float32)
    m = tl.load(exp_avg_ptrs, mask=in_bounds).to(tl.float32)
    v = tl.load(exp_avg_sq_ptrs, mask=in_bounds).to(tl.float32)
    p_new, m_new, v_new = adamw(p, g, m, v, keep, scalars, PTX, SOURCE, SITE)
    # store
    if rounding_bits is not None:
        p_new = round_to_bfloat16(p_new, rounding_bits)
    tl.store(param_ptrs, p_new.to(param_ptrs.dtype.element_ty), mask=in_bounds)
    tl.store(exp_avg_ptrs, m_new.to(exp_avg_ptrs.dtype.element_ty), mask=in_bounds)
    tl.store(exp_avg_sq_ptrs, v_new.to(exp_avg_sq_ptrs.dtype.element_ty), mask=in_bounds)


@triton.jit
def _load_rounding_key(row, ints):
    """(stream, draw) of the bits that round a tensor: two uint32 scalars."""
    return (
        tl.load(row + _ROUNDING).to(tl.uint32),
        tl.load(ints + ROUNDING_DRAW).to(tl.uint32, bitcast=True),
    )


@triton.jit
def _load_origins(
    row,  # int64*: the tensor's row of the tensor table
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
):
    """Pointers to element 0 of the whole param, grad, exp_avg, exp_avg_sq."""
    param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE))
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE))
    exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE))
    if ALIGNED:
        param, grad = tl.multiple_of(param, 16), tl.multiple_of(grad, 16)
        exp_avg, exp_avg_sq = tl.multiple_of(exp_avg, 16), tl.multiple_of(exp_avg_sq, 16)
    return param, grad, exp_avg, exp_avg_sq


@triton.jit
def _dense_chunk(
    row,  # int64*: the tensor's row of the tensor table
    ints,  # int32*: its integers
    origins,  # _load_origins
    scalars,  # load_scalars
    chunk,  # int32 scalar: number within the tensor
    tiles,  # int32 scalar: tiles per chunk
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Step one chunk: in wide accesses, then what they leave at the tensor's ends."""
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    first_tile, n_tiles, full = chunk_tiles(begin, end, chunk, tiles)
    key, rounding_key = load_key(row, ints), _load_rounding_key(row, ints)
    # Two copies of the loop: the main one is not to pay for bounds.
    for bounded in tl.static_range(2):
        if full != bounded:
            _dense_tiles(
                key,
                rounding_key,
                origins,
                scalars,
                first_tile,
                n_tiles,
                whole_vectors(begin, end, VECTOR, ALIGNED),
                VECTOR,
                STOCHASTIC,
                PTX,
                SOURCE,
                SITE,
                bounded,
            )
    if ALIGNED:
        if (begin % VECTOR != 0) | (end % VECTOR != 0):
            in_bounds, element = beside_vectors(begin, end, first_tile, n_tiles, VECTOR)
            offsets = (element, element, element)
            _step_elements(
                key,
                rounding_key,
                origins,
                scalars,
                in_bounds,
                offsets,
                element,
                element,
                STOCHASTIC,
                PTX,
                SOURCE,
                SITE,
            )


@triton.jit
def _dense_tiles(
    key,  # load_key
    rounding_key,  # _load_rounding_key
    origins,  # _load_origins
    scalars,  # load_scalars
    first_tile,  # int64 scalar: counted in the whole parameter
    n_tiles,  # int64 scalar
    bounds,  # whole_vectors
    VECTOR: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
    BOUNDED: tl.constexpr,  # elements may lie out of bounds
):
    """Step the elements of n_tiles tiles that lie within the bounds."""
    param, grad, exp_avg, exp_avg_sq = origins
    begin, end = bounds
    threshold, stream, draw, seed, row_size, decision, loaded = key
    rounding_stream, rounding_draw = rounding_key
    rows = locate_rows(row_size, first_tile, SOURCE)

    for i in range(n_tiles.to(tl.int32)):
        tile = first_tile + i
        rounding_words = None
        if STOCHASTIC:
            rounding_words = words_of_tile(
                tile.to(tl.uint64), rounding_stream, rounding_draw, seed, VECTOR, PTX
            )
        decided = decide_tile(first_tile, i, rows, key, VECTOR, PTX, SOURCE)
        for half in tl.static_range(2):
            start = tile * _TILE + half * _HALF
            offset = tl.arange(0, _HALF)
            in_bounds = None
            if BOUNDED:
                in_bounds = (start + offset >= begin) & (start + offset < end)
            keep = keep_half_tile(start, decided, key, half, VECTOR, SOURCE)
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
                PTX,
                SOURCE,
                SITE,
            )


@triton.jit
def _step_elements(
    key,  # load_key
    rounding_key,  # _load_rounding_key
    origins,  # _load_origins
    scalars,  # load_scalars
    in_bounds,  # [n] bool
    offsets,  # int64 [n] each: from the origins of param, grad, moments
    element,  # int64 [n]: index in the whole parameter
    number,  # int64 [n]: of its bit in a loaded mask
    STOCHASTIC: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Step one block of elements of which each finds its own bits."""
    param, grad, exp_avg, exp_avg_sq = origins
    at_param, at_grad, at_moment = offsets
    threshold, stream, draw, seed, row_size, decision, loaded = key
    rounding_bits = None
    if STOCHASTIC:
        rounding_stream, rounding_draw = rounding_key
        rounding_bits = u16_of_element(element.to(tl.uint64), rounding_stream, rounding_draw, seed)
    _step_block(
        param + at_param,
        grad + at_grad,
        exp_avg + at_moment,
        exp_avg_sq + at_moment,
        in_bounds,
        keep_elements(element, number, in_bounds, key, SOURCE),
        rounding_bits,
        scalars,
        PTX,
        SOURCE,
        SITE,
    )


@triton.jit(do_not_specialize=["tiles"])
def dense_step(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    floats,  # fp32 [n_tensors, FLOATS], from `prepare`
    ints,  # int32 [n_tensors, INTS], from `prepare`
    tiles,  # per chunk
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    MODES: tl.constexpr,  # bit m is set iff a tensor of the launch has mode m
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
    VECTOR: tl.constexpr,  # neighbouring elements per thread: 8 where all dtypes have 16 bits
    STOCHASTIC: tl.constexpr,  # parameters are bfloat16 and rounded at random
    PTX: tl.constexpr,  # compiled by way of PTX, so for NVIDIA
):
    """Step one chunk of a tensor that is one contiguous range of its whole parameter."""
    tensor, row, chunk = load_chunk(chunks, tensor_table)
    ints = ints + tensor * INTS
    if tl.load(ints + ACTIVE) != 0:
        origins = _load_origins(row, PARAM_DTYPE, GRAD_DTYPE, MOMENT_DTYPE, ALIGNED)
        scalars = load_scalars(floats + tensor * FLOATS)
        call_for_mode(
            tl.load(row + _MODE),
            MODES,
            _dense_chunk,
            (row, ints, origins, scalars, chunk, tiles, ALIGNED, VECTOR, STOCHASTIC, PTX),
        )


@triton.jit
def _strided_block(
    row,  # int64*: the tensor's row of the tensor table
    layout,  # int64*: its row of the layout table
    ints,  # int32*: its integers
    origins,  # _load_origins
    scalars,  # load_scalars
    block,  # int32 scalar: number within the tensor
    STOCHASTIC: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Step one block."""
    in_bounds, at_param, at_grad, at_moment, element, number = locate(row, layout, block)
    offsets = (at_param, at_grad, at_moment)
    _step_elements(
        load_key(row, ints),
        _load_rounding_key(row, ints),
        origins,
        scalars,
        in_bounds,
        offsets,
        element,
        number,
        STOCHASTIC,
        PTX,
        SOURCE,
        SITE,
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
    PTX: tl.constexpr,  # as in dense_step
):
    """Step one block of a tensor of any strides."""
    tensor, row, block = load_chunk(chunks, tensor_table)
    ints = ints + tensor * INTS
    if tl.load(ints + ACTIVE) != 0:
        layout = layout_table + tl.load(row + _LAYOUT) * _N_LAYOUT_COLUMNS
        origins = _load_origins(row, PARAM_DTYPE, GRAD_DTYPE, MOMENT_DTYPE, False)
        scalars = load_scalars(floats + tensor * FLOATS)
        call_for_mode(
            tl.load(row + _MODE),
            MODES,
            _strided_block,
            (row, layout, ints, origins, scalars, block, STOCHASTIC, PTX),
        )
