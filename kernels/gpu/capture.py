"""What a CUDA graph that is being captured forbids this thread, and how to do it all the same."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED (CUDA driver API, CUstreamCaptureMode)


@contextmanager
def relaxed_capture() -> Iterator[None]:
    """Allow calls that the captured work does not depend on, such as to allocate pinned memory.

    While a stream is captured CUDA refuses them in any thread of the usual mode. torch lifts that
    where it allocates memory of the device; for pinned memory some versions do not.

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
    status = _driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    if status:
        raise RuntimeError(f"cuThreadExchangeStreamCaptureMode: CUDA driver error {status}")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
