// What one step needs to know of one tensor, derived from its rows of the tables.

#pragma once

#include <cmath>
#include <cstdint>

#include "abi.h"
#include "adamw.h"
#include "philox.h"

namespace graddrop {

struct Tensor {
    int64_t index;  // its row of the tensor table
    const Tensor* next = nullptr;  // whose turn it is afterwards
    uintptr_t param, grad, exp_avg, exp_avg_sq;  // origins: never dereferenced before an offset
    uintptr_t keep_bits;  // SOURCE_LOADED: likewise
    int64_t begin, end;
    const int64_t* layout;  // row of the layout table, nullptr: contiguous
    int64_t row_size;
    int64_t first_tile;  // counted over all tensors of the call
    int64_t n_tiles;     // of the whole parameter that [begin, end) touches; of entries if strided
    float* finished;     // its step counter
    Source source;       // of what is still to be drawn or read
    bool dropped;        // as a whole
    Site site;
    StepBlock step_block;
    Stream stream, rounding;
    Scalars scalars;
};

// Round to nearest, ties to even, whatever rounding mode the process is in.
inline uint32_t round_threshold(double drop_prob) {
    const double scaled = 65536 * drop_prob, below = std::floor(scaled), rest = scaled - below;
    const uint32_t integer = uint32_t(below);
    return integer + (rest > 0.5 || (rest == 0.5 && integer % 2 == 1));
}

// 1 - beta^step of both moments. Nearly all tensors of a call share them, and powers are slow.
class BiasCorrections {
  public:
    double first, second;

    void set(double beta1, double beta2, double step) {
        if (beta1 == beta1_ && beta2 == beta2_ && step == step_) return;
        beta1_ = beta1, beta2_ = beta2, step_ = step;
        first = 1 - std::pow(beta1, step);
        second = 1 - std::pow(beta2, step);
    }

  private:
    double beta1_ = -1, beta2_ = -1, step_ = 0;  // no beta is negative
};

// Derives the numbers of a tensor's next step from its row and group.
inline Tensor derive_tensor(const int64_t* row, const int64_t* layout_table,
                            const double* group_table, const int64_t* counters,
                            double grad_factor, const Kernel& kernel,
                            BiasCorrections& bias_corrections) {
    const double* group = group_table + row[GROUP] * N_GROUP_COLUMNS;
    const double lr = group[LR], beta1 = group[BETA1], beta2 = group[BETA2];
    const int64_t period = int64_t(group[PERIOD]);

    Tensor t;
    t.param = uintptr_t(row[PARAM]);
    t.grad = uintptr_t(row[GRAD]);
    t.exp_avg = uintptr_t(row[EXP_AVG]);
    t.exp_avg_sq = uintptr_t(row[EXP_AVG_SQ]);
    t.keep_bits = uintptr_t(row[KEEP_BITS]);
    t.begin = row[BEGIN];
    t.end = row[END];
    t.layout = row[LAYOUT] < 0 ? nullptr : layout_table + row[LAYOUT] * N_LAYOUT_COLUMNS;
    t.row_size = row[ROW_SIZE];
    t.source = Source(row[MODE] / N_SITES);
    t.site = Site(row[MODE] % N_SITES);
    t.stream = {uint32_t(group[SEED_LOW]), uint32_t(group[SEED_HIGH]), uint32_t(row[STREAM]),
                uint32_t(period ? counters[STEPS_FINISHED] / period : counters[MASKS_BEGUN])};

    // Masks may live for many steps, what rounds must not.
    t.rounding = t.stream;
    t.rounding.stream = uint32_t(row[ROUNDING]);
    t.rounding.draw = uint32_t(counters[STEPS_FINISHED]);

    // Scaling by the realised 1 / keep probability: of the gradient, or of the step. A loaded mask
    // has none, and is above a threshold of its own where it keeps.
    const bool loaded = t.source == SOURCE_LOADED;
    const bool drawn = !loaded && t.source != SOURCE_NONE;
    const uint32_t drop_threshold = loaded ? 1 : round_threshold(group[DROP_PROB]);
    const bool scales = drawn && group[RESCALE] != 0;
    const double mask_scale = scales ? 65536.0 / (65536.0 - drop_threshold) : 1.0;
    const bool on_update = t.site == SITE_UPDATE || t.site == SITE_UPDATE_DECAY_ALL;

    t.finished = reinterpret_cast<float*>(row[STEP]);
    const double step = *t.finished + 1.0;
    bias_corrections.set(beta1, beta2, step);
    t.scalars.grad_factor = float(group[GRAD_SIGN] * grad_factor * (on_update ? 1 : mask_scale));
    t.scalars.one_minus_beta1 = float(1 - beta1);
    t.scalars.beta2 = float(beta2);
    t.scalars.one_minus_beta2 = float(1 - beta2);
    t.scalars.eps = float(group[EPS]);
    t.scalars.decay_factor = float(1 - lr * group[WEIGHT_DECAY]);
    t.scalars.step_size = float(lr / bias_corrections.first * (on_update ? mask_scale : 1));
    t.scalars.inv_bias_correction2_sqrt = float(1 / std::sqrt(bias_corrections.second));
    t.scalars.drop_threshold = drop_threshold;

    // Where one decision holds for the whole tensor, nothing is left to draw.
    const bool masked = loaded || drawn;
    const bool decided =
        t.source == SOURCE_TENSOR || drop_threshold == 0 || drop_threshold == 65536;
    if (t.source == SOURCE_TENSOR && row[DECISION] != UNDECIDED)
        t.dropped = row[DECISION] == 0;
    else
        t.dropped = t.source == SOURCE_TENSOR ? Drawer(t.stream).u16(row[UNIT]) < drop_threshold
                                              : drawn && drop_threshold == 65536;
    if (t.dropped) t.scalars.drop_threshold = 65536;
    t.step_block = masked && (t.dropped || !decided) ? kernel.masked[t.site] : kernel.plain;
    if (decided) t.source = SOURCE_NONE;  // and bits of 0 are below the threshold if dropped
    if (t.begin == t.end)
        t.n_tiles = 0;
    else if (t.layout)
        t.n_tiles = (t.end - t.begin - 1) / TILE + 1;
    else
        t.n_tiles = (t.end - 1) / TILE - t.begin / TILE + 1;
    return t;
}

}  // namespace graddrop
