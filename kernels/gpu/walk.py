"""Which entries a program holds, and where they lie."""

import triton
import triton.language as tl

from .. import abi

TILES = 16  # of 1024 elements per chunk, at most: what one program walks in a contiguous tensor
BLOCK = 512  # entries per program in a strided one

# kernels see globals only as constexpr
_TILE, _BLOCK = tl.constexpr(abi.TILE), tl.constexpr(BLOCK)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_DIMS, _SIZES = tl.constexpr(abi.N_DIMS), tl.constexpr(abi.SIZES)
_PARAM_STRIDES = tl.constexpr(abi.PARAM_STRIDES)
_GRAD_STRIDES = tl.constexpr(abi.GRAD_STRIDES)
_MOMENT_STRIDES = tl.constexpr(abi.MOMENT_STRIDES)
_ELEMENT_STRIDES = tl.constexpr(abi.ELEMENT_STRIDES)


@triton.jit
def load_chunk(chunks, tensor_table):
    """(tensor, its row of the tensor table, number within the tensor) of this program's chunk."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    return tensor, tensor_table + tensor * _N_TENSOR_COLUMNS, tl.load(chunk + 1)


@triton.jit
def chunk_tiles(begin, end, chunk, tiles):
    """(first tile, number of tiles, whether all their elements are the tensor's) of a chunk.

    Tiles are counted in the whole parameter, ``tiles`` of them make a chunk. int64, int64 and int1
    scalars.
    """
    first_tile = begin // _TILE + chunk.to(tl.int64) * tiles
    n_tiles = tl.minimum((end - 1) // _TILE + 1 - first_tile, tiles)
    full = (first_tile * _TILE >= begin) & ((first_tile + n_tiles) * _TILE <= end)
    return first_tile, n_tiles, full


@triton.jit
def whole_vectors(begin, end, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """The part of [begin, end) that wide accesses reach: multiples of VECTOR where ALIGNED.

    Bounds that are multiples keep masked accesses wide. Its end may lie before its beginning.
    """
    if ALIGNED:
        return (begin + (VECTOR - 1)) // VECTOR * VECTOR, end // VECTOR * VECTOR
    else:
        return begin, end


@triton.jit
def beside_vectors(begin, end, first_tile, n_tiles, VECTOR: tl.constexpr):
    """(in bounds, element) of what whole_vectors leaves of n_tiles tiles: bool and int64 [128].

    Fewer than VECTOR elements at either end. They stand in the first lanes, so that one warp loads.
    """
    wide_begin, wide_end = whole_vectors(begin, end, VECTOR, True)
    lane = tl.arange(0, 128)
    at_begin = lane < VECTOR
    element = tl.where(at_begin, begin + lane, wide_end + lane - VECTOR)
    left = tl.where(at_begin, element < wide_begin, (element >= wide_begin) & (lane < 2 * VECTOR))
    in_tiles = (element >= first_tile * _TILE) & (element < (first_tile + n_tiles) * _TILE)
    return left & in_tiles & (element < end), element


@triton.jit
def locate(row, layout, block):
    """Where the entries of one block of a strided tensor lie.

    (in bounds, offset of param, of grad, of moments, index in the whole parameter, number of the
    bit in a loaded mask): bool [512], then int64 [512] in elements.
    """
    entry = block.to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)
    begin = tl.load(row + _BEGIN)
    in_bounds = entry < tl.load(row + _END) - begin
    rest = entry.to(tl.uint64)
    at_param = tl.zeros_like(entry)
    at_grad = tl.zeros_like(entry)
    at_moment = tl.zeros_like(entry)
    element = tl.zeros_like(entry) + begin
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
    return in_bounds, at_param, at_grad, at_moment, element, begin + entry
