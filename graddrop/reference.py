"""The masked AdamW step on one tensor, in plain torch: the definition of the update.

One line per equation, in the operations and the order of ``torch.optim.AdamW(foreach=False,
fused=False)``, so that without a mask the two agree to the last bit. The kernels carry the same
comments in the same order.
"""

import torch
from torch import Tensor

SITES = ("grad", "update", "freeze")
"""What a mask acts on (the gradient, the update, or all that a step changes)."""

INITIAL_ALIGNMENT = 0.5
"""What an alignment is before the first step, whose moment is zero and has no angle. It is that of
a gradient at right angles to its first moment."""


def adamw_step_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    keep: Tensor | None,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    site: str = "grad",
    mask_decay: bool = True,
    mask_scale: float = 1.0,
    grad_factor: float = 1.0,
    rounding_bits: Tensor | None = None,
) -> None:
    """One AdamW step in place (Loshchilov & Hutter 2019, algorithm 2), gradient or update masked.

    With keep mask k, ``s = mask_scale`` and ``f = grad_factor``::

        site="grad":    g~ = k s f g enters the moments, everything moves
        site="update":  moments of f g; the parameter moves, by s times the step, where k
        site="freeze":  AdamW of s f g where k; elsewhere nothing changes, moments included

    Dropped means selected away, not multiplied: a NaN in a dropped entry stays out.

    Args:
        param: any shape, floating dtype, updated in place.
        grad: shape of ``param``, any floating dtype, read only.
        exp_avg: first moment, shape of ``param``, float32 or param's dtype, updated in place.
        exp_avg_sq: second moment, like ``exp_avg``.
        keep: bool, shape of ``param``; None keeps everything.
        step: number of this step, counted from 1.
        lr: learning rate, >= 0.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        site: where the mask acts, one of :data:`SITES`.
        mask_decay: under ``site="update"``, whether weight decay too acts only where k.
        mask_scale: s, 1, 1/q or the tensor's alignment (:func:`next_alignment`).
        grad_factor: f, for example -1 to maximize.
        rounding_bits: int64 in [0, 65536), shape of ``param``, which is bfloat16 then and rounded
            with them (:func:`round_to_bfloat16`); None rounds to nearest.

    Raises:
        ValueError: unknown ``site``.
    """
    if site not in SITES:
        raise ValueError(f"Invalid site: {site!r}: expected one of {SITES}")
    bias_correction1 = 1 - beta1**step
    bias_correction2_sqrt = (1 - beta2**step) ** 0.5
    step_size = lr / bias_correction1
    one_minus_beta1, one_minus_beta2 = 1 - beta1, 1 - beta2
    decay_factor = 1 - lr * weight_decay
    if keep is not None and site == "update":
        step_size = step_size * mask_scale
    elif keep is not None:
        grad_factor = grad_factor * mask_scale

    # load, in fp32 (fp64 where the parameter is)
    compute = torch.float64 if param.dtype == torch.float64 else torch.float32
    p, g, m, v = (t.to(compute) for t in (param, grad, exp_avg, exp_avg_sq))
    # gradient: scale, mask
    g = g * grad_factor
    if keep is not None and site != "update":
        g = torch.where(keep, g, 0.0)
    # decoupled weight decay
    p_decayed = p * decay_factor
    # moments
    m_new = m.lerp(g, one_minus_beta1)
    v_new = v.mul(beta2).addcmul(g, g, value=one_minus_beta2)
    # update
    denom = (v_new.sqrt() / bias_correction2_sqrt).add(eps)
    p_new = p_decayed.addcdiv(m_new, denom, value=-step_size)
    # select
    if keep is not None and site == "update":
        p_new = torch.where(keep, p_new, p if mask_decay else p_decayed)
    if keep is not None and site == "freeze":
        p_new, m_new, v_new = (
            torch.where(keep, new, old) for new, old in ((p_new, p), (m_new, m), (v_new, v))
        )
    # store
    param.copy_(p_new if rounding_bits is None else round_to_bfloat16(p_new, rounding_bits))
    exp_avg.copy_(m_new)
    exp_avg_sq.copy_(v_new)


def round_to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Stochastic rounding: to one of two neighbours, on average to the value itself.

    The random bits are added below those that bfloat16 keeps, and what is below is cut off. Values
    of bfloat16 stay what they are.

    Args:
        values: float32, any shape; infinities and NaN stay.
        bits: int64 in [0, 65536), shape of ``values``, uniform and independent.

    Returns:
        bfloat16, shape of ``values``.
    """
    cut = (values.view(torch.int32) + bits.to(torch.int32)) & -65536
    return torch.where(values.isnan(), values, cut.view(torch.float32)).to(torch.bfloat16)


def masked_squares(
    grad: Tensor, keep: Tensor | None, *, site: str = "grad", mask_scale: float = 1.0
) -> Tensor:
    """Sum of squares of a gradient as it enters the moments, before any other factor.

    The symbols are those of :func:`adamw_step_`: of ``k s g`` under ``site="grad"`` and
    ``"freeze"``, of ``g`` under ``"update"``.

    Args:
        grad: any shape, floating dtype.
        keep: bool, shape of ``grad``; None keeps everything.
        site: where the mask acts, one of :data:`SITES`.
        mask_scale: s, 1 or 1/q.

    Returns:
        float64, 0-dim.

    Raises:
        ValueError: unknown ``site``.
    """
    if site not in SITES:
        raise ValueError(f"Invalid site: {site!r}: expected one of {SITES}")
    g = grad.double()
    if keep is not None and site != "update":
        g = torch.where(keep, g * mask_scale, 0.0)
    return g.square().sum()


def moment_dots(grad: Tensor, exp_avg: Tensor, *, grad_factor: float = 1.0) -> Tensor:
    """What the angle between a gradient and its first moment is made of: g g, g m and m m, summed.

    Shards of a tensor add up theirs.

    Args:
        grad: any shape, floating dtype.
        exp_avg: first moment before the step, shape of ``grad``.
        grad_factor: multiplies the gradient, for example -1 to maximize.

    Returns:
        float64 [3].
    """
    g, m = grad.double() * grad_factor, exp_avg.double()
    return torch.stack([(g * g).sum(), (g * m).sum(), (m * m).sum()])


def next_alignment(alignment: Tensor, dots: Tensor) -> Tensor:
    """How well a tensor's gradients agree with its first moment, on average over about 10 steps.

    The scale of Magma (arXiv 2602.15322, in the definition of microsoft/dion, pull request 27)::

        a_t = 0.9 a_(t-1) + 0.1 sigmoid(cos(g_t, m_(t-1)) / 2)

    Of a zero gradient or moment the cosine is 0. From :data:`INITIAL_ALIGNMENT` on, a_t lies
    between sigmoid(-1/2) = 0.378 and sigmoid(1/2) = 0.622.

    Args:
        alignment: float32, any shape: a_(t-1).
        dots: float64, that shape and [3] more, of whole tensors: see :func:`moment_dots`.

    Returns:
        float32, shape of ``alignment``: a_t.
    """
    gg, gm, mm = dots.unbind(-1)
    norms = gg.sqrt() * mm.sqrt()
    cosine = torch.where(norms == 0, 0.0, gm / norms)
    return (0.9 * alignment.double() + 0.1 * torch.sigmoid(cosine / 2)).float()
