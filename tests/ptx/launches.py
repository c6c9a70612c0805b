"""Triton kernels compiled for a GPU, executed here: all that the launcher launches."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from graddrop.kernels.gpu import launch

from .machine import Code, Machine, Rules
from .memory import Counts, live_storages
from .program import parse
from .threads import Threads

KERNELS = (
    "prepare",
    "dense_step",
    "strided_step",
    "dense_squares",
    "strided_squares",
    "dense_dots",
    "strided_dots",
    "sum_chunks",
)


@dataclass(frozen=True)
class Launch:
    """One launch that was executed.

    Attributes:
        kernel: its name.
        n_blocks: of its grid.
        counts: what it did.
    """

    kernel: str
    n_blocks: int
    counts: Counts


@dataclass
class Execution:
    """How kernels are compiled and executed.

    Attributes:
        target: "sm_80", "sm_90" or "sm_100", or another of NVIDIA's.
        rules: what PTX leaves open.
        edit: changes the PTX of a kernel, given its name and text; to plant faults.
        runs: whether launches do anything; else they only say which variants would be compiled.
        variants: (kernel, what it is specialised for) of all launches.
        launches: those so far; may be cleared.
        total: what all launches did together.
    """

    target: str
    rules: Rules = Rules()
    edit: Callable[[str, str], str] = lambda kernel, ptx: ptx
    runs: bool = True
    variants: set[tuple[str, str]] = field(default_factory=set)
    launches: list[Launch] = field(default_factory=list)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, launch: Launch) -> None:
        """Take down a launch."""
        self.launches.append(launch)
        counts = launch.counts
        self.total["launches"] += 1
        for what in ("instructions", "requests", "sectors"):
            self.total[what] += getattr(counts, what).total()


class ExecutedKernel:
    """Stands where a Triton kernel stood: ``kernel[grid](...)`` compiles, then executes.

    Args:
        kernel: as `triton.jit` makes it, not interpreted.
        execution: how.
    """

    def __init__(self, kernel: JITFunction, execution: Execution) -> None:
        if not isinstance(kernel, JITFunction):
            raise TypeError(
                "the kernels were imported under TRITON_INTERPRET=1, so nothing compiles"
            )
        self._kernel = kernel
        self._execution = execution
        self._target = GPUTarget("cuda", int(execution.target.removeprefix("sm_")), 32)
        self._backend = make_backend(self._target)
        self._bind = create_function_from_signature(kernel.signature, kernel.params, self._backend)
        self.variants: dict[str, tuple[CompiledKernel, Code, list[str]]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """As Triton's: the launch of a grid."""

        def launch(*arguments: Any, **options: Any) -> None:
            bound, specialization, given = self._bind(
                *arguments, **options, debug=False, instrumentation_mode=""
            )
            key = f"{specialization} {given}"
            self._execution.variants.add((self._kernel.__name__, key))
            if not self._execution.runs:
                return
            if key not in self.variants:
                self.variants[key] = self._compile(options, bound, specialization, given)
            compiled, code, names = self.variants[key]
            values = [bound[name] for name in names]
            numbers = [
                value.data_ptr() if isinstance(value, torch.Tensor) else int(value)
                for value in values
            ]
            # Parameters beyond these point to scratch memory, of which there is none.
            numbers += [0] * (len(code.program.parameters) - len(numbers))
            (n_blocks,) = grid
            threads = Threads(
                code.program,
                n_blocks,
                compiled.metadata.num_warps * 32,
                numbers,
                compiled.metadata.shared,
                live_storages(),
            )
            counts = Machine(code, threads).run()
            self._execution.add(Launch(self._kernel.__name__, n_blocks, counts))

        return launch

    def _compile(
        self, options: dict[str, Any], bound: dict[str, Any], specialization: Any, given: Any
    ) -> tuple[CompiledKernel, Code, list[str]]:
        """As Triton compiles at a launch: (kernel, its code, names of what is passed)."""
        options = options | {"debug": False, "instrumentation_mode": ""}
        parsed, signature, constants, attributes = self._kernel._pack_args(
            self._backend, options, bound, specialization, given
        )
        source = ASTSource(self._kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self._target, options=parsed.__dict__)
        ptx = self._execution.edit(self._kernel.__name__, compiled.asm["ptx"])
        names = [name for name, kind in signature.items() if kind != "constexpr"]
        return compiled, Code(parse(ptx), self._execution.rules), names


@contextmanager
def executed(
    target: str = "sm_90",
    rules: Rules = Rules(),  # noqa: B008
    edit: Callable[[str, str], str] = lambda kernel, ptx: ptx,
    runs: bool = True,
) -> Iterator[Execution]:
    """The launcher's kernels are compiled for a target and executed here, on CPU tensors.

    Args:
        target: "sm_90" and the like.
        rules: what PTX leaves open.
        edit: changes the PTX of a kernel, given its name and text; to plant faults.
        runs: whether launches do anything.

    Raises:
        TypeError: the kernels were imported under TRITON_INTERPRET=1.
    """
    execution = Execution(target, rules, edit, runs)
    before = {name: getattr(launch, name) for name in KERNELS}
    try:
        for name, kernel in before.items():
            kernel = kernel._kernel if isinstance(kernel, ExecutedKernel) else kernel
            setattr(launch, name, ExecutedKernel(kernel, execution))
        yield execution
    finally:
        for name, kernel in before.items():
            setattr(launch, name, kernel)
