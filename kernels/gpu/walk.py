"""Which entries a program holds, where they lie, and which of them the masks keep."""

import triton
import triton.language as tl

from .. import abi
from .philox import interleave4, interleave8, u16_of_element, words_of_group, words_of_tile
from .prepare import DRAW, KEEP, KEY_HIGH, KEY_LOW, ROUNDING_DRAW, THRESHOLD

TILES = 16  # of 1024 elements per chunk, at most: what one program walks in a contiguous tensor
BLOCK = 512  # entries per program in a strided one

# SOURCE_ROW where rows are multiples of 256 elements: each quarter of a tile lies in one row, and a
# tile among four rows that share a call of the generator.
SOURCE_LONG_ROW = tl.constexpr(abi.N_SOURCES)

# kernels see globals only as constexpr
_TILE, _HALF = tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_BLOCK = tl.constexpr(BLOCK)
_BEGIN, _END = tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_STREAM, _ROUNDING = tl.constexpr(abi.STREAM), tl.constexpr(abi.ROUNDING)
_ROW_SIZE, _KEEP_BITS = tl.constexpr(abi.ROW_SIZE), tl.constexpr(abi.KEEP_BITS)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_DIMS, _SIZES = tl.constexpr(abi.N_DIMS), tl.constexpr(abi.SIZES)
_PARAM_STRIDES = tl.constexpr(abi.PARAM_STRIDES)
_GRAD_STRIDES = tl.constexpr(abi.GRAD_STRIDES)
_MOMENT_STRIDES = tl.constexpr(abi.MOMENT_STRIDES)
_ELEMENT_STRIDES = tl.constexpr(abi.ELEMENT_STRIDES)
_SOURCE_ELEMENT, _SOURCE_ROW = tl.constexpr(abi.SOURCE_ELEMENT), tl.constexpr(abi.SOURCE_ROW)
_SOURCE_LOADED = tl.constexpr(abi.SOURCE_LOADED)


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
def load_key(row, ints):
    """What a tensor's decisions are made of: its row of the tensor table, its integers.

    (threshold, stream, draw, seed, row size, decision, loaded): three uint32, two uint64, one int1
    scalar, and a pointer to the bytes of a loaded mask. What a source does not use is not loaded.
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
        tl.load(row + _KEEP_BITS).to(tl.pointer_type(tl.uint8)),
    )


@triton.jit
def load_rounding_key(row, ints):
    """(stream, draw) of the bits that round a tensor: two uint32 scalars."""
    return (
        tl.load(row + _ROUNDING).to(tl.uint32),
        tl.load(ints + ROUNDING_DRAW).to(tl.uint32, bitcast=True),
    )


@triton.jit
def locate_rows(row_size, first_tile, SOURCE: tl.constexpr):
    """Where a chunk begins among long rows: what decide_tile needs, None of other sources.

    (four rows, tile within them, tiles that they fill): one uint64, two uint32 scalars. Four rows
    that share a call of the generator begin with a tile, since they are multiples of 1024.
    """
    if SOURCE == SOURCE_LONG_ROW:
        tiles_of_four = row_size // (_TILE // 4)
        first_tile = first_tile.to(tl.uint64)
        within = (first_tile % tiles_of_four).to(tl.uint32)
        return first_tile // tiles_of_four, within, tiles_of_four.to(tl.uint32)
    else:
        return None


@triton.jit
def byte_of_thread(VECTOR: tl.constexpr):
    """Byte of half a tile's bits that each thread of VECTOR neighbours reads: int32."""
    thread = tl.arange(0, _HALF // VECTOR)
    return thread // 2 if VECTOR == 4 else thread


@triton.jit
def decide_tile(
    first_tile,  # int64 scalar: of the chunk
    i,  # int32 scalar: number within the chunk
    rows,  # locate_rows
    key,  # load_key
    VECTOR: tl.constexpr,
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """What a tile's decisions are read from by keep_half_tile, None where no call serves it whole.

    Of elements: the [512] words, words_of_tile. Of long rows: the 16 bits of each of the four rows
    among which it lies, its place within them in quarters of a tile, quarters per row. Of a loaded
    mask: of either half, the byte in which each thread's neighbours have their bits.
    """
    threshold, stream, draw, seed, row_size, decision, loaded = key
    if SOURCE == _SOURCE_ELEMENT:
        return words_of_tile((first_tile + i).to(tl.uint64), stream, draw, seed, VECTOR, PTX)
    elif SOURCE == SOURCE_LONG_ROW:
        first_four, first_within, tiles_of_four = rows
        within = (first_within + i).to(tl.uint32)
        four = first_four + (within // tiles_of_four).to(tl.uint64)
        call = (four >> 8) * 128 + (four & 127)
        shift = ((four >> 7) & 1).to(tl.uint32) * 16
        w0, w1, w2, w3 = words_of_group(call, stream, draw, seed, PTX)
        quarter = within % tiles_of_four * 4
        return w0 >> shift, w1 >> shift, w2 >> shift, w3 >> shift, quarter, tiles_of_four
    elif SOURCE == _SOURCE_LOADED:
        # Whole tiles can be read, wherever the tensor begins and ends.
        bytes = loaded + (first_tile + i) * (_TILE // 8) + byte_of_thread(VECTOR)
        return tl.load(bytes), tl.load(bytes + _HALF // 8)
    else:
        return None


@triton.jit
def keep_half_tile(
    start,  # int64 scalar: first of 512 elements of the whole parameter
    decided,  # decide_tile
    key,  # load_key
    HALF: tl.constexpr,  # 0 or 1
    VECTOR: tl.constexpr,
    SOURCE: tl.constexpr,
):
    """Keep decisions of half a tile: bool, [512], or a scalar where one holds for all."""
    threshold, stream, draw, seed, row_size, decision, loaded = key
    if SOURCE == _SOURCE_ELEMENT:
        return ((decided >> (16 * HALF)) & 0xFFFF) >= threshold
    elif SOURCE == SOURCE_LONG_ROW:
        b0, b1, b2, b3, quarter, per_row = decided
        quarter += 2 * HALF + (tl.arange(0, _HALF // 4) >= _HALF // 8).to(tl.uint32)
        b01 = tl.where(quarter < per_row, b0, b1)
        b23 = tl.where(quarter < 3 * per_row, b2, b3)
        bits = tl.where(quarter < 2 * per_row, b01, b23) & 0xFFFF
        return interleave4(bits, bits, bits, bits) >= threshold
    elif SOURCE == _SOURCE_ROW:
        # Rows are multiples of 4: a quad shares its row. Only the way from the row of `start` is
        # divided element by element, hence in 32 bits.
        start = start.to(tl.uint64)
        inside = (start % row_size).to(tl.uint32) + tl.arange(0, _HALF // 4).to(tl.uint32) * 4
        rows = start // row_size + (inside // row_size.to(tl.uint32)).to(tl.uint64)
        bits = u16_of_element(rows, stream, draw, seed)
        return interleave4(bits, bits, bits, bits) >= threshold
    elif SOURCE == _SOURCE_LOADED:
        byte = decided[HALF].to(tl.uint32)
        if VECTOR == 4:
            four = byte >> ((tl.arange(0, _HALF // 4) & 1) * 4).to(tl.uint32)
            return interleave4(four & 1, four & 2, four & 4, four & 8) != 0
        else:
            low = byte & 1, byte & 2, byte & 4, byte & 8
            return interleave8(low, (byte & 16, byte & 32, byte & 64, byte & 128)) != 0
    else:
        return decision


@triton.jit
def keep_elements(
    element,  # int64 [n]: indices in the whole parameter
    number,  # int64 [n]: of their bits in a loaded mask
    in_bounds,  # [n] bool: of others no bit is read
    key,  # load_key
    SOURCE: tl.constexpr,
):
    """Keep decisions of any elements: bool, [n], or a scalar where one holds for all."""
    threshold, stream, draw, seed, row_size, decision, loaded = key
    if SOURCE == _SOURCE_ELEMENT:
        return u16_of_element(element.to(tl.uint64), stream, draw, seed) >= threshold
    elif SOURCE == _SOURCE_ROW or SOURCE == SOURCE_LONG_ROW:
        return u16_of_element(element.to(tl.uint64) // row_size, stream, draw, seed) >= threshold
    elif SOURCE == _SOURCE_LOADED:
        byte = tl.load(loaded + (number >> 3), mask=in_bounds, other=0).to(tl.uint32)
        return ((byte >> (number & 7).to(tl.uint32)) & 1) != 0
    else:
        return decision


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
