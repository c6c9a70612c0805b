"""What a CUDA graph that is being captured forbids this thread, and how to do it all the same."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

RELAXED = 2  # of CUDA's CUstreamCaptureMode as of HIP's hipStreamCaptureMode


@contextmanager
def relaxed_capture() -> Iterator[None]:
    """Allow calls that the captured work does not depend on, such as to allocate pinned memory.

    While a stream is captured CUDA and HIP refuse them in any thread of the usual mode. torch lifts
    that where it allocates memory of the device; for pinned memory some versions do not.

    Raises:
        RuntimeError: the driver refuses.
    """
    mode = ctypes.c_int(RELAXED)
    _exchange(mode)
    try:
        yield
    finally:
        _exchange(mode)


def _exchange(mode: ctypes.c_int) -> None:
    """Swap the thread's mode and the one in ``mode``."""
    status = _exchange_of_driver()(ctypes.byref(mode))
    if status:
        raise RuntimeError(f"the GPU's driver refused another capture mode: error {status}")


@cache
def _exchange_of_driver() -> Any:
    """The driver's function; HIP's comes with torch, under whose libraries it is found."""
    if torch.version.hip:
        return ctypes.CDLL("libtorch_hip.so").hipThreadExchangeStreamCaptureMode
    return ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode
