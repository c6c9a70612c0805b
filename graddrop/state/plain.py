"""Knobs as every checkpoint can hold them: ``torch.load`` takes no NumPy number by itself."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

_PLAIN = frozenset((float, int, bool, str))


def plain(value: Any) -> Any:
    """The Python number, text or tuple that a value stands for; any other value as it is.

    A list stays the list that it is, with plain values in it.
    """
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if not isinstance(value, Sequence):
        return value
    values = [plain(each) for each in value]
    if isinstance(value, list):
        value[:] = values
        return value
    same = type(value) is tuple and all(a is b for a, b in zip(values, value, strict=True))
    return value if same else tuple(values)
