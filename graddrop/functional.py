"""The masked AdamW step as a function of tensors: arguments checked once, backends picked once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import (
    check_draw,
    check_grad,
    check_ids,
    check_knobs,
    check_moments,
    check_param,
    check_shard,
    read_scalar,
)
from .mask import Shard
from .plan import Plan
from .tables import Entry, Knobs


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
    stochastic_rounding: bool = False,
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
        draw: index of the mask and of the rounding's bits, in [0, 2**32).
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; a 0-dim tensor is read on the
            device.
        granularity: ``"element"``, ``"row"``, ``"tensor"`` or ``"layer"``.
        site: ``"grad"``, ``"update"`` or ``"freeze"``.
        rescale: scale what is kept by the inverse of the realised keep probability.
        mask_decay: under ``site="update"``, whether weight decay too acts only where kept.
        stochastic_rounding: round bfloat16 parameters at random, with bits of ``draw``.
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
    if layers is None and granularity == "layer":
        raise ValueError('granularity="layer" has to know the layers: pass layers')
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
    check_ids(stream_ids, layers)
    knobs = Knobs(
        lr=read_scalar("learning rate", lr),
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        maximize=maximize,
        drop_prob=read_scalar("drop_prob", drop_prob),
        granularity=granularity,
        site=site,
        rescale=rescale,
        mask_decay=mask_decay,
        stochastic_rounding=stochastic_rounding,
        seed=seed,
        period=0,  # the caller names the draw
    )
    check_knobs(knobs)
    check_draw(draw)
    entries = []
    for index, param in enumerate(params):
        check_param(param)
        check_shard(param, shards[index])
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
    plan = Plan(params, entries, [knobs], backend)
    counters = {
        key: torch.tensor([draw, draw], dtype=torch.int64, device=key[0]) for key in plan.executors
    }
    plan.step(grads, [knobs], counters, grad_scale, found_inf)
