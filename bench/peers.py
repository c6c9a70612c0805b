"""Who makes the step: GradDrop in one pass, what people write today, what other packages offer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.nn.functional import dropout

from bench import bytes_model
from graddrop import FusedGradDropAdamW

LR = 1e-3
DROP_PROB = 0.5
SEED = 0
MAX_NORM = 1.0
F32, BF16 = torch.float32, torch.bfloat16


Step = Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """One way to make a step.

    Attributes:
        name: as the tables print it.
        make: sets up the step of parameters that have gradients, and returns it. Where that, or the
            first step, fails, the tables say why.
        bytes_per_element: memory traffic of a step (:mod:`bench.bytes_model`); None: not modelled.
        rounds: how often a full run measures it; slow peers less often.
        dtype: of the parameters and gradients.
        package: whose version is recorded beside torch's.
        masks: whether it is GradDrop at DROP_PROB.
        writes_grads: whether a step changes the gradients, which are then renewed between steps.
        max_tensors: it compiles code for each tensor, which takes too long beyond so many.
        only_on: type of the one device that it runs on; None: any.
    """

    name: str
    make: Callable[[Sequence[Parameter]], Step]
    bytes_per_element: int | None = None
    rounds: int = 15
    dtype: torch.dtype = F32
    package: str | None = None
    masks: bool = False
    writes_grads: bool = False
    max_tensors: int | None = None
    only_on: str | None = None

    @property
    def ours(self) -> bool:
        """Whether a failure is ours, and not a row of a table."""
        return self.package == "graddrop"


def one_pass(params: Sequence[Parameter], drop_prob: float = DROP_PROB, **knobs: Any):
    """Our optimizer; like every peer, with torch's defaults but for the mask."""
    return FusedGradDropAdamW(params, lr=LR, drop_prob=drop_prob, seed=SEED, **knobs)


def _ours(**knobs: Any) -> Callable[[Sequence[Parameter]], Step]:
    return lambda params: one_pass(params, **knobs).step


def _torch(**knobs: Any) -> Callable[[Sequence[Parameter]], Step]:
    return lambda params: torch.optim.AdamW(params, lr=LR, **knobs).step


_FUSED = _torch(fused=True)


def _in_a_graph(
    make: Callable[[Sequence[Parameter]], Step],
) -> Callable[[Sequence[Parameter]], Step]:
    """Replays of a captured step: all that the host does is left out of them."""

    def capture(params: Sequence[Parameter]) -> Step:
        step = make(params)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # compiles, makes the state
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def replay(captured: Step = step) -> None:  # whose optimizer's memory the graph uses
            graph.replay()

        return replay

    return capture


def _torch_compiled(params: Sequence[Parameter]) -> Step:
    return torch.compile(torch.optim.AdamW(params, lr=LR, foreach=True).step)


def _eager(
    params: Sequence[Parameter],
    draw: Callable[[torch.Tensor], torch.Tensor],
    make: Callable[[Sequence[Parameter]], Step] = _FUSED,
) -> Step:
    """GradDrop as it is written by hand: mask the gradients, then torch's AdamW."""

    def mask(grads: list[torch.Tensor]) -> None:
        for grad in grads:
            grad.mul_(draw(grad))

    return _masked_first(params, mask, make)


def _masked_first(
    params: Sequence[Parameter],
    mask: Callable[[list[torch.Tensor]], object],
    make: Callable[[Sequence[Parameter]], Step] = _FUSED,
) -> Step:
    adamw = make(params)

    def step() -> None:
        mask([param.grad for param in params if param.grad is not None])
        adamw()

    return step


def _uniform(grad: torch.Tensor) -> torch.Tensor:
    return torch.rand_like(grad) >= DROP_PROB


def _eager_rand(params: Sequence[Parameter]) -> Step:
    return _eager(params, _uniform)


def _eager_rand_foreach(params: Sequence[Parameter]) -> Step:
    return _eager(params, _uniform, _torch(foreach=True))


def _eager_rand_compiled(params: Sequence[Parameter]) -> Step:
    return _eager(params, _uniform, _torch_compiled)


def _eager_bernoulli(params: Sequence[Parameter]) -> Step:
    return _eager(params, lambda grad: torch.empty_like(grad).bernoulli_(1 - DROP_PROB))


def _eager_dropout(params: Sequence[Parameter]) -> Step:
    """With the dropout kernel, which masks and rescales; its rescaling is no change for Adam."""

    def mask(grads: list[torch.Tensor]) -> None:
        for grad in grads:
            grad.copy_(dropout(grad, DROP_PROB, training=True))

    return _masked_first(params, mask)


def _compiled_mask(params: Sequence[Parameter]) -> Step:
    """The masking alone is compiled: one pass over each gradient."""

    def mask(grad: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand_like(grad) >= DROP_PROB, grad, 0.0)

    compiled = torch.compile(mask, dynamic=True)

    def mask_all(grads: list[torch.Tensor]) -> None:
        for grad in grads:
            grad.copy_(compiled(grad))

    return _masked_first(params, mask_all)


def _clip_then_fused(params: Sequence[Parameter]) -> Step:
    return _masked_first(
        params, lambda grads: torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
    )


def _torchao_8bit(params: Sequence[Parameter]) -> Step:
    from torchao.optim import AdamW8bit

    return AdamW8bit(params, lr=LR).step


def _torchao_stochastic(params: Sequence[Parameter]) -> Step:
    from torchao.optim import _AdamW

    return _AdamW(params, lr=LR, bf16_stochastic_round=True).step


def _bitsandbytes_8bit(params: Sequence[Parameter]) -> Step:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(params, lr=LR).step


def _flashoptim(params: Sequence[Parameter]) -> Step:
    from flashoptim import FlashAdamW

    return FlashAdamW(params, lr=LR).step


def _optimi(params: Sequence[Parameter]) -> Step:
    from optimi import AdamW

    return AdamW(params, lr=LR).step


_MODEL = bytes_model


def _graddrop(name: str, bytes_per_element: int, dtype: torch.dtype = F32, **knobs: Any) -> Peer:
    """Ours with certain knobs."""
    masks = knobs.get("drop_prob", DROP_PROB) > 0
    make = _ours(**knobs)
    return Peer(name, make, bytes_per_element, dtype=dtype, package="graddrop", masks=masks)


def _by_hand(
    how: str,
    make: Callable[[Sequence[Parameter]], Step],
    bytes_per_element: int | None = None,
    max_tensors: int | None = None,
) -> Peer:
    """GradDrop before torch's AdamW."""
    return Peer(
        f"eager GradDrop: {how}",
        make,
        bytes_per_element,
        rounds=7,
        masks=True,
        writes_grads=True,
        max_tensors=max_tensors,
    )


PEERS = {
    # What everything is compared with, itself too: torch's fastest AdamW, which masks nothing.
    "fused": Peer("torch AdamW fused, no mask", _FUSED, _MODEL.FP32),
    "graddrop": _graddrop("GradDrop, one pass", _MODEL.FP32),
    "graddrop-exempt": _graddrop("GradDrop, `drop_prob=0`", _MODEL.FP32, drop_prob=0.0),
    "eager-rand": _by_hand("`rand_like`, `mul_`, fused", _eager_rand, _MODEL.EAGER_RAND),
    "eager-bernoulli": _by_hand(
        "`bernoulli_`, `mul_`, fused", _eager_bernoulli, _MODEL.EAGER_BERNOULLI
    ),
    "eager-dropout": _by_hand("`dropout`, fused", _eager_dropout, _MODEL.EAGER_DROPOUT),
    "compiled-mask": _by_hand("compiled mask, fused", _compiled_mask),
    "eager-foreach": _by_hand("`rand_like`, `mul_`, foreach", _eager_rand_foreach),
    "eager-compiled": _by_hand(
        "`rand_like`, `mul_`, compiled", _eager_rand_compiled, max_tensors=1000
    ),
    "foreach": Peer("torch AdamW foreach, no mask", _torch(foreach=True), rounds=3),
    "compiled": Peer("torch AdamW compiled, no mask", _torch_compiled, rounds=3, max_tensors=1000),
    "optimi": Peer("optimi AdamW, no mask", _optimi, rounds=3, package="torch-optimi"),
    # Without the host.
    "graph-fused": Peer(
        "CUDA graph: torch AdamW fused, no mask",
        _in_a_graph(_torch(fused=True, capturable=True)),
        _MODEL.FP32,
        only_on="cuda",
    ),
    "graph-graddrop": Peer(
        "CUDA graph: GradDrop",
        _in_a_graph(_ours(capturable=True)),
        _MODEL.FP32,
        package="graddrop",
        masks=True,
        only_on="cuda",
    ),
    # Clipping by the norm of all gradients.
    "clip-fused": Peer(
        "`clip_grad_norm_`, torch AdamW fused",
        _clip_then_fused,
        _MODEL.CLIP_EAGER,
        writes_grads=True,
    ),
    "clip-graddrop": _graddrop(
        "GradDrop, `max_grad_norm`", _MODEL.CLIP_IN_STEP, max_grad_norm=MAX_NORM
    ),
    "clip-masked": _graddrop(
        "GradDrop, `max_grad_norm`, `masked_norm`",
        _MODEL.CLIP_IN_STEP,
        max_grad_norm=MAX_NORM,
        masked_norm=True,
    ),
    # Magma's scale, by how gradients agree with first moments, on masks that move every tensor.
    "alignment": _graddrop(
        'GradDrop, `rescale="alignment"`', _MODEL.ALIGNED, site="update", rescale="alignment"
    ),
    # bf16 parameters and gradients.
    "bf16-fused": Peer("bf16: torch AdamW fused, no mask", _FUSED, _MODEL.adamw(2, 2), dtype=BF16),
    "bf16-graddrop": _graddrop("bf16: GradDrop, fp32 moments", _MODEL.adamw(2, 4), BF16),
    "bf16-all": _graddrop(
        "bf16: GradDrop, bf16 moments", _MODEL.adamw(2, 2), BF16, state_dtype=BF16
    ),
    "bf16-stochastic": _graddrop(
        "bf16: GradDrop, fp32 moments, stochastic rounding",
        _MODEL.adamw(2, 4),
        BF16,
        stochastic_rounding=True,
    ),
    "bf16-torchao": Peer(
        "bf16: torchao AdamW, stochastic rounding, no mask",
        _torchao_stochastic,
        rounds=3,
        dtype=BF16,
        package="torchao",
        max_tensors=1000,
    ),
    "bf16-flashoptim": Peer(
        "bf16: FlashOptim AdamW, 8-bit moments, no mask",
        _flashoptim,
        rounds=3,
        dtype=BF16,
        package="flashoptim",
        only_on="cuda",
    ),
    "torchao-8bit": Peer(
        "torchao AdamW, 8-bit moments, no mask",
        _torchao_8bit,
        rounds=3,
        package="torchao",
        max_tensors=1000,
    ),
    "bitsandbytes-8bit": Peer(
        "bitsandbytes AdamW, 8-bit moments, no mask",
        _bitsandbytes_8bit,
        rounds=3,
        package="bitsandbytes",
    ),
}
