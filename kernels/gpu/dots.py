"""Products of gradients and first moments in Triton: what the angle between the two is made of."""

import triton
import triton.language as tl

from .. import abi
from .walk import beside_vectors, chunk_tiles, load_chunk, locate, whole_vectors

# kernels see globals only as constexpr
_TILE, _HALF = tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_GRAD, _EXP_AVG = tl.constexpr(abi.GRAD), tl.constexpr(abi.EXP_AVG)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_NO_GRAD, _LAYOUT = tl.constexpr(abi.NO_GRAD), tl.constexpr(abi.LAYOUT)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)


@triton.jit
def _add_products(
    gg,  # [n] fp64, sums of g g
    gm,  # [n] fp64, of g m
    mm,  # [n] fp64, of m m
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    in_bounds,  # [n] bool, or None: all of them
):
    """The sums with one more block: in fp64, where no product of fp32 is rounded or too small."""
    if in_bounds is None:
        g, m = tl.load(grad_ptrs), tl.load(exp_avg_ptrs)
    else:
        g = tl.load(grad_ptrs, mask=in_bounds, other=0.0)
        m = tl.load(exp_avg_ptrs, mask=in_bounds, other=0.0)
    g, m = g.to(tl.float32).to(tl.float64), m.to(tl.float32).to(tl.float64)
    return tl.fma(g, g, gg), tl.fma(g, m, gm), tl.fma(m, m, mm)


@triton.jit
def _dot_elements(
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    in_bounds,  # [n] bool
):
    """The sums of one block: three fp64 scalars."""
    zeros = tl.zeros(in_bounds.shape, tl.float64)
    gg, gm, mm = _add_products(zeros, zeros, zeros, grad_ptrs, exp_avg_ptrs, in_bounds)
    return tl.sum(gg), tl.sum(gm), tl.sum(mm)


@triton.jit
def _store_sums(
    partials,  # fp64 [3, room]: the place of this program's sums in the first row
    room,  # int32 scalar: between rows
    gg,  # fp64 scalars
    gm,
    mm,
):
    """Store the sums of one program."""
    tl.store(partials, gg)
    tl.store(partials + room, gm)
    tl.store(partials + 2 * room, mm)


@triton.jit
def _load_origins(row, GRAD_DTYPE: tl.constexpr, MOMENT_DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to element 0 of the whole grad and exp_avg."""
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE))
    if ALIGNED:
        grad, exp_avg = tl.multiple_of(grad, 16), tl.multiple_of(exp_avg, 16)
    return grad, exp_avg


@triton.jit(do_not_specialize=["tiles", "first", "room"])
def dense_dots(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    partials,  # fp64 [3, room], out: in each row the sums of this launch's chunks
    first,  # of them
    room,
    tiles,  # per chunk
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
    VECTOR: tl.constexpr,  # neighbouring elements per thread
):
    """Sum the products in one chunk of a tensor that is one contiguous range of its parameter."""
    tensor, row, chunk = load_chunk(chunks, tensor_table)
    grad, exp_avg = _load_origins(row, GRAD_DTYPE, MOMENT_DTYPE, ALIGNED)
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    first_tile, n_tiles, full = chunk_tiles(begin, end, chunk, tiles)
    has_grad = tl.load(row + _GRAD) != _NO_GRAD
    n_turns = tl.where(has_grad, n_tiles, 0).to(tl.int32)
    wide_begin, wide_end = whole_vectors(begin, end, VECTOR, ALIGNED)
    offset = tl.arange(0, _HALF)
    gg = tl.zeros([_HALF], tl.float64)
    gm = tl.zeros([_HALF], tl.float64)
    mm = tl.zeros([_HALF], tl.float64)
    # Two copies of the loop: the main one is not to pay for bounds.
    for bounded in tl.static_range(2):
        if full != bounded:
            for i in range(n_turns):
                for half in tl.static_range(2):
                    start = (first_tile + i) * _TILE + half * _HALF
                    in_bounds = None
                    if bounded:
                        in_bounds = (start + offset >= wide_begin) & (start + offset < wide_end)
                    gg, gm, mm = _add_products(
                        gg, gm, mm, grad + start + offset, exp_avg + start + offset, in_bounds
                    )
    sum_gg, sum_gm, sum_mm = tl.sum(gg), tl.sum(gm), tl.sum(mm)
    if ALIGNED:
        if has_grad & ((begin % VECTOR != 0) | (end % VECTOR != 0)):
            in_bounds, element = beside_vectors(begin, end, first_tile, n_tiles, VECTOR)
            rest = _dot_elements(grad + element, exp_avg + element, in_bounds)
            sum_gg += rest[0]
            sum_gm += rest[1]
            sum_mm += rest[2]
    _store_sums(partials + first + tl.program_id(0), room, sum_gg, sum_gm, sum_mm)


@triton.jit(do_not_specialize=["first", "room"])
def strided_dots(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, block within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    layout_table,  # int64 [n_strided, N_LAYOUT_COLUMNS]
    partials,  # fp64 [3, room], out: in each row the sums of this launch's blocks
    first,  # of them
    room,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
):
    """Sum the products in one block of a tensor of any strides."""
    tensor, row, block = load_chunk(chunks, tensor_table)
    layout = layout_table + tl.load(row + _LAYOUT) * _N_LAYOUT_COLUMNS
    grad, exp_avg = _load_origins(row, GRAD_DTYPE, MOMENT_DTYPE, False)
    in_bounds, at_param, at_grad, at_moment, element, number = locate(row, layout, block)
    in_bounds = in_bounds & (tl.load(row + _GRAD) != _NO_GRAD)
    gg, gm, mm = _dot_elements(grad + at_grad, exp_avg + at_moment, in_bounds)
    _store_sums(partials + first + tl.program_id(0), room, gg, gm, mm)
