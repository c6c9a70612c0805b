"""Random bits of the mask contract on the device (``graddrop.mask`` is the definition)."""

import triton
import triton.language as tl

from .arithmetic import wide_product

_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


@triton.jit
def philox4x32(
    c0,  # uint32, any shape: the counter, as c1, c2, c3
    c1,
    c2,
    c3,
    seed,  # uint64 scalar: the key
    PTX: tl.constexpr = False,  # see wide_product
):
    """The four uint32 words of Philox4x32-10 (tl.philox takes two multiplications for one)."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0, product1 = wide_product(c0, _M0, PTX), wide_product(c2, _M1, PTX)
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 += _W0
        k1 += _W1
    return c0, c1, c2, c3


@triton.jit
def words_of_group(
    group,  # uint64, any shape: number of the Philox call within the stream
    stream,  # uint32 scalar or the shape of group
    draw,  # uint32 scalar or the shape of group
    seed,  # uint64 scalar
    PTX: tl.constexpr = False,  # see wide_product
):
    """The four uint32 words of Philox4x32-10, counter (group low, group high, stream, draw)."""
    return philox4x32(group.to(tl.uint32), (group >> 32).to(tl.uint32), stream, draw, seed, PTX)


@triton.jit
def u16_of_element(element, stream, draw, seed):
    """The 16 random bits of each element (uint64, any shape): one Philox call for each."""
    group = (element >> 10) * 128 + ((element & 511) >> 2)
    w0, w1, w2, w3 = words_of_group(group, stream, draw, seed)
    word = element & 3
    chosen = tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))
    return (chosen >> (((element >> 9) & 1) * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def interleave4(a, b, c, d):
    """Four [n] blocks -> one [4n] block in which a[i], b[i], c[i], d[i] are neighbours."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [4 * a.shape[0]])


@triton.jit
def interleave8(low, high):
    """As interleave4, of two tuples of four [n] blocks: neighbours 0 to 3, 4 to 7."""
    # each join appends an axis of 2: [n, bit 2, bit 1, bit 0 of a neighbour's number]
    a = tl.join(tl.join(low[0], high[0]), tl.join(low[2], high[2]))
    b = tl.join(tl.join(low[1], high[1]), tl.join(low[3], high[3]))
    return tl.reshape(tl.join(a, b), [8 * low[0].shape[0]])


@triton.jit
def words_of_tile(
    tile,  # uint64 scalar: element index // 1024
    stream,  # uint32 scalar
    draw,  # uint32 scalar
    seed,  # uint64 scalar
    VECTOR: tl.constexpr,  # 4 or 8: neighbouring elements that one thread holds
    PTX: tl.constexpr,  # see wide_product
):
    """The tile's [512] words in element order: low halves for its first 512 elements, high after.

    One call feeds 8 elements. The words of VECTOR / 4 calls are joined such that each is born in
    the thread that holds its elements: nothing is exchanged between threads.
    """
    first = tile * 128  # its sum with a call's number never carries out of the low 32 bits
    high = (first >> 32).to(tl.uint32)
    if VECTOR == 4:
        low = first.to(tl.uint32) + tl.arange(0, 128).to(tl.uint32)
        a, b, c, d = philox4x32(low, high, stream, draw, seed, PTX)
        words = interleave4(a, b, c, d)
    else:
        tl.static_assert(VECTOR == 8)
        low = first.to(tl.uint32) + tl.arange(0, 64).to(tl.uint32) * 2
        a0, b0, c0, d0 = philox4x32(low, high, stream, draw, seed, PTX)
        a1, b1, c1, d1 = philox4x32(low + 1, high, stream, draw, seed, PTX)
        # each join appends an axis of 2: [64, call, word >> 1, word & 1]
        even_words = tl.join(tl.join(a0, a1), tl.join(c0, c1))
        odd_words = tl.join(tl.join(b0, b1), tl.join(d0, d1))
        words = tl.reshape(tl.join(even_words, odd_words), [512])
    return words
