"""Which entries a program holds, where they lie, and which of them the masks keep."""

import triton
import triton.language as tl

from .. import abi
from .philox import interleave4, u16_of_element
from .prepare import DRAW, KEEP, KEY_HIGH, KEY_LOW, ROUNDING_DRAW, THRESHOLD

TILES = 16  # tiles of 1024 elements per chunk: what one program walks in a contiguous tensor
BLOCK = 512  # entries per program in a strided one

# kernels see globals only as constexpr
_TILES, _TILE, _HALF = tl.constexpr(TILES), tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_BLOCK = tl.constexpr(BLOCK)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_STREAM, _ROUNDING = tl.constexpr(abi.STREAM), tl.constexpr(abi.ROUNDING)
_ROW_SIZE = tl.constexpr(abi.ROW_SIZE)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_DIMS, _SIZES = tl.constexpr(abi.N_DIMS), tl.constexpr(abi.SIZES)
_PARAM_STRIDES = tl.constexpr(abi.PARAM_STRIDES)
_GRAD_STRIDES = tl.constexpr(abi.GRAD_STRIDES)
_MOMENT_STRIDES = tl.constexpr(abi.MOMENT_STRIDES)
_ELEMENT_STRIDES = tl.constexpr(abi.ELEMENT_STRIDES)
_SOURCE_ELEMENT, _SOURCE_ROW = tl.constexpr(abi.SOURCE_ELEMENT), tl.constexpr(abi.SOURCE_ROW)


@triton.jit
def load_chunk(chunks, tensor_table):
    """(tensor, its row of the tensor table, number within the tensor) of this program's chunk."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    return tensor, tensor_table + tensor * _N_TENSOR_COLUMNS, tl.load(chunk + 1)


@triton.jit
def chunk_tiles(row, chunk):
    """(first tile, number of tiles, whether all their entries are the tensor's) of a chunk.

    Tiles are counted in the whole parameter: int64, int32 and int1 scalars.
    """
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    first_tile = begin // _TILE + chunk.to(tl.int64) * _TILES
    full = (first_tile * _TILE >= begin) & ((first_tile + _TILES) * _TILE <= end)
    n_tiles = tl.minimum((end - 1) // _TILE + 1 - first_tile, _TILES).to(tl.int32)
    return first_tile, n_tiles, full


@triton.jit
def load_key(row, ints):
    """What a tensor's decisions are made of: its row of the tensor table, its integers.

    (threshold, stream, draw, seed, row size, decision): three uint32, two uint64, one int1 scalar.
    """
    low = tl.load(ints + KEY_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(ints + KEY_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (
        tl.load(ints + THRESHOLD).to(tl.uint32),
        tl.load(row + _STREAM).to(tl.uint32),
        tl.load(ints + DRAW).to(tl.uint32, bitcast=True),
        (high << 32) | low,
        tl.load(row + _ROW_SIZE).to(tl.uint64),
        tl.load(ints + KEEP) != 0,
    )


@triton.jit
def load_rounding_key(row, ints):
    """(stream, draw) of the bits that round a tensor: two uint32 scalars."""
    return (
        tl.load(row + _ROUNDING).to(tl.uint32),
        tl.load(ints + ROUNDING_DRAW).to(tl.uint32, bitcast=True),
    )


@triton.jit
def keep_half_tile(
    start,  # int64 scalar: first of 512 elements of the whole parameter
    words,  # [512] of the tile, words_of_tile; not read unless SOURCE is element
    key,  # load_key
    HALF: tl.constexpr,  # 0 or 1
    SOURCE: tl.constexpr,
):
    """Keep decisions of half a tile: bool, [512], or a scalar where one holds for all."""
    threshold, stream, draw, seed, row_size, decision = key
    if SOURCE == _SOURCE_ELEMENT:
        return ((words >> (16 * HALF)) & 0xFFFF) >= threshold
    elif SOURCE == _SOURCE_ROW:
        # Rows are multiples of 4: a quad shares its row. Only the way from the row of `start` is
        # divided element by element, hence in 32 bits.
        start = start.to(tl.uint64)
        inside = (start % row_size).to(tl.uint32) + tl.arange(0, _HALF // 4).to(tl.uint32) * 4
        rows = start // row_size + (inside // row_size.to(tl.uint32)).to(tl.uint64)
        bits = u16_of_element(rows, stream, draw, seed)
        return interleave4(bits, bits, bits, bits) >= threshold
    else:
        return decision


@triton.jit
def keep_elements(
    element,  # int64 [n]: indices in the whole parameter
    key,  # load_key
    SOURCE: tl.constexpr,
):
    """Keep decisions of any elements: bool, [n], or a scalar where one holds for all."""
    threshold, stream, draw, seed, row_size, decision = key
    if SOURCE == _SOURCE_ELEMENT:
        return u16_of_element(element.to(tl.uint64), stream, draw, seed) >= threshold
    elif SOURCE == _SOURCE_ROW:
        return u16_of_element(element.to(tl.uint64) // row_size, stream, draw, seed) >= threshold
    else:
        return decision


@triton.jit
def locate(row, layout, block):
    """Where the entries of one block of a strided tensor lie.

    (in bounds, offset of param, of grad, of moments, index in the whole parameter): bool [512],
    then int64 [512] in elements.
    """
    entry = block.to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)
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
    return in_bounds, at_param, at_grad, at_moment, element
