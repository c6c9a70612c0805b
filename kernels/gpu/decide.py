"""Which entries the masks keep: drawn for a tile or one by one, loaded, or decided for all."""

import triton
import triton.language as tl

from .. import abi
from .philox import interleave4, interleave8, u16_of_element, words_of_group, words_of_tile
from .prepare import DRAW, KEEP, KEY_HIGH, KEY_LOW, THRESHOLD

# SOURCE_ROW where rows are multiples of 256 elements: each quarter of a tile lies in one row, and a
# tile among four rows that share a call of the generator.
SOURCE_LONG_ROW = tl.constexpr(abi.N_SOURCES)

# kernels see globals only as constexpr
_TILE, _HALF = tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_STREAM, _ROW_SIZE = tl.constexpr(abi.STREAM), tl.constexpr(abi.ROW_SIZE)
_KEEP_BITS = tl.constexpr(abi.KEEP_BITS)
_SOURCE_ELEMENT, _SOURCE_ROW = tl.constexpr(abi.SOURCE_ELEMENT), tl.constexpr(abi.SOURCE_ROW)
_SOURCE_LOADED = tl.constexpr(abi.SOURCE_LOADED)


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
