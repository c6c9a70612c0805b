"""The tables that every kernel reads: what stands in which column.

One optimizer step is described by tables of plain numbers, the same for the Triton kernels (tables
on the device) and for the C++ kernel (tables in host memory, ``enum``s of the same order):

* a *tensor table*, int64, a row per parameter tensor;
* a *layout table*, int64, a row per tensor that is not walked as one contiguous range;
* a *group table*, float64, a row per parameter group;
* two *counters*, int64: optimizer steps finished, masks begun by hand (``new_mask``).

Addresses in the tensor table are *origins*: where element 0 of the whole, unsharded parameter
would lie. A kernel therefore indexes by the element's index in the whole parameter alone, and a
shard is nothing but a range ``[BEGIN, END)``.
"""

# -- tensor table: int64 [n_tensors, N_TENSOR_COLUMNS] ---------------------------------------------
(
    PARAM,  # origin address, bytes (strided layout: address of the first local entry)
    GRAD,  # as PARAM; or NO_GRAD
    EXP_AVG,  # as PARAM
    EXP_AVG_SQ,  # as PARAM
    STEP,  # address of the tensor's float32 step counter; advanced by a step that is its own
    BEGIN,  # index in the whole parameter of the first local entry
    END,  # BEGIN + number of local entries (strided layout: the same sum, no index)
    STREAM,  # mask contract stream of the decisions, [0, 2**32)
    UNIT,  # SOURCE_TENSOR: element index of the tensor's or layer's one decision
    ROW_SIZE,  # entries per row of the whole parameter, >= 1; SOURCE_ROW without a layout: a
    #            multiple of 4 below 2**31, so that four neighbours share their row
    MODE,  # N_SITES * source + site
    GROUP,  # row of the group table
    LAYOUT,  # row of the layout table, -1: contiguous
    ROUNDING,  # mask contract stream of the bits for stochastic rounding, [0, 2**32)
    DECISION,  # SOURCE_TENSOR: 0 dropped, 1 kept; UNDECIDED: the bits of UNIT decide
    KEEP_BITS,  # SOURCE_LOADED: origin address of the bits, 1: kept; of the entry at index n of the
    #             whole parameter, bit n % 8 of byte n // 8 (strided layout: at BEGIN + its place in
    #             walking order). Whole tiles of them can be read.
) = range(16)
N_TENSOR_COLUMNS = 16
UNDECIDED = -1
NO_GRAD = 1  # instead of an address: without a gradient the tensor and its counter stand still

# -- layout table: int64 [n_strided, N_LAYOUT_COLUMNS] ---------------------------------------------
# N_DIMS, then MAX_DIMS values each of: size, param stride, grad stride, moment stride, element
# stride (what one step along the dimension adds to the index in the whole parameter). Dimensions
# stand in walking order, outermost first; strides in elements.
MAX_DIMS = 8
N_DIMS, SIZES = 0, 1
PARAM_STRIDES, GRAD_STRIDES, MOMENT_STRIDES, ELEMENT_STRIDES = (
    1 + k * MAX_DIMS for k in range(1, 5)
)
N_LAYOUT_COLUMNS = 1 + 5 * MAX_DIMS

# -- group table: float64 [n_groups, N_GROUP_COLUMNS] ----------------------------------------------
(
    LR,
    BETA1,
    BETA2,
    EPS,
    WEIGHT_DECAY,
    GRAD_SIGN,  # -1 to maximize, else 1
    DROP_PROB,  # probability in [0, 1]; the kernel rounds 65536 * it, ties to even
    RESCALE,  # 1: scale by the realised 1 / keep probability, else 0
    SEED_LOW,  # seed & 0xffffffff
    SEED_HIGH,  # seed >> 32
    PERIOD,  # K >= 1: draw = steps finished // K; 0: draw = masks begun by hand
) = range(11)
N_GROUP_COLUMNS = 11

# -- counters: int64 [2] ---------------------------------------------------------------------------
STEPS_FINISHED, MASKS_BEGUN = range(2)

# -- modes: what shares a decision, and where the mask acts ----------------------------------------
SOURCE_NONE = 0  # nothing is masked: plain AdamW (MODE 0)
SOURCE_LOADED = 1  # one bit per entry is read; the group's DROP_PROB and RESCALE do not apply
SOURCE_ELEMENT = 2  # one decision per entry is drawn, as by all that follow
SOURCE_ROW = 3  # one decision per row (dimension 0) of the whole parameter
SOURCE_TENSOR = 4  # one decision for the whole tensor
N_SOURCES = 5

SITE_GRAD = 0  # the masked gradient enters the moments
SITE_UPDATE = 1  # dense moments; the parameter moves, and decays, only where kept
SITE_UPDATE_DECAY_ALL = 2  # as SITE_UPDATE, but weight decay acts everywhere
SITE_FREEZE = 3  # where dropped nothing changes, moments included
N_SITES = 4

N_MODES = N_SOURCES * N_SITES

TILE = 1024  # elements per tile of the mask contract
