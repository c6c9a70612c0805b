"""Tolerances with their reasons, and the helpers that tests and benchmarks share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .mask import Shard
from .reference import adamw_step_
from .step.knobs import Knobs
from .step.slot import Dtypes, Slot

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES: dict[str, Dtypes] = {
    "fp32": (F32, F32, F32),
    "bf16 with fp32 moments": (BF16, BF16, F32),
    "fp16 with fp32 moments": (F16, F16, F32),
    "all bf16": (BF16, BF16, BF16),
}


@dataclass(frozen=True)
class Tolerance:
    """How far one step of a backend may be from the step in float64.

    Attributes:
        update: error of the Adam update, relative to the update without cancellation in its moment.
        moments: error of a moment, relative to the sum of the magnitudes that make it up.
        ulps: roundings of a stored value to its dtype, in units of its last place.
    """

    update: float
    moments: float
    ulps: float


# About ten fp32 roundings of 2**-24, roots and divisions of 2 ulp, products contracted or not. Over
# the grid of tests/kernels/test_triton.py the reference, the C++ kernel and the interpreted Triton
# kernels are off by at most 4.0e-7 in updates and 1.8e-7 in moments; three times that is allowed.
# A store rounds to nearest.
FP32_ARITHMETIC = Tolerance(update=1.2e-6, moments=5.4e-7, ulps=0.5)
# Triton's interpreter cuts off where the GPU rounds to nearest when it stores bf16.
INTERPRETED = Tolerance(update=1.2e-6, moments=5.4e-7, ulps=1.0)


@dataclass(frozen=True)
class Values:
    """Parameter and moments of one tensor, float64, of one shape."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def random_slot(
    shape: Sequence[int],
    dtypes: Dtypes = DTYPES["fp32"],
    *,
    seed: int,
    stream_id: int = 0,
    layer: int | None = None,
    shard: Shard | None = None,
    group: int = 0,
    device: torch.device | str = "cpu",
    steps: int = 3,
) -> Slot:
    """A tensor in the middle of training: random parameter, gradient and moments.

    Args:
        shape: of the local tensor.
        dtypes: of param, grad and moments.
        seed: of the values.
        stream_id: see :class:`graddrop.step.slot.Slot`, as for the arguments that follow.
        layer: layer number.
        shard: place in the whole parameter; None: it is the whole.
        group: index of its knobs.
        device: where it lies.
        steps: steps that it has finished.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float, dtype: torch.dtype) -> Tensor:
        normal = torch.randn(tuple(shape), generator=generator, device="cpu")
        return (normal * scale).to(dtype).to(device)

    return Slot(
        param=draw(1.0, dtypes[0]),
        grad=draw(0.1, dtypes[1]),
        exp_avg=draw(0.03, dtypes[2]),
        exp_avg_sq=draw(0.1, dtypes[2]).square_(),
        step=torch.tensor(float(steps), device=device),
        stream_id=stream_id,
        layer=layer,
        shard=shard if shard is not None else Shard.whole(tuple(shape)),
        group=group,
    )


def exact_step(
    slot: Slot, knobs: Knobs, *, steps_finished: int = 0, masks_begun: int = 0
) -> Values:
    """The reference's step in float64, from the values that the slot holds now."""
    values = values_of(slot)
    adamw_step_(
        values.param,
        slot.grad.double(),
        values.exp_avg,
        values.exp_avg_sq,
        slot.keep(knobs, knobs.draw(steps_finished, masks_begun)),
        step=int(slot.step.item()) + 1,
        lr=float(knobs.lr),
        beta1=knobs.beta1,
        beta2=knobs.beta2,
        eps=knobs.eps,
        weight_decay=knobs.weight_decay,
        site=knobs.site,
        mask_decay=knobs.mask_decay,
        mask_scale=slot.mask_scale(knobs),
        grad_factor=-1.0 if knobs.maximize else 1.0,
    )
    return values


def excess_error(
    before: Values, after: Slot, exact: Values, knobs: Knobs, tolerance: Tolerance
) -> float:
    """Largest error of a step, as a multiple of what the tolerance allows: at most 1 is a pass.

    Args:
        before: values before the step.
        after: the slot, stepped.
        exact: what :func:`exact_step` says.
        knobs: those of the step.
        tolerance: what is allowed.

    Returns:
        The largest ratio over parameter and moments; infinity where one is NaN and should not be.
    """
    if not exact.param.numel():
        return 0.0
    errors, allowed = step_errors(before, after, exact, knobs)
    slack = (
        tolerance.update * allowed.param,
        tolerance.moments * allowed.exp_avg,
        tolerance.moments * allowed.exp_avg_sq,
    )
    ratios = []
    for name, relative in zip(("param", "exp_avg", "exp_avg_sq"), slack, strict=True):
        largest = torch.maximum(getattr(before, name).abs(), getattr(exact, name).abs())
        stored = ulp(largest, getattr(after, name).dtype) * tolerance.ulps
        if name == "param":  # decay and subtraction round in fp32, before the store does
            stored = stored + ulp(largest, torch.float32)
        error = getattr(errors, name)
        # Where nothing is allowed, as for zeros that stay, nothing is wrong either.
        ratios.append(torch.where(error == 0, 0, error / (relative + stored)).max())
    return max(torch.stack(ratios).nan_to_num(nan=float("inf")).tolist())


def step_errors(before: Values, after: Slot, exact: Values, knobs: Knobs) -> tuple[Values, Values]:
    """Absolute errors of a step, and the magnitudes they are relative to; both float64."""
    grad = after.grad.double().abs()
    grad = grad * after.mask_scale(knobs)
    exp_avg = knobs.beta1 * before.exp_avg.abs() + (1 - knobs.beta1) * grad
    exp_avg_sq = knobs.beta2 * before.exp_avg_sq + (1 - knobs.beta2) * grad.square()
    cancellation = exp_avg / exact.exp_avg.abs().clamp(min=1e-300)
    errors = Values(
        *(
            (getattr(after, name).double() - getattr(exact, name)).abs()
            for name in ("param", "exp_avg", "exp_avg_sq")
        )
    )
    # Adam's part alone: decay may cancel it.
    decay = float(knobs.lr) * knobs.weight_decay * before.param.abs()
    update = (exact.param - before.param).abs() + decay
    return errors, Values(update * cancellation.clamp(min=1.0), exp_avg, exp_avg_sq)


def values_of(slot: Slot) -> Values:
    """A float64 copy of what the slot holds."""
    held = (slot.param, slot.exp_avg, slot.exp_avg_sq)
    return Values(*(tensor.detach().to(torch.float64, copy=True) for tensor in held))


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of ``dtype`` around each value: float64, shape of ``values``."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(values.double().abs().clamp(min=info.tiny)))
    return torch.exp2(exponent) * info.eps


def make_knobs(**changes: Any) -> Knobs:
    """Knobs of an ordinary masked step, with changes."""
    return Knobs(**{"lr": 1e-2, "drop_prob": 0.3, "seed": 0x9E3779B97F4A7C15, **changes})
