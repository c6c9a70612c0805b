"""The masked AdamW step as a function of tensors: one operator, which graphs may hold."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .mask import Shard
from .state.loaded_masks import check_mask
from .step.checks import (
    check_draw,
    check_grad,
    check_ids,
    check_knobs,
    check_moments,
    check_param,
    check_shard,
    is_capturing,
    read_scalar,
)
from .step.keep_bits import KeepBits
from .step.knobs import ALIGNMENT, KNOBS, Knobs, with_units
from .step.overlap import find_overlap
from .step.plan import Plan
from .step.sharding import is_dtensor, shard_of
from .step.slot import Slot


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
    select: str = "bernoulli",
    site: str = "grad",
    rescale: bool = False,
    mask_decay: bool = True,
    stochastic_rounding: bool = False,
    maximize: bool = False,
    seed: int = 0,
    stream_ids: Sequence[int] | None = None,
    layers: Sequence[int | None] | None = None,
    shards: Sequence[Shard] | None = None,
    keep_masks: Sequence[Tensor | None] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One masked AdamW step of a list of tensors, in place, without an optimizer object.

    The equations are those of :func:`graddrop.reference.adamw_step_`, the mask is that of
    :func:`graddrop.mask.keep_mask`. The lists run in parallel. The tables of the kernels are made
    anew at each call; :class:`graddrop.FusedGradDropAdamW` keeps them.

    ``torch.compile`` takes the step as a single operator, which declares what it writes, so a
    function that holds it compiles with ``fullgraph=True``. Where ``lr`` or ``drop_prob`` change
    from step to step, tensors spare a compilation for each value.

    Args:
        params: floating-point tensors of any shape and dense strides, updated in place.
        grads: shapes and devices of ``params``, read only.
        exp_avgs: first moments, shapes and devices of ``params``, updated in place.
        exp_avg_sqs: second moments, dtypes and strides of ``exp_avgs``, updated in place.
        state_steps: float32 tensors of one element: steps finished by each tensor, advanced by
            one, unless ``site="freeze"`` drops it as a whole. On the parameter's device, or (not
            for the Triton backend) on the CPU.
        lr: learning rate, >= 0; a 0-dim tensor is read on the device.
        draw: index of the mask and of the rounding's bits, in [0, 2**32).
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; a 0-dim tensor is read on the
            device.
        granularity: ``"element"``, ``"row"``, ``"tensor"`` or ``"layer"``.
        select: ``"bernoulli"``, or for tensors and layers a choice among those given, see
            :func:`graddrop.mask.keep_units`.
        site: ``"grad"``, ``"update"`` or ``"freeze"``.
        rescale: scale what is kept by the inverse of the realised keep probability; an alignment,
            which is state, needs the optimizer.
        mask_decay: under ``site="update"``, whether weight decay too acts only where kept.
        stochastic_rounding: round bfloat16 parameters at random, with bits of ``draw``.
        maximize: ascend instead of descend.
        seed: of the masks, in [0, 2**64).
        stream_ids: ids of the parameters in the masks, in [0, 2**30); None: their positions.
        layers: layer number of each tensor for ``granularity="layer"``, None: in no layer, kept.
        shards: where each tensor lies in its whole parameter; None: each is whole.
        keep_masks: for each tensor a bool one of its shape, True where kept, which replaces the
            drawn mask whatever ``drop_prob``, without ``rescale``; None: it is drawn. They are
            packed into bits at each call, which ``FusedGradDropAdamW.load_masks`` does once.
        grad_scale: float32, one element: loss scale that the gradients carry; they are divided by
            it in passing, not in memory.
        found_inf: float32, one element: unless 0, nothing changes.
        backend: ``"auto"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Raises:
        ValueError: a value outside its range, lists of different lengths, tensors that share
            memory, a mask of another shape, a partition of FSDP1 or ZeRO 3 without its shard,
            unknown backend.
        TypeError: a parameter that is not a real floating-point tensor; a mask that is not bool; a
            DTensor, or no tensor, where a tensor is expected; what is no list where one is, or no
            ``Shard``; a number or switch of the wrong type.
        RuntimeError: a gradient or a state that does not match its parameter, a backend that
            cannot serve it, or a CUDA graph that is being captured. Nothing has changed then.
    """
    tensors = {
        "params": params,
        "grads": grads,
        "exp_avgs": exp_avgs,
        "exp_avg_sqs": exp_avg_sqs,
        "state_steps": state_steps,
    }
    scalars = {"lr": lr, "drop_prob": drop_prob, "grad_scale": grad_scale, "found_inf": found_inf}
    tensors |= {name: [value] for name, value in scalars.items() if isinstance(value, Tensor)}
    for name, values in tensors.items():
        _check_plain(name, values)
    if isinstance(keep_masks, Tensor):
        _check_plain("keep_masks", keep_masks)
    lists = {"stream_ids": stream_ids, "layers": layers, "shards": shards, "keep_masks": keep_masks}
    for name, given in lists.items():
        if given is not None and not isinstance(given, Sequence):
            raise TypeError(f"expected {name} as a list, one per parameter, got {type(given)}")
    if layers is None and granularity == "layer":
        raise ValueError('granularity="layer" has to know the layers: pass layers')
    stream_ids = stream_ids if stream_ids is not None else range(len(params))
    layers = layers if layers is not None else [None] * len(params)
    shards = shards if shards is not None else [shard_of(param) for param in params]
    masks = list(keep_masks) if keep_masks is not None else [None] * len(params)
    _check_plain("keep_masks", [keep for keep in masks if isinstance(keep, Tensor)])
    numbers = {name: len(values) for name, values in tensors.items() if name not in scalars}
    numbers |= {"stream_ids": len(stream_ids), "layers": len(layers), "shards": len(shards)}
    numbers["keep_masks"] = len(masks)
    for name, number in numbers.items():
        if number != len(params):
            raise ValueError(f"expected {len(params)} {name}, one per parameter, got {number}")
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}: expected a pair of numbers in [0, 1)")
    for param, shard in zip(params, shards, strict=True):
        check_shard(param, shard)
    for param, keep in zip(params, masks, strict=True):
        if keep is not None:
            check_mask(param, keep)
    check_ids(stream_ids, layers)
    check_draw(draw)
    knobs: dict[str, Any] = {
        "beta1": betas[0],
        "beta2": betas[1],
        "eps": eps,
        "weight_decay": weight_decay,
        "maximize": maximize,
        "granularity": granularity,
        "select": select,
        "site": site,
        "rescale": rescale,
        "mask_decay": mask_decay,
        "stochastic_rounding": stochastic_rounding,
    }
    if rescale == ALIGNMENT:
        raise ValueError(
            f'Invalid rescale: "{ALIGNMENT}": expected a bool; an alignment is state from step to '
            "step: use FusedGradDropAdamW"
        )
    check_knobs(Knobs(lr=lr, drop_prob=drop_prob, seed=seed, period=_BY_HAND, **knobs))
    _adamw_(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(state_steps),
        lr=_scalar(lr),
        drop_prob=_scalar(drop_prob),
        grad_scale=grad_scale,
        found_inf=found_inf,
        **knobs,
        seed=seed if seed < 1 << 63 else seed - (1 << 64),
        draw=draw,
        stream_ids=list(stream_ids),
        layers=[_NO_LAYER if layer is None else layer for layer in layers],
        keep_masks=masks,
        places=[index for shard in shards for index in (*shard.global_shape, *shard.offset)],
        backend=backend,
    )


def _check_plain(name: str, tensors: Sequence[Tensor]) -> None:
    """Check that an argument is a list of tensors whose memory is here, all of it."""
    if isinstance(tensors, Tensor):
        raise TypeError(f"expected {name} as a list of tensors, got one of {tuple(tensors.shape)}")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected {name} of tensors, got {type(tensor)}: leave parameters without a "
                "gradient out of all lists"
            )
        if is_dtensor(tensor):
            raise TypeError(
                f"expected {name} of plain tensors, got a DTensor of shape {tuple(tensor.shape)}: "
                "pass its .to_local() and, as shards, where that lies in the whole; "
                "FusedGradDropAdamW takes DTensors as they are"
            )
        # The operator would take it for a question about shapes, and do nothing.
        if tensor.is_meta:
            raise RuntimeError(f"expected {name} with data, got a meta tensor: materialise it")


_BY_HAND = 0  # period of the masks: the caller names the draw
_NO_LAYER = -1


def _scalar(value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64, device="cpu")


_KNOBS = [field for field in fields(Knobs) if field.name in KNOBS and field.name != "period"]
_TYPES: dict[Any, str] = {
    float: "float",
    bool: "bool",
    str: "str",
    int: "SymInt",
    bool | str: "bool",
}
"""In a schema; lr and drop_prob are tensors there."""
# The operator's arguments, name and type: each knob is one, and "!" marks what is written.
_ARGUMENTS = {
    "params": "Tensor(a!)[]",
    "grads": "Tensor[]",
    "exp_avgs": "Tensor(b!)[]",
    "exp_avg_sqs": "Tensor(c!)[]",
    "state_steps": "Tensor(d!)[]",
    **{knob.name: _TYPES.get(knob.type, "Tensor") for knob in _KNOBS},
    "grad_scale": "Tensor?",
    "found_inf": "Tensor?",
    "draw": "SymInt",
    "stream_ids": "SymInt[]",
    "layers": "SymInt[]",
    "keep_masks": "Tensor?[]",
    "places": "SymInt[]",
    "backend": "str",
}
_WRITTEN = tuple(name for name, kind in _ARGUMENTS.items() if "!" in kind)


# Its tables are gone when it returns, so torch.compile leaves it out of the CUDA graphs it makes.
@torch.library.custom_op(
    "graddrop::adamw_",
    mutates_args=_WRITTEN,
    schema=f"({', '.join(f'{kind} {name}' for name, kind in _ARGUMENTS.items())}) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _adamw_(*arguments: Any) -> None:
    """:func:`graddrop_adamw_` in the types of an operator.

    ``seed`` is its 64 bits as a signed number; ``places`` are, for one parameter after the other,
    the shape of the whole and where in it the local tensor begins.
    """
    given = dict(zip(_ARGUMENTS, arguments, strict=True))
    values = {knob.name: given[knob.name] for knob in _KNOBS}
    values["lr"] = read_scalar("lr", given["lr"])
    values["drop_prob"] = read_scalar("drop_prob", given["drop_prob"])
    values["seed"] %= 1 << 64
    knobs = Knobs(**values, period=_BY_HAND)
    check_knobs(knobs)  # numbers that came as tensors
    layers = [None if layer == _NO_LAYER else layer for layer in given["layers"]]
    (knobs,) = with_units([knobs], [given["stream_ids"]], [layers])
    if is_capturing():
        raise RuntimeError(
            "expected no CUDA graph to be captured: its replays would read tables that are gone; "
            "FusedGradDropAdamW(capturable=True) keeps them"
        )
    params, grads = given["params"], given["grads"]
    exp_avgs, exp_avg_sqs, steps = given["exp_avgs"], given["exp_avg_sqs"], given["state_steps"]
    written = [tensor for name in _WRITTEN for tensor in given[name]]
    if pair := find_overlap(written):
        names = [f"{_WRITTEN[place // len(params)]}[{place % len(params)}]" for place in pair]
        raise ValueError(f"{names[0]} and {names[1]} share memory: each needs its own")
    slots = []
    numbers = iter(given["places"])
    for index, param in enumerate(params):
        check_param(param)
        shard = Shard(tuple(islice(numbers, param.dim())), tuple(islice(numbers, param.dim())))
        check_grad(param, grads[index])
        check_moments(param, exp_avgs[index], exp_avg_sqs[index], steps[index])
        keep = given["keep_masks"][index]
        slots.append(
            Slot(
                param,
                grads[index],
                exp_avgs[index],
                exp_avg_sqs[index],
                steps[index],
                given["stream_ids"][index],
                layers[index],
                shard,
                group=0,
                keep_bits=None if keep is None else KeepBits.pack(keep, param, shard),
            )
        )
    plan = Plan(params, slots, [knobs], given["backend"])
    # A device fills them: the host does not wait, as it would for a copy.
    counters = {
        key: torch.full((2,), given["draw"], dtype=torch.int64, device=key[0])
        for key in plan.executors
    }
    plan.step(grads, [knobs], counters, given["grad_scale"], given["found_inf"])
