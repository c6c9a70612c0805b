"""Many of torch's tensors looked at in one call, which reads what Python's objects stand for.

An attribute of a tensor costs Python a tenth of a microsecond and an object. The compiled library
asks torch itself, through the table of C functions that DLPack 1 defines.
"""

import ctypes
import sys
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import abi
from . import binding

_EXTENTS = 4  # the order of `enum RecordColumn`
_NONE = id(None)


class _ExchangeTable(ctypes.Structure):
    """DLPack's ``DLPackExchangeAPI``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("give", ctypes.c_void_p),
        ("take", ctypes.c_void_p),
        ("describe", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


@cache
def _looker() -> tuple[ctypes.PyDLL, int] | None:
    """The library, which keeps Python's lock, and torch's function; None where one is missing."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None or sys.implementation.name != "cpython":  # an id may be no address
        return None
    try:
        binding.load()
    except RuntimeError:  # who needs the kernel says so
        return None
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    table = _ExchangeTable.from_address(pointer_of(capsule, b"dlpack_exchange_api"))
    if table.major != 1 or not table.describe:
        return None
    library = ctypes.PyDLL(str(binding.LIBRARY))
    objects: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.graddrop_record.argtypes = [*objects, ctypes.c_int64, ctypes.c_void_p]
    library.graddrop_is_as_recorded.argtypes = [
        *library.graddrop_record.argtypes,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    library.graddrop_follow.argtypes = [*objects, *[ctypes.c_void_p] * 4, ctypes.c_int64]
    return library, table.describe


def _pointers(tensors: Sequence[Tensor | None]) -> "array[int]":
    return array("Q", map(id, tensors))


class Records:
    """Address, device, dtype, shape and strides of some tensors, to be compared later.

    Where the library or torch's table is missing, or torch has no such description of a tensor,
    each is asked in Python.

    Args:
        tensors: dense ones.
        may_move: addresses are not compared; the tensors are not kept.
    """

    def __init__(self, tensors: Sequence[Tensor], *, may_move: bool = False) -> None:
        self._may_move = may_move
        self._tensors: Sequence[Tensor] = () if may_move else tensors
        self._written: list[object] = []
        self._looker = _looker()
        if self._looker is not None:
            library, describe = self._looker
            width = _EXTENTS + 2 * max((tensor.dim() for tensor in tensors), default=0)
            self._records = array("q", bytes(8 * width * len(tensors)))  # what follows points there
            where = len(tensors), width, self._records.buffer_info()[0]
            pointers = _pointers(tensors)
            try:
                library.graddrop_record(describe, pointers.buffer_info()[0], *where)
            except RuntimeError:
                self._looker = None
            self._rest = *where, _NONE, may_move
            self._pointers = pointers if not may_move else array("Q")
        if self._looker is None:
            self._written = [self._write(tensor) for tensor in tensors]

    def hold(self, tensors: Sequence[Tensor | None] | None = None) -> bool:
        """Whether all are as recorded.

        Args:
            tensors: others in their places, each of which may describe the same memory; a None
                among them is not compared. None: the same objects.
        """
        if self._looker is None:
            pairs = zip(self._tensors if tensors is None else tensors, self._written, strict=True)
            return all(each is None or self._write(each) == written for each, written in pairs)
        library, describe = self._looker
        pointers = self._pointers if tensors is None else _pointers(tensors)
        try:
            same: int = library.graddrop_is_as_recorded(
                describe, pointers.buffer_info()[0], *self._rest
            )
        except RuntimeError:  # torch cannot describe it: a sparse tensor, say
            return False
        return same == 1

    def _write(self, tensor: Tensor) -> object:
        if tensor.layout != torch.strided:
            return None  # unlike any record: only strided tensors have strides
        address = 0 if self._may_move else tensor.data_ptr()
        return address, tensor.device, tensor.dtype, tensor.shape, tensor.stride()


class Follower:
    """A column of the tensor table that follows tensors wherever they lie.

    Args:
        addresses: int64 [n], contiguous, where the tensors lie; kept up to date.
        before: int64 [n], contiguous, from there to what stands in the column.
        column: int64 [n], on the CPU, of any stride; written in place.
    """

    def __init__(self, addresses: Tensor, before: Tensor, column: Tensor) -> None:
        self._kept = addresses, before, column  # what the next line points at
        self._rest = *(each.data_ptr() for each in self._kept), column.stride(0)
        self._looker = _looker()

    def follow(self, tensors: Sequence[Tensor | None]) -> bool | None:
        """Whether any has moved; None if the memory of one has been freed.

        Args:
            tensors: as many as there are rows; ``NO_GRAD`` is written where there is none.
        """
        if self._looker is not None:
            library, describe = self._looker
            pointers = _pointers(tensors)
            moved: int = library.graddrop_follow(
                describe, pointers.buffer_info()[0], len(pointers), _NONE, *self._rest
            )
            return None if moved == 2 else moved == 1
        addresses, before, column = self._kept
        found = torch.tensor(
            [abi.NO_GRAD if each is None else each.data_ptr() for each in tensors],
            dtype=torch.int64,
            device="cpu",
        )
        if any(each is not None and each.numel() and not each.data_ptr() for each in tensors):
            return None
        if torch.equal(found, addresses):
            return False
        addresses.copy_(found)
        column.copy_(torch.where(found == abi.NO_GRAD, found, found + before))
        return True
