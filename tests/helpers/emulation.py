"""The C++ kernel of another machine, emulated, behind the interface that ctypes has to ours."""

import ast
import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.root import ROOT
from ptx.memory import live_storages

from graddrop.kernels import abi
from graddrop.kernels.cpu import binding

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SOURCES = ("kernels/cpu/graddrop_cpu.cpp", "tests/kernels/emulated/driver.cpp")
# Columns that hold addresses, in the order of the driver.
_ADDRESSES = (abi.PARAM, abi.GRAD, abi.EXP_AVG, abi.EXP_AVG_SQ, abi.STEP, abi.KEEP_BITS)
_STEPS, _SQUARES, _DOTS = range(3)  # calls, as the driver numbers them
# What a call looks at, of the same columns.
_LOOKED_AT = {
    _STEPS: (True,) * 6,
    _SQUARES: (False, True, False, False, True, True),
    _DOTS: (False, True, True, False, True, True),
}
_SIZES = (4, 2, 2)  # bytes by number of a dtype, as in binding: the third is rounded at random


def require(*programs: str) -> None:
    """Skip, with the reason, where a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")


def compile_flags() -> list[str]:
    """Those of setup.py, which cannot be imported without building."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILE_FLAGS":
            return ast.literal_eval(node.value)
    raise LookupError("setup.py has no COMPILE_FLAGS")


def build(folder: Path) -> Path:
    """Compile kernel and driver for aarch64, as setup.py compiles the kernel; the program."""
    program = folder / "driver"
    subprocess.run(
        [
            *(COMPILER, "-static", *compile_flags(), f"-I{ROOT / 'kernels' / 'cpu'}"),
            *(str(ROOT / source) for source in SOURCES),
            *("-o", str(program)),
        ],
        check=True,
    )
    return program


class EmulatedLibrary:
    """Stands where the loaded library stands: each call is a run of the emulator.

    Args:
        program: what `build` has built.
    """

    def __init__(self, program: Path) -> None:
        self.n_calls = 0
        self._program = program

    def graddrop_step(self, *arguments: object) -> int:
        """See kernels/cpu/graddrop_cpu.cpp."""
        *tables, grad_factor, step_scales, param, grad, moments, _, n_threads, _ = arguments
        assert step_scales is None
        self._call(tables, _STEPS, [param, grad, moments], [0, n_threads], grad_factor)
        return 0

    def graddrop_grad_squares(self, *arguments: object) -> int:
        """See kernels/cpu/graddrop_cpu.cpp."""
        *tables, masked, grad, _, n_threads, _, target = arguments
        squares = self._call(tables, _SQUARES, [0, grad, 0], [masked, n_threads], 1.0)
        ctypes.memmove(target, squares, len(squares))
        return 0

    def graddrop_moment_dots(self, *arguments: object) -> int:
        """See kernels/cpu/graddrop_cpu.cpp."""
        *tables, grad, moments, _, n_threads, _, target = arguments
        dots = self._call(tables, _DOTS, [0, grad, moments], [0, n_threads], 1.0)
        ctypes.memmove(target, dots, len(dots))
        return 0

    def _call(self, tables, call, dtypes, options, grad_factor) -> bytes:
        """Send what the tables tell of, take back what became of it; the sums."""
        tensors, n_tensors, layouts, groups, counters = tables
        table = _copy(tensors, (n_tensors, abi.N_TENSOR_COLUMNS), np.int64)
        layout_table = _copy(
            layouts, (table[:, abi.LAYOUT].max(initial=-1) + 1, abi.N_LAYOUT_COLUMNS), np.int64
        )
        group_table = _copy(
            groups, (table[:, abi.GROUP].max(initial=-1) + 1, abi.N_GROUP_COLUMNS), np.float64
        )
        first = _first_addresses(table, dtypes, call)
        storages = np.array(live_storages(), np.int64).reshape(-1, 2)
        found = np.searchsorted(storages[:, 0], first, side="right") - 1
        used = np.unique(found[first >= 0])
        segment_of = np.where(first >= 0, np.searchsorted(used, found), -1)
        segments = [(int(begin), int(end - begin)) for begin, end in storages[used]]
        sizes = [len(table), len(layout_table), len(group_table), len(segments)]
        sent = [
            np.array([call, *sizes, *dtypes, *options], np.int64),
            np.array([grad_factor], np.float64),
            *(table, segment_of.astype(np.int64), layout_table, group_table),
            _copy(counters, (2,), np.int64),
        ]
        message = b"".join(part.tobytes() for part in sent)
        for address, n_bytes in segments:
            message += np.array([address, n_bytes], np.int64).tobytes()
            message += ctypes.string_at(address, n_bytes)
        run = subprocess.run(
            [EMULATOR, self._program], input=message, stdout=subprocess.PIPE, check=True
        )
        answer = run.stdout
        for address, n_bytes in segments:
            ctypes.memmove(address, answer[:n_bytes], n_bytes)
            answer = answer[n_bytes:]
        self.n_calls += 1
        return answer


def _copy(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    n_bytes = int(np.prod(shape)) * 8
    return np.frombuffer(ctypes.string_at(address, n_bytes), dtype).reshape(shape)


def _first_addresses(table: np.ndarray, dtypes: list[int], call: int) -> np.ndarray:
    """Addresses of each tensor's first entry, counter and bits; -1 where nothing is looked at."""
    param, grad, moments = (_SIZES[dtype] for dtype in dtypes)
    sizes = np.array([param, grad, moments, moments, 0, 0])
    begin = np.where(table[:, abi.LAYOUT] < 0, table[:, abi.BEGIN], 0)
    first = table[:, _ADDRESSES] + begin[:, None] * sizes
    first[:, -1] += table[:, abi.BEGIN] // 8
    used = table[:, abi.GRAD] != abi.NO_GRAD
    entries = used & (table[:, abi.END] > table[:, abi.BEGIN])
    loaded = entries & (table[:, abi.MODE] // abi.N_SITES == abi.SOURCE_LOADED)
    looked_at = np.stack([entries] * 4 + [used, loaded], axis=1)
    return np.where(looked_at & _LOOKED_AT[call], first, -1)


def as_library(handle: EmulatedLibrary) -> binding.Library:
    """What `binding.load` returns on that machine."""
    return binding.Library(handle=handle, isa=0, gomp_parallel=None)  # type: ignore[arg-type]
