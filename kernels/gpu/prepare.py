"""What the step needs to know of each tensor, derived on the device before the step."""

import triton
import triton.language as tl

from .. import abi
from .philox import u16_of_element

# kernels see globals only as constexpr
_GRAD, _NO_GRAD = tl.constexpr(abi.GRAD), tl.constexpr(abi.NO_GRAD)
_STEP, _STREAM, _UNIT = (tl.constexpr(c) for c in (abi.STEP, abi.STREAM, abi.UNIT))
_DECISION, _UNDECIDED = tl.constexpr(abi.DECISION), tl.constexpr(abi.UNDECIDED)
_MODE, _GROUP = tl.constexpr(abi.MODE), tl.constexpr(abi.GROUP)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_LR, _BETA1, _BETA2 = tl.constexpr(abi.LR), tl.constexpr(abi.BETA1), tl.constexpr(abi.BETA2)
_EPS, _WEIGHT_DECAY = tl.constexpr(abi.EPS), tl.constexpr(abi.WEIGHT_DECAY)
_GRAD_SIGN, _DROP_PROB = tl.constexpr(abi.GRAD_SIGN), tl.constexpr(abi.DROP_PROB)
_RESCALE, _PERIOD = tl.constexpr(abi.RESCALE), tl.constexpr(abi.PERIOD)
_SEED_LOW, _SEED_HIGH = tl.constexpr(abi.SEED_LOW), tl.constexpr(abi.SEED_HIGH)
_N_GROUP_COLUMNS = tl.constexpr(abi.N_GROUP_COLUMNS)
_SOURCE_LOADED, _SOURCE_TENSOR = tl.constexpr(abi.SOURCE_LOADED), tl.constexpr(abi.SOURCE_TENSOR)
_SITE_GRAD, _SITE_FREEZE = tl.constexpr(abi.SITE_GRAD), tl.constexpr(abi.SITE_FREEZE)
_N_SITES = tl.constexpr(abi.N_SITES)
# Of fp32. `quotient` takes what is smaller for 0, and 0 / 0 is NaN; beside any root it is nothing.
_LEAST_NORMAL = tl.constexpr(2.0**-126)

# Out, what the step reads: fp32 [n_tensors, FLOATS]
GRAD_FACTOR = tl.constexpr(0)  # multiplies every gradient
ONE_MINUS_BETA1 = tl.constexpr(1)
BETA2, ONE_MINUS_BETA2 = tl.constexpr(2), tl.constexpr(3)
EPS = tl.constexpr(4)
DECAY_FACTOR = tl.constexpr(5)  # 1 - lr * weight_decay
STEP_SIZE = tl.constexpr(6)  # lr / bias_correction1
INV_BIAS_CORRECTION2_SQRT = tl.constexpr(7)
FLOATS = tl.constexpr(8)

# and int32 [n_tensors, INTS]
ACTIVE = tl.constexpr(0)  # 0: skipped, no gradient, or frozen as a whole; nothing of it changes
KEEP = tl.constexpr(1)  # SOURCE_TENSOR: the decision
THRESHOLD = tl.constexpr(2)  # [0, 65536]
DRAW = tl.constexpr(3)  # bits of a uint32, as are the halves of the key
KEY_LOW, KEY_HIGH = tl.constexpr(4), tl.constexpr(5)
ROUNDING_DRAW = tl.constexpr(6)  # masks may live for many steps, what rounds must not
INTS = tl.constexpr(8)  # one is left over: rows begin at multiples of 32 bytes


@triton.jit
def _threshold(drop_prob):
    """round(65536 drop_prob), ties to even: fp64, any shape, to int32 in [0, 65536]."""
    scaled = drop_prob * 65536.0
    nearest = tl.floor(scaled + 0.5).to(tl.int32)
    tie = nearest.to(tl.float64) - scaled == 0.5
    nearest -= (tie & (nearest % 2 == 1)).to(tl.int32)
    return tl.minimum(tl.maximum(nearest, 0), 65536)


@triton.jit(
    do_not_specialize=["n_tensors"],
    # Others made them: where they lie shall not compile a second kernel in the midst of training.
    do_not_specialize_on_alignment=["counters", "grad_scale", "found_inf"],
)
def prepare(
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    group_table,  # fp64 [n_groups, N_GROUP_COLUMNS]
    counters,  # int64 [2], advanced here
    arrived,  # int32 [1], 0: programs that have read the counters, before and after
    floats,  # fp32 [n_tensors, FLOATS], out
    ints,  # int32 [n_tensors, INTS], out
    grad_scale,  # fp32 [1] or None: loss scale that the gradients carry
    found_inf,  # fp32 [1] or None: unless 0, this step is skipped, counters included
    n_tensors,
    BLOCK: tl.constexpr,
):
    """Advance the counters and derive each tensor's scalars from its group's numbers, in fp64.

    Every program reads the counters; the last one to say so advances them.
    """
    active = 1  # what the counters advance by
    if found_inf is not None:
        active = (tl.load(found_inf) == 0.0).to(tl.int32)
    inv_loss_scale = 1.0
    if grad_scale is not None:
        inv_loss_scale = 1.0 / tl.load(grad_scale).to(tl.float64)
    steps_finished = tl.load(counters)
    masks_begun = tl.load(counters + 1)
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = tensor < n_tensors
    row = tensor_table + tensor.to(tl.int64) * _N_TENSOR_COLUMNS
    group = group_table + tl.load(row + _GROUP, mask=valid, other=0) * _N_GROUP_COLUMNS
    lr = tl.load(group + _LR)
    beta1, beta2 = tl.load(group + _BETA1), tl.load(group + _BETA2)
    log_beta1 = tl.log(tl.maximum(beta1, 1e-300))  # a power of it is 0, as of beta = 0
    log_beta2 = tl.log(tl.maximum(beta2, 1e-300))

    step_ptr = tl.load(row + _STEP, mask=valid, other=0).to(tl.pointer_type(tl.float32))
    finished = tl.load(step_ptr, mask=valid, other=0.0)
    step = finished.to(tl.float64) + 1.0
    bias_correction1 = 1.0 - tl.exp(step * log_beta1)
    bias_correction2 = 1.0 - tl.exp(step * log_beta2)

    threshold = _threshold(tl.load(group + _DROP_PROB))
    period = tl.load(group + _PERIOD).to(tl.int64)
    draw = tl.where(period > 0, steps_finished // tl.maximum(period, 1), masks_begun)
    draw = draw.to(tl.uint32)
    seed_low = tl.load(group + _SEED_LOW).to(tl.int64)
    seed_high = tl.load(group + _SEED_HIGH).to(tl.int64)
    bits = u16_of_element(
        tl.load(row + _UNIT, mask=valid, other=0).to(tl.uint64),
        tl.load(row + _STREAM, mask=valid, other=0).to(tl.uint32),
        draw,
        ((seed_high << 32) | seed_low).to(tl.uint64),
    )
    decision = tl.load(row + _DECISION, mask=valid, other=_UNDECIDED)
    keep = tl.where(decision == _UNDECIDED, bits.to(tl.int32) >= threshold, decision != 0)

    mode = tl.load(row + _MODE, mask=valid, other=0)
    source, site = mode // _N_SITES, mode % _N_SITES
    kept = tl.maximum(65536 - threshold, 1).to(tl.float64)
    scale = tl.where(tl.load(group + _RESCALE) != 0.0, 65536.0 / kept, 1.0)
    drawn = source > _SOURCE_LOADED  # a loaded mask has neither a threshold nor a scale
    on_grad = drawn & ((site == _SITE_GRAD) | (site == _SITE_FREEZE))
    on_update = drawn & ((site != _SITE_GRAD) & (site != _SITE_FREEZE))
    decided = (source == _SOURCE_TENSOR) | (drawn & (threshold == 65536))
    frozen = decided & (site == _SITE_FREEZE) & (keep == 0)
    has_grad = tl.load(row + _GRAD, mask=valid, other=0) != _NO_GRAD
    moves = active * (has_grad & (frozen == 0)).to(tl.int32)
    tl.store(step_ptr, finished + moves, mask=valid)

    grad_factor = tl.load(group + _GRAD_SIGN) * tl.where(on_grad, scale, 1.0) * inv_loss_scale
    step_size = lr / bias_correction1 * tl.where(on_update, scale, 1.0)
    out = floats + tensor * FLOATS
    tl.store(out + GRAD_FACTOR, grad_factor.to(tl.float32), mask=valid)
    tl.store(out + ONE_MINUS_BETA1, (1.0 - beta1).to(tl.float32), mask=valid)
    tl.store(out + BETA2, beta2.to(tl.float32), mask=valid)
    tl.store(out + ONE_MINUS_BETA2, (1.0 - beta2).to(tl.float32), mask=valid)
    eps = tl.load(group + _EPS)
    eps = tl.where(eps > 0.0, tl.maximum(eps, _LEAST_NORMAL), eps)
    tl.store(out + EPS, eps.to(tl.float32), mask=valid)
    decay_factor = 1.0 - lr * tl.load(group + _WEIGHT_DECAY)
    tl.store(out + DECAY_FACTOR, decay_factor.to(tl.float32), mask=valid)
    tl.store(out + STEP_SIZE, step_size.to(tl.float32), mask=valid)
    inv_bias_correction2_sqrt = 1.0 / tl.sqrt(bias_correction2)
    tl.store(out + INV_BIAS_CORRECTION2_SQRT, inv_bias_correction2_sqrt.to(tl.float32), mask=valid)
    out = ints + tensor * INTS
    tl.store(out + ACTIVE, moves, mask=valid)
    tl.store(out + KEEP, keep.to(tl.int32), mask=valid)
    tl.store(out + THRESHOLD, threshold, mask=valid)
    tl.store(out + DRAW, draw.to(tl.int32, bitcast=True), mask=valid)
    rounding_draw = steps_finished.to(tl.uint32).to(tl.int32, bitcast=True)
    tl.store(out + ROUNDING_DRAW, rounding_draw, mask=valid)
    tl.store(out + KEY_LOW, seed_low.to(tl.int32), mask=valid)
    tl.store(out + KEY_HIGH, seed_high.to(tl.int32), mask=valid)
    tl.debug_barrier()  # all threads have read the counters
    if tl.atomic_add(arrived, 1) == tl.num_programs(0) - 1:
        tl.store(counters, steps_finished + active)
        tl.store(arrived, 0)
