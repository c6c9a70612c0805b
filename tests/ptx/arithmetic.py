"""What each PTX instruction computes, on arrays of one value per thread.

Section numbers are those of "Instruction Set" in NVIDIA's PTX ISA. Results are exactly rounded
where PTX says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .approximate import (
    Lean,
    div_full,
    exact,
    flush,
    rcp_approx,
    rcp_approx_ftz_f64,
    sqrt_approx,
)
from .dtypes import SIGNED, UNSIGNED, Array, numpy_type
from .program import BITS


@dataclass(frozen=True)
class Operation:
    """A typed function of registers.

    Attributes:
        result: type of the result.
        operands: types of the operands.
        compute: arrays of the operands' types to one of the result's.
    """

    result: str
    operands: tuple[str, ...]
    compute: Callable[..., Array]


def operation(opcode: tuple[str, ...], lean: Lean = exact) -> Operation:
    """What an instruction computes.

    Args:
        opcode: its parts, as ("add", "rn", "f32").
        lean: how approximate instructions err.

    Raises:
        LookupError: not known here.
    """
    name, *modifiers, kind = opcode
    if name == "cvt":
        return _conversion(modifiers, kind)
    if kind.endswith("f32x2"):  # 9.7.3: two of them in 64 bits
        if modifiers != ["rn"]:
            raise LookupError(opcode)
        pair = _float_operation(name, ["rn"], "f32", lean)
        compute = partial(_in_pairs, pair.compute)
        return Operation("b64", ("b64",) * len(pair.operands), compute)
    if name == "fma" and modifiers == ["rn", "f32"]:  # 9.7.5: factors of 16 bits, from sm_100 on
        wide = _conversion(["f32"], kind)
        return Operation(
            "f32",
            (*wide.operands * 2, "f32"),
            lambda a, b, c: fma32(wide.compute(a), wide.compute(b), c),
        )
    if name == "selp":
        return Operation(kind, (kind, kind, "pred"), lambda a, b, p: np.where(p, a, b))
    if name == "setp":
        return _comparison(modifiers, kind)
    if kind == "pred" or kind.startswith("b"):
        return _bitwise(name, modifiers, kind)
    if kind.startswith("f"):
        return _float_operation(name, modifiers, kind, lean)
    return _integer_operation(name, modifiers, kind)


# -- integers (9.7.1) and bits (9.7.8) -------------------------------------------------------------


def _bitwise(name: str, modifiers: list[str], kind: str) -> Operation:
    if modifiers:
        raise LookupError(name)
    if name == "shl":
        return Operation(kind, (kind, "u32"), _shift_left)
    if name == "not":
        return Operation(kind, (kind,), np.invert)
    if name == "prmt":
        return Operation(kind, (kind, kind, "u32"), _permuted_bytes)
    compute = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
    return Operation(kind, (kind, kind), compute)


def _integer_operation(name: str, modifiers: list[str], kind: str) -> Operation:
    bits = BITS[kind]
    if name in ("mul", "mad"):
        (part,) = modifiers
        wide = f"{kind[0]}{2 * bits}" if part == "wide" else kind
        product = {"lo": np.multiply, "hi": _high_product, "wide": _wide_product}[part]
        if name == "mul":
            return Operation(wide, (kind, kind), product)
        if part == "hi":
            raise LookupError("mad.hi")
        return Operation(wide, (kind, kind, wide), lambda a, b, c: product(a, b) + c)
    if modifiers:
        raise LookupError(name)
    if name == "shr":
        return Operation(kind, (kind, "u32"), _shift_right)
    if name == "bfe":
        return Operation(kind, (kind, "u32", "u32"), _bit_field)
    if name in ("neg", "abs"):
        compute = {"neg": np.negative, "abs": np.abs}[name]
        return Operation(kind, (kind,), compute)
    compute = {
        "add": np.add,
        "sub": np.subtract,
        "min": np.minimum,
        "max": np.maximum,
        "div": _quotient,
        "rem": lambda a, b: a - _quotient(a, b) * b,
    }[name]
    return Operation(kind, (kind, kind), compute)


def _shift_left(a: Array, n: Array) -> Array:
    return np.left_shift(a, _amount(a, n))  # numpy, too, shifts everything out


def _shift_right(a: Array, n: Array) -> Array:
    return np.right_shift(a, _amount(a, n))


def _amount(a: Array, n: Array) -> Array:
    return np.minimum(n, a.dtype.itemsize * 8).astype(a.dtype)


def _permuted_bytes(a: Array, b: Array, selector: Array) -> Array:
    """9.7.8.7: each byte is one of the eight of b:a, or eight copies of its highest bit."""
    both = (b.astype(np.uint64) << 32) | a
    result = np.zeros_like(both)
    for i in range(4):
        chosen = (selector >> (4 * i)).astype(np.uint64)
        byte = (both >> ((chosen & 7) * 8)) & 0xFF
        byte = np.where(chosen & 8, (byte >> 7) * 0xFF, byte)
        result = result | (byte << (8 * i))
    return result.astype(np.uint32)


def _bit_field(a: Array, position: Array, length: Array) -> Array:
    width = a.dtype.itemsize * 8
    position, length = position & 0xFF, length & 0xFF
    end = np.minimum(position + length, width)
    left = _shift_left(a, width - end)
    field = _shift_right(left, width - end + np.minimum(position, end))
    return np.where(length == 0, 0, field).astype(a.dtype)


def _wide_product(a: Array, b: Array) -> Array:
    kinds = SIGNED if a.dtype.kind == "i" else UNSIGNED
    wide = kinds[2 * a.dtype.itemsize * 8]
    return a.astype(wide) * b.astype(wide)


def _high_product(a: Array, b: Array) -> Array:
    width = a.dtype.itemsize * 8
    if width == 64:
        raise LookupError("mul.hi of 64 bits")
    return (_wide_product(a, b) >> width).astype(a.dtype)


def _quotient(a: Array, b: Array) -> Array:
    """Rounded towards zero; by zero, all bits are set."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // divisor
    if a.dtype.kind == "i":
        rest = a - quotient * divisor
        quotient = quotient + ((rest != 0) & ((a < 0) != (divisor < 0)))
    return np.where(b == 0, ~b.dtype.type(0), quotient).astype(a.dtype)


# -- comparison (9.7.6) ----------------------------------------------------------------------------

_RELATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _comparison(modifiers: list[str], kind: str) -> Operation:
    (relation,) = modifiers
    if not kind.startswith("f"):
        return Operation("pred", (kind, kind), _RELATIONS[relation])

    def compute(a: Array, b: Array) -> Array:
        unordered = np.isnan(a) | np.isnan(b)
        if relation in ("num", "nan"):
            return unordered if relation == "nan" else ~unordered
        if relation in _RELATIONS:
            return _RELATIONS[relation](a, b) & ~unordered
        return _RELATIONS[relation.removesuffix("u")](a, b) | unordered

    if relation not in ("num", "nan") and relation.removesuffix("u") not in _RELATIONS:
        raise LookupError(relation)
    return Operation("pred", (kind, kind), compute)


# -- floating point (9.7.3) ------------------------------------------------------------------------


def _float_operation(name: str, modifiers: list[str], kind: str, lean: Lean) -> Operation:
    rounding = [m for m in modifiers if m != "ftz"]
    flushes = "ftz" in modifiers
    # What is not said to be rounded by itself may be contracted: a bare add or mul is not known.
    table: dict[tuple[str, ...], Callable[..., Array]] = {
        ("add", "rn"): np.add,
        ("sub", "rn"): np.subtract,
        ("mul", "rn"): np.multiply,
        ("div", "rn"): np.divide,
        ("sqrt", "rn"): np.sqrt,
        ("rcp", "rn"): np.reciprocal,
        ("fma", "rn"): fma32 if kind == "f32" else fma64,
        ("neg",): np.negative,
        ("abs",): np.abs,
        ("min",): np.fmin,
        ("max",): np.fmax,
    }
    if kind == "f32":
        table |= {
            ("sqrt", "approx"): partial(sqrt_approx, lean),
            ("div", "full"): partial(div_full, lean),
            ("rcp", "approx"): partial(rcp_approx, lean),
        }
    elif (name, rounding) == ("rcp", ["approx"]) and flushes:
        return Operation(kind, (kind,), rcp_approx_ftz_f64)
    compute = table[name, *rounding]
    if flushes:
        compute = partial(_flushed, compute)
    n_operands = {"fma": 3, "neg": 1, "abs": 1, "sqrt": 1, "rcp": 1}.get(name, 2)
    return Operation(kind, (kind,) * n_operands, compute)


def _flushed(compute: Callable[..., Array], *operands: Array) -> Array:
    """`.ftz`: subnormal operands and results are zeros of their sign."""
    return flush(compute(*map(flush, operands)))


def _in_pairs(compute: Callable[..., Array], *operands: Array) -> Array:
    shape = np.broadcast_shapes(*(np.shape(a) for a in operands))
    halves = [
        np.ascontiguousarray(np.broadcast_to(a, shape)).reshape(-1, 1).view(np.float32)
        for a in operands
    ]
    return compute(*halves).view(np.uint64).reshape(shape)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, float32, rounded once: the product is exact in float64, the sum rounded to odd."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return _sum_to_odd(product, c.astype(np.float64)).astype(np.float32)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, float64, rounded once (Boldo and Melquiond 2008, "Emulation of FMA").

    For magnitudes between 2**-480 and 2**480, or 0.
    """
    product, product_rest = _exact_product(a, b)
    low, low_rest = _exact_sum(c, product_rest)
    high, high_rest = _exact_sum(product, low)
    return high + _sum_to_odd(low_rest, high_rest)


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(sum, its error): together exact (Knuth's two-sum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """(product, its error): together exact (Dekker's product of halves)."""
    product = a * b
    a_high, b_high = ((x * 134217729.0) - (x * 134217729.0 - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, np.where(np.isfinite(product), error, 0.0)


def _sum_to_odd(a: Array, b: Array) -> Array:
    """a + b, float64, rounded to odd: where inexact, the neighbour whose last bit is 1.

    Rounding it once more, to fewer bits, gives the sum rounded once.
    """
    total, error = _exact_sum(a, b)
    bits = np.atleast_1d(total).view(np.int64).reshape(np.shape(total))
    even = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(even, bits + np.where(away, 1, -1), bits).view(np.float64)


# -- conversion (9.7.9) ----------------------------------------------------------------------------

_TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _conversion(modifiers: list[str], source: str) -> Operation:
    *rounding, target = modifiers
    narrow = {"f16": _to_f16, "bf16": _to_bf16}
    if target in ("f16x2", "bf16x2") and source == "f32" and rounding == ["rn"]:
        cut = narrow[target.removesuffix("x2")]

        def pack(high: Array, low: Array) -> Array:
            return (cut(high).astype(np.uint32) << 16) | cut(low)

        return Operation("b32", ("f32", "f32"), pack)
    if target in narrow and source == "f32" and rounding == ["rn"]:
        return Operation("b16", ("f32",), narrow[target])
    if target == "f32" and source == "f16" and not rounding:
        return Operation("f32", ("b16",), lambda a: a.view(np.float16).astype(np.float32))
    if target == "f32" and source == "bf16" and not rounding:
        return Operation("f32", ("b16",), lambda a: (a.astype(np.uint32) << 16).view(np.float32))
    out = numpy_type(target)
    if source == "bf16" and target == "f64" and not rounding:
        return Operation(
            target, ("b16",), lambda a: (a.astype(np.uint32) << 16).view(np.float32).astype(out)
        )
    if source.startswith("f") and not target.startswith("f"):
        (how,) = rounding
        return Operation(target, (source,), partial(_to_integer, _TO_WHOLE[how], out))
    if source.startswith("f") and source == target:
        (how,) = rounding
        return Operation(target, (source,), _TO_WHOLE[how])
    # Integers widen and are cut without rounding; float64 holds each float32.
    rounds = target.startswith("f") and (source, target) not in (("f32", "f64"), ("f16", "f64"))
    if rounding != ["rn"] * rounds:
        raise LookupError(modifiers)
    return Operation(target, (source,), lambda a: a.astype(out))


def _to_f16(a: Array) -> Array:
    return a.astype(np.float16).view(np.uint16)


def _to_bf16(a: Array) -> Array:
    """To the nearest bfloat16, ties to even; 0x7FFF for NaN."""
    bits = a.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), 0x7FFF, nearest).astype(np.uint16)


def _to_integer(whole: Callable[[Array], Array], out: type, a: Array) -> Array:
    """Out of range, the nearest there is; NaN becomes 0."""
    limits = np.iinfo(out)
    value = whole(a.astype(np.float64))
    above, below = value >= float(limits.max) + 1, value < limits.min
    inside = np.where(above | below | np.isnan(value), 0, value).astype(out)
    return np.where(above, limits.max, np.where(below, limits.min, inside)).astype(out)
