"""The masked AdamW step in Triton: one pass over memory, one launch for all tensors.

Never autotuned: the step is in place, and an autotuner would apply it several times.
"""

import triton
import triton.language as tl

from .. import abi
from .philox import interleave4, u16_of_element, words_of_tile

TILES = 16  # tiles of 1024 elements per chunk: what one program of dense_step walks
BLOCK = 512  # entries per program of strided_step

# kernels see globals only as constexpr
_TILES, _TILE, _HALF = tl.constexpr(TILES), tl.constexpr(abi.TILE), tl.constexpr(abi.TILE // 2)
_BLOCK = tl.constexpr(BLOCK)
_PARAM, _GRAD = tl.constexpr(abi.PARAM), tl.constexpr(abi.GRAD)
_EXP_AVG, _EXP_AVG_SQ = tl.constexpr(abi.EXP_AVG), tl.constexpr(abi.EXP_AVG_SQ)
_STEP, _BEGIN, _END = tl.constexpr(abi.STEP), tl.constexpr(abi.BEGIN), tl.constexpr(abi.END)
_STREAM, _UNIT = tl.constexpr(abi.STREAM), tl.constexpr(abi.UNIT)
_ROW_SIZE, _MODE = tl.constexpr(abi.ROW_SIZE), tl.constexpr(abi.MODE)
_GROUP, _LAYOUT = tl.constexpr(abi.GROUP), tl.constexpr(abi.LAYOUT)
_N_TENSOR_COLUMNS = tl.constexpr(abi.N_TENSOR_COLUMNS)
_N_DIMS, _SIZES = tl.constexpr(abi.N_DIMS), tl.constexpr(abi.SIZES)
_PARAM_STRIDES = tl.constexpr(abi.PARAM_STRIDES)
_GRAD_STRIDES = tl.constexpr(abi.GRAD_STRIDES)
_MOMENT_STRIDES = tl.constexpr(abi.MOMENT_STRIDES)
_ELEMENT_STRIDES = tl.constexpr(abi.ELEMENT_STRIDES)
_N_LAYOUT_COLUMNS = tl.constexpr(abi.N_LAYOUT_COLUMNS)
_LR, _BETA1, _BETA2 = tl.constexpr(abi.LR), tl.constexpr(abi.BETA1), tl.constexpr(abi.BETA2)
_EPS, _WEIGHT_DECAY = tl.constexpr(abi.EPS), tl.constexpr(abi.WEIGHT_DECAY)
_GRAD_SIGN, _DROP_PROB = tl.constexpr(abi.GRAD_SIGN), tl.constexpr(abi.DROP_PROB)
_RESCALE, _PERIOD = tl.constexpr(abi.RESCALE), tl.constexpr(abi.PERIOD)
_SEED_LOW, _SEED_HIGH = tl.constexpr(abi.SEED_LOW), tl.constexpr(abi.SEED_HIGH)
_N_GROUP_COLUMNS = tl.constexpr(abi.N_GROUP_COLUMNS)
_SOURCE_NONE, _SOURCE_ELEMENT = tl.constexpr(abi.SOURCE_NONE), tl.constexpr(abi.SOURCE_ELEMENT)
_SOURCE_ROW, _SOURCE_TENSOR = tl.constexpr(abi.SOURCE_ROW), tl.constexpr(abi.SOURCE_TENSOR)
_SITE_GRAD, _SITE_UPDATE = tl.constexpr(abi.SITE_GRAD), tl.constexpr(abi.SITE_UPDATE)
_SITE_UPDATE_DECAY_ALL = tl.constexpr(abi.SITE_UPDATE_DECAY_ALL)
_SITE_FREEZE = tl.constexpr(abi.SITE_FREEZE)
_N_SITES, _N_SOURCES = tl.constexpr(abi.N_SITES), tl.constexpr(abi.N_SOURCES)
_ONE = tl.constexpr(1)

# What `prepare` derives for each tensor: float32 [n_tensors, N_FLOATS] in the order of `_adamw` ...
N_FLOATS = 8
_N_FLOATS = tl.constexpr(N_FLOATS)
# ... and int32 [n_tensors, N_INTS].
N_INTS = 8
_N_INTS = tl.constexpr(N_INTS)
_I_ACTIVE = tl.constexpr(0)  # 0: found_inf or frozen as a whole, nothing of the tensor changes
_I_KEEP = tl.constexpr(1)  # SOURCE_TENSOR: the decision
_I_THRESHOLD = tl.constexpr(2)  # [0, 65536]
_I_DRAW = tl.constexpr(3)  # bits of a uint32, as are the two halves of the seed
_I_SEED_LOW = tl.constexpr(4)
_I_SEED_HIGH = tl.constexpr(5)


@triton.jit(do_not_specialize=["n_tensors"])
def prepare(
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    group_table,  # fp64 [n_groups, N_GROUP_COLUMNS]
    counters,  # int64 [2], advanced here
    floats,  # fp32 [n_tensors, N_FLOATS], out
    ints,  # int32 [n_tensors, N_INTS], out
    grad_scale,  # fp32 [1] or None: loss scale that the gradients carry
    found_inf,  # fp32 [1] or None: unless 0, this step is skipped, counters included
    n_tensors,
    BLOCK: tl.constexpr,
):
    """Advance the counters and derive each tensor's scalars from its group's numbers, in fp64.

    One program, so that every tensor reads the counters before they move.
    """
    active = True
    if found_inf is not None:
        active = tl.load(found_inf) == 0.0
    inv_loss_scale = 1.0
    if grad_scale is not None:
        inv_loss_scale = 1.0 / tl.load(grad_scale).to(tl.float64)
    steps_finished = tl.load(counters)
    masks_begun = tl.load(counters + 1)
    for start in range(0, n_tensors, BLOCK):
        tensor = start + tl.arange(0, BLOCK)
        valid = tensor < n_tensors
        row = tensor_table + tensor.to(tl.int64) * _N_TENSOR_COLUMNS
        group = group_table + tl.load(row + _GROUP, mask=valid, other=0) * _N_GROUP_COLUMNS
        lr = tl.load(group + _LR)
        beta1, beta2 = tl.load(group + _BETA1), tl.load(group + _BETA2)

        step_ptr = tl.load(row + _STEP, mask=valid, other=0).to(tl.pointer_type(tl.float32))
        step = tl.load(step_ptr, mask=valid, other=0.0) + 1.0
        tl.store(step_ptr, step, mask=valid & active)
        step = step.to(tl.float64)
        bias_correction1 = 1.0 - tl.exp(step * tl.log(beta1))
        bias_correction2 = 1.0 - tl.exp(step * tl.log(beta2))

        # threshold: round(65536 drop_prob), ties to even
        scaled = tl.load(group + _DROP_PROB) * 65536.0
        threshold = tl.floor(scaled + 0.5).to(tl.int32)
        tie = threshold.to(tl.float64) - scaled == 0.5
        threshold -= (tie & (threshold % 2 == 1)).to(tl.int32)
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
        keep = bits.to(tl.int32) >= threshold

        mode = tl.load(row + _MODE, mask=valid, other=0)
        source, site = mode // _N_SITES, mode % _N_SITES
        kept = tl.maximum(65536 - threshold, 1).to(tl.float64)
        scale = tl.where(tl.load(group + _RESCALE) != 0.0, 65536.0 / kept, 1.0)
        on_grad = (source != _SOURCE_NONE) & ((site == _SITE_GRAD) | (site == _SITE_FREEZE))
        on_update = (source != _SOURCE_NONE) & ((site != _SITE_GRAD) & (site != _SITE_FREEZE))
        frozen = (source == _SOURCE_TENSOR) & (site == _SITE_FREEZE) & (keep == 0)

        grad_factor = tl.load(group + _GRAD_SIGN) * tl.where(on_grad, scale, 1.0) * inv_loss_scale
        step_size = lr / bias_correction1 * tl.where(on_update, scale, 1.0)
        out = floats + tensor * _N_FLOATS
        tl.store(out + 0, grad_factor.to(tl.float32), mask=valid)
        tl.store(out + 1, (1.0 - beta1).to(tl.float32), mask=valid)
        tl.store(out + 2, beta2.to(tl.float32), mask=valid)
        tl.store(out + 3, (1.0 - beta2).to(tl.float32), mask=valid)
        tl.store(out + 4, tl.load(group + _EPS).to(tl.float32), mask=valid)
        decay_factor = 1.0 - lr * tl.load(group + _WEIGHT_DECAY)
        tl.store(out + 5, decay_factor.to(tl.float32), mask=valid)
        tl.store(out + 6, step_size.to(tl.float32), mask=valid)
        inv_bias_correction2_sqrt = 1.0 / tl.sqrt(bias_correction2)
        tl.store(out + 7, inv_bias_correction2_sqrt.to(tl.float32), mask=valid)
        out = ints + tensor * _N_INTS
        tl.store(out + _I_ACTIVE, (active & (frozen == 0)).to(tl.int32), mask=valid)
        tl.store(out + _I_KEEP, keep.to(tl.int32), mask=valid)
        tl.store(out + _I_THRESHOLD, threshold, mask=valid)
        tl.store(out + _I_DRAW, draw.to(tl.int32, bitcast=True), mask=valid)
        tl.store(out + _I_SEED_LOW, seed_low.to(tl.int32), mask=valid)
        tl.store(out + _I_SEED_HIGH, seed_high.to(tl.int32), mask=valid)
    tl.debug_barrier()
    tl.store(counters, steps_finished + 1, mask=active)


@triton.jit
def _adamw(
    param,  # [n] fp32
    grad,  # [n] fp32
    exp_avg,  # [n] fp32
    exp_avg_sq,  # [n] fp32
    keep,  # bool, [n] or scalar; not read where SOURCE is none
    scalars,  # the tensor's floats from `prepare`
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """One block's new param, exp_avg, exp_avg_sq: graddrop.reference.adamw_step_, line by line."""
    grad_factor, lerp1, beta2, lerp2, eps, decay_factor, step_size, inv_bias_correction2_sqrt = (
        scalars
    )
    MASKED: tl.constexpr = SOURCE != _SOURCE_NONE
    # gradient: scale, mask
    grad = grad * grad_factor
    if MASKED and (SITE == _SITE_GRAD or SITE == _SITE_FREEZE):
        grad = tl.where(keep, grad, 0.0)
    # decoupled weight decay
    decayed = param * decay_factor
    # moments
    new_exp_avg = exp_avg + lerp1 * (grad - exp_avg)
    new_exp_avg_sq = beta2 * exp_avg_sq + lerp2 * grad * grad
    # update
    denom = tl.sqrt(new_exp_avg_sq) * inv_bias_correction2_sqrt + eps
    new_param = decayed - step_size * (new_exp_avg / denom)
    # select
    if MASKED and SITE == _SITE_UPDATE:
        new_param = tl.where(keep, new_param, param)
    if MASKED and SITE == _SITE_UPDATE_DECAY_ALL:
        new_param = tl.where(keep, new_param, decayed)
    if MASKED and SITE == _SITE_FREEZE:
        new_param = tl.where(keep, new_param, param)
        new_exp_avg = tl.where(keep, new_exp_avg, exp_avg)
        new_exp_avg_sq = tl.where(keep, new_exp_avg_sq, exp_avg_sq)
    return new_param, new_exp_avg, new_exp_avg_sq


@triton.jit
def _step_block(
    param_ptrs,  # [n] pointers
    grad_ptrs,  # [n] pointers
    exp_avg_ptrs,  # [n] pointers
    exp_avg_sq_ptrs,  # [n] pointers
    in_bounds,  # [n] bool, or None: all of them
    keep,  # as in _adamw
    scalars,  # as in _adamw
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """Load, step, store one block."""
    # load, in fp32
    param = tl.load(param_ptrs, mask=in_bounds)
    grad = tl.load(grad_ptrs, mask=in_bounds)
    exp_avg = tl.load(exp_avg_ptrs, mask=in_bounds)
    exp_avg_sq = tl.load(exp_avg_sq_ptrs, mask=in_bounds)
    new_param, new_exp_avg, new_exp_avg_sq = _adamw(
        param.to(tl.float32),
        grad.to(tl.float32),
        exp_avg.to(tl.float32),
        exp_avg_sq.to(tl.float32),
        keep,
        scalars,
        SOURCE,
        SITE,
    )
    # store
    tl.store(param_ptrs, new_param.to(param.dtype), mask=in_bounds)
    tl.store(exp_avg_ptrs, new_exp_avg.to(exp_avg.dtype), mask=in_bounds)
    tl.store(exp_avg_sq_ptrs, new_exp_avg_sq.to(exp_avg_sq.dtype), mask=in_bounds)


@triton.jit
def _load_scalars(floats):
    """The tensor's floats, in the order of _adamw."""
    return (
        tl.load(floats + 0),
        tl.load(floats + 1),
        tl.load(floats + 2),
        tl.load(floats + 3),
        tl.load(floats + 4),
        tl.load(floats + 5),
        tl.load(floats + 6),
        tl.load(floats + 7),
    )


@triton.jit
def _load_key(row, ints):
    """(threshold, stream, draw, seed) of the tensor: three uint32 and one uint64 scalar."""
    low = tl.load(ints + _I_SEED_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(ints + _I_SEED_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (
        tl.load(ints + _I_THRESHOLD).to(tl.uint32),
        tl.load(row + _STREAM).to(tl.uint32),
        tl.load(ints + _I_DRAW).to(tl.uint32, bitcast=True),
        (high << 32) | low,
    )


@triton.jit
def _keep_rows(start, row_size, key):
    """Keep of the 512 elements from `start` on: rows are multiples of 4, a quad shares its row."""
    threshold, stream, draw, seed = key
    start = start.to(tl.uint64)
    # Only the way from the row of `start` is divided element by element, hence in 32 bits.
    inside = (start % row_size).to(tl.uint32) + tl.arange(0, _HALF // 4).to(tl.uint32) * 4
    rows = start // row_size + (inside // row_size.to(tl.uint32)).to(tl.uint64)
    bits = u16_of_element(rows, stream, draw, seed)
    return interleave4(bits, bits, bits, bits) >= threshold


@triton.jit
def _dense_chunk(
    row,  # int64*: the tensor's row of the tensor table
    floats,  # fp32*: its scalars
    ints,  # int32*: its integers
    first_tile,  # int64 scalar: first tile of the chunk, counted in the whole parameter
    n_tiles,  # int32 scalar
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,  # no bounds to check; a mask would cost the 128-bit loads
):
    """Step the elements of n_tiles tiles."""
    param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE))
    grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE))
    exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE))
    exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE))
    if ALIGNED:
        param, grad = tl.multiple_of(param, 16), tl.multiple_of(grad, 16)
        exp_avg, exp_avg_sq = tl.multiple_of(exp_avg, 16), tl.multiple_of(exp_avg_sq, 16)
    begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
    scalars = _load_scalars(floats)
    key = _load_key(row, ints)
    threshold, stream, draw, seed = key
    row_size = tl.load(row + _ROW_SIZE).to(tl.uint64)
    decision = tl.load(ints + _I_KEEP) != 0

    for i in range(n_tiles):
        tile = first_tile + i
        if SOURCE == _SOURCE_ELEMENT:
            words = words_of_tile(tile.to(tl.uint64), stream, draw, seed, VECTOR)
        for half in tl.static_range(2):
            start = tile * _TILE + half * _HALF
            offset = tl.arange(0, _HALF)
            in_bounds = None
            if not FULL:
                in_bounds = (start + offset >= begin) & (start + offset < end)
            if SOURCE == _SOURCE_ELEMENT:
                keep = ((words >> (16 * half)) & 0xFFFF) >= threshold
            elif SOURCE == _SOURCE_ROW:
                keep = _keep_rows(start, row_size, key)
            else:
                keep = decision
            _step_block(
                param + start + offset,
                grad + start + offset,
                exp_avg + start + offset,
                exp_avg_sq + start + offset,
                in_bounds,
                keep,
                scalars,
                SOURCE,
                SITE,
            )


@triton.jit
def dense_step(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    floats,  # fp32 [n_tensors, N_FLOATS], from `prepare`
    ints,  # int32 [n_tensors, N_INTS], from `prepare`
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    MODES: tl.constexpr,  # bit m is set iff a tensor of the launch has mode m
    ALIGNED: tl.constexpr,  # every origin is a multiple of 16 bytes
    VECTOR: tl.constexpr,  # neighbouring elements per thread: 8 where all dtypes have 16 bits
):
    """Step one chunk of a tensor that is one contiguous range of its whole parameter."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    row = tensor_table + tensor * _N_TENSOR_COLUMNS
    floats = floats + tensor * _N_FLOATS
    ints = ints + tensor * _N_INTS
    if tl.load(ints + _I_ACTIVE) != 0:
        mode = tl.load(row + _MODE)
        begin, end = tl.load(row + _BEGIN), tl.load(row + _END)
        first_tile = begin // _TILE + tl.load(chunk + 1).to(tl.int64) * _TILES
        full = (first_tile * _TILE >= begin) & ((first_tile + _TILES) * _TILE <= end)
        n_tiles = tl.minimum((end - 1) // _TILE + 1 - first_tile, _TILES).to(tl.int32)
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        # Two copies of the loop: bounds would cost the main one its wide loads.
                        if full:
                            _dense_chunk(
                                row,
                                floats,
                                ints,
                                first_tile,
                                _TILES,
                                PARAM_DTYPE,
                                GRAD_DTYPE,
                                MOMENT_DTYPE,
                                source,
                                site,
                                ALIGNED,
                                VECTOR,
                                True,
                            )
                        else:
                            _dense_chunk(
                                row,
                                floats,
                                ints,
                                first_tile,
                                n_tiles,
                                PARAM_DTYPE,
                                GRAD_DTYPE,
                                MOMENT_DTYPE,
                                source,
                                site,
                                ALIGNED,
                                VECTOR,
                                False,
                            )


@triton.jit
def strided_step(
    chunks,  # int32 [n_chunks, 2]: row of the tensor table, block within the tensor
    tensor_table,  # int64 [n_tensors, N_TENSOR_COLUMNS]
    layout_table,  # int64 [n_strided, N_LAYOUT_COLUMNS]
    floats,  # fp32 [n_tensors, N_FLOATS], from `prepare`
    ints,  # int32 [n_tensors, N_INTS], from `prepare`
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENT_DTYPE: tl.constexpr,
    MODES: tl.constexpr,  # as in dense_step
):
    """Step one block of a tensor of any strides, each entry finding its own bits."""
    chunk = chunks + tl.program_id(0) * 2
    tensor = tl.load(chunk)
    row = tensor_table + tensor * _N_TENSOR_COLUMNS
    floats = floats + tensor * _N_FLOATS
    ints = ints + tensor * _N_INTS
    if tl.load(ints + _I_ACTIVE) != 0:
        mode = tl.load(row + _MODE)
        layout = layout_table + tl.load(row + _LAYOUT) * _N_LAYOUT_COLUMNS
        entry = tl.load(chunk + 1).to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)
        in_bounds = entry < tl.load(row + _END) - tl.load(row + _BEGIN)
        rest = entry.to(tl.uint64)
        at_param = tl.zeros_like(entry)
        at_grad = tl.zeros_like(entry)
        at_moment = tl.zeros_like(entry)
        element = tl.zeros_like(entry) + tl.load(row + _BEGIN)
        n_dims = tl.load(layout + _N_DIMS).to(tl.int32)
        for i in range(n_dims):
            dim = layout + (n_dims - 1 - i)
            size = tl.load(dim + _SIZES).to(tl.uint64)
            index = (rest % size).to(tl.int64)
            rest = rest // size
            at_param += index * tl.load(dim + _PARAM_STRIDES)
            at_grad += index * tl.load(dim + _GRAD_STRIDES)
            at_moment += index * tl.load(dim + _MOMENT_STRIDES)
            element += index * tl.load(dim + _ELEMENT_STRIDES)
        param = tl.load(row + _PARAM).to(tl.pointer_type(PARAM_DTYPE)) + at_param
        grad = tl.load(row + _GRAD).to(tl.pointer_type(GRAD_DTYPE)) + at_grad
        exp_avg = tl.load(row + _EXP_AVG).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        exp_avg_sq = tl.load(row + _EXP_AVG_SQ).to(tl.pointer_type(MOMENT_DTYPE)) + at_moment
        scalars = _load_scalars(floats)
        threshold, stream, draw, seed = _load_key(row, ints)
        row_size = tl.load(row + _ROW_SIZE).to(tl.uint64)
        decision = tl.load(ints + _I_KEEP) != 0
        for source in tl.static_range(_N_SOURCES):
            for site in tl.static_range(_N_SITES):
                if (_ONE << (_N_SITES * source + site)) & MODES:
                    if mode == _N_SITES * source + site:
                        keep = decision
                        if source == _SOURCE_ELEMENT:
                            bits = u16_of_element(element.to(tl.uint64), stream, draw, seed)
                            keep = bits >= threshold
                        if source == _SOURCE_ROW:
                            rows = element.to(tl.uint64) // row_size
                            keep = u16_of_element(rows, stream, draw, seed) >= threshold
                        _step_block(
                            param,
                            grad,
                            exp_avg,
                            exp_avg_sq,
                            in_bounds,
                            keep,
                            scalars,
                            source,
                            site,
                        )
