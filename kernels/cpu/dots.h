// Products of gradients and first moments: what the angle between the two is made of.

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

// graddrop.reference.moment_dots; of a gradient without its factor.
struct Dots {
    double gg = 0, gm = 0, mm = 0;

    Dots& operator+=(const Dots& other) {
        gg += other.gg;
        gm += other.gm;
        mm += other.mm;
        return *this;
    }
};

// A sum has this many parts: three sums of two vectors each are in flight.
constexpr int DOT_LANES = 16;

using DotBlock = Dots (*)(const void* grad,         // [BLOCK]
                          const void* exp_avg,      // [BLOCK]
                          const Operands& ahead);  // [BLOCK] each, of a later call: asked for

template <typename G, typename M>
INLINE Dots sum_dots(const G* __restrict grad, const M* __restrict exp_avg,
                     const Operands& ahead) {
    double gg[DOT_LANES] = {}, gm[DOT_LANES] = {}, mm[DOT_LANES] = {};
    prefetch<BLOCK>(static_cast<const G*>(ahead.grad));
    prefetch<BLOCK>(static_cast<const M*>(ahead.exp_avg));
    for (int line = 0; line < BLOCK; line += DOT_LANES)
        for (int lane = 0; lane < DOT_LANES; ++lane) {
            const double g = to_float(grad[line + lane]), m = to_float(exp_avg[line + lane]);
            gg[lane] += g * g;
            gm[lane] += g * m;
            mm[lane] += m * m;
        }
    for (int n = DOT_LANES / 2; n > 0; n /= 2)
        for (int lane = 0; lane < n; ++lane) {
            gg[lane] += gg[lane + n];
            gm[lane] += gm[lane + n];
            mm[lane] += mm[lane + n];
        }
    return {gg[0], gm[0], mm[0]};
}

#define DEFINE_DOT_BLOCK(NAME, TARGET)                                                           \
    template <typename G, typename M>                                                            \
    TARGET Dots NAME(const void* grad, const void* exp_avg, const Operands& ahead) {             \
        return sum_dots(static_cast<const G*>(grad), static_cast<const M*>(exp_avg), ahead);     \
    }
DEFINE_DOT_BLOCK(dot_block_baseline, )
#if defined(__x86_64__)
DEFINE_DOT_BLOCK(dot_block_avx2, TARGET_AVX2)
DEFINE_DOT_BLOCK(dot_block_avx512, TARGET_AVX512)
#endif

template <typename G, typename M>
DotBlock dot_block_of(Isa isa) {
#if defined(__x86_64__)
    if (isa == AVX512) return dot_block_avx512<G, M>;
    if (isa == AVX2) return dot_block_avx2<G, M>;
#endif
    (void)isa;
    return dot_block_baseline<G, M>;
}

inline DotBlock dot_block_of(Isa isa, Dtype grad, Dtype moment) {
    if (grad == FLOAT32)
        return moment == FLOAT32 ? dot_block_of<float, float>(isa)
                                 : dot_block_of<float, bfloat16>(isa);
    return moment == FLOAT32 ? dot_block_of<bfloat16, float>(isa)
                             : dot_block_of<bfloat16, bfloat16>(isa);
}

// The part of one tile that lies in the tensor. Its mask is none: nothing is drawn.
inline Dots dot_contiguous(const Tensor& t, const Kernel& kernel, DotBlock dot_block,
                           int64_t tile) {
    Dots dots;
    visit_contiguous(t, kernel, tile, [&](int64_t element, Range range, Bits, Bits) {
        const Operands ahead = operands_ahead(t, kernel, element);
        if (range.to - range.from == BLOCK) {
            dots += dot_block(at(t.grad, element, kernel.grad_size),
                              at(t.exp_avg, element, kernel.moment_size), ahead);
            return;
        }
        Copy copy;
        const int n = range.to - range.from;
        std::memcpy(copy.grad, at(t.grad, element + range.from, kernel.grad_size),
                    n * kernel.grad_size);
        std::memcpy(copy.exp_avg, at(t.exp_avg, element + range.from, kernel.moment_size),
                    n * kernel.moment_size);
        dots += dot_block(copy.grad, copy.exp_avg, ahead);
    });
    return dots;
}

// Local entries from TILE * tile on, in walking order.
inline Dots dot_strided(const Tensor& t, const Kernel& kernel, DotBlock dot_block, int64_t tile) {
    const int64_t end = std::min((tile + 1) * TILE, t.end - t.begin);
    Walk entry(t, tile * TILE);
    Dots dots;
    for (int64_t first = tile * TILE; first < end; first += BLOCK) {
        Copy copy;
        const int n = int(std::min<int64_t>(end - first, BLOCK));
        for (int i = 0; i < n; ++i, entry.next()) {
            copy_entry(copy.grad + i * kernel.grad_size, at(t.grad, entry.grad, kernel.grad_size),
                       kernel.grad_size);
            copy_entry(copy.exp_avg + i * kernel.moment_size,
                       at(t.exp_avg, entry.moment, kernel.moment_size), kernel.moment_size);
        }
        const Operands block{copy.param, copy.grad, copy.exp_avg, copy.exp_avg_sq};
        dots += dot_block(copy.grad, copy.exp_avg, block);
    }
    return dots;
}

}  // namespace graddrop
