"""Where a (possibly distributed) parameter's local data lies in the whole."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..mask import Shard

_PLAIN = {Tensor, torch.nn.Parameter}
_GRAD = attrgetter("grad")


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The data that this process holds: a view for a DTensor, the tensor itself otherwise."""
    if type(tensor) in _PLAIN or not is_dtensor(tensor):
        return tensor
    placed: Any = tensor
    return placed.to_local()


def local_grad(param: Tensor) -> Tensor | None:
    """The gradient of the data that this process holds, None where there is none.

    A gradient that is placed otherwise than its parameter, such as one whose reduction is pending
    (``Partial``), is brought to its parameter's place, as torch's optimizers do.
    """
    grad: Any = param.grad
    if grad is None or type(param) in _PLAIN or not is_dtensor(param):
        return grad
    placed: Any = param
    if is_dtensor(grad) and grad.placements != placed.placements:
        grad = grad.redistribute(placed.device_mesh, placed.placements)
    return local_tensor(grad)


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether all are torch's own kinds, whose local data is all their data."""
    return _PLAIN.issuperset(map(type, tensors))


def local_tensors(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """:func:`local_tensor` of each; plain ones, the usual case, are looked at in one go."""
    if are_plain(tensors):
        return tensors
    return [local_tensor(tensor) for tensor in tensors]


def local_grads(params: Sequence[Tensor]) -> list[Tensor | None]:
    """:func:`local_grad` of each; plain ones, the usual case, are looked at in one go."""
    if are_plain(params):
        return list(map(_GRAD, params))
    return [local_grad(param) for param in params]


# Attributes by which a plain tensor says that an engine cut it out of a whole one, and the engine.
_PARTITION_MARKS = {
    "_fsdp_flattened": "FullyShardedDataParallel (FSDP1)",
    "_is_flat_param": "FullyShardedDataParallel (FSDP1)",
    "ds_id": "DeepSpeed ZeRO 3",
}


def check_whole(param: Tensor) -> None:
    """Check that a parameter does not name itself a partition whose place nobody can tell.

    Raises:
        ValueError: it does.
    """
    for mark, engine in _PARTITION_MARKS.items():
        if getattr(param, mark, False) is not False:
            raise ValueError(
                f"expected a whole parameter or a DTensor, got one that {engine} partitions, which "
                f"does not say where its part lies in the whole: {INSTEAD_OF_PARTITIONS}"
            )


INSTEAD_OF_PARTITIONS = (
    "use torch.distributed.fsdp.fully_shard (FSDP2), or DistributedDataParallel where nothing has "
    "to be sharded"
)


def shard_of(param: Tensor) -> Shard:
    """Place of the local data in the whole parameter.

    Raises:
        ValueError: a partition that is no DTensor; a DTensor with a pending reduction
            (``Partial``), whose values are not final, or of a local shape that its placements do
            not give.
    """
    check_whole(param)
    if type(param) in _PLAIN or not is_dtensor(param):
        return Shard.whole(tuple(param.shape))
    placed: Any = param
    if any(placement.is_partial() for placement in placed.placements):
        raise ValueError(
            f"expected a sharded or replicated parameter, got placements {placed.placements}: "
            "reduce it first, for example with param.full_tensor()"
        )
    coordinate = placed.device_mesh.get_coordinate()
    offset, size = place_of(
        placed.shape, placed.placements, placed.device_mesh.shape, coordinate or ()
    )
    local = tuple(placed.to_local().shape)
    if coordinate is not None and local != size:
        raise ValueError(
            f"expected a local shape of {size} for placements {placed.placements} of "
            f"{tuple(placed.shape)}, got {local}: where it lies in the whole is unknown; pass "
            "Shard objects to graddrop_adamw_"
        )
    return Shard(tuple(param.shape), offset)


def place_of(
    shape: Sequence[int],
    placements: Sequence[Any],
    mesh: Sequence[int],
    coordinate: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a process's part of a DTensor begins, and its shape.

    As ``torch.chunk`` cuts: all parts but the last have the same size, rounded up. FSDP2 over
    tensor parallelism cuts last what comes first in the mesh; torch calls that placement strided.

    Args:
        shape: of the whole.
        placements: one per dimension of the mesh, replicated, sharded or strided.
        mesh: its shape.
        coordinate: of the process in the mesh; empty: it is not in it.
    """
    offset, size = [0] * len(shape), list(shape)
    cuts = [(axis, cut) for axis, cut in enumerate(placements) if hasattr(cut, "dim")]
    strided = [cut for cut in cuts if hasattr(cut[1], "split_factor")]
    plain = [cut for cut in cuts if cut not in strided]
    for axis, cut in (*plain, *reversed(strided)) if coordinate else ():
        part = -(-size[cut.dim] // mesh[axis])
        first = min(coordinate[axis] * part, size[cut.dim])
        offset[cut.dim] += first
        size[cut.dim] = min(part, size[cut.dim] - first)
    return tuple(offset), tuple(size)
