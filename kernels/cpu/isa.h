// Which instruction sets there is code for, and how a function is compiled for one of them.

#pragma once

#if !defined(__GNUC__)
#error "The CPU kernel is written for GCC and Clang"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define AVX512_FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#if defined(__clang__)
#define TARGET_AVX512 __attribute__((target(AVX512_FEATURES)))
#else
#define TARGET_AVX512 __attribute__((target(AVX512_FEATURES ",prefer-vector-width=512")))
#endif
#endif

// Compiled into each caller, for the caller's instruction set.
#define INLINE [[gnu::always_inline]] inline

namespace graddrop {

enum Isa { BASELINE, AVX2, AVX512 };

// The largest one that this machine runs.
inline Isa best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return BASELINE;
}

}  // namespace graddrop
