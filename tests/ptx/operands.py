"""What an instruction's operands stand for: registers, constants, addresses."""

import re
from collections.abc import Callable

import numpy as np

from .dtypes import FLOAT, UNSIGNED, Array, numpy_type
from .program import BITS, Program
from .threads import SPECIAL, Lanes, Threads

Reader = Callable[[Threads, Lanes], Array]


def reader(program: Program, operand: str, kind: str) -> Reader:
    """Read a register, a special register, a symbol or a constant as a type.

    Raises:
        LookupError, TypeError, ValueError: the operand has no such value.
    """
    dtype = numpy_type(kind)
    if operand in program.registers and BITS[kind] == 8:  # the low bits of a wider register
        return lambda threads, lanes: (
            threads.registers[operand][lanes].astype(UNSIGNED[8]).view(dtype)
        )
    if operand in program.registers:
        check_width(program, operand, kind)
        return lambda threads, lanes: threads.registers[operand][lanes].view(dtype)
    if operand in SPECIAL:
        return lambda threads, lanes: threads.special[operand][lanes].view(dtype)
    constant = _constant(program, operand, kind)
    return lambda threads, lanes: constant


def check_width(program: Program, register: str, kind: str) -> None:
    """Check that a register has as many bits as a type.

    Raises:
        TypeError: it has more or fewer.
    """
    if BITS[program.registers[register]] != BITS[kind]:
        raise TypeError(f"{register} is .{program.registers[register]}, not .{kind}")


def registers_of(operand: str) -> list[str]:
    """The registers of ``{%r1, %r2}``, or the one."""
    return [name.strip() for name in operand.strip("{}").split(",")]


def place_of(operand: str) -> tuple[str, int]:
    """(register or symbol, offset in bytes) of ``[name + offset]``.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+)\s*)?\]", operand)
    if found is None:
        raise ValueError(operand)
    return found[1], int(found[2] or "0", 0)


def address_reader(program: Program, operand: str, space: str) -> Reader:
    """Read the addresses that ``[name + offset]`` is in some threads, int64 [n_lanes].

    Raises:
        LookupError, TypeError, ValueError: the operand is no address in this state space.
    """
    name, offset = place_of(operand)
    # Those in shared memory have 32 or 64 bits.
    bits = BITS[program.registers[name]] if name in program.registers else 32
    read = reader(program, name, "u64" if space == "global" else f"u{bits}")

    def read_all(threads: Threads, lanes: Lanes) -> Array:
        each = np.broadcast_to(read(threads, lanes), threads.thread[lanes].shape)
        return each.astype(np.int64) + offset

    return read_all


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
