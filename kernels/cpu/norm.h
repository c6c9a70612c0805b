// Sums of squares of gradients, of all or of those that the masks keep.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "adamw.h"
#include "isa.h"
#include "philox.h"
#include "tensor.h"
#include "walk.h"

namespace graddrop {

// A sum has this many parts, two vectors at a time in flight; they meet when the block is done.
constexpr int LANES = 32;

using SumBlock = double (*)(const void* grad,   // [BLOCK]
                            const void* ahead,  // [BLOCK], of a later call: asked for
                            Bits mask,          // [BLOCK], not read by code that masks nothing
                            uint32_t drop_threshold);

template <typename G, bool MASKED>
INLINE double sum_squares(const G* __restrict grad, const G* ahead, Bits mask,
                          uint32_t drop_threshold) {
    double sums[LANES] = {};  // no square of a float overflows them
    prefetch<BLOCK>(ahead);
    for (int line = 0; line < BLOCK; line += LANES)
        for (int lane = 0; lane < LANES; ++lane) {
            const bool keep = !MASKED || mask[line + lane] >= drop_threshold;
            const double g = keep ? to_float(grad[line + lane]) : 0.0f;
            sums[lane] += g * g;
        }
    // In halves: additions one after the other would take longer than the block itself.
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int lane = 0; lane < n; ++lane) sums[lane] += sums[lane + n];
    return sums[0];
}

#define DEFINE_SUM_BLOCK(NAME, TARGET)                                                            \
    template <typename G, bool MASKED>                                                            \
    TARGET double NAME(const void* grad, const void* ahead, Bits mask, uint32_t threshold) {      \
        return sum_squares<G, MASKED>(static_cast<const G*>(grad), static_cast<const G*>(ahead),  \
                                      mask, threshold);                                           \
    }
DEFINE_SUM_BLOCK(sum_block_baseline, )
#if defined(__x86_64__)
DEFINE_SUM_BLOCK(sum_block_avx2, TARGET_AVX2)
DEFINE_SUM_BLOCK(sum_block_avx512, TARGET_AVX512)
#endif

template <bool MASKED>
SumBlock sum_block_of(Isa isa, Dtype grad) {
#if defined(__x86_64__)
    if (isa == AVX512)
        return grad == FLOAT32 ? sum_block_avx512<float, MASKED>
                               : sum_block_avx512<bfloat16, MASKED>;
    if (isa == AVX2)
        return grad == FLOAT32 ? sum_block_avx2<float, MASKED> : sum_block_avx2<bfloat16, MASKED>;
#endif
    (void)isa;
    return grad == FLOAT32 ? sum_block_baseline<float, MASKED>
                           : sum_block_baseline<bfloat16, MASKED>;
}

inline double sum_in_copy(const Tensor& t, const Kernel& kernel, SumBlock sum_block,
                          int64_t element, Range range, Bits mask) {
    alignas(64) unsigned char copy[4 * BLOCK] = {};
    std::memcpy(copy + range.from * kernel.grad_size,
                at(t.grad, element + range.from, kernel.grad_size),
                (range.to - range.from) * kernel.grad_size);
    return sum_block(copy, operands_ahead(t, kernel, element).grad, mask, t.scalars.drop_threshold);
}

// The part of one tile that lies in the tensor.
inline double sum_contiguous(const Tensor& t, const Kernel& kernel, SumBlock sum_block,
                             int64_t tile) {
    double sum = 0;
    visit_contiguous(
        t, kernel, tile, [&](int64_t element, Range range, Bits mask, Bits) {
            if (range.to - range.from == BLOCK)
                sum += sum_block(at(t.grad, element, kernel.grad_size),
                                 operands_ahead(t, kernel, element).grad, mask,
                                 t.scalars.drop_threshold);
            else
                sum += sum_in_copy(t, kernel, sum_block, element, range, mask);
        });
    return sum;
}

// Local entries from TILE * tile on, in walking order.
inline double sum_strided(const Tensor& t, const Kernel& kernel, SumBlock sum_block,
                          int64_t tile) {
    const int64_t end = std::min((tile + 1) * TILE, t.end - t.begin);
    Walk entry(t, tile * TILE);
    Drawer drawer(t.stream);
    alignas(64) uint32_t bits[BLOCK] = {};
    double sum = 0;
    for (int64_t first = tile * TILE; first < end; first += BLOCK) {
        alignas(64) unsigned char copy[4 * BLOCK] = {};
        const int n = int(std::min<int64_t>(end - first, BLOCK));
        for (int i = 0; i < n; ++i, entry.next()) {
            copy_entry(copy + i * kernel.grad_size, at(t.grad, entry.grad, kernel.grad_size),
                       kernel.grad_size);
            bits[i] = entry_bits(t, drawer, first + i, entry.element);
        }
        sum += sum_block(copy, copy, {bits, 0}, t.scalars.drop_threshold);
    }
    return sum;
}

}  // namespace graddrop
