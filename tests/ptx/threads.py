"""What the threads of a launch hold: registers, arguments, memory.

A register is an array of one value per thread.
"""

from typing import Any

import numpy as np

from .dtypes import Array, numpy_type
from .memory import GARBAGE, WARP, Counts, GlobalMemory, SharedMemory
from .program import Program
from .races import Order

ALL = slice(None)
SPECIAL = ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x", "%laneid")  # what tells a thread its place
Lanes = Any  # threads that run an instruction: a sorted index array, or ALL


class _Registers(dict[str, Array]):
    """One value per thread; garbage until it is written, which compiled code may read and not use.

    Args:
        program: that names them.
        n_threads: of the launch.
    """

    def __init__(self, program: Program, n_threads: int) -> None:
        super().__init__()
        self._program, self._n_threads = program, n_threads

    def __missing__(self, register: str) -> Array:
        garbage = np.uint64(GARBAGE).astype(numpy_type(self._program.bits_type(register)))
        self[register] = np.full(self._n_threads, garbage)
        return self[register]


class Threads:
    """The threads of one launch, at its beginning, and as instructions change them.

    Args:
        program: the kernel.
        n_blocks: the grid, one-dimensional.
        block_size: threads per block, a multiple of 32.
        arguments: one number per parameter, pointers as addresses.
        shared_bytes: of a block.
        storages: (first address, end) that may be accessed.

    Attributes:
        thread: their numbers, [n_blocks * block_size].
        block: of each thread, [n_threads].
        counts: what they have done.
        order: what came before what.
        memory: by state space.
        arguments: by parameter.
        registers: by name, [n_threads] each.
        special: the same, of `SPECIAL`.
    """

    def __init__(
        self,
        program: Program,
        n_blocks: int,
        block_size: int,
        arguments: list[int],
        shared_bytes: int,
        storages: list[tuple[int, int]],
    ) -> None:
        self.thread = np.arange(n_blocks * block_size)
        self.block = self.thread // block_size
        self.counts = Counts()
        self.order = Order(self.block)
        self.memory: dict[str, GlobalMemory | SharedMemory] = {
            "global": GlobalMemory(storages, self.order, self.counts),
            "shared": SharedMemory(shared_bytes, self.block, n_blocks, self.order),
        }
        self.arguments = dict(zip(program.parameters, arguments, strict=True))
        self.registers = _Registers(program, len(self.thread))
        places = (self.thread % block_size, self.block, block_size, n_blocks, self.thread % WARP)
        self.special = {
            name: np.broadcast_to(place, self.thread.shape).astype(np.uint32)
            for name, place in zip(SPECIAL, places, strict=True)
        }
        self._program = program

    def write(self, register: str, lanes: Lanes, value: Array) -> None:
        """Set a register in some threads."""
        value = value.view(numpy_type(self._program.bits_type(register)))
        if lanes is ALL and value.shape == self.thread.shape:
            self.registers[register] = value
        else:
            self.registers[register][lanes] = value
