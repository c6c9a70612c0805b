"""Each instruction as a function of the threads that run it; those that jump are the machine's."""

from collections.abc import Callable

import numpy as np

from .approximate import Lean
from .arithmetic import operation
from .dtypes import UNSIGNED, numpy_type
from .memory import WARP, n_runs
from .operands import address_reader, check_width, place_of, reader, registers_of
from .program import BITS, Instruction, Program
from .races import Fault
from .threads import Lanes, Threads

Step = Callable[[Threads, Lanes], None]

_CACHE_HINTS = {"L1", "evict_first", "evict_last", "evict_normal", "no_allocate"}


def step_of(program: Program, instruction: Instruction, lean: Lean) -> Step:
    """The function of one instruction, with its guard.

    Raises:
        LookupError, TypeError, ValueError: it is not known here.
    """
    name = instruction.opcode[0]
    makers = {"mov": _mov, "ld": _ld, "st": _st, "atom": _atom, "shfl": _shfl}
    if name in makers:
        run = makers[name](program, instruction)
    else:
        run = _compute(program, instruction, lean)
    if instruction.guard is None:
        return run

    def guarded(threads: Threads, lanes: Lanes) -> None:
        holds = threads.registers[instruction.guard][lanes] != instruction.negated
        if holds.all():
            run(threads, lanes)
        elif holds.any():
            run(threads, threads.thread[lanes][holds])

    return guarded


def _compute(program: Program, instruction: Instruction, lean: Lean) -> Step:
    does = operation(instruction.opcode, lean)
    target, *operands = instruction.operands
    readers = [reader(program, *each) for each in zip(operands, does.operands, strict=True)]
    check_width(program, target, does.result)
    compute = does.compute
    if len(readers) == 2:
        one, two = readers
        return lambda t, lanes: t.write(target, lanes, compute(one(t, lanes), two(t, lanes)))
    return lambda t, lanes: t.write(target, lanes, compute(*[read(t, lanes) for read in readers]))


def _mov(program: Program, instruction: Instruction) -> Step:
    """mov, of one register, or between one and several that it is cut into."""
    (_, kind), (target, source) = instruction.opcode, instruction.operands
    if target.startswith("{"):
        parts = registers_of(target)
        width = BITS[kind] // len(parts)
        read = reader(program, source, f"b{BITS[kind]}")

        def cut(threads: Threads, lanes: Lanes) -> None:
            value = read(threads, lanes)
            for i, part in enumerate(parts):
                if part != "_":
                    threads.write(part, lanes, (value >> (width * i)).astype(UNSIGNED[width]))

        return cut
    if source.startswith("{"):
        names = registers_of(source)
        width, whole = BITS[kind] // len(names), UNSIGNED[BITS[kind]]
        readers = [reader(program, name, f"b{width}") for name in names]

        def join(threads: Threads, lanes: Lanes) -> None:
            parts = [read(threads, lanes).astype(whole) for read in readers]
            threads.write(target, lanes, sum(part << (width * i) for i, part in enumerate(parts)))

        return join
    check_width(program, target, kind)
    read = reader(program, source, kind)
    return lambda threads, lanes: threads.write(target, lanes, np.copy(read(threads, lanes)))


def _access(opcode: tuple[str, ...]) -> tuple[str, int, int]:
    """(space, bits, values per thread) of a load or store."""
    _, space, *rest, kind = opcode
    rest = [part for part in rest if part not in _CACHE_HINTS]
    if rest not in ([], ["v2"], ["v4"], ["v8"]):
        raise LookupError(rest)
    return space, BITS[kind], int(rest[0][1:]) if rest else 1


def _ld(program: Program, instruction: Instruction) -> Step:
    target, place = instruction.operands
    space, bits, n = _access(instruction.opcode)
    targets = registers_of(target)
    widths = [BITS[program.registers[register]] for register in targets]
    if min(widths) < bits:  # wider ones get zeros above
        raise TypeError(f"{target} is too narrow for {bits} bits")
    if len(targets) != n:
        raise ValueError(target)
    if space == "param":
        name, offset = place_of(place)
        if name not in program.parameters or offset or n != 1:
            raise ValueError(place)

        def load_parameter(threads: Threads, lanes: Lanes) -> None:
            value = threads.arguments[name] & ((1 << bits) - 1)
            threads.write(target, lanes, UNSIGNED[bits](value))

        return load_parameter
    if space not in ("global", "shared"):
        raise LookupError(space)
    read = address_reader(program, place, space)

    def load(threads: Threads, lanes: Lanes) -> None:
        address = read(threads, lanes)
        with _Said(threads, instruction):
            values = threads.memory[space].load(address, bits, n, threads.thread[lanes])
        for register, value, width in zip(targets, values, widths, strict=True):
            threads.write(register, lanes, value.astype(UNSIGNED[width], copy=False))

    return load


def _st(program: Program, instruction: Instruction) -> Step:
    place, source = instruction.operands
    space, bits, n = _access(instruction.opcode)
    sources = [reader(program, each, f"b{bits}") for each in registers_of(source)]
    if len(sources) != n or space not in ("global", "shared"):
        raise ValueError(instruction.text)
    read = address_reader(program, place, space)

    def store(threads: Threads, lanes: Lanes) -> None:
        address = read(threads, lanes)
        values = [each(threads, lanes) for each in sources]
        with _Said(threads, instruction):
            threads.memory[space].store(address, bits, values, threads.thread[lanes])

    return store


def _atom(program: Program, instruction: Instruction) -> Step:
    """atom.global.gpu.acq_rel.add.u32: threads one after the other."""
    if instruction.opcode[1:5] != ("global", "gpu", "acq_rel", "add"):
        raise LookupError(instruction.opcode)
    kind = instruction.opcode[5]
    target, place, source = instruction.operands
    read, amount = address_reader(program, place, "global"), reader(program, source, kind)

    def add(threads: Threads, lanes: Lanes) -> None:
        thread, memory = threads.thread[lanes], threads.memory["global"]
        address = read(threads, lanes)
        amounts = np.broadcast_to(amount(threads, lanes), thread.shape)
        old = np.empty(thread.shape, numpy_type(kind))
        for i in range(len(thread)):
            one = slice(i, i + 1)
            with _Said(threads, instruction):
                threads.order.at_atomic(int(thread[i]), int(address[i]))
                (old[one],) = memory.load(address[one], BITS[kind], 1, thread[one])
                memory.store(address[one], BITS[kind], [old[one] + amounts[one]], thread[one])
        threads.write(target, lanes, old)

    return add


def _shfl(program: Program, instruction: Instruction) -> Step:
    """shfl.sync.bfly.b32 of whole warps: the value of the lane whose number differs by a mask."""
    if instruction.opcode != ("shfl", "sync", "bfly", "b32") or instruction.operands[3:] != (
        "31",
        "-1",
    ):
        raise LookupError(instruction.opcode)
    target, source, mask, _, _ = instruction.operands
    read, difference = reader(program, source, "u32"), int(mask, 0)

    def exchange(threads: Threads, lanes: Lanes) -> None:
        thread = threads.thread[lanes]
        if len(thread) % WARP or n_runs(thread // WARP) * WARP != len(thread):
            raise Fault(f"not all threads of a warp are there: {instruction.text}")
        value = np.broadcast_to(read(threads, lanes), thread.shape).reshape(-1, WARP)
        threads.write(target, lanes, value[:, np.arange(WARP) ^ difference].reshape(-1))

    return exchange


class _Said:
    """A fault inside is told with the text of its instruction; time goes on by one."""

    def __init__(self, threads: Threads, instruction: Instruction) -> None:
        self._order, self._text = threads.order, instruction.text

    def __enter__(self) -> None:
        self._order.time += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Fault):
            raise Fault(f"{error}: {self._text}") from None
