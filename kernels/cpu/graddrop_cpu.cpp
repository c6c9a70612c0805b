// The masked AdamW step on the CPU: one call updates all tensors of one dtype signature.
//
// Plain C++17 behind a plain C interface (end of the file); no torch, no Python, no intrinsics. The
// loops run over constant counts and are vectorised by the compiler, once per instruction set. What
// a mask and a step are is defined in graddrop/mask.py and graddrop/reference.py, what stands in
// the tables in kernels/abi.py.
//
// Each entry sees the same operations in the same order wherever it lies in a block, a shard or a
// thread's share: results do not depend on how a parameter is cut.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if !defined(__GNUC__)
#error "graddrop_cpu.cpp needs GCC or Clang: it relies on function attributes and builtins"
#endif

// Inlined into one caller per instruction set, and compiled there for that set.
#define INLINE [[gnu::always_inline]] inline
#define EXPORT extern "C" [[gnu::visibility("default")]]

namespace {

// -- kernels/abi.py ---------------------------------------------------------------------------

enum TensorColumn {
    PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, BEGIN, END, STREAM, UNIT, ROW_SIZE, MODE, GROUP, LAYOUT,
    N_TENSOR_COLUMNS
};
constexpr int MAX_DIMS = 8;
enum LayoutColumn {
    N_DIMS,
    SIZES,
    PARAM_STRIDES = SIZES + MAX_DIMS,
    GRAD_STRIDES = PARAM_STRIDES + MAX_DIMS,
    MOMENT_STRIDES = GRAD_STRIDES + MAX_DIMS,
    ELEMENT_STRIDES = MOMENT_STRIDES + MAX_DIMS,
    N_LAYOUT_COLUMNS = ELEMENT_STRIDES + MAX_DIMS
};
enum GroupColumn {
    LR, BETA1, BETA2, EPS, WEIGHT_DECAY, GRAD_SIGN, DROP_PROB, RESCALE, SEED_LOW, SEED_HIGH, PERIOD,
    N_GROUP_COLUMNS
};
enum Counter { STEPS_FINISHED, MASKS_BEGUN };
enum Source { SOURCE_NONE, SOURCE_ELEMENT, SOURCE_ROW, SOURCE_TENSOR };
enum Site { SITE_GRAD, SITE_UPDATE, SITE_UPDATE_DECAY_ALL, SITE_FREEZE, N_SITES };
constexpr int TILE = 1024;

enum Dtype { FLOAT32, BFLOAT16 };
enum Isa { BASELINE, AVX2, AVX512 };

// -- randomness: graddrop/mask.py -------------------------------------------------------------

struct Stream {
    uint32_t seed_low, seed_high, stream, draw;
};

struct Words {
    uint32_t word[4];
};

INLINE Words philox4x32_10(uint64_t group, const Stream& s) {
    uint32_t c0 = uint32_t(group), c1 = uint32_t(group >> 32), c2 = s.stream, c3 = s.draw;
    uint32_t k0 = s.seed_low, k1 = s.seed_high;
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t(c0) * 0xD2511F53u, product1 = uint64_t(c2) * 0xCD9E8D57u;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        c1 = uint32_t(product1);
        c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c3 = uint32_t(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The 16 random bits of one element.
INLINE uint32_t random_u16(int64_t element, const Stream& s) {
    const int64_t inside = element & (TILE - 1);
    const Words words = philox4x32_10(128 * (element >> 10) + ((inside & 511) >> 2), s);
    return words.word[inside & 3] >> (16 * (inside >> 9)) & 0xFFFF;
}

// -- what a tensor needs to know, derived once per step ----------------------------------------

struct Tensor {
    uintptr_t param, grad, exp_avg, exp_avg_sq;  // origins, see abi.py
    int64_t begin, end;
    int64_t first_tile;     // of this tensor, counted over all tensors of the call
    const int64_t* layout;  // row of the layout table, nullptr: contiguous
    int64_t row_size;
    Source source;
    Site site;
    bool all_dropped;
    uint32_t drop_threshold;
    Stream stream;
    float grad_factor, decay_factor;
    float beta2, one_minus_beta1, one_minus_beta2;
    float bias_correction2_sqrt, eps, step_size;

    // Tiles of the whole parameter that [begin, end) touches; of the local entries if strided.
    int64_t n_tiles() const {
        if (all_dropped && site == SITE_FREEZE) return 0;
        if (layout) return (end - begin + TILE - 1) / TILE;
        return begin == end ? 0 : (end - 1) / TILE - begin / TILE + 1;
    }
};

// Round half to even, whatever rounding mode the process is in.
uint32_t round_threshold(double drop_prob) {
    const double scaled = 65536 * drop_prob, below = std::floor(scaled), rest = scaled - below;
    const uint32_t integer = uint32_t(below);
    return integer + (rest > 0.5 || (rest == 0.5 && integer % 2 == 1));
}

Tensor prepare(const int64_t* row, const int64_t* layouts, const double* groups,
               const int64_t* counters, double grad_factor) {
    const double* group = groups + row[GROUP] * N_GROUP_COLUMNS;
    const double beta1 = group[BETA1], beta2 = group[BETA2], lr = group[LR];
    const int64_t period = int64_t(group[PERIOD]);

    Tensor t;
    t.param = uintptr_t(row[PARAM]);
    t.grad = uintptr_t(row[GRAD]);
    t.exp_avg = uintptr_t(row[EXP_AVG]);
    t.exp_avg_sq = uintptr_t(row[EXP_AVG_SQ]);
    t.begin = row[BEGIN];
    t.end = row[END];
    t.layout = row[LAYOUT] < 0 ? nullptr : layouts + row[LAYOUT] * N_LAYOUT_COLUMNS;
    t.row_size = row[ROW_SIZE];
    t.source = Source(row[MODE] / N_SITES);
    t.site = Site(row[MODE] % N_SITES);
    t.stream = {uint32_t(group[SEED_LOW]), uint32_t(group[SEED_HIGH]), uint32_t(row[STREAM]),
                uint32_t(period ? counters[STEPS_FINISHED] / period : counters[MASKS_BEGUN])};
    t.drop_threshold = round_threshold(group[DROP_PROB]);

    // 1 / q with the realised keep probability, on the gradient or on the step
    const bool masked = t.source != SOURCE_NONE;
    const bool on_step = t.site == SITE_UPDATE || t.site == SITE_UPDATE_DECAY_ALL;
    const double scale =
        masked && group[RESCALE] != 0 ? 65536.0 / (65536 - double(t.drop_threshold)) : 1.0;

    float& finished = *reinterpret_cast<float*>(row[STEP]);
    const double step = finished + 1.0;
    finished = float(step);
    const double bias_correction1 = 1 - std::pow(beta1, step);
    const double bias_correction2 = 1 - std::pow(beta2, step);
    t.grad_factor = float(group[GRAD_SIGN] * grad_factor * (on_step ? 1.0 : scale));
    t.decay_factor = float(1 - lr * group[WEIGHT_DECAY]);
    t.beta2 = float(beta2);
    t.one_minus_beta1 = float(1 - beta1);
    t.one_minus_beta2 = float(1 - beta2);
    t.bias_correction2_sqrt = float(std::sqrt(bias_correction2));
    t.eps = float(group[EPS]);
    t.step_size = float(lr / bias_correction1 * (on_step ? scale : 1.0));

    // What is decided here needs no randomness below.
    t.all_dropped = masked && t.drop_threshold == 65536;
    if (t.source == SOURCE_TENSOR) {
        t.all_dropped = random_u16(row[UNIT], t.stream) < t.drop_threshold;
        if (!t.all_dropped) t.source = SOURCE_NONE;
    }
    if (t.drop_threshold == 0) t.source = SOURCE_NONE;
    return t;
}

// -- the step on one block --------------------------------------------------------------------

constexpr int BLOCK = 128;  // entries; 32 Philox calls serve one block of each half of a tile

struct bfloat16 {
    uint16_t bits;
};

INLINE float to_float(float x) { return x; }
INLINE float to_float(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even; NaN stays NaN.
INLINE void store(float value, float* out) { *out = value; }
INLINE void store(float value, bfloat16* out) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
    out->bits = uint16_t((value == value ? rounded : bits | 0x00400000) >> 16);
}

// a * b + c; the choice is ours, since the compiler's own would differ between instances.
template <bool FMA>
INLINE float multiply_add(float a, float b, float c) {
    if constexpr (FMA) return __builtin_fmaf(a, b, c);
    return a * b + c;
}

template <bool FMA, bool MASKED, Site SITE>
INLINE void adamw_block(float* __restrict param,          // [BLOCK]
                        const float* __restrict grad,     // [BLOCK]
                        float* __restrict exp_avg,        // [BLOCK]
                        float* __restrict exp_avg_sq,     // [BLOCK]
                        const uint32_t* __restrict bits,  // [BLOCK], 16 of them from shift on
                        int shift,                        // 0 or 16
                        const Tensor& t) {
    constexpr bool ON_UPDATE = SITE == SITE_UPDATE || SITE == SITE_UPDATE_DECAY_ALL;
    const uint32_t drop_threshold = t.drop_threshold;
    const float grad_factor = t.grad_factor, decay_factor = t.decay_factor, beta2 = t.beta2,
                one_minus_beta1 = t.one_minus_beta1, one_minus_beta2 = t.one_minus_beta2,
                bias_correction2_sqrt = t.bias_correction2_sqrt, eps = t.eps,
                step_size = t.step_size;
    for (int i = 0; i < BLOCK; ++i) {
        const bool keep = !MASKED || (bits[i] >> shift & 0xFFFF) >= drop_threshold;
        // load
        const float p = param[i], m = exp_avg[i], v = exp_avg_sq[i];
        // gradient: scale, mask
        float g = grad[i] * grad_factor;
        if (MASKED && !ON_UPDATE) g = keep ? g : 0.0f;
        // decoupled weight decay
        const float p_decayed = p * decay_factor;
        // moments
        float m_new = multiply_add<FMA>(one_minus_beta1, g - m, m);
        float v_new = multiply_add<FMA>(one_minus_beta2 * g, g, v * beta2);
        // update
        const float denom = std::sqrt(v_new) / bias_correction2_sqrt + eps;
        float p_new = p_decayed - step_size * m_new / denom;
        // select
        if (MASKED && ON_UPDATE) p_new = keep ? p_new : SITE == SITE_UPDATE ? p : p_decayed;
        if (MASKED && SITE == SITE_FREEZE) {
            p_new = keep ? p_new : p;
            m_new = keep ? m_new : m;
            v_new = keep ? v_new : v;
        }
        // store
        param[i] = p_new;
        exp_avg[i] = m_new;
        exp_avg_sq[i] = v_new;
    }
}

template <bool FMA>
INLINE void adamw_block(float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                        const uint32_t* bits, int shift, const Tensor& t) {
    if (t.source == SOURCE_NONE)
        return adamw_block<FMA, false, SITE_GRAD>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
    switch (t.site) {
        case SITE_GRAD:
            return adamw_block<FMA, true, SITE_GRAD>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
        case SITE_UPDATE:
            return adamw_block<FMA, true, SITE_UPDATE>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
        case SITE_UPDATE_DECAY_ALL:
            return adamw_block<FMA, true, SITE_UPDATE_DECAY_ALL>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
        default:
            return adamw_block<FMA, true, SITE_FREEZE>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
    }
}

// -- walking a contiguous range ---------------------------------------------------------------

template <typename T>
INLINE T* at(uintptr_t origin, int64_t element) {
    return reinterpret_cast<T*>(origin + uintptr_t(element) * sizeof(T));
}

// Entries [from, to) of the block that begins at `element`.
template <typename P, typename G, typename M, bool FMA>
INLINE void contiguous_block(const Tensor& t, int64_t element, int from, int to,
                             const uint32_t* bits, int shift) {
    constexpr bool IN_PLACE =
        std::is_same_v<P, float> && std::is_same_v<G, float> && std::is_same_v<M, float>;
    P* param = at<P>(t.param, element);
    const G* grad = at<G>(t.grad, element);
    M* exp_avg = at<M>(t.exp_avg, element);
    M* exp_avg_sq = at<M>(t.exp_avg_sq, element);
    if constexpr (IN_PLACE) {
        if (to - from == BLOCK)
            return adamw_block<FMA>(param, grad, exp_avg, exp_avg_sq, bits, shift, t);
    }
    alignas(64) float p[BLOCK] = {}, g[BLOCK] = {}, m[BLOCK] = {}, v[BLOCK] = {};
    if (to - from == BLOCK) {
        for (int i = 0; i < BLOCK; ++i) {
            p[i] = to_float(param[i]);
            g[i] = to_float(grad[i]);
            m[i] = to_float(exp_avg[i]);
            v[i] = to_float(exp_avg_sq[i]);
        }
        adamw_block<FMA>(p, g, m, v, bits, shift, t);
        for (int i = 0; i < BLOCK; ++i) {
            store(p[i], param + i);
            store(m[i], exp_avg + i);
            store(v[i], exp_avg_sq + i);
        }
        return;
    }
    for (int i = from; i < to; ++i) {
        p[i] = to_float(param[i]);
        g[i] = to_float(grad[i]);
        m[i] = to_float(exp_avg[i]);
        v[i] = to_float(exp_avg_sq[i]);
    }
    adamw_block<FMA>(p, g, m, v, bits, shift, t);
    for (int i = from; i < to; ++i) {
        store(p[i], param + i);
        store(m[i], exp_avg + i);
        store(v[i], exp_avg_sq + i);
    }
}

// The part of one tile that lies in [begin, end).
template <typename P, typename G, typename M, bool FMA>
INLINE void contiguous_tile(const Tensor& t, int64_t tile) {
    alignas(64) uint32_t bits[BLOCK] = {};  // zeros: below every threshold but 0
    const bool drawn = !t.all_dropped;
    for (int quarter = 0; quarter < TILE / 2 / BLOCK; ++quarter) {
        if (t.source == SOURCE_ELEMENT && drawn) {
            for (int call = 0; call < BLOCK / 4; ++call) {
                const Words words =
                    philox4x32_10(128 * tile + BLOCK / 4 * quarter + call, t.stream);
                for (int w = 0; w < 4; ++w) bits[4 * call + w] = words.word[w];
            }
        }
        for (int half = 0; half < 2; ++half) {
            const int64_t element = tile * TILE + half * (TILE / 2) + quarter * BLOCK;
            const int from = int(std::clamp<int64_t>(t.begin - element, 0, BLOCK));
            const int to = int(std::clamp<int64_t>(t.end - element, 0, BLOCK));
            if (from >= to) continue;
            int shift = 16 * half;
            if (t.source == SOURCE_ROW && drawn) {
                shift = 0;
                int64_t row = (element + from) / t.row_size;
                for (int i = from; i < to; ++row) {
                    const uint32_t row_bits = random_u16(row, t.stream);
                    const int row_end = int(std::min<int64_t>((row + 1) * t.row_size - element, to));
                    for (; i < row_end; ++i) bits[i] = row_bits;
                }
            }
            contiguous_block<P, G, M, FMA>(t, element, from, to, bits, shift);
        }
    }
}

// -- walking a strided tensor -----------------------------------------------------------------

// Local entries [TILE * tile, TILE * (tile + 1)), in walking order.
template <typename P, typename G, typename M, bool FMA>
INLINE void strided_tile(const Tensor& t, int64_t tile) {
    const int64_t* layout = t.layout;
    const int n_dims = int(layout[N_DIMS]);
    const int64_t n_entries = t.end - t.begin;
    alignas(64) uint32_t bits[BLOCK] = {};
    for (int64_t first = tile * TILE; first < std::min((tile + 1) * TILE, n_entries);
         first += BLOCK) {
        const int n = int(std::min<int64_t>(n_entries - first, BLOCK));
        alignas(64) float p[BLOCK] = {}, g[BLOCK] = {}, m[BLOCK] = {}, v[BLOCK] = {};
        int64_t param_at[BLOCK], moment_at[BLOCK];
        for (int i = 0; i < n; ++i) {
            int64_t rest = first + i, grad_at = 0, element = t.begin;
            param_at[i] = moment_at[i] = 0;
            for (int dim = n_dims - 1; dim >= 0; --dim) {
                const int64_t index = rest % layout[SIZES + dim];
                rest /= layout[SIZES + dim];
                param_at[i] += index * layout[PARAM_STRIDES + dim];
                grad_at += index * layout[GRAD_STRIDES + dim];
                moment_at[i] += index * layout[MOMENT_STRIDES + dim];
                element += index * layout[ELEMENT_STRIDES + dim];
            }
            p[i] = to_float(*at<P>(t.param, param_at[i]));
            g[i] = to_float(*at<G>(t.grad, grad_at));
            m[i] = to_float(*at<M>(t.exp_avg, moment_at[i]));
            v[i] = to_float(*at<M>(t.exp_avg_sq, moment_at[i]));
            if (t.source == SOURCE_ELEMENT && !t.all_dropped)
                bits[i] = random_u16(element, t.stream);
            if (t.source == SOURCE_ROW && !t.all_dropped)
                bits[i] = random_u16(element / t.row_size, t.stream);
        }
        adamw_block<FMA>(p, g, m, v, bits, 0, t);
        for (int i = 0; i < n; ++i) {
            store(p[i], at<P>(t.param, param_at[i]));
            store(m[i], at<M>(t.exp_avg, moment_at[i]));
            store(v[i], at<M>(t.exp_avg_sq, moment_at[i]));
        }
    }
}

// -- sharing the work -------------------------------------------------------------------------

// Tiles a thread takes at a time: big enough that the counter costs nothing, small enough that
// tensors of different cost still end together.
constexpr int64_t TILES_PER_CHUNK = 32;

struct Work {
    std::vector<Tensor> tensors;
    int64_t n_tiles = 0;  // of all tensors
    std::atomic<int64_t> next_tile{0};
    int param_dtype, grad_dtype, moment_dtype;
    Isa isa;
};

template <typename P, typename G, typename M, bool FMA>
INLINE void run_chunks(Work& work) {
    for (;;) {
        int64_t tile = work.next_tile.fetch_add(TILES_PER_CHUNK, std::memory_order_relaxed);
        if (tile >= work.n_tiles) return;
        const int64_t end = std::min(tile + TILES_PER_CHUNK, work.n_tiles);
        // the last tensor that begins at or before this tile
        auto t = std::upper_bound(work.tensors.begin(), work.tensors.end(), tile,
                                  [](int64_t x, const Tensor& y) { return x < y.first_tile; }) - 1;
        for (; tile < end; ++t) {
            const int64_t tensor_end = std::min(t->first_tile + t->n_tiles(), end);
            for (; tile < tensor_end; ++tile) {
                if (t->layout)
                    strided_tile<P, G, M, FMA>(*t, tile - t->first_tile);
                else
                    contiguous_tile<P, G, M, FMA>(*t, tile - t->first_tile + t->begin / TILE);
            }
        }
    }
}

template <bool FMA>
INLINE void run_dtypes(Work& work) {
    if (work.param_dtype == FLOAT32)
        run_chunks<float, float, float, FMA>(work);
    else if (work.moment_dtype == FLOAT32)
        run_chunks<bfloat16, bfloat16, float, FMA>(work);
    else
        run_chunks<bfloat16, bfloat16, bfloat16, FMA>(work);
}

#if defined(__x86_64__)
#if defined(__clang__)
#define WIDE
#else
#define WIDE ",prefer-vector-width=512"
#endif
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma" WIDE)))
void run_avx512(Work& work) { run_dtypes<true>(work); }
__attribute__((target("avx2,fma"))) void run_avx2(Work& work) { run_dtypes<true>(work); }
void run_baseline(Work& work) { run_dtypes<false>(work); }
#else
#if defined(__FP_FAST_FMAF)
void run_baseline(Work& work) { run_dtypes<true>(work); }
#else
void run_baseline(Work& work) { run_dtypes<false>(work); }
#endif
#endif

void run(void* data) {
    Work& work = *static_cast<Work*>(data);
#if defined(__x86_64__)
    if (work.isa == AVX512) return run_avx512(work);
    if (work.isa == AVX2) return run_avx2(work);
#endif
    run_baseline(work);
}

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

}  // namespace

EXPORT void graddrop_abi(int64_t* columns) {
    columns[0] = N_TENSOR_COLUMNS;
    columns[1] = N_LAYOUT_COLUMNS;
    columns[2] = N_GROUP_COLUMNS;
}

EXPORT int graddrop_best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return BASELINE;
}

EXPORT int graddrop_step(const int64_t* tensor_table, int64_t n_tensors,
                         const int64_t* layout_table, const double* group_table,
                         const int64_t* counters, double grad_factor, int param_dtype,
                         int grad_dtype, int moment_dtype, int isa, int n_threads,
                         void* gomp_parallel) {
    Work work;
    work.param_dtype = param_dtype;
    work.grad_dtype = grad_dtype;
    work.moment_dtype = moment_dtype;
    work.isa = Isa(isa);
    try {
        work.tensors.reserve(size_t(n_tensors));
    } catch (const std::bad_alloc&) {
        return 1;
    }
    for (int64_t i = 0; i < n_tensors; ++i) {
        Tensor t = prepare(tensor_table + i * N_TENSOR_COLUMNS, layout_table, group_table, counters,
                           grad_factor);
        t.first_tile = work.n_tiles;
        if (t.n_tiles() == 0) continue;
        work.n_tiles += t.n_tiles();
        work.tensors.push_back(t);
    }
    if (n_threads == 1 || work.n_tiles <= TILES_PER_CHUNK) {
        run(&work);
    } else if (gomp_parallel) {
        reinterpret_cast<Parallel>(gomp_parallel)(run, &work, unsigned(n_threads), 0);
    } else {
        std::vector<std::thread> threads;
        for (int i = 1; i < n_threads; ++i) threads.emplace_back(run, static_cast<void*>(&work));
        run(&work);
        for (auto& thread : threads) thread.join();
    }
    return 0;
}
