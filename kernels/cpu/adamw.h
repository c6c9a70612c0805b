// The masked AdamW step on one block of entries (graddrop/reference.py is the definition).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "abi.h"
#include "isa.h"
#include "philox.h"

namespace graddrop {

enum Dtype { FLOAT32, BFLOAT16, BFLOAT16_STOCHASTIC };  // the last one for parameters only

struct Scalars {
    float grad_factor, one_minus_beta1, beta2, one_minus_beta2;
    float eps, decay_factor, step_size, inv_bias_correction2_sqrt;
    uint32_t drop_threshold;
};

constexpr size_t CACHE_LINE = 64;  // bytes

struct bfloat16 {
    uint16_t bits;
};

// Rounded up with the probability of its distance from the lower neighbour.
struct bfloat16_stochastic : bfloat16 {};

INLINE float to_float(float x) { return x; }
INLINE float to_float(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void store(float value, float* out) { *out = value; }
INLINE void store(float value, bfloat16* out) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
    const uint32_t nan = value == value ? 0 : 0x7FC00000;
    out->bits = uint16_t((rounded | nan) >> 16);
}
INLINE void store(float value, bfloat16_stochastic* out, uint32_t random) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t nan = value == value ? 0 : 0x7FC00000;
    out->bits = uint16_t((nan ? nan : bits + random) >> 16);
}

// a * b + c. Said in the source, since the compiler's choice would differ from site to site.
template <bool FMA>
INLINE float multiply_add(float a, float b, float c) {
    if constexpr (FMA) return __builtin_fmaf(a, b, c);
    return a * b + c;
}

// a where all bits of `first` are set, b where none is. In bits, since a condition that is the same
// for all entries becomes a hundred instructions in GCC 12, which builds a vector's mask out of it.
INLINE float choose(uint32_t first, float a, float b) {
    uint32_t a_bits, b_bits;
    std::memcpy(&a_bits, &a, sizeof a);
    std::memcpy(&b_bits, &b, sizeof b);
    const uint32_t bits = (a_bits & first) | (b_bits & ~first);
    std::memcpy(&a, &bits, sizeof a);
    return a;
}

// The first entries of one block of each operand.
struct Operands {
    void* param;
    const void* grad;
    void *exp_avg, *exp_avg_sq;
};

// Asks for N entries. While they travel, other blocks are computed and their bits are drawn. An
// address, not a pointer to something: what lies there may belong to nobody.
template <int N, typename T>
INLINE void prefetch(const T* entry) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(entry);
    for (size_t byte = 0; byte < N * sizeof(T); byte += CACHE_LINE)
        __builtin_prefetch(reinterpret_cast<const void*>(first + byte));
}

using StepBlock = void (*)(const Operands& block,  // [BLOCK] each, all but grad updated
                           const Operands& ahead,  // [BLOCK] each, of a later call: asked for
                           Bits mask,             // [BLOCK], not read by code that masks nothing
                           Bits rounding,         // [BLOCK], read for bfloat16_stochastic only
                           const Scalars& s);

template <bool FMA, typename P, typename G, typename M, bool MASKED, Site SITE>
INLINE void adamw(P* __restrict param, const G* __restrict grad, M* __restrict exp_avg,
                  M* __restrict exp_avg_sq, const Operands ahead, Bits mask, Bits rounding,
                  const Scalars s) {
    constexpr bool ON_UPDATE = SITE == SITE_UPDATE || SITE == SITE_UPDATE_DECAY_ALL;
    const bool far = s.one_minus_beta1 >= 0.5f;  // lerp starts from the nearer end: m, else g
    const uint32_t from_grad = far ? ~uint32_t(0) : 0;
    const float weight = far ? s.one_minus_beta1 - 1 : s.one_minus_beta1;
    constexpr int LINE = CACHE_LINE / std::min({sizeof(P), sizeof(G), sizeof(M)});
    for (int line = 0; line < BLOCK; line += LINE) {
        prefetch<LINE>(static_cast<const P*>(ahead.param) + line);
        prefetch<LINE>(static_cast<const G*>(ahead.grad) + line);
        prefetch<LINE>(static_cast<const M*>(ahead.exp_avg) + line);
        prefetch<LINE>(static_cast<const M*>(ahead.exp_avg_sq) + line);
        for (int i = line; i < line + LINE; ++i) {
            const bool keep = !MASKED || mask[i] >= s.drop_threshold;
            // load, in fp32
            const float p = to_float(param[i]);
            const float m = to_float(exp_avg[i]), v = to_float(exp_avg_sq[i]);
            // gradient: scale, mask
            float g = to_float(grad[i]) * s.grad_factor;
            if (MASKED && !ON_UPDATE) g = keep ? g : 0.0f;
            // decoupled weight decay
            const float p_decayed = p * s.decay_factor;
            // moments
            float m_new = multiply_add<FMA>(weight, g - m, choose(from_grad, g, m));
            float v_new = multiply_add<FMA>(s.one_minus_beta2 * g, g, v * s.beta2);
            // update
            const float root = std::sqrt(v_new);
            const float denom = multiply_add<FMA>(root, s.inv_bias_correction2_sqrt, s.eps);
            float p_new = p_decayed - s.step_size * m_new / denom;
            // select
            if (MASKED && ON_UPDATE) p_new = keep ? p_new : SITE == SITE_UPDATE ? p : p_decayed;
            if (MASKED && SITE == SITE_FREEZE) {
                p_new = keep ? p_new : p;
                m_new = keep ? m_new : m;
                v_new = keep ? v_new : v;
            }
            // store
            if constexpr (std::is_same_v<P, bfloat16_stochastic>)
                store(p_new, param + i, rounding[i]);
            else
                store(p_new, param + i);
            store(m_new, exp_avg + i);
            store(v_new, exp_avg_sq + i);
        }
    }
}

#define DEFINE_STEP_BLOCK(NAME, TARGET, FMA)                                                      \
    template <typename P, typename G, typename M, bool MASKED, Site SITE>                         \
    TARGET void NAME(const Operands& block, const Operands& ahead, Bits mask, Bits rounding,      \
                     const Scalars& s) {                                                          \
        adamw<FMA, P, G, M, MASKED, SITE>(                                                        \
            static_cast<P*>(block.param), static_cast<const G*>(block.grad),                      \
            static_cast<M*>(block.exp_avg), static_cast<M*>(block.exp_avg_sq), ahead, mask,       \
            rounding, s);                                                                         \
    }
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
DEFINE_STEP_BLOCK(step_block_baseline, , true)
#else
DEFINE_STEP_BLOCK(step_block_baseline, , false)
#endif
#if defined(__x86_64__)
DEFINE_STEP_BLOCK(step_block_avx2, TARGET_AVX2, true)
DEFINE_STEP_BLOCK(step_block_avx512, TARGET_AVX512, true)
#endif

// The code for one call: instruction set and dtypes are the same for all its tensors.
struct Kernel {
    DrawBlock draw_block;
    StepBlock plain;
    StepBlock masked[N_SITES];
    int param_size, grad_size, moment_size;  // bytes
    bool stochastic;                         // parameters are rounded at random
};

template <typename P, typename G, typename M>
Kernel kernel_of(Isa isa) {
#define KERNEL(NAME)                                                     \
    {                                                                    \
        draw_block_##NAME, step_block_##NAME<P, G, M, false, SITE_GRAD>, \
            {step_block_##NAME<P, G, M, true, SITE_GRAD>,                \
             step_block_##NAME<P, G, M, true, SITE_UPDATE>,              \
             step_block_##NAME<P, G, M, true, SITE_UPDATE_DECAY_ALL>,    \
             step_block_##NAME<P, G, M, true, SITE_FREEZE>},             \
            sizeof(P), sizeof(G), sizeof(M),                             \
            std::is_same_v<P, bfloat16_stochastic>                       \
    }
#if defined(__x86_64__)
    if (isa == AVX512) return KERNEL(avx512);
    if (isa == AVX2) return KERNEL(avx2);
#endif
    (void)isa;
    return KERNEL(baseline);
}

template <typename P, typename G>
Kernel kernel_of(Isa isa, Dtype moment) {
    return moment == FLOAT32 ? kernel_of<P, G, float>(isa) : kernel_of<P, G, bfloat16>(isa);
}

template <typename P>
Kernel kernel_of(Isa isa, Dtype grad, Dtype moment) {
    return grad == FLOAT32 ? kernel_of<P, float>(isa, moment) : kernel_of<P, bfloat16>(isa, moment);
}

inline Kernel kernel_of(Isa isa, Dtype param, Dtype grad, Dtype moment) {
    if (param == FLOAT32) return kernel_of<float>(isa, grad, moment);
    if (param == BFLOAT16) return kernel_of<bfloat16>(isa, grad, moment);
    return kernel_of<bfloat16_stochastic>(isa, grad, moment);
}

}  // namespace graddrop
