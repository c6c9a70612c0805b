"""The compiled CPU kernel as Python sees it, through ctypes: found, checked, called."""

import ctypes
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import abi

LIBRARY = Path(__file__).with_name("graddrop_cpu.so")
ISAS = ("baseline", "avx2", "avx512")  # the order of `enum Isa`
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # the order of `enum Dtype`
_BFLOAT16_STOCHASTIC = 2
_FUNCTIONS = (  # that a library of this version has
    "graddrop_step",
    "graddrop_grad_squares",
    "graddrop_moment_dots",
    "graddrop_record",
    "graddrop_is_as_recorded",
    "graddrop_follow",
)
_HOW_TO_BUILD = (
    "build it with `make ext` in a checkout, or reinstall graddrop with a C++17 compiler"
)

# After a fork the threads of torch's OpenMP pool exist in the parent only, and waiting for them
# never ends: forked processes, such as DataLoader workers, run on their own thread.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@dataclass(frozen=True)
class Library:
    """The loaded kernel: the handle, the instruction set to run, torch's thread pool or None."""

    handle: ctypes.CDLL
    isa: int
    gomp_parallel: int | None


def supports(param_dtype: torch.dtype, grad_dtype: torch.dtype, moment_dtype: torch.dtype) -> bool:
    """Whether the kernel has code for tensors of these dtypes: each float32 or bfloat16."""
    return {param_dtype, grad_dtype, moment_dtype} <= _DTYPES.keys()


@cache
def load() -> Library:
    """Load the kernel and check that it was built for the tables that we make.

    The environment variable ``GRADDROP_CPU_ISA``, one of :data:`ISAS`, names a smaller instruction
    set than the machine's best one.

    Raises:
        RuntimeError: the library is missing, cannot be loaded or is stale, or
            ``GRADDROP_CPU_ISA`` names what this machine cannot run. Says how to build it.
    """
    try:
        handle = ctypes.CDLL(str(LIBRARY))
        columns = (ctypes.c_int64 * 3)()
        handle.graddrop_abi(columns)
        for name in _FUNCTIONS:
            getattr(handle, name)
    except (OSError, AttributeError) as error:
        raise RuntimeError(
            f"The CPU kernel {LIBRARY} cannot be loaded ({error}): {_HOW_TO_BUILD}"
        ) from error
    expected = [abi.N_TENSOR_COLUMNS, abi.N_LAYOUT_COLUMNS, abi.N_GROUP_COLUMNS]
    if list(columns) != expected:
        raise RuntimeError(
            f"The CPU kernel {LIBRARY} is stale: its tables have {list(columns)} columns, expected "
            f"{expected}: {_HOW_TO_BUILD}"
        )
    tables: list[Any] = [
        ctypes.c_void_p,  # tensor table
        ctypes.c_int64,  # n_tensors
        ctypes.c_void_p,  # layout table
        ctypes.c_void_p,  # group table
        ctypes.c_void_p,  # counters
    ]
    machine: list[Any] = [
        ctypes.c_int,  # isa
        ctypes.c_int,  # n_threads
        ctypes.c_void_p,  # GOMP_parallel
    ]
    handle.graddrop_step.argtypes = [
        *tables,
        ctypes.c_double,  # grad_factor
        ctypes.c_void_p,  # step_scales
        *[ctypes.c_int] * 3,  # dtypes of param, grad, moments
        *machine,
    ]
    handle.graddrop_grad_squares.argtypes = [
        *tables,
        ctypes.c_int,  # masked
        ctypes.c_int,  # dtype of grad
        *machine,
        ctypes.c_void_p,  # squares
    ]
    handle.graddrop_moment_dots.argtypes = [
        *tables,
        *[ctypes.c_int] * 2,  # dtypes of grad, moments
        *machine,
        ctypes.c_void_p,  # dots
    ]
    return Library(handle, _choose_isa(handle), _gomp_parallel())


def _choose_isa(handle: ctypes.CDLL) -> int:
    best = handle.graddrop_best_isa()
    name = os.environ.get("GRADDROP_CPU_ISA", ISAS[best])
    if name not in ISAS[: best + 1]:
        raise RuntimeError(
            f"Invalid GRADDROP_CPU_ISA value: {name!r}: this machine runs {ISAS[: best + 1]}"
        )
    return ISAS.index(name)


def _gomp_parallel() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch itself runs on.

    One pool for both: a second one would share the cores with torch's threads, which spin for a
    while after each operator. None where torch has another runtime; the kernel then starts threads.
    """
    try:
        runtime = ctypes.CDLL("libtorch_cpu.so")  # loaded already, found by its name
        return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


@cache
def is_available() -> bool:
    """Whether the kernel can be used; if not, a warning says why, once."""
    try:
        load()
    except RuntimeError as error:
        warnings.warn(f"{error}. Until then steps on the CPU take the slow path.", stacklevel=2)
        return False
    return True


class Tables:
    """The tables of tensors of one dtype signature, and the calls that read them.

    All are contiguous, in host memory, with the columns of ``abi.py``.

    Args:
        tensor_table: int64 [n_tensors, N_TENSOR_COLUMNS]; its numbers may change, its place not.
        layout_table: int64 [n_strided, N_LAYOUT_COLUMNS].
        dtypes: of every parameter, gradient and moment in the table.
        stochastic_rounding: round parameters, which are bfloat16 then, at random.

    Raises:
        TypeError: no code for these dtypes, see :func:`supports`.
    """

    def __init__(
        self,
        tensor_table: Tensor,
        layout_table: Tensor,
        dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
        *,
        stochastic_rounding: bool = False,
    ) -> None:
        if not supports(*dtypes):
            raise TypeError(
                "The CPU kernel has no code for param, grad, moments of dtypes "
                f"{', '.join(map(str, dtypes))}: use backend='reference'"
            )
        self._tensor_table, self._layout_table = tensor_table, layout_table
        self._places = tensor_table.data_ptr(), len(tensor_table), layout_table.data_ptr()
        param, grad, moments = (_DTYPES[dtype] for dtype in dtypes)
        self._dtypes = (_BFLOAT16_STOCHASTIC if stochastic_rounding else param), grad, moments

    def step_(
        self,
        group_table: Tensor,
        counters: Tensor,
        grad_factor: float = 1.0,
        step_scales: Tensor | None = None,
    ) -> None:
        """One step, in place, of every tensor, on ``torch.get_num_threads()`` threads.

        The tensors' step counters advance; ``counters`` do not, since the tables of several dtype
        signatures share them.

        Args:
            group_table: float64 [n_groups, N_GROUP_COLUMNS].
            counters: int64 [2].
            grad_factor: multiplies every gradient, beside GRAD_SIGN; any finite number.
            step_scales: float64 [n_tensors], contiguous, multiply the tensors' learning rates, but
                not their decay; None: by 1.

        Raises:
            RuntimeError: see :func:`load`.
            MemoryError: no memory for the call's own bookkeeping; nothing has changed.
        """
        library = load()
        failed = library.handle.graddrop_step(
            *self._places,
            group_table.data_ptr(),
            counters.data_ptr(),
            grad_factor,
            None if step_scales is None else step_scales.data_ptr(),
            *self._dtypes,
            *_machine(library),
        )
        if failed:
            raise MemoryError("The CPU kernel could not allocate its list of tensors")

    def grad_squares(self, group_table: Tensor, counters: Tensor, masked: bool) -> Tensor:
        """Sums of squares of the gradients that the next step takes; the same on any threads.

        Args:
            group_table: as for :meth:`step_`.
            counters: likewise.
            masked: sum what is kept, as it enters the moments, instead of all.

        Returns:
            float64 [n_tensors]. No loss scale is taken out.

        Raises:
            RuntimeError: see :func:`load`.
            MemoryError: no memory for the call's own bookkeeping.
        """
        library = load()
        squares = torch.empty(len(self._tensor_table), dtype=torch.float64, device="cpu")
        failed = library.handle.graddrop_grad_squares(
            *self._places,
            group_table.data_ptr(),
            counters.data_ptr(),
            masked,
            self._dtypes[1],
            *_machine(library),
            squares.data_ptr(),
        )
        if failed:
            raise MemoryError("The CPU kernel could not allocate its list of tiles")
        return squares

    def moment_dots(self, group_table: Tensor, counters: Tensor) -> Tensor:
        """Products of the gradients that the next step takes with their first moments.

        Args:
            group_table: as for :meth:`step_`.
            counters: likewise.

        Returns:
            float64 [n_tensors, 3]: sums of g g, g m and m m, the same on any threads; of gradients
            as they lie in memory, zeros without one.

        Raises:
            RuntimeError: see :func:`load`.
            MemoryError: no memory for the call's own bookkeeping.
        """
        library = load()
        dots = torch.empty((len(self._tensor_table), 3), dtype=torch.float64, device="cpu")
        failed = library.handle.graddrop_moment_dots(
            *self._places,
            group_table.data_ptr(),
            counters.data_ptr(),
            *self._dtypes[1:],
            *_machine(library),
            dots.data_ptr(),
        )
        if failed:
            raise MemoryError("The CPU kernel could not allocate its list of tiles")
        return dots


def _machine(library: Library) -> tuple[int, int, int | None]:
    return library.isa, 1 if _forked else torch.get_num_threads(), library.gomp_parallel
