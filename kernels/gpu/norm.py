"""Sums of squares of gradients in Triton, of all or of those that the masks keep."""

import triton
import triton.language as tl

from .. import abi
from .decide import decide_tile, keep_elements, keep_half_tile, load_key, locate_rows
from .modes import call_for_mode
from .prepare import FLOATS, GRAD_FACTOR, INTS
from .walk import beside_vectors, chunk_tiles, load_chunk, locate, whole_vectors

# kernels see globals only as constexpr
_TILE, _HALF = tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_GRAD, _BEGIN, _END = tl.constexpr(abi.GRAD), tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_NO_GRAD = tl.constexpr(abi.NO_GRAD)
_MODE, _LAYOUT = tl.constexpr(abi.MODE), tl.constexpr(abi.LAYOUT)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)
_SOURCE_NONE = tl.constexpr(abi.SOURCE_NONE)
_SCALE, _SCALE_SQUARED_INVERSE = tl.constexpr(2.0**-80), tl.constexpr(2.0**160)
SUM_BLOCK = tl.constexpr(1024)  # partial sums that `sum_chunks` adds at a time


@triton.constexpr_function
def _on_grad(source, site):
    """What shares a decision on the gradient: none where only the update is masked."""
    return source if site in (abi.SITE_GRAD, abi.SITE_FREEZE) else abi.SOURCE_NONE


@triton.jit
def _load_grad(grad_ptrs, in_bounds):
    """One block of gradients, fp32; 0 where out of bounds."""
    if in_bounds is None:
        return tl.load(grad_ptrs).to(tl.float32)
    else:
        return tl.load(grad_ptrs, mask=in_bounds, other=0.0).to(tl.float32)


@triton.jit
def _sum_tiles(
    key,  # load_key
    grad,  # pointer to element 0 of the whole gradient
    first_tile,  # int64 scalar: counted in the whole parameter
    n_tiles,  # int64 scalar
    bounds,  # whole_vectors
    VECTOR: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    BOUNDED: tl.constexpr,  # elements may lie out of bounds
    SCALE: tl.constexpr,  # multiplies every gradient
):
    """The sum of the squares in n_tiles tiles, within the bounds, fp32."""
    begin, end = bounds
    threshold, stream, draw, seed, row_size, decision, loaded = key
    rows = locate_rows(row_size, first_tile, SOURCE)
    offset = tl.arange(0, _HALF)
    sums = tl.zeros([_HALF], tl.float32)
    for i in range(n_tiles.to(tl.int32)):
        decided = decide_tile(first_tile, i, rows, key, VECTOR, PTX, SOURCE)
        for half in tl.static_range(2):
            start = (first_tile + i) * _TILE + half * _HALF
            in_bounds = None
            if BOUNDED:
                in_bounds = (start + offset >= begin) & (start + offset < end)
            keep = keep_half_tile(start, decided, key, half, VECTOR, SOURCE)
            g = _load_grad(grad + start + offset, in_bounds)
            if SCALE != 1.0:
                g = g * SCALE
            with_g = tl.fma(g, g, sums)
            sums = with_g if SOURCE == _SOURCE_NONE else tl.where(keep, with_g, sums)
    return tl.sum(sums)


@triton.jit
def _sum_elements(
    key,  # load_key
    grad_ptrs,  # [n] pointers
    in_bounds,  # [n] bool
    element,  # int64 [n]: index in the whole parameter
    number,  # int64 [n]: of its bit in a loaded mask
    SOURCE: tl.constexpr,
):
    """The sum of the squares of a block of elements of which each finds its own bits, fp64."""
    keep = keep_elements(element, number, in_bounds, key, SOURCE)
    if SOURCE != _SOURCE_NONE:
        in_bounds = in_bounds & keep
    g = _load_grad(grad_ptrs, in_bounds).to(tl.float64)
    return tl.sum(g * g)


@triton.jit
def _sum_chunk(
    row,  # int64*: the tensor's row of the tensor table
    ints,  # int32*: its integers
    grad,  # pointer to element 0 of the whole gradient
    partial,  # fp64*: the chunk's sum, out
    chunk,  # int32 scalar: number within the tensor
    tiles,  # int32 scalar: tiles per chunk
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Sum the squares of one chunk."""
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    first_tile, n_tiles, full = chunk_tiles(begin, end, chunk, tiles)
    key = load_key(row, ints)
    has_grad = tl.load(row + _GRAD) != _NO_GRAD
    n_tiles = tl.where(has_grad, n_tiles, 0)
    bounds = whole_vectors(begin, end, VECTOR, ALIGNED)
    source: tl.constexpr = _on_grad(SOURCE, SITE)
    total = tl.full((), 0.0, tl.float32)
    for bounded in tl.static_range(2):
        if full != bounded:
            total = _sum_tiles(
                key, grad, first_tile, n_tiles, bounds, VECTOR, PTX, source, bounded, 1.0
            )
    squares = total.to(tl.float64)
    if total == float("inf"):  # as is the square of 1.9e19; only that of infinity stays so
        total = _sum_tiles(
            key, grad, first_tile, n_tiles, bounds, VECTOR, PTX, source, True, _SCALE
        )
        squares = total.to(tl.float64) * _SCALE_SQUARED_INVERSE
    if ALIGNED:
        if has_grad & ((begin % VECTOR != 0) | (end % VECTOR != 0)):
            in_bounds, element = beside_vectors(begin, end, first_tile, n_tiles, VECTOR)
            squares += _sum_elements(key, grad + element, in_bounds, element, element, source)
    tl.store(partial, squares)


@triton.jit(do_not_specialize=["tiles", "first"])
def dense_squares(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    ints,  # int32 [n_tensors, INTS], from `prepare`
    partials,  # fp64, out: the sums of this launch's chunks
    first,  # of them
    tiles,  # per chunk
    GRAD_DTYPE: tl.constexpr,
    MASKED: tl.constexpr,  # leave out what the masks drop of the gradients
    MODES: tl.constexpr,  # bit m is set iff a tensor of the launch has mode m; 1 unless MASKED
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
    VECTOR: tl.constexpr,  # neighbouring elements per thread
    PTX: tl.constexpr,  # compiled by way of PTX, so for NVIDIA
):
    """Sum the squares of one chunk of a tensor that is one contiguous range of its parameter."""
    tensor, row, chunk = load_chunk(chunks, tensor_table)
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    if ALIGNED:
        grad = tl.multiple_of(grad, 16)
    mode = tl.load(row + _MODE) if MASKED else 0
    partial = partials + first + tl.program_id(0)
    ints = ints + tensor * INTS
    call_for_mode(
        mode, MODES, _sum_chunk, (row, ints, grad, partial, chunk, tiles, ALIGNED, VECTOR, PTX)
    )


@triton.jit
def _sum_strided(
    row,  # int64*: the tensor's row of the tensor table
    layout,  # int64*: its row of the layout table
    ints,  # int32*: its integers
    grad,  # pointer to the first local entry
    partial,  # fp64*: the block's sum, out
    block,  # int32 scalar: number within the tensor
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Sum the squares of one block."""
    in_bounds, at_param, at_grad, at_moment, element, number = locate(row, layout, block)
    in_bounds = in_bounds & (tl.load(row + _GRAD) != _NO_GRAD)
    source: tl.constexpr = _on_grad(SOURCE, SITE)
    key = load_key(row, ints)
    squares = _sum_elements(key, grad + at_grad, in_bounds, element, number, source)
    tl.store(partial, squares)


@triton.jit(do_not_specialize=["first"])
def strided_squares(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, block within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    layout_table,  # int64 [n_strided, N_LAYOUT_COLUMNS]
    ints,  # int32 [n_tensors, INTS], from `prepare`
    partials,  # fp64, out: the sums of this launch's blocks
    first,  # of them
    GRAD_DTYPE: tl.constexpr,
    MASKED: tl.constexpr,  # as in dense_squares
    MODES: tl.constexpr,  # as in dense_squares
):
    """Sum the squares of one block of a tensor of any strides."""
    tensor, row, block = load_chunk(chunks, tensor_table)
    layout = layout_table + tl.load(row + _LAYOUT) * _N_LAYOUT_COLUMNS
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    mode = tl.load(row + _MODE) if MASKED else 0
    partial = partials + first + tl.program_id(0)
    ints = ints + tensor * INTS
    call_for_mode(mode, MODES, _sum_strided, (row, layout, ints, grad, partial, block))


@triton.jit(do_not_specialize_on_alignment=["grad_scale"])
def sum_chunks(
    spans,  # int32 [n_tensors, 2]: first of the tensor's partial sums, and how many
    partials,  # fp64
    floats,  # fp32 [n_tensors, FLOATS], from `prepare`
    grad_scale,  # fp32 [1] or None: loss scale that the gradients carry
    squares,  # fp64 [n_tensors], out: without the loss scale
    MASKED: tl.constexpr,  # gradients as they enter the moments, rescaled
):
    """One tensor's sum of squares, always added in the same order."""
    tensor = tl.program_id(0)
    first, count = tl.load(spans + 2 * tensor), tl.load(spans + 2 * tensor + 1)
    lane = tl.arange(0, SUM_BLOCK)
    sums = tl.zeros([SUM_BLOCK], tl.float64)
    for start in range(0, count, SUM_BLOCK):
        sums += tl.load(partials + first + start + lane, mask=start + lane < count, other=0.0)
    factor = tl.full((), 1.0, tl.float64)
    if MASKED:
        factor = tl.load(floats + tensor * FLOATS + GRAD_FACTOR).to(tl.float64)
    elif grad_scale is not None:
        factor = 1.0 / tl.load(grad_scale).to(tl.float64)
    tl.store(squares + tensor, tl.sum(sums) * factor * factor)
