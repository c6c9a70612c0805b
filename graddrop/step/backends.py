"""The backends: which there are, which of them serves a tensor, and its executor."""

from collections.abc import Sequence

import torch

from ..kernels.cpu import binding as cpu
from .executors.base import Executor
from .executors.cpu import CpuExecutor
from .executors.reference import ReferenceExecutor
from .executors.triton import TritonExecutor, triton_launcher
from .knobs import Knobs
from .slot import Dtypes, Slot

BACKENDS = ("auto", "triton", "cpu", "reference")


def resolve(backend: str, device: torch.device, dtypes: Dtypes) -> str:
    """The backend that makes the step of such a tensor.

    Args:
        backend: one of :data:`BACKENDS`; ``"auto"`` takes the fastest that can.
        device: where the tensors lie.
        dtypes: of param, grad and moments.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend asked for by name cannot serve this device or these dtypes.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Invalid backend: {backend!r}: expected one of {BACKENDS}")
    if backend == "reference":
        return backend
    problems = {}
    for name, find_problem in (("triton", _triton_problem), ("cpu", _cpu_problem)):
        if backend in ("auto", name):
            problem = find_problem(device, dtypes, explicit=backend == name)
            if problem is None:
                return name
            problems[name] = problem
    if backend == "auto":
        return "reference"
    raise RuntimeError(f'backend="{backend}" {problems[backend]}')


def _triton_problem(device: torch.device, dtypes: Dtypes, explicit: bool) -> str | None:
    if device.type != "cuda" and not (explicit and device.type == "cpu"):
        return f'runs on GPUs, got tensors on {device}: use backend="auto"'
    launcher = triton_launcher()
    if launcher is None:
        return 'needs Triton, which is not installed: "pip install triton" or use backend="auto"'
    if device.type == "cpu" and not launcher.interpreted():
        return (
            "runs on CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before "
            'graddrop is imported, or use backend="auto"'
        )
    if not launcher.supports(dtypes):
        return f'takes float32, bfloat16 and float16, got {dtypes}: use backend="auto"'
    return None


def _cpu_problem(device: torch.device, dtypes: Dtypes, explicit: bool) -> str | None:
    if device.type != "cpu":
        return f'runs on the CPU, got tensors on {device}: use backend="auto"'
    if not cpu.supports(*dtypes):
        return f'has no code for param, grad, moments of {dtypes}: use backend="auto"'
    if explicit:
        cpu.load()  # raises, and says how to build it
    return None if cpu.is_available() else "is not built"


def make_executor(
    backend: str, slots: Sequence[Slot], knobs: Sequence[Knobs], device: torch.device
) -> Executor:
    """The executor of a backend that :func:`resolve` has named."""
    if backend == "triton":
        return TritonExecutor(slots, knobs, device)
    return CpuExecutor(slots, knobs) if backend == "cpu" else ReferenceExecutor(slots)
