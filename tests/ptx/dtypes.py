"""PTX types as numpy's."""

from typing import Any

import numpy as np

from .program import BITS

Array = np.ndarray[Any, np.dtype[Any]]

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


def numpy_type(kind: str) -> type:
    """The numpy type of a PTX type: "u32", "b32", "s32", "f32", "pred"."""
    if kind == "pred":
        return np.bool_
    return {"s": SIGNED, "f": FLOAT}.get(kind[0], UNSIGNED)[BITS[kind]]
