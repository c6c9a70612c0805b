"""Whether two tensors share memory: two steps on one entry would be a race."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .sharding import local_tensors


def check_disjoint(known: Sequence[Tensor], added: Sequence[Tensor]) -> None:
    """Check that no parameter comes twice, and that no two share an element.

    Args:
        known: parameters of any strides and devices, which have passed this check; empty ones
            share nothing.
        added: those of a new group.

    Raises:
        ValueError: a parameter comes twice, or two share memory. Names their positions and shapes.
    """
    if len(set(map(id, added))) != len(added):
        raise ValueError("a parameter appears twice in one param group: pass it once")
    if not {id(param) for param in known}.isdisjoint(map(id, added)):
        raise ValueError("some parameters appear in more than one parameter group")
    params = [*local_tensors(known), *local_tensors(added)]
    near = _near(params, len(known))
    if pair := find_overlap([params[index] for index in near]):
        first, second = (near[place] for place in pair)
        raise ValueError(
            f"parameters {first} and {second} of shapes {tuple(params[first].shape)} and "
            f"{tuple(params[second].shape)} share memory: pass tied or overlapping parameters "
            "once, as model.parameters() does"
        )


def _near(tensors: Sequence[Tensor], n_known: int) -> list[int]:
    """Positions of the tensors after the first ``n_known``, and of those that lie among them."""
    if len(tensors) == n_known:
        return []
    spans = [(tensor.data_ptr(), tensor.data_ptr() + _extent(tensor)) for tensor in tensors]
    added = spans[n_known:]
    start, end = min(first for first, _ in added), max(last for _, last in added)
    known = [index for index in range(n_known) if spans[index][0] < end and start < spans[index][1]]
    return [*known, *range(n_known, len(tensors))]


def find_overlap(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Positions of two tensors that share an element, None where no two do; empty ones never do."""
    spans = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), index)
        for index, tensor in enumerate(tensors)
        if tensor.numel()
    )
    open_spans: list[tuple[str, int, int, int]] = []  # those that reach beyond the last start
    for device, start, end, index in spans:
        open_spans = [span for span in open_spans if span[0] == device and span[2] > start]
        for _, _, _, other in open_spans:
            if _overlap(tensors[other], tensors[index]):
                return min(other, index), max(other, index)
        open_spans.append((device, start, end, index))
    return None


def _extent(tensor: Tensor) -> int:
    """Bytes from the first entry to behind the last one."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (last + 1) * tensor.element_size()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """For tensors whose extents overlap: whether they really meet (two columns do not)."""
    if all(_extent(t) == t.numel() * t.element_size() for t in (a, b)):
        return True
    return bool(torch.isin(_addresses(a), _addresses(b)).any())


def _addresses(tensor: Tensor) -> Tensor:
    """Address of each 2-byte cell that an entry covers, int64."""
    offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride).flatten()
    cells = torch.arange(0, tensor.element_size(), 2, device="cpu")
    return ((tensor.data_ptr() + offsets * tensor.element_size()).unsqueeze(-1) + cells).flatten()
