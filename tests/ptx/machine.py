"""A grid of threads that executes PTX: all threads that are at one instruction at once, in numpy.

A register is an array of one value per thread. Threads that part run one group after the other, the
one that is furthest behind first, so that they meet again; or in random order.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import FLOAT, LEANS, UNSIGNED, Lean, numpy_type, operation
from .memory import WARP, Counts, Memory, n_runs
from .program import BITS, Instruction, Program, UnknownInstruction
from .races import Accesses, Array, Fault, Order

ALL = slice(None)
Lanes = Any  # threads that run an instruction: a sorted index array, or ALL
Step = Callable[["Machine", Lanes], None]
Reader = Callable[["Machine", Lanes], Array]

_GARBAGE = 0xA5A5A5A5A5A5A5A5  # what registers and shared memory hold before they are written
_JUMPS = {"bra", "brx", "ret", "exit", "bar", "barrier"}
_CACHE_HINTS = {"L1", "evict_first", "evict_last", "evict_normal", "no_allocate"}


@dataclass(frozen=True)
class Rules:
    """What PTX leaves open.

    Attributes:
        order: None: the threads furthest behind run first; else the seed of a random order of
            warps, which change after 1 to 40 instructions.
        lean: a name in ``arithmetic.LEANS``: how approximate instructions err.
    """

    order: int | None = None
    lean: str = "exact"


class Code:
    """A program, each instruction turned into a function.

    Raises:
        UnknownInstruction: for an instruction that is not known here, with its text.
    """

    def __init__(self, program: Program, rules: Rules) -> None:
        self.program = program
        self.rules = rules
        self.steps: list[Step | None] = []  # None: threads jump or wait
        for instruction in program.instructions:
            try:
                jumps = instruction.opcode[0] in _JUMPS
                self.steps.append(None if jumps else _step(program, instruction, LEANS[rules.lean]))
            except (LookupError, ValueError, TypeError) as error:
                raise UnknownInstruction(instruction.text) from error
        # Where a run of instructions that begins here ends: at a jump, or before a label.
        starts = set(program.labels.values())
        self.ends = [0] * len(self.steps)
        end = len(self.steps)
        for i in reversed(range(len(self.steps))):
            if self.steps[i] is None:
                end = i
            elif i + 1 in starts:
                end = i + 1
            self.ends[i] = end


def register_type(program: Program, register: str) -> str:
    """The type of bits that a register holds."""
    kind = program.registers[register]
    return kind if kind == "pred" else f"b{BITS[kind]}"


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
        kind = register_type(self._program, register)
        garbage = np.uint64(_GARBAGE).astype(numpy_type(kind))
        self[register] = np.full(self._n_threads, garbage)
        return self[register]


class Machine:
    """One launch.

    Args:
        code: of the kernel.
        n_blocks: the grid, one-dimensional.
        block_size: threads per block, a multiple of 32.
        arguments: one number per parameter, pointers as addresses.
        shared_bytes: of a block.
        storages: (first address, end) that may be accessed.
    """

    def __init__(
        self,
        code: Code,
        n_blocks: int,
        block_size: int,
        arguments: list[int],
        shared_bytes: int,
        storages: list[tuple[int, int]],
    ) -> None:
        self.counts = Counts()
        self.thread = np.arange(n_blocks * block_size)
        self.block = self.thread // block_size
        self.order = Order(self.block)
        self.memory = Memory(storages, self.order, self.counts)
        self.shared_bytes = -(-shared_bytes // 16) * 16
        room = n_blocks * self.shared_bytes // 8
        self.shared = np.full(room, _GARBAGE, np.uint64).view(np.uint8)
        self.shared_accesses = Accesses(8 * room, self.order, shared=True)
        self.arguments = dict(zip(code.program.parameters, arguments, strict=True))
        self.registers = _Registers(code.program, len(self.thread))
        self.special = {
            "%tid.x": (self.thread % block_size).astype(np.uint32),
            "%ctaid.x": self.block.astype(np.uint32),
            "%ntid.x": np.full(len(self.thread), block_size, np.uint32),
            "%nctaid.x": np.full(len(self.thread), n_blocks, np.uint32),
            "%laneid": (self.thread % WARP).astype(np.uint32),
        }
        self._code = code
        self._random = random.Random(code.rules.order)
        self._pending: dict[int, list[Array]] = defaultdict(list)  # instruction -> threads there
        self._waiting = np.full(len(self.thread), -1)  # at a barrier: the instruction after it
        self._alive = np.bincount(self.block, minlength=n_blocks)
        self._runs: Counter[tuple[int, int]] = Counter()  # instructions [from, to) -> warps

    def run(self) -> Counts:
        """Run all threads to their end.

        Raises:
            Fault: an access that is misaligned, out of bounds or a race.
        """
        if len(self.thread):
            self._pending[0].append(self.thread)
        with np.errstate(all="ignore"):
            while self._pending:
                self._run_some()
        for (begin, end), warps in self._runs.items():
            for instruction in self._code.program.instructions[begin:end]:
                self.counts.instructions[".".join(instruction.opcode)] += warps
        return self.counts

    def write(self, register: str, lanes: Lanes, value: Array) -> None:
        """Set a register in some threads."""
        value = value.view(numpy_type(register_type(self._code.program, register)))
        if lanes is ALL and value.shape == self.thread.shape:
            self.registers[register] = value
        else:
            self.registers[register][lanes] = value

    def _run_some(self) -> None:
        """Run a group of threads to the next jump or label."""
        at, threads = self._choose()
        lanes = ALL if len(threads) == len(self.thread) else threads
        end = self._code.ends[at] if at < len(self._code.ends) else at
        if self._code.rules.order is not None:
            end = min(end, at + self._random.randint(1, 40))
        for step in self._code.steps[at:end]:
            step(self, lanes)
        jumps = end < len(self._code.steps) and self._code.steps[end] is None
        self._runs[at, end + jumps] += n_runs(threads // WARP)
        if jumps:
            self._jump(end, threads)
        elif end < len(self._code.steps):
            self._pending[end].append(threads)
        else:
            self._leave(threads)

    def _choose(self) -> tuple[int, Array]:
        """The next instruction, and threads that are there."""
        if self._code.rules.order is None:
            at = min(self._pending)
        else:
            at = self._random.choice(list(self._pending))
        groups = self._pending.pop(at)
        threads = groups[0] if len(groups) == 1 else np.sort(np.concatenate(groups))
        if self._code.rules.order is None:
            return at, threads
        warps = np.unique(threads // WARP).tolist()
        some = self._random.sample(warps, self._random.randint(1, len(warps)))
        chosen = np.isin(threads // WARP, some)
        if not chosen.all():
            self._pending[at].append(threads[~chosen])
        return at, threads[chosen]

    def _jump(self, at: int, threads: Array) -> None:
        program, instruction = self._code.program, self._code.program.instructions[at]
        name = instruction.opcode[0]
        going = threads
        if instruction.guard is not None:
            taken = self.registers[instruction.guard][threads] != instruction.negated
            going = threads[taken]
            if not taken.all():
                self._pending[at + 1].append(threads[~taken])
        if not len(going):
            return
        if name == "bra":
            self._pending[program.labels[instruction.operands[0]]].append(going)
        elif name == "brx":
            index, table = instruction.operands
            targets = program.branch_targets[table]
            chosen = self.registers[index][going]
            if chosen.max() >= len(targets):
                raise Fault(f"{instruction.text}: {chosen.max()} of {len(targets)} targets")
            for i in np.unique(chosen):
                self._pending[program.labels[targets[i]]].append(going[chosen == i])
        elif name in ("ret", "exit"):
            self._leave(going)
        elif (*instruction.opcode, *instruction.operands) in (
            ("bar", "sync", "0"),
            ("barrier", "sync", "0"),
        ):
            self._waiting[going] = at + 1
            self._release()
        else:
            raise UnknownInstruction(instruction.text)

    def _leave(self, threads: Array) -> None:
        self._alive -= np.bincount(self.block[threads], minlength=len(self._alive))
        self._release()

    def _release(self) -> None:
        """Let go the blocks whose threads have all met at a barrier."""
        waits = self._waiting >= 0
        arrived = np.bincount(self.block[waits], minlength=len(self._alive))
        met = (arrived > 0) & (arrived == self._alive)
        if not met.any():
            return
        self.order.at_barrier(np.nonzero(met)[0])
        going = np.nonzero(waits & met[self.block])[0]
        for at in np.unique(self._waiting[going]):
            self._pending[int(at)].append(going[self._waiting[going] == at])
        self._waiting[going] = -1


# -- instructions ----------------------------------------------------------------------------------


def _step(program: Program, instruction: Instruction, lean: Lean) -> Step:
    """The function of one instruction, with its guard."""
    name = instruction.opcode[0]
    makers = {"mov": _mov, "ld": _ld, "st": _st, "atom": _atom, "shfl": _shfl}
    if name in makers:
        run = makers[name](program, instruction)
    else:
        run = _compute(program, instruction, lean)
    if instruction.guard is None:
        return run

    def guarded(machine: Machine, lanes: Lanes) -> None:
        holds = machine.registers[instruction.guard][lanes] != instruction.negated
        if holds.all():
            run(machine, lanes)
        elif holds.any():
            run(machine, machine.thread[lanes][holds])

    return guarded


def _compute(program: Program, instruction: Instruction, lean: Lean) -> Step:
    does = operation(instruction.opcode, lean)
    target, *operands = instruction.operands
    readers = [_reader(program, *each) for each in zip(operands, does.operands, strict=True)]
    _matches(program, target, does.result)
    compute = does.compute
    if len(readers) == 2:
        one, two = readers
        return lambda m, lanes: m.write(target, lanes, compute(one(m, lanes), two(m, lanes)))
    return lambda m, lanes: m.write(target, lanes, compute(*[read(m, lanes) for read in readers]))


def _matches(program: Program, register: str, kind: str) -> None:
    if BITS[program.registers[register]] != BITS[kind]:
        raise TypeError(f"{register} is .{program.registers[register]}, not .{kind}")


def _reader(program: Program, operand: str, kind: str) -> Reader:
    """Read a register, a special register, a symbol or a constant as a type."""
    dtype = numpy_type(kind)
    if operand in program.registers and BITS[kind] == 8:  # the low bits of a wider register
        return lambda machine, lanes: (
            machine.registers[operand][lanes].astype(UNSIGNED[8]).view(dtype)
        )
    if operand in program.registers:
        _matches(program, operand, kind)

        def read(machine: Machine, lanes: Lanes) -> Array:
            return machine.registers[operand][lanes].view(dtype)

        return read
    if operand in ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x", "%laneid"):
        return lambda machine, lanes: machine.special[operand][lanes].view(dtype)
    constant = _constant(program, operand, kind)
    return lambda machine, lanes: constant


def _constant(program: Program, operand: str, kind: str) -> Array:
    if operand in program.shared:
        if len(program.shared) > 1:
            raise LookupError("several arrays in shared memory")
        return numpy_type(kind)(0)
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
        bits = 32 if found[1] else 64
        if bits != BITS[kind]:
            raise TypeError(operand)
        return UNSIGNED[bits](int(found[1] or found[2], 16)).view(numpy_type(kind))
    value = int(operand.removesuffix("U"), 0)
    if kind == "pred":
        return np.bool_(value)
    bits = BITS[kind]
    if bits not in UNSIGNED or (kind.startswith("f") and bits in FLOAT):
        raise TypeError(operand)
    return UNSIGNED[bits](value & ((1 << bits) - 1)).view(numpy_type(kind))


def _registers_of(operand: str) -> list[str]:
    return [name.strip() for name in operand.strip("{}").split(",")]


def _mov(program: Program, instruction: Instruction) -> Step:
    """mov, of one register, or between one and several that it is cut into."""
    (_, kind), (target, source) = instruction.opcode, instruction.operands
    if target.startswith("{"):
        parts = _registers_of(target)
        width = BITS[kind] // len(parts)
        read = _reader(program, source, f"b{BITS[kind]}")

        def cut(machine: Machine, lanes: Lanes) -> None:
            value = read(machine, lanes)
            for i, part in enumerate(parts):
                if part != "_":
                    machine.write(part, lanes, (value >> (width * i)).astype(UNSIGNED[width]))

        return cut
    if source.startswith("{"):
        names = _registers_of(source)
        width, whole = BITS[kind] // len(names), UNSIGNED[BITS[kind]]
        readers = [_reader(program, name, f"b{width}") for name in names]

        def join(machine: Machine, lanes: Lanes) -> None:
            parts = [read(machine, lanes).astype(whole) for read in readers]
            machine.write(target, lanes, sum(part << (width * i) for i, part in enumerate(parts)))

        return join
    _matches(program, target, kind)
    read = _reader(program, source, kind)
    return lambda machine, lanes: machine.write(target, lanes, np.copy(read(machine, lanes)))


def _address(program: Program, operand: str) -> tuple[str, int]:
    """(register or symbol, offset in bytes) of ``[name + offset]``."""
    found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
    if found is None:
        raise ValueError(operand)
    return found[1], int(found[2] or "0", 0)


def _access(opcode: tuple[str, ...]) -> tuple[str, int, int]:
    """(space, bits, values per thread) of a load or store."""
    _, space, *rest, kind = opcode
    rest = [part for part in rest if part not in _CACHE_HINTS]
    if rest not in ([], ["v2"], ["v4"], ["v8"]):
        raise LookupError(rest)
    return space, BITS[kind], int(rest[0][1:]) if rest else 1


def _ld(program: Program, instruction: Instruction) -> Step:
    target, place = instruction.operands
    name, offset = _address(program, place)
    space, bits, n = _access(instruction.opcode)
    targets = _registers_of(target)
    widths = [BITS[program.registers[register]] for register in targets]
    if min(widths) < bits:  # wider ones get zeros above
        raise TypeError(f"{target} is too narrow for {bits} bits")
    if len(targets) != n:
        raise ValueError(target)
    if space == "param":
        if name not in program.parameters or offset or n != 1:
            raise ValueError(place)

        def load_parameter(machine: Machine, lanes: Lanes) -> None:
            value = machine.arguments[name] & ((1 << bits) - 1)
            machine.write(target, lanes, UNSIGNED[bits](value))

        return load_parameter
    read = _reader(program, name, "u64" if space == "global" else _width_of(program, name))

    def load(machine: Machine, lanes: Lanes) -> None:
        threads = machine.thread[lanes]
        address = _spread(read(machine, lanes), threads) + offset
        with _Said(machine, instruction):
            values = load_from(machine, address, threads)
        for register, value, width in zip(targets, values, widths, strict=True):
            machine.write(register, lanes, value.astype(UNSIGNED[width], copy=False))

    if space == "global":
        load_from = lambda m, address, threads: m.memory.load(address, bits, n, threads)  # noqa: E731
    elif space == "shared":
        load_from = lambda m, address, threads: _load_shared(m, address, bits, n, threads)  # noqa: E731
    else:
        raise LookupError(space)
    return load


def _st(program: Program, instruction: Instruction) -> Step:
    place, source = instruction.operands
    name, offset = _address(program, place)
    space, bits, n = _access(instruction.opcode)
    sources = [_reader(program, each, f"b{bits}") for each in _registers_of(source)]
    if len(sources) != n or space not in ("global", "shared"):
        raise ValueError(instruction.text)
    read = _reader(program, name, "u64" if space == "global" else _width_of(program, name))

    def store(machine: Machine, lanes: Lanes) -> None:
        threads = machine.thread[lanes]
        address = _spread(read(machine, lanes), threads) + offset
        values = [each(machine, lanes) for each in sources]
        with _Said(machine, instruction):
            if space == "global":
                machine.memory.store(address, bits, values, threads)
            else:
                _store_shared(machine, address, bits, values, threads)

    return store


class _Said:
    """A fault inside is told with the text of its instruction."""

    def __init__(self, machine: Machine, instruction: Instruction) -> None:
        self._order, self._text = machine.order, instruction.text

    def __enter__(self) -> None:
        self._order.time += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Fault):
            raise Fault(f"{error}: {self._text}") from None


def _width_of(program: Program, name: str) -> str:
    """Addresses in shared memory have 32 or 64 bits."""
    return f"u{BITS[program.registers[name]]}" if name in program.registers else "u32"


def _spread(address: Array, threads: Array) -> Array:
    return np.broadcast_to(address, threads.shape).astype(np.int64)


def _shared_offset(machine: Machine, address: Array, size: int, threads: Array) -> Array:
    if ((address % size != 0) | (address < 0) | (address + size > machine.shared_bytes)).any():
        raise Fault(f"misaligned or out of the block's {machine.shared_bytes} bytes")
    return machine.block[threads] * machine.shared_bytes + address


def _load_shared(
    machine: Machine, address: Array, bits: int, n: int, threads: Array
) -> list[Array]:
    size = bits // 8 * n
    offset = _shared_offset(machine, address, size, threads)
    machine.shared_accesses.read(offset, size, threads)
    values, first = machine.shared.view(UNSIGNED[bits]), offset // (bits // 8)
    return [values[first + i] for i in range(n)]


def _store_shared(
    machine: Machine, address: Array, bits: int, values: list[Array], threads: Array
) -> None:
    size = bits // 8 * len(values)
    offset = _shared_offset(machine, address, size, threads)
    machine.shared_accesses.write(offset, size, threads)
    shared, first = machine.shared.view(UNSIGNED[bits]), offset // (bits // 8)
    for i, value in enumerate(values):
        shared[first + i] = value


def _atom(program: Program, instruction: Instruction) -> Step:
    """atom.global.gpu.acq_rel.add.u32: threads one after the other."""
    if instruction.opcode[1:5] != ("global", "gpu", "acq_rel", "add"):
        raise LookupError(instruction.opcode)
    kind = instruction.opcode[5]
    target, place, source = instruction.operands
    name, offset = _address(program, place)
    read, amount = _reader(program, name, "u64"), _reader(program, source, kind)

    def add(machine: Machine, lanes: Lanes) -> None:
        threads = machine.thread[lanes]
        address = _spread(read(machine, lanes), threads) + offset
        amounts = np.broadcast_to(amount(machine, lanes), threads.shape)
        old = np.empty(threads.shape, numpy_type(kind))
        for i in range(len(threads)):
            one = slice(i, i + 1)
            with _Said(machine, instruction):
                machine.order.at_atomic(int(threads[i]), int(address[i]))
                (old[one],) = machine.memory.load(address[one], BITS[kind], 1, threads[one])
                machine.memory.store(
                    address[one], BITS[kind], [old[one] + amounts[one]], threads[one]
                )
        machine.write(target, lanes, old)

    return add


def _shfl(program: Program, instruction: Instruction) -> Step:
    """shfl.sync.bfly.b32 of whole warps: the value of the lane whose number differs by a mask."""
    if instruction.opcode != ("shfl", "sync", "bfly", "b32") or instruction.operands[3:] != (
        "31",
        "-1",
    ):
        raise LookupError(instruction.opcode)
    target, source, mask, _, _ = instruction.operands
    read, difference = _reader(program, source, "u32"), int(mask, 0)

    def exchange(machine: Machine, lanes: Lanes) -> None:
        threads = machine.thread[lanes]
        if len(threads) % WARP or n_runs(threads // WARP) * WARP != len(threads):
            raise Fault(f"not all threads of a warp are there: {instruction.text}")
        value = np.broadcast_to(read(machine, lanes), threads.shape).reshape(-1, WARP)
        machine.write(target, lanes, value[:, np.arange(WARP) ^ difference].reshape(-1))

    return exchange
