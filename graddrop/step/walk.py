"""The order in which kernels visit a tensor that is not one contiguous range."""

from .slot import Slot


def walk(slot: Slot) -> list[tuple[int, ...]]:
    """Dimensions in walking order: (size, param, grad, moment, element stride), outermost first.

    The walk follows the parameter's memory. Neighbouring dimensions that all four strides step
    through alike are merged, so a tensor that is one contiguous range gives at most one dimension.
    """
    dims = sorted(
        (
            dim
            for dim in zip(
                slot.param.shape,
                slot.param.stride(),
                slot.grad.stride(),
                slot.exp_avg.stride(),
                slot.shard.strides,
                strict=True,
            )
            if dim[0] != 1
        ),
        key=lambda dim: dim[1],
        reverse=True,
    )
    merged: list[tuple[int, ...]] = []
    for size, *strides in dims:
        if merged and all(
            outer == size * inner for outer, inner in zip(merged[-1][1:], strides, strict=True)
        ):
            size *= merged.pop()[0]
        merged.append((size, *strides))
    return merged
