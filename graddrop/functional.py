"""The masked AdamW step as a function of tensors: arguments checked once, backends picked once."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .mask import GRANULARITIES, MAX_STREAM_ID, Shard, rescale_factor, threshold
from .plan import Plan, Slot
from .reference import SITES
from .tables import Entry, Knobs


def check_knobs(knobs: Knobs) -> None:
    """Check one group's numbers; tensors (lr, drop_prob) are checked for their shape alone.

    Raises:
        ValueError: a value outside its range. Says which, what came and what was expected.
        TypeError: seed or period is no integer.
    """

    def require(valid: bool, name: str, value: object, expected: str) -> None:
        if not valid:
            raise ValueError(f"Invalid {name}: {value!r}: expected {expected}")

    for name, scalar in (("learning rate", knobs.lr), ("drop_prob", knobs.drop_prob)):
        if isinstance(scalar, Tensor):
            require(scalar.numel() == 1, name, tuple(scalar.shape), "a tensor of one element")
    if not isinstance(knobs.lr, Tensor):
        require(0.0 <= knobs.lr < math.inf, "learning rate", knobs.lr, "a finite number >= 0")
    for index, beta in enumerate((knobs.beta1, knobs.beta2)):
        require(0.0 <= beta < 1.0, f"beta parameter at index {index}", beta, "a number in [0, 1)")
    require(0.0 <= knobs.eps < math.inf, "epsilon value", knobs.eps, "a finite number >= 0")
    require(
        0.0 <= knobs.weight_decay < math.inf,
        "weight_decay value",
        knobs.weight_decay,
        "a finite number >= 0",
    )
    require(
        knobs.granularity in GRANULARITIES,
        "granularity",
        knobs.granularity,
        f"one of {GRANULARITIES}",
    )
    require(knobs.site in SITES, "site", knobs.site, f"one of {SITES}")
    if not isinstance(knobs.drop_prob, Tensor):
        threshold(knobs.drop_prob)
        if knobs.rescale:
            rescale_factor(knobs.drop_prob)
    for name, integer in (("seed", knobs.seed), ("period", knobs.period)):
        if not isinstance(integer, int) or isinstance(integer, bool):
            raise TypeError(f"Invalid {name}: {integer!r}: expected an int, got {type(integer)}")
    require(0 <= knobs.seed < 1 << 64, "seed", knobs.seed, "an integer in [0, 2**64)")
    require(knobs.period >= 0, "period", knobs.period, "an integer >= 1, or 0 for masks by hand")


def check_param(param: Tensor) -> None:
    """Check that a tensor can be a parameter of ours.

    Raises:
        TypeError: not a tensor, or neither real nor floating point.
        ValueError: a meta tensor, a sparse tensor, or one whose entries share memory.
    """
    if not isinstance(param, Tensor):
        raise TypeError(f"expected a Tensor as parameter, got {torch.typename(param)}")
    if not param.is_floating_point():
        raise TypeError(
            f"expected a real floating-point parameter, got dtype {param.dtype}: "
            "view complex parameters as real ones, leave integer ones out"
        )
    if param.is_meta:
        raise ValueError("expected a parameter with data, got a meta tensor: materialise it first")
    if param.layout != torch.strided:
        raise ValueError(f"expected a strided parameter, got layout {param.layout}")
    if shares_own_memory(param):
        raise ValueError(
            f"expected a parameter whose entries lie apart, got shape {tuple(param.shape)} with "
            f"strides {param.stride()}: call .contiguous() on the expanded tensor first"
        )


def shares_own_memory(tensor: Tensor) -> bool:
    """Whether two entries may lie at one address (an expanded tensor, say)."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return tensor.numel() > 0
            reach = stride * (size - 1) + reach
    return False


def check_grad(param: Tensor, grad: Tensor) -> None:
    """Check that ``grad`` can be the gradient of ``param``.

    Raises:
        RuntimeError: a sparse gradient; another shape or device; not real and floating point.
    """
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"FusedGradDropAdamW does not support sparse gradients, got layout {grad.layout}: "
            "use sparse=False in the embedding, or torch.optim.SparseAdam"
        )
    if not grad.is_floating_point():
        raise RuntimeError(f"expected a real floating-point gradient, got dtype {grad.dtype}")
    if grad.shape != param.shape or grad.device != param.device:
        raise RuntimeError(
            f"expected a gradient of shape {tuple(param.shape)} on {param.device}, got shape "
            f"{tuple(grad.shape)} on {grad.device}: gradient and parameter must match"
        )


def check_moments(param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> None:
    """Check a parameter's state.

    Raises:
        RuntimeError: moments of another shape or device than the parameter, of different dtypes or
            strides; a step that is not a float32 tensor of one element.
    """
    for name, moment in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if moment.shape != param.shape or moment.device != param.device:
            raise RuntimeError(
                f"expected {name} of shape {tuple(param.shape)} on {param.device}, got shape "
                f"{tuple(moment.shape)} on {moment.device}"
            )
    if exp_avg.dtype != exp_avg_sq.dtype or exp_avg.stride() != exp_avg_sq.stride():
        raise RuntimeError(
            "expected exp_avg and exp_avg_sq of one dtype and one layout, got "
            f"{exp_avg.dtype}, strides {exp_avg.stride()} and {exp_avg_sq.dtype}, strides "
            f"{exp_avg_sq.stride()}"
        )
    if step.dtype != torch.float32 or step.numel() != 1:
        raise RuntimeError(
            f"expected step as a float32 tensor of one element, got {step.dtype}, shape "
            f"{tuple(step.shape)}"
        )


@torch.no_grad()
def graddrop_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    draw: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    drop_prob: float | Tensor = 0.5,
    granularity: str = "element",
    site: str = "grad",
    rescale: bool = False,
    mask_decay: bool = True,
    maximize: bool = False,
    seed: int = 0,
    stream_ids: Sequence[int] | None = None,
    layers: Sequence[int | None] | None = None,
    shards: Sequence[Shard] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One masked AdamW step of a list of tensors, in place, without an optimizer object.

    The equations are those of :func:`graddrop.reference.adamw_step_`, the mask is that of
    :func:`graddrop.mask.keep_mask`. The lists run in parallel. The tables of the kernels are made
    anew at each call; :class:`graddrop.FusedGradDropAdamW` keeps them.

    Args:
        params: floating-point tensors of any shape and dense strides, updated in place.
        grads: shapes and devices of ``params``, read only.
        exp_avgs: first moments, shapes and devices of ``params``, updated in place.
        exp_avg_sqs: second moments, dtypes and strides of ``exp_avgs``, updated in place.
        state_steps: float32 tensors of one element: steps finished by each tensor, advanced by
            one. On the parameter's device, or (not for the Triton backend) on the CPU.
        lr: learning rate, >= 0; a 0-dim tensor is read on the device.
        draw: index of the mask, in [0, 2**32).
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; a 0-dim tensor is read on the
            device.
        granularity: ``"element"``, ``"row"``, ``"tensor"`` or ``"layer"``.
        site: ``"grad"``, ``"update"`` or ``"freeze"``.
        rescale: scale what is kept by the inverse of the realised keep probability.
        mask_decay: under ``site="update"``, whether weight decay too acts only where kept.
        maximize: ascend instead of descend.
        seed: of the masks, in [0, 2**64).
        stream_ids: ids of the parameters in the masks, in [0, 2**30); None: their positions.
        layers: layer number of each tensor for ``granularity="layer"``, None: in no layer, kept.
        shards: where each tensor lies in its whole parameter; None: each is whole.
        grad_scale: float32, one element: loss scale that the gradients carry; they are divided by
            it in passing, not in memory.
        found_inf: float32, one element: unless 0, nothing changes.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Raises:
        ValueError: a value outside its range, lists of different lengths, unknown backend.
        TypeError: a parameter that is not a real floating-point tensor.
        RuntimeError: a gradient or a state that does not match its parameter, or a backend that
            cannot serve it. Nothing has changed then.
    """
    n_tensors = len(params)
    stream_ids = stream_ids if stream_ids is not None else range(n_tensors)
    layers = layers if layers is not None else [None] * n_tensors
    shards = shards if shards is not None else [Shard.whole(tuple(p.shape)) for p in params]
    lists = {
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "state_steps": state_steps,
        "stream_ids": stream_ids,
        "layers": layers,
        "shards": shards,
    }
    for name, values in lists.items():
        if len(values) != n_tensors:
            raise ValueError(f"expected {n_tensors} {name}, one per parameter, got {len(values)}")
    knobs = Knobs(
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        maximize=maximize,
        drop_prob=drop_prob,
        granularity=granularity,
        site=site,
        rescale=rescale,
        mask_decay=mask_decay,
        seed=seed,
        period=0,  # the caller names the draw
    )
    check_knobs(knobs)
    if not 0 <= draw < 1 << 32:
        raise ValueError(f"Invalid draw: {draw}: expected an integer in [0, 2**32)")
    check_stream_ids(stream_ids)
    entries = []
    for index, param in enumerate(params):
        check_param(param)
        check_grad(param, grads[index])
        check_moments(param, exp_avgs[index], exp_avg_sqs[index], state_steps[index])
        entries.append(
            Entry(
                param,
                grads[index],
                exp_avgs[index],
                exp_avg_sqs[index],
                state_steps[index],
                stream_ids[index],
                layers[index],
                shards[index],
                group=0,
            )
        )
    plan = Plan([Slot(entry.param, {}, entry) for entry in entries], [knobs], backend)
    for (device, _), executor in plan.executors.items():
        counters = torch.tensor([0, draw], dtype=torch.int64, device=device)
        executor.step([knobs], counters, grad_scale, found_inf)


def check_stream_ids(stream_ids: Iterable[int]) -> None:
    """Check that ids of parameters leave room for the other streams of the mask contract.

    Raises:
        ValueError: an id outside [0, 2**30).
    """
    for stream_id in stream_ids:
        if not 0 <= stream_id < MAX_STREAM_ID:
            raise ValueError(f"Invalid stream id: {stream_id}: expected an integer in [0, 2**30)")
