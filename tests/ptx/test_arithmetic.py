"""Instructions of PTX against exact arithmetic: Python's integers and fractions, torch's dtypes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx.approximate import LEANS
from ptx.arithmetic import operation
from ptx.dtypes import numpy_type


@pytest.fixture(autouse=True)
def quiet():
    """Overflow and invalid values are results here, as in the machine."""
    with np.errstate(all="ignore"):
        yield


INTEGERS = [0, 1, 2, 3, 5, 7, 31, 32, 63, 64, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1]
INTEGERS += [2**32, 2**63 - 1, 2**63, 2**64 - 1, 0xD2511F53, 0xCD9E8D57, 0x9E3779B97F4A7C15]


def wrap(value, kind):
    """An integer in the range of a PTX type."""
    bits = int(kind[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def toward_zero(a, b):
    """A quotient as C has it; by zero, -1."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def bit_field(a, position, length, kind):
    """PTX ISA 9.7.1.17, bit by bit."""
    top = int(kind[1:]) - 1
    position, length = position & 255, length & 255
    at = min(position + length - 1, top)
    sign = 0 if kind[0] == "u" or length == 0 else a >> at & 1
    bits = (
        a >> position + i & 1 if i < length and position + i <= top else sign for i in range(64)
    )
    return sum(bit << i for i, bit in enumerate(bits))


def shifted(a, n, kind):
    """Nothing is left of what is shifted out, but its sign."""
    return a >> min(n, int(kind[1:]))


INTEGER_LAWS = {
    "add": lambda a, b, kind: a + b,
    "sub": lambda a, b, kind: a - b,
    "mul.lo": lambda a, b, kind: a * b,
    "mul.hi": lambda a, b, kind: a * b >> int(kind[1:]),
    "mul.wide": lambda a, b, kind: a * b,
    "min": lambda a, b, kind: min(a, b),
    "max": lambda a, b, kind: max(a, b),
    "div": lambda a, b, kind: toward_zero(a, b),
    "rem": lambda a, b, kind: a - toward_zero(a, b) * b if b else None,
    "shr": shifted,
    "setp.lt": lambda a, b, kind: a < b,
    "setp.ge": lambda a, b, kind: a >= b,
    "mad.lo": lambda a, b, c, kind: a * b + c,
    "mad.wide": lambda a, b, c, kind: a * b + c,
    "bfe": bit_field,
    "neg": lambda a, kind: -a,
    "abs": lambda a, kind: abs(a),
}


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", INTEGER_LAWS)
def test_integers(name, kind):
    """Every integer instruction at the edges of its types, as Python's integers have it."""
    if (kind[1:] == "64" and name in ("mul.hi", "mul.wide", "mad.wide")) or (
        name == "abs" and kind[0] == "u"
    ):
        return  # which the kernels do not have
    does = operation((*name.split("."), kind))
    values = np.array(INTEGERS, np.uint64)
    operands = [
        np.resize(np.roll(values, 5 * i).repeat(len(values) ** (i % 2)), len(values) ** 2)
        .astype(f"u{int(each[1:]) // 8}")
        .view(numpy_type(each))
        for i, each in enumerate(does.operands)
    ]
    found = does.compute(*operands)
    assert found.dtype == numpy_type(does.result)
    for got, *given in zip(found.tolist(), *(each.tolist() for each in operands), strict=True):
        expected = INTEGER_LAWS[name](*given, kind)
        if does.result == "pred":
            assert got == expected
        elif expected is not None:
            assert got == wrap(expected, does.result), (name, given)


def test_bytes_are_permuted():
    """prmt: bytes by number, of the second operand from 4 on; 8 more: copies of the highest bit."""
    does = operation(("prmt", "b32"))
    a, b = np.array([0x33221100], np.uint32), np.array([0x77E65544], np.uint32)
    chosen = {0x7632: 0x77E63322, 0x5410: 0x55441100, 0x0123: 0x00112233, 0xE8F6: 0xFF0000E6}
    for selector, expected in chosen.items():
        assert does.compute(a, b, np.uint32(selector)) == expected, hex(selector)


def floats(dtype, n=2000, reach=20):
    """Values of many magnitudes and both signs."""
    generator = np.random.default_rng(0)
    signed = generator.standard_normal(n) * np.exp2(generator.integers(-reach, reach, n))
    return signed.astype(dtype)


def is_nearest(exact, found):
    """Whether no neighbour of a float is nearer to an exact fraction."""
    error = abs(exact - Fraction(found.item()))
    neighbours = (np.nextafter(found, found.dtype.type(side)) for side in (-np.inf, np.inf))
    return all(error <= abs(exact - Fraction(each.item())) for each in neighbours)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_sums_and_products_round_once(kind):
    """fma rounds the exact a * b + c, also where it nearly cancels; add, mul, div round theirs."""
    a, b = floats(numpy_type(kind)), np.roll(floats(numpy_type(kind)), 7)
    nearly = -(a * b) * (1 + np.finfo(a.dtype).eps * np.arange(len(a)).astype(a.dtype) % 5)
    c = np.where(np.arange(len(a)) % 2, nearly.astype(a.dtype), np.roll(a, 3))
    fused = operation(("fma", "rn", kind)).compute(a, b, c)
    for x, y, z, found in zip(a, b, c, fused, strict=True):
        assert is_nearest(Fraction(x.item()) * Fraction(y.item()) + Fraction(z.item()), found)
    assert (fused != a * b + c).any()  # control: rounding twice is another thing
    for name, law in (("add", Fraction.__add__), ("div", Fraction.__truediv__)):
        results = operation((name, "rn", kind)).compute(a, b)
        for x, y, found in zip(a, b, results, strict=True):
            assert is_nearest(law(Fraction(x.item()), Fraction(y.item())), found)


def test_pairs_are_two_floats():
    """f32x2 computes on both halves of 64 bits."""
    a, b, c = (np.roll(floats(np.float32), 11 * i) for i in range(3))
    packed = [each.view(np.uint64) for each in (a, b, c)]
    found = operation(("fma", "rn", "f32x2")).compute(*packed)
    assert (found.view(np.float32) == operation(("fma", "rn", "f32")).compute(a, b, c)).all()


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_products_of_16_bits_are_added_in_float32(kind):
    """Both factors as they are, one rounding; the sum is a float32 of its own."""
    a, b, c = (np.roll(floats(np.float32), 11 * i) for i in range(3))
    a, b = (operation(("cvt", "rn", kind, "f32")).compute(each) for each in (a, b))
    found = operation(("fma", "rn", "f32", kind)).compute(a, b, c)
    wide = [operation(("cvt", "f32", kind)).compute(each) for each in (a, b)]
    expected = operation(("fma", "rn", "f32")).compute(*wide, c)
    assert np.array_equal(found, expected, equal_nan=True) and found.dtype == np.float32


@pytest.mark.parametrize("lean", LEANS)
@pytest.mark.parametrize(
    ("opcode", "law", "ulps"),
    [
        (("sqrt", "approx", "f32"), lambda a, b: np.sqrt(a), None),
        (("div", "full", "f32"), lambda a, b: a / b, 2),
    ],
)
def test_approximations_err_as_far_as_allowed(opcode, law, ulps, lean):
    """Never beyond what PTX allows (a relative 2**-23, 2 units), and far into it if so wished."""
    a, b = np.abs(floats(np.float32)), np.roll(floats(np.float32), 7)
    does = operation(opcode, LEANS[lean])
    found = does.compute(*(a, b)[: len(does.operands)]).astype(np.float64)
    ideal = law(a.astype(np.float64), b.astype(np.float64))
    unit = np.spacing(np.abs(ideal.astype(np.float32))).astype(np.float64)
    allowed = np.abs(ideal) * 2.0**-23 if ulps is None else ulps * unit
    share = (found - ideal) / allowed
    assert np.abs(share).max() <= 1
    high, low = (share > 0.4).mean(), (share < -0.4).mean()
    if lean == "exact":
        assert np.abs(found - ideal).max() <= 0.5 * unit.max()
        assert (np.abs(found - ideal) <= 0.5 * unit * (1 + 1e-9)).all()
    else:
        assert (high > 0.4) == (lean in ("up", "either"))
        assert (low > 0.4) == (lean in ("down", "either"))


def test_the_double_reciprocal_is_a_seed():
    """rcp.approx.ftz.f64 has the upper 32 bits only, and is right to 2**-19."""
    a = floats(np.float64)
    found = operation(("rcp", "approx", "ftz", "f64")).compute(a)
    assert not (found.view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
    error = np.abs(found * a - 1)
    assert 2.0**-25 < error.max() < 2.0**-19


def test_ftz_is_flushed():
    """Subnormal operands and results are zeros of their sign, with ftz alone."""
    tiny = np.array([1e-40, -1e-40, 1e-30], np.float32)
    flushed = operation(("abs", "ftz", "f32")).compute(tiny)
    assert flushed.tolist() == [0.0, 0.0, np.float32(1e-30)]
    assert operation(("abs", "f32")).compute(tiny).all()
    root = operation(("sqrt", "approx", "ftz", "f32")).compute(tiny)
    assert root[0] == 0 and root[2] > 0


def found_as(name, bits):
    """A float16 as itself; numpy has no bfloat16."""
    return bits.view(np.float16) if name == "f16" else bits


def test_conversions_are_torchs():
    """To bfloat16 and float16: nearest, ties to even, in pairs too; integers saturate."""
    a = np.concatenate([floats(np.float32), np.float32([0, -0.0, np.inf, 65520, 1e-8, 1.00390625])])
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        expected = torch.from_numpy(a.copy()).to(dtype).view(torch.int16).numpy().view(np.uint16)
        found = operation(("cvt", "rn", name, "f32")).compute(a)
        assert (found == expected).all()
        back = operation(("cvt", "f32", name)).compute(found)
        assert (back == torch.from_numpy(expected.view(np.int16)).view(dtype).float().numpy()).all()
        assert (operation(("cvt", "f64", name)).compute(found_as(name, found)) == back).all()
        both = operation(("cvt", "rn", f"{name}x2", "f32")).compute(a, np.roll(a, 1))
        assert (both == expected.astype(np.uint32) << 16 | np.roll(expected, 1)).all()
    d = np.array([-2.5, 2.5, 1e30, -1e30, np.nan, 0.5])
    found = operation(("cvt", "rzi", "s32", "f64")).compute(d)
    assert found.tolist() == [-2, 2, 2**31 - 1, -(2**31), 0, 0]
    assert operation(("cvt", "rmi", "f64", "f64")).compute(d)[:2].tolist() == [-3, 2]
    assert math.isnan(operation(("cvt", "rn", "f32", "f64")).compute(d)[4])


@pytest.mark.parametrize(
    "opcode", ["add.f32", "mul.hi.u64", "tanh.approx.f32", "fma.rz.f32", "cvt.rz.bf16.f32"]
)
def test_what_is_not_known_is_refused(opcode):
    """A sum that is not said to round by itself may be contracted: it, too, is not known."""
    with pytest.raises(LookupError):
        operation(tuple(opcode.split("."))).compute(*(np.zeros(1, np.uint64),) * 2)
