"""Random bits of the mask contract on the device (``graddrop.mask`` is the definition)."""

import triton
import triton.language as tl


@triton.jit
def words_of_group(
    group,  # uint64, any shape: number of the Philox call within the stream
    stream,  # uint32 scalar or the shape of group
    draw,  # uint32 scalar or the shape of group
    seed,  # uint64 scalar or the shape of group
):
    """The four uint32 words of Philox4x32-10, counter (group low, group high, stream, draw)."""
    # tl.philox is Philox4x32 only while every counter has 32 bits.
    return tl.philox(
        seed, group.to(tl.uint32), (group >> 32).to(tl.uint32), stream, draw, n_rounds=10
    )


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
def words_of_tile(
    tile,  # uint64 scalar: element index // 1024
    stream,  # uint32 scalar
    draw,  # uint32 scalar
    seed,  # uint64 scalar
    VECTOR: tl.constexpr,  # 4 or 8: neighbouring elements that one thread holds
):
    """The tile's [512] words in element order: low halves for its first 512 elements, high after.

    One call feeds 8 elements. The words of VECTOR / 4 calls are joined such that each is born in
    the thread that holds its elements: nothing is exchanged between threads.
    """
    first = tile * 128  # its sum with a call's number never carries out of the low 32 bits
    high = (first >> 32).to(tl.uint32)
    if VECTOR == 4:
        low = first.to(tl.uint32) + tl.arange(0, 128).to(tl.uint32)
        a, b, c, d = tl.philox(seed, low, high, stream, draw, n_rounds=10)
        words = interleave4(a, b, c, d)
    else:
        tl.static_assert(VECTOR == 8)
        low = first.to(tl.uint32) + tl.arange(0, 64).to(tl.uint32) * 2
        a0, b0, c0, d0 = tl.philox(seed, low, high, stream, draw, n_rounds=10)
        a1, b1, c1, d1 = tl.philox(seed, low + 1, high, stream, draw, n_rounds=10)
        # each join appends an axis of 2: [64, call, word >> 1, word & 1]
        even_words = tl.join(tl.join(a0, a1), tl.join(c0, c1))
        odd_words = tl.join(tl.join(b0, b1), tl.join(d0, d1))
        words = tl.reshape(tl.join(even_words, odd_words), [512])
    return words
