"""What the arguments of a step have to be, said in errors that name the cure."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..mask import GRANULARITIES, MAX_STREAM_ID, SELECTIONS, Shard, rescale_factor, threshold
from ..reference import SITES
from .knobs import ALIGNMENT, SWITCHES, Knobs

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of parameters
_NUMBERS = (  # field of Knobs, its name in messages (torch's, where torch has one), upper end
    ("lr", "learning rate", None),
    ("beta1", "beta parameter at index 0", 1.0),
    ("beta2", "beta parameter at index 1", 1.0),
    ("eps", "epsilon value", None),
    ("weight_decay", "weight_decay value", None),
)


def check_knobs(knobs: Knobs) -> None:
    """Check one group's numbers; of tensors (lr, drop_prob on a device) nothing is read.

    Raises:
        ValueError: a value outside its range. Says which, what came and what was expected.
        TypeError: a number, switch, seed or period of the wrong type.
    """
    for field, name, end in _NUMBERS:
        value = getattr(knobs, field)
        if isinstance(value, Tensor) and field == "lr":
            continue
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"Invalid {name}: {value!r}: expected a number, got {type(value)}")
        if not 0.0 <= float(value) < (math.inf if end is None else end):
            expected = "a finite number >= 0" if end is None else f"a number in [0, {end:g})"
            raise ValueError(f"Invalid {name}: {value}: expected {expected}")
    if not isinstance(knobs.drop_prob, Tensor):
        if not isinstance(knobs.drop_prob, Real) or isinstance(knobs.drop_prob, bool):
            late = callable(knobs.drop_prob)
            cure = "; give a schedule to the optimizer when the group is made" if late else ""
            raise TypeError(
                f"Invalid drop_prob: {knobs.drop_prob!r}: expected a number in [0, 1], got "
                f"{type(knobs.drop_prob)}{cure}"
            )
        threshold(knobs.drop_prob)
        if knobs.rescale is True:
            rescale_factor(knobs.drop_prob)
    for name in SWITCHES:
        if not isinstance(getattr(knobs, name), bool):
            raise TypeError(f"Invalid {name}: {getattr(knobs, name)!r}: expected a bool")
    if knobs.granularity not in GRANULARITIES:
        raise ValueError(
            f"Invalid granularity: {knobs.granularity!r}: expected one of {GRANULARITIES}"
        )
    if knobs.select not in SELECTIONS:
        raise ValueError(f"Invalid select: {knobs.select!r}: expected one of {SELECTIONS}")
    if knobs.select != "bernoulli" and knobs.granularity not in ("tensor", "layer"):
        raise ValueError(
            f'select="{knobs.select}" chooses among tensors or layers by number: expected '
            f'granularity="tensor" or "layer", got "{knobs.granularity}"'
        )
    if knobs.site not in SITES:
        raise ValueError(f"Invalid site: {knobs.site!r}: expected one of {SITES}")
    if not isinstance(knobs.rescale, bool) and knobs.rescale != ALIGNMENT:
        raise TypeError(f'Invalid rescale: {knobs.rescale!r}: expected a bool, or "{ALIGNMENT}"')
    if knobs.rescale == ALIGNMENT and knobs.site != "update":
        raise ValueError(
            f'rescale="{ALIGNMENT}" scales the update of what is kept, beside moments that see all '
            f'gradients: expected site="update", got "{knobs.site}"'
        )
    for name, value in (("seed", knobs.seed), ("period", knobs.period)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"Invalid {name}: {value!r}: expected an int, got {type(value)}")
    if not 0 <= knobs.seed < 1 << 64:
        raise ValueError(f"Invalid seed: {knobs.seed}: expected an integer in [0, 2**64)")
    if knobs.period < 0:
        raise ValueError(f"Invalid period: {knobs.period}: expected an integer >= 0")


def read_scalar(name: str, value: Any) -> Any:
    """A float for a tensor on the CPU; a tensor on a device is left for the device to read.

    Args:
        name: key of the param group.
        value: of any type.

    Raises:
        ValueError: a tensor of more or fewer than one element, or without data.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    if value.is_meta:
        raise ValueError(f"Invalid {name}: expected a tensor with data, got a meta tensor")
    return value.item() if value.device.type == "cpu" else value


def check_param(param: Tensor) -> None:
    """Check that a tensor can be a parameter of ours.

    Raises:
        TypeError: not a tensor, or not one of :data:`DTYPES`.
        ValueError: a sparse tensor, one without a shape yet or data of its own, or one whose
            entries share memory.
    """
    if not isinstance(param, Tensor):
        raise TypeError(f"optimizer can only optimize Tensors, got {torch.typename(param)}")
    if torch.nn.parameter.is_lazy(param):
        raise ValueError(
            "expected a parameter with a shape, got one of a lazy module: run the model once "
            "before making the optimizer"
        )
    if param.dtype not in DTYPES:
        raise TypeError(
            f"expected a real floating-point parameter of 16 to 64 bits, got dtype {param.dtype}: "
            "view complex parameters as real ones, leave integer ones out"
        )
    if param.layout != torch.strided:
        raise ValueError(f"expected a strided parameter, got layout {param.layout}")
    if _lacks_data(param):
        raise ValueError(
            f"expected a parameter with data, got {type(param).__name__} of shape "
            f"{tuple(param.shape)} without: materialise meta tensors first; tensor subclasses that "
            "wrap other tensors are not supported"
        )
    if shares_own_memory(param):
        raise ValueError(
            f"expected a parameter whose entries lie apart, got shape {tuple(param.shape)} with "
            f"strides {param.stride()}: call .contiguous() on the expanded tensor first"
        )


def check_data(name: str, tensor: Tensor) -> None:
    """Check that there is memory behind a gradient or a moment.

    Raises:
        RuntimeError: there is none, or it has been freed.
    """
    if _lacks_data(tensor):
        raise RuntimeError(f"expected {name} with data, got {tuple(tensor.shape)} without")


def check_grads(grads: Sequence[Tensor | None]) -> None:
    """:func:`check_data` of gradients, None where there is none."""
    for grad in grads:
        if grad is not None:
            check_data("a gradient", grad)


def _lacks_data(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.numel() and not tensor.data_ptr())


def shares_own_memory(tensor: Tensor) -> bool:
    """Whether two entries may lie at one address (an expanded tensor, say)."""
    if tensor.is_contiguous():
        return False
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
        RuntimeError: a sparse gradient; another shape or device; not real and floating point;
            memory that has been freed.
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
    check_data("a gradient", grad)


def check_moments(param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> None:
    """Check a parameter's state.

    Raises:
        RuntimeError: moments of another shape or device than the parameter, of different dtypes or
            strides, not real and floating point, without memory, or whose entries share it; a step
            that is not a float32 tensor of one element.
    """
    for name, moment in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if moment.shape != param.shape or moment.device != param.device:
            raise RuntimeError(
                f"expected {name} of shape {tuple(param.shape)} on {param.device}, got shape "
                f"{tuple(moment.shape)} on {moment.device}"
            )
        if not moment.is_floating_point() or shares_own_memory(moment):
            raise RuntimeError(
                f"expected {name} as a real floating-point tensor whose entries lie apart, got "
                f"dtype {moment.dtype} with strides {moment.stride()}"
            )
        check_data(name, moment)
    if exp_avg.dtype != exp_avg_sq.dtype or exp_avg.stride() != exp_avg_sq.stride():
        raise RuntimeError(
            "expected exp_avg and exp_avg_sq of one dtype and one layout, got "
            f"{exp_avg.dtype}, strides {exp_avg.stride()} and {exp_avg_sq.dtype}, strides "
            f"{exp_avg_sq.stride()}"
        )
    if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.numel() != 1:
        found = f"{step.dtype}, {tuple(step.shape)}" if isinstance(step, Tensor) else repr(step)
        raise RuntimeError(f"expected step as a float32 tensor of one element, got {found}")


def check_alignment(param: Tensor, alignment: Any) -> None:
    """Check the alignment of a parameter.

    Raises:
        RuntimeError: not a float32 tensor of one element on the parameter's device.
    """
    if not isinstance(alignment, Tensor):
        raise RuntimeError(f"expected alignment as a tensor, got {alignment!r}")
    if (
        alignment.dtype != torch.float32
        or alignment.numel() != 1
        or alignment.device != param.device
    ):
        raise RuntimeError(
            f"expected alignment as a float32 tensor of one element on {param.device}, got "
            f"{alignment.dtype}, {tuple(alignment.shape)} on {alignment.device}"
        )


def check_shard(param: Tensor, shard: Shard) -> None:
    """Check that a local tensor fits into its whole parameter at its place.

    Raises:
        ValueError: other dimensions, or entries outside; an empty shard may be placed anywhere.
        TypeError: no shard.
    """
    if not isinstance(shard, Shard):
        raise TypeError(f"expected a graddrop.Shard(global_shape, offset), got {shard!r}")
    shape, whole, offset = tuple(param.shape), shard.global_shape, shard.offset
    fits = len(shape) == len(whole) == len(offset) and (
        not param.numel()
        or all(o >= 0 and o + n <= w for n, o, w in zip(shape, offset, whole, strict=True))
    )
    if not fits:
        raise ValueError(
            f"expected a shard inside its whole, got shape {shape} at {offset} of {whole}"
        )


def check_draw(draw: int) -> None:
    """Check the index of a mask: :func:`check_count` below 2**32."""
    check_count("draw", draw, n_bits=32)


def check_count(name: str, count: Any, n_bits: int) -> None:
    """Check a number that counts.

    Raises:
        TypeError: not an int.
        ValueError: outside [0, 2**n_bits).
    """
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise TypeError(f"Invalid {name}: {count!r}: expected an int, got {type(count)}")
    if not 0 <= int(count) < 1 << n_bits:
        raise ValueError(f"Invalid {name}: {count}: expected an integer in [0, 2**{n_bits})")


def check_ids(stream_ids: Sequence[int], layers: Sequence[int | None]) -> None:
    """Check what parameters are called in the masks.

    Raises:
        ValueError: a stream id outside [0, 2**30), which would meet the other streams of the mask
            contract, or a layer that is no integer >= 0.
    """
    for stream_id in stream_ids:
        if not isinstance(stream_id, int) or not 0 <= stream_id < MAX_STREAM_ID:
            raise ValueError(f"Invalid stream id: {stream_id!r}: expected an integer in [0, 2**30)")
    for layer in layers:
        if layer is not None and (not isinstance(layer, int) or layer < 0):
            raise ValueError(f"Invalid layer: {layer!r}: expected an integer >= 0, or None")


def is_capturing() -> bool:
    """Whether the current stream is captured in a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _is_current(device: torch.device) -> bool:
    return device.index == torch.cuda.current_device()


def check_capture(groups: Sequence[dict[str, Any]], scheduled: bool) -> None:
    """Check that a step may be captured, if a CUDA graph is being captured now.

    Args:
        groups: the optimizer's param groups.
        scheduled: whether a schedule gives a group's ``drop_prob``.

    Raises:
        RuntimeError: a group without ``capturable=True``, parameters on several devices or on
            another GPU than the captured stream's, a schedule, or a tensor on the CPU as ``lr``,
            ``drop_prob`` or one of ``betas``.
    """
    if not is_capturing():
        return
    devices = {param.device for group in groups for param in group["params"]}
    elsewhere = [device for device in devices if device.type == "cuda" and not _is_current(device)]
    if len(devices) > 1 or elsewhere:
        # What runs on another device's stream runs now, and never again.
        raise RuntimeError(
            "expected all parameters on the GPU whose stream is captured in a CUDA graph, got "
            f"them on {sorted(map(str, devices))}: capture an optimizer per device, each under "
            "torch.cuda.device"
        )
    if not all(group["capturable"] for group in groups):
        raise RuntimeError(
            "expected capturable=True in every param group to capture step() in a CUDA graph"
        )
    if scheduled:
        raise RuntimeError(
            "expected a tensor as drop_prob to capture step() in a CUDA graph, got a schedule, "
            "which only the host can follow: fill the tensor between replays"
        )
    for name in ("lr", "drop_prob", "betas"):
        values = [value for g in groups for value in (g[name] if name == "betas" else [g[name]])]
        if any(isinstance(value, Tensor) and value.device.type == "cpu" for value in values):
            raise RuntimeError(
                f"expected {name} as a tensor on the GPU to capture step() in a CUDA graph, got "
                "one on the CPU, which replays would not read: move it there"
            )
