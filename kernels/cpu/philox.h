// The random bits of the mask contract (graddrop/mask.py is the definition).

#pragma once

#include <cstdint>

#include "abi.h"
#include "isa.h"

namespace graddrop {

constexpr int BLOCK = 128;        // entries
constexpr int CALLS = BLOCK / 4;  // Philox calls whose low halves serve a block of a tile's first
                                  // half, and whose high halves serve the block 512 entries later
constexpr int ROUNDS = 10;
constexpr uint32_t M0 = 0xD2511F53, M1 = 0xCD9E8D57, W0 = 0x9E3779B9, W1 = 0xBB67AE85;

struct Stream {
    uint32_t seed_low, seed_high, stream, draw;
};

// 16 bits of each entry of a block, random or loaded: words[i] from bit `shift` on, 0 or 16.
struct Bits {
    const uint32_t* words;
    int shift;

    uint32_t operator[](int i) const { return words[i] >> shift & 0xFFFF; }
};

struct Words {
    uint32_t word[4];
};

INLINE Words philox4x32(uint64_t group, const Stream& s) {
    uint32_t c0 = uint32_t(group), c1 = uint32_t(group >> 32), c2 = s.stream, c3 = s.draw;
    uint32_t k0 = s.seed_low, k1 = s.seed_high;
    for (int round = 0; round < ROUNDS; ++round, k0 += W0, k1 += W1) {
        const uint64_t product0 = uint64_t(c0) * M0, product1 = uint64_t(c2) * M1;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        c1 = uint32_t(product1);
        c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c3 = uint32_t(product0);
    }
    return {{c0, c1, c2, c3}};
}

// words[4 c + w] is word w of call first_group + c, first_group a multiple of CALLS.
using DrawBlock = void (*)(uint64_t first_group, const Stream& s, uint32_t* words);

inline void draw_block_baseline(uint64_t first_group, const Stream& s, uint32_t* words) {
    for (int c = 0; c < CALLS; ++c) {
        const Words call = philox4x32(first_group + c, s);
        for (int w = 0; w < 4; ++w) words[4 * c + w] = call.word[w];
    }
}

#if defined(__x86_64__)
// One call per 64-bit lane, its product's low and high words side by side: no shuffles between
// rounds. What gathers above bit 32 is read by nobody. Compilers do not find this by themselves:
// GCC 12's loop over philox4x32 takes four times as long.
TARGET_AVX512 inline void draw_block_avx512(uint64_t first_group, const Stream& s,
                                            uint32_t* words) {
    constexpr int N = CALLS / 8;  // vectors, enough to hide the multiplier's latency
    const __m512i m0 = _mm512_set1_epi64(M0), m1 = _mm512_set1_epi64(M1);
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // undone by the unpacking
    __m512i c0[N], c1[N], c2[N], c3[N];
    for (int i = 0; i < N; ++i) {
        c0[i] = _mm512_add_epi64(_mm512_set1_epi64(int64_t(first_group + 8 * i)), order);
        c1[i] = _mm512_set1_epi64(int64_t(first_group >> 32));
        c2[i] = _mm512_set1_epi64(s.stream);
        c3[i] = _mm512_set1_epi64(s.draw);
    }
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; ++round) {
        const __m512i k0 = _mm512_set1_epi64(uint32_t(s.seed_low + round * W0));
        const __m512i k1 = _mm512_set1_epi64(uint32_t(s.seed_high + round * W1));
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const __m512i product0 = _mm512_mul_epu32(c0[i], m0);
            const __m512i product1 = _mm512_mul_epu32(c2[i], m1);
            constexpr int XOR3 = 0x96;
            c0[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c1[i], k0, XOR3);
            c1[i] = product1;
            c2[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c3[i], k1, XOR3);
            c3[i] = product0;
        }
    }
    for (int i = 0; i < N; ++i) {
        const __m512i c01 = _mm512_mask_shuffle_epi32(c0[i], 0xAAAA, c1[i], _MM_PERM_CCAA);
        const __m512i c23 = _mm512_mask_shuffle_epi32(c2[i], 0xAAAA, c3[i], _MM_PERM_CCAA);
        _mm512_storeu_si512(words + 32 * i, _mm512_unpacklo_epi64(c01, c23));
        _mm512_storeu_si512(words + 32 * i + 16, _mm512_unpackhi_epi64(c01, c23));
    }
}

// The same with half the lanes and half the registers.
TARGET_AVX2 inline void draw_block_avx2(uint64_t first_group, const Stream& s, uint32_t* words) {
    constexpr int N = 2;
    const __m256i m0 = _mm256_set1_epi64x(M0), m1 = _mm256_set1_epi64x(M1);
    const __m256i order = _mm256_setr_epi64x(0, 2, 1, 3);
    for (int call = 0; call < CALLS; call += 4 * N) {
        __m256i c0[N], c1[N], c2[N], c3[N];
        for (int i = 0; i < N; ++i) {
            c0[i] =
                _mm256_add_epi64(_mm256_set1_epi64x(int64_t(first_group + call + 4 * i)), order);
            c1[i] = _mm256_set1_epi64x(int64_t(first_group >> 32));
            c2[i] = _mm256_set1_epi64x(s.stream);
            c3[i] = _mm256_set1_epi64x(s.draw);
        }
#pragma GCC unroll 10
        for (int round = 0; round < ROUNDS; ++round) {
            const __m256i k0 = _mm256_set1_epi64x(uint32_t(s.seed_low + round * W0));
            const __m256i k1 = _mm256_set1_epi64x(uint32_t(s.seed_high + round * W1));
#pragma GCC unroll 2
            for (int i = 0; i < N; ++i) {
                const __m256i product0 = _mm256_mul_epu32(c0[i], m0);
                const __m256i product1 = _mm256_mul_epu32(c2[i], m1);
                c0[i] =
                    _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c1[i], k0));
                c1[i] = product1;
                c2[i] =
                    _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c3[i], k1));
                c3[i] = product0;
            }
        }
        for (int i = 0; i < N; ++i) {
            const __m256i c01 = _mm256_blend_epi32(c0[i], _mm256_slli_epi64(c1[i], 32), 0xAA);
            const __m256i c23 = _mm256_blend_epi32(c2[i], _mm256_slli_epi64(c3[i], 32), 0xAA);
            __m256i* out = reinterpret_cast<__m256i*>(words + 4 * (call + 4 * i));
            _mm256_storeu_si256(out, _mm256_unpacklo_epi64(c01, c23));
            _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi64(c01, c23));
        }
    }
}
#endif

// Bits of single elements; neighbours of the last one come from the same call.
class Drawer {
  public:
    explicit Drawer(const Stream& s) : stream_(s) {}

    uint32_t u16(int64_t element) {
        const int64_t inside = element % TILE;
        const uint64_t group = uint64_t(element / TILE * (TILE / 8) + inside % (TILE / 2) / 4);
        if (group != group_) words_ = philox4x32(group_ = group, stream_);
        return words_.word[inside % 4] >> (inside < TILE / 2 ? 0 : 16) & 0xFFFF;
    }

  private:
    const Stream& stream_;
    uint64_t group_ = ~uint64_t(0);  // of words_; no element has this one
    Words words_;
};

}  // namespace graddrop
