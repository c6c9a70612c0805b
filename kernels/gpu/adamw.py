"""The masked AdamW update of one block of entries (``graddrop.reference`` is the definition)."""

import triton
import triton.language as tl

from .. import abi
from .arithmetic import quotient, root
from .prepare import (
    BETA2,
    DECAY_FACTOR,
    EPS,
    GRAD_FACTOR,
    INV_BIAS_CORRECTION2_SQRT,
    ONE_MINUS_BETA1,
    ONE_MINUS_BETA2,
    STEP_SIZE,
)

# kernels see globals only as constexpr
_SOURCE_NONE = tl.constexpr(abi.SOURCE_NONE)
_SITE_GRAD, _SITE_UPDATE = tl.constexpr(abi.SITE_GRAD), tl.constexpr(abi.SITE_UPDATE)
_SITE_UPDATE_DECAY_ALL = tl.constexpr(abi.SITE_UPDATE_DECAY_ALL)
_SITE_FREEZE = tl.constexpr(abi.SITE_FREEZE)


@triton.jit
def load_scalars(floats):
    """The tensor's floats, in the order of adamw."""
    return (
        tl.load(floats + GRAD_FACTOR),
        tl.load(floats + ONE_MINUS_BETA1),
        tl.load(floats + BETA2),
        tl.load(floats + ONE_MINUS_BETA2),
        tl.load(floats + EPS),
        tl.load(floats + DECAY_FACTOR),
        tl.load(floats + STEP_SIZE),
        tl.load(floats + INV_BIAS_CORRECTION2_SQRT),
    )


@triton.jit
def adamw(
    p,  # [n] fp32, the parameter
    g,  # [n] fp32, its gradient
    m,  # [n] fp32, exp_avg
    v,  # [n] fp32, exp_avg_sq
    keep,  # bool, [n] or scalar; not read where SOURCE is none
    scalars,  # load_scalars
    PTX: tl.constexpr,
    SOURCE: tl.constexpr,
    SITE: tl.constexpr,
):
    """One block's new p, m, v: graddrop.reference.adamw_step_, line by line.

    Where products and sums fuse is said here: a compiler's choice would differ between the copies
    of the loop, and an entry's result would depend on where its tensor is cut.
    """
    (
        grad_factor,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        eps,
        decay_factor,
        step_size,
        inv_bias_correction2_sqrt,
    ) = scalars
    MASKED: tl.constexpr = SOURCE != _SOURCE_NONE
    # gradient: scale, mask
    g = g * grad_factor
    if MASKED and (SITE == _SITE_GRAD or SITE == _SITE_FREEZE):
        g = tl.where(keep, g, 0.0)
    # decoupled weight decay
    p_decayed = p * decay_factor
    # moments
    far = one_minus_beta1 >= 0.5  # lerp starts from the nearer end: m, else g
    weight = tl.where(far, one_minus_beta1 - 1.0, one_minus_beta1)
    m_new = tl.fma(weight, g - m, tl.where(far, g, m))
    v_new = tl.fma(v, beta2, one_minus_beta2 * g * g)
    # update
    denom = tl.fma(root(v_new, PTX), inv_bias_correction2_sqrt, eps)
    p_new = tl.fma(quotient(m_new, denom, PTX), -step_size, p_decayed)
    # select
    if MASKED and SITE == _SITE_UPDATE:
        p_new = tl.where(keep, p_new, p)
    if MASKED and SITE == _SITE_UPDATE_DECAY_ALL:
        p_new = tl.where(keep, p_new, p_decayed)
    if MASKED and SITE == _SITE_FREEZE:
        p_new = tl.where(keep, p_new, p)
        m_new = tl.where(keep, m_new, m)
        v_new = tl.where(keep, v_new, v)
    return p_new, m_new, v_new


@triton.jit
def round_to_bfloat16(value, bits):
    """graddrop.reference.round_to_bfloat16: fp32 [n] with 16 bits each, uint32 [n]."""
    cut = (value.to(tl.uint32, bitcast=True) + bits) >> 16
    return tl.where(value == value, cut, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
