"""Races: accesses of two threads of a launch that nothing orders, one of which writes.

What orders them: a barrier orders all that the threads of a block do before it before all that they
do after it; an atomic that acquires and releases orders what its thread did, or had ordered before,
before what a thread does after a later atomic on the same address.
"""

import numpy as np

from .dtypes import Array

GRANULE = 2  # bytes: the smallest access to global memory that is written; in shared memory, 1
_THREAD = 0xFFFFFFFF  # low half of an entry: thread + 1; 0: none
_SEVERAL = _THREAD  # more than one thread has read it


class Fault(Exception):
    """The program does what no program may; the message says what, where and which thread."""


class Order:
    """What comes before what in a launch. Time is counted in memory instructions.

    Args:
        block: of each thread, [n_threads].
    """

    def __init__(self, block: Array) -> None:
        self.time = 0
        self._block = block
        self._barrier = np.zeros(int(block.max(initial=0)) + 1, np.int64)  # time of the last one
        self._acquired: dict[int, Array] = {}  # thread -> time up to which it knows of each thread
        self._released: dict[int, Array] = {}  # address -> the same, of those that released there

    def at_barrier(self, blocks: Array) -> None:
        """All threads of these blocks have met."""
        self._barrier[blocks] = self.time
        for block in {int(self._block[thread]) for thread in self._acquired} & set(blocks.tolist()):
            threads = np.nonzero(self._block == block)[0].tolist()
            known = [self._acquired[thread] for thread in threads if thread in self._acquired]
            self._acquired |= dict.fromkeys(threads, np.maximum.reduce(known))

    def at_atomic(self, thread: int, address: int) -> None:
        """A thread acquires what was released at an address, then releases there all it knows."""
        nothing = np.zeros(len(self._block), np.int64)
        released = self._released.get(address, nothing)
        known = np.maximum(self._acquired.get(thread, nothing), released)
        self._acquired[thread] = known
        block = self._block[thread]
        own = np.where(self._block == block, self._barrier[block], 0)
        own[thread] = self.time
        self._released[address] = np.maximum(known, own)

    def before(self, earlier: Array, time: Array, thread: Array) -> Array:
        """Whether what the earlier threads did at a time precedes what the threads do now."""
        block = self._block[thread]
        ordered = (self._block[earlier] == block) & (time <= self._barrier[block])
        for i in np.nonzero(~ordered)[0] if self._acquired else ():
            known = self._acquired.get(int(thread[i]))
            ordered[i] = known is not None and known[earlier[i]] >= time[i]
        return ordered


class Accesses:
    """The last accesses to each granule of an address space.

    Args:
        n_bytes: of the space.
        order: of the launch.
        shared: each address belongs to one block.
    """

    def __init__(self, n_bytes: int, order: Order, shared: bool) -> None:
        self._granule = 1 if shared else GRANULE
        n_granules = -(-n_bytes // self._granule)
        # time << 32 | thread + 1, zero pages until they are touched
        self._writers = np.zeros(n_granules, np.int64)
        self._readers = np.zeros(n_granules, np.int64)
        self._reads: list[tuple[Array, int, Array, int]] = []  # offsets, size, threads, time
        self._order = order
        self._shared = shared

    def read(self, offset: Array, size: int, thread: Array) -> None:
        """Each thread reads some bytes at an offset.

        Raises:
            Fault: another thread wrote them, and nothing orders the two.
        """
        if not self._shared:
            self._reads.append((offset, size, thread, self._order.time))
        granules, thread = self._granules(offset, size, thread)
        self._check(self._writers[granules], thread, "read", "written")
        now = self._order.time << 32
        last = self._readers[granules] & _THREAD
        entry = np.where((last == 0) | (last == thread + 1), thread + 1, _SEVERAL) | now
        self._readers[granules] = entry
        several = self._readers[granules] != entry  # more than one in this very instruction
        self._readers[granules[several]] = _SEVERAL | now

    def write(self, offset: Array, size: int, thread: Array) -> None:
        """Each thread writes some bytes at an offset.

        Raises:
            Fault: another thread read or wrote them, and nothing orders the two.
        """
        granules, thread = self._granules(offset, size, thread)
        self._check(self._writers[granules], thread, "written", "written")
        readers = self._readers[granules]
        several = readers & _THREAD == _SEVERAL
        if self._shared:  # all readers are of this block: any of them will do
            readers = np.where(several, (readers & ~_THREAD) | ((thread ^ 1) + 1), readers)
        else:
            for i in np.nonzero(several)[0]:
                self._check_readers(granules[i], thread[i : i + 1])
            readers = np.where(several, 0, readers)
        self._check(readers, thread, "written", "read")
        entry = (self._order.time << 32) | (thread + 1)
        self._writers[granules] = entry
        self._check(self._writers[granules], thread, "written", "written")
        self._readers[granules] = 0

    def _granules(self, offset: Array, size: int, thread: Array) -> tuple[Array, Array]:
        count = -(-size // self._granule)
        granules = (offset // self._granule)[:, None] + np.arange(count)
        return granules.reshape(-1), np.repeat(thread, count)

    def _check(self, entries: Array, thread: Array, now: str, then: str) -> None:
        other = np.nonzero((entries != 0) & (entries & _THREAD != thread + 1))[0]
        if not len(other):
            return
        earlier = (entries[other] & _THREAD) - 1
        ordered = self._order.before(earlier, entries[other] >> 32, thread[other])
        if not ordered.all():
            i = int(np.argmin(ordered))
            raise Fault(f"race: {now} by thread {thread[other][i]}, {then} by thread {earlier[i]}")

    def _check_readers(self, granule: int, thread: Array) -> None:
        """The threads that have read one granule, one by one."""
        begin = granule * self._granule
        for offset, size, readers, time in self._reads:
            touched = (offset < begin + self._granule) & (offset + size > begin)
            entries = (time << 32) | (readers[touched] + 1)
            self._check(entries, thread.repeat(len(entries)), "written", "read")
