"""Results that are not exactly rounded: where PTX allows an error, and where it flushes to zero.

A `Lean` chooses an error within what is allowed.
"""

from collections.abc import Callable

import numpy as np

from .dtypes import Array

Lean = Callable[[Array], Array]  # result as float32 -> -1, 0 or 1: down, exactly rounded, up


def exact(result: Array) -> Array:
    """Approximate instructions round exactly."""
    return np.zeros(result.shape, np.int64)


def up(result: Array) -> Array:
    """They err upward as far as PTX allows."""
    return np.ones(result.shape, np.int64)


def down(result: Array) -> Array:
    """They err downward as far as PTX allows."""
    return -np.ones(result.shape, np.int64)


def either(result: Array) -> Array:
    """They err up or down: a fixed function of the result, as in hardware."""
    mixed = result.view(np.uint32).astype(np.uint64) * np.uint64(2654435761)
    return np.where((mixed >> np.uint64(7)) & np.uint64(1), 1, -1)


LEANS: dict[str, Lean] = {"exact": exact, "up": up, "down": down, "either": either}


def flush(a: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, np.copysign(a.dtype.type(0), a), a)


def _approximate(lean: Lean, ideal: Array, allowed: Array) -> Array:
    """A float32 at most ``allowed`` from ``ideal``, both float64, as far off as ``lean`` wants."""
    rounded = ideal.astype(np.float32)
    wanted = lean(rounded)
    off = (ideal + wanted * allowed).astype(np.float32)
    beyond = np.abs(off.astype(np.float64) - ideal) > allowed
    off = np.where(beyond, np.nextafter(off, rounded), off)
    plain = (wanted == 0) | ~np.isfinite(off) | (rounded == 0)
    return np.where(plain, rounded, off)


def sqrt_approx(lean: Lean, a: Array) -> Array:
    """sqrt.approx.f32: relative error up to 2**-23."""
    root = np.sqrt(a.astype(np.float64))
    return _approximate(lean, root, root * 2.0**-23)


def div_full(lean: Lean, a: Array, b: Array) -> Array:
    """div.full.f32: error up to 2 units in the last place."""
    quotient = a.astype(np.float64) / b.astype(np.float64)
    ulp = np.spacing(np.abs(quotient.astype(np.float32))).astype(np.float64)
    return _approximate(lean, quotient, 2 * ulp)


def rcp_approx(lean: Lean, a: Array) -> Array:
    """rcp.approx.f32: relative error up to 2**-23."""
    inverse = 1.0 / a.astype(np.float64)
    return _approximate(lean, inverse, np.abs(inverse) * 2.0**-23)


def rcp_approx_ftz_f64(a: Array) -> Array:
    """rcp.approx.ftz.f64: of the operand's upper 32 bits, and no more than these are set."""
    upper = np.uint64(0xFFFFFFFF00000000)
    high = flush((np.atleast_1d(a).view(np.uint64) & upper).view(np.float64))
    inverse = flush(1.0 / high)
    return (inverse.view(np.uint64) & upper).view(np.float64).reshape(np.shape(a))
