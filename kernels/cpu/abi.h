// What stands in which column of the tables: kernels/abi.py, in its order and its words.

#pragma once

#include <cstdint>

namespace graddrop {

enum TensorColumn {
    PARAM,
    GRAD,
    EXP_AVG,
    EXP_AVG_SQ,
    STEP,
    BEGIN,
    END,
    STREAM,
    UNIT,
    ROW_SIZE,
    MODE,
    GROUP,
    LAYOUT,
    ROUNDING,
    DECISION,
    KEEP_BITS,
    N_TENSOR_COLUMNS
};
constexpr int64_t UNDECIDED = -1;
constexpr int64_t NO_GRAD = 1;
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
    LR,
    BETA1,
    BETA2,
    EPS,
    WEIGHT_DECAY,
    GRAD_SIGN,
    DROP_PROB,
    RESCALE,
    SEED_LOW,
    SEED_HIGH,
    PERIOD,
    N_GROUP_COLUMNS
};
enum Counter { STEPS_FINISHED, MASKS_BEGUN };
enum Source { SOURCE_NONE, SOURCE_LOADED, SOURCE_ELEMENT, SOURCE_ROW, SOURCE_TENSOR };
enum Site { SITE_GRAD, SITE_UPDATE, SITE_UPDATE_DECAY_ALL, SITE_FREEZE, N_SITES };
constexpr int TILE = 1024;

}  // namespace graddrop
