"""Memory that a launch accesses, checked: storages of live tensors, and the bytes of each block."""

import ctypes
import gc
import weakref
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from .dtypes import UNSIGNED, Array
from .races import Accesses, Fault, Order

SECTOR = 32  # bytes that a GPU's memory moves at least
WARP = 32  # threads that execute an instruction together
GARBAGE = 0xA5A5A5A5A5A5A5A5  # what registers and shared memory hold before they are written


_found: list[weakref.ref[torch.Tensor]] = []  # tensors that a look has found


def live_storages() -> list[tuple[int, int]]:
    """First address and end of the storage of every CPU tensor that Python can reach.

    All that is looked at is frozen (`gc.freeze`), so that the next look sees what is new; what is
    garbage already, such as a compiler's, is collected before.
    """
    gc.collect()
    new = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    gc.freeze()
    tensors = [known for found in _found if (known := found()) is not None] + new
    _found[:] = map(weakref.ref, tensors)
    tensors += [found.grad for found in tensors if found.is_leaf and found.grad is not None]
    storages = [found.untyped_storage() for found in tensors if found.device.type == "cpu"]
    return sorted({(found.data_ptr(), found.data_ptr() + found.nbytes()) for found in storages})


@dataclass
class Counts:
    """What one launch did, per warp: the hardware's unit.

    Attributes:
        instructions: executed, by opcode.
        requests: global memory instructions executed, by "load 128" or "store 16": bits per thread.
        sectors: of 32 bytes that they touch, each counted once per request, by the same.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)

    def bytes_of(self, kind: str) -> int:
        """Bytes of the sectors of all loads (``"load"``) or stores (``"store"``)."""
        return SECTOR * sum(n for access, n in self.sectors.items() if access.startswith(kind))


class GlobalMemory:
    """The storages of tensors, accesses counted.

    Args:
        storages: (first address, end) that may be accessed.
        order: of the launch.
        counts: of the launch.
    """

    def __init__(self, storages: list[tuple[int, int]], order: Order, counts: Counts) -> None:
        merged: list[list[int]] = []
        for begin, end in sorted(storages):
            if merged and begin < merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            elif end > begin:
                merged.append([begin, end])
        self._begin, self._end = np.array(merged, np.int64).reshape(-1, 2).T
        sizes = self._end - self._begin
        # Accesses are looked up by an offset into all storages laid end to end, with room to keep
        # each aligned as it is.
        room = (sizes + 31) // 16 * 16
        self._offset = np.cumsum(room) - room + self._begin % 16
        self._accesses = Accesses(int(room.sum()) + 16, order, shared=False)
        self._counts = counts
        if merged:  # all that lies between them is in reach, so each address is checked before
            self._origin = merged[0][0] // 16 * 16
            reach = (merged[-1][1] - self._origin + 15) // 16 * 16
            everything = (ctypes.c_uint8 * reach).from_address(self._origin)
            self._bytes = np.ctypeslib.as_array(everything)

    def load(self, address: Array, bits: int, n: int, thread: Array) -> list[Array]:
        """Each thread loads a vector of ``n`` values of some bits: one array per value.

        Raises:
            Fault: misaligned, out of bounds, or a race.
        """
        size = bits // 8 * n
        self._accesses.read(self._checked("load", address, size, thread), size, thread)
        values = self._bytes.view(UNSIGNED[bits])
        first = (address - self._origin) // (bits // 8)
        return [values[first + i] for i in range(n)]

    def store(self, address: Array, bits: int, values: list[Array], thread: Array) -> None:
        """Each thread stores a vector of values of some bits.

        Raises:
            Fault: misaligned, out of bounds, or a race.
        """
        size = bits // 8 * len(values)
        self._accesses.write(self._checked("store", address, size, thread), size, thread)
        memory = self._bytes.view(UNSIGNED[bits])
        first = (address - self._origin) // (bits // 8)
        for i, value in enumerate(values):
            memory[first + i] = value

    def _checked(self, kind: str, address: Array, size: int, thread: Array) -> Array:
        """Offsets into all storages."""
        if (address % size).any():
            i = int(np.argmax(address % size != 0))
            raise Fault(
                f"misaligned {kind} of {size} bytes at {address[i]:#x} by thread {thread[i]}"
            )
        storage = np.searchsorted(self._begin, address, side="right") - 1
        outside = (storage < 0) | (address + size > self._end[np.maximum(storage, 0)])
        if outside.any():
            i = int(np.argmax(outside))
            raise Fault(
                f"out-of-bounds {kind} of {size} bytes at {address[i]:#x} by thread {thread[i]}"
            )
        self._count(f"{kind} {size * 8}", address, thread)
        return self._offset[storage] + address - self._begin[storage]

    def _count(self, access: str, address: Array, thread: Array) -> None:
        warp = thread // WARP
        self._counts.requests[access] += n_runs(warp)
        # An aligned access of up to 32 bytes lies in one sector.
        self._counts.sectors[access] += len(np.unique((warp << 43) | (address // SECTOR)))


class SharedMemory:
    """What each block of a launch has for itself, addresses from 0.

    Args:
        n_bytes: of a block.
        block: of each thread, [n_threads].
        n_blocks: of the launch.
        order: of the launch.
    """

    def __init__(self, n_bytes: int, block: Array, n_blocks: int, order: Order) -> None:
        self._n_bytes = -(-n_bytes // 16) * 16
        self._block = block
        room = n_blocks * self._n_bytes // 8
        self._bytes = np.full(room, GARBAGE, np.uint64).view(np.uint8)
        self._accesses = Accesses(8 * room, order, shared=True)

    def load(self, address: Array, bits: int, n: int, thread: Array) -> list[Array]:
        """As :meth:`GlobalMemory.load`."""
        size = bits // 8 * n
        offset = self._checked(address, size, thread)
        self._accesses.read(offset, size, thread)
        values, first = self._bytes.view(UNSIGNED[bits]), offset // (bits // 8)
        return [values[first + i] for i in range(n)]

    def store(self, address: Array, bits: int, values: list[Array], thread: Array) -> None:
        """As :meth:`GlobalMemory.store`."""
        size = bits // 8 * len(values)
        offset = self._checked(address, size, thread)
        self._accesses.write(offset, size, thread)
        memory, first = self._bytes.view(UNSIGNED[bits]), offset // (bits // 8)
        for i, value in enumerate(values):
            memory[first + i] = value

    def _checked(self, address: Array, size: int, thread: Array) -> Array:
        """Offsets into the bytes of all blocks."""
        if ((address % size != 0) | (address < 0) | (address + size > self._n_bytes)).any():
            raise Fault(f"misaligned or out of the block's {self._n_bytes} bytes")
        return self._block[thread] * self._n_bytes + address


def n_runs(warp: Array) -> int:
    """Different values of a sorted array."""
    return int(np.count_nonzero(np.diff(warp))) + bool(len(warp))
