"""The backends of the masked step: which there are, and one executor for each.

An executor holds a fixed set of entries on one device. It is given the gradients of a step, which
it does not keep, and makes one step of all its entries.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels import abi
from ..kernels.cpu import binding as cpu
from ..mask import rescale_factor
from ..reference import adamw_step_, masked_squares
from .checks import check_grads
from .tables import Entry, Knobs, tensor_tables

BACKENDS = ("auto", "triton", "cpu", "reference")
Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]


class Executor(Protocol):
    """One step of a fixed set of entries on one device, in its three parts."""

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """Take over the next step's gradients, one per entry, of dtypes and strides as before.

        An entry whose gradient is None stands still in this step.

        Raises:
            RuntimeError: a gradient whose memory has been freed.
        """

    def prepare(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Begin a step, which ``found_inf`` may skip; it advances ``counters``."""

    def grad_squares(self, masked: bool) -> Tensor:
        """Sum of squares of each entry's gradient without the loss scale: float [n_entries].

        ``masked``: as it enters the moments, so without what the masks drop of it.
        """

    def step(self, clip_factor: Tensor | None) -> None:
        """Make the step that was prepared, all gradients multiplied by ``clip_factor``."""


@cache
def _triton() -> Any | None:
    """The Triton launcher, None where Triton is not installed."""
    if find_spec("triton") is None:
        return None
    from ..kernels.gpu import launch

    return launch


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
    launcher = _triton()
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
    backend: str, entries: Sequence[Entry], knobs: Sequence[Knobs], device: torch.device
) -> Executor:
    """The executor of a backend that :func:`resolve` has named."""
    if backend == "triton":
        return TritonExecutor(entries, knobs, device)
    return CpuExecutor(entries, knobs) if backend == "cpu" else ReferenceExecutor(entries)


class ReferenceExecutor:
    """Entry by entry in plain torch; the definition, on any device and dtype."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._grads: Sequence[Tensor | None] = []
        gone = torch.empty(0, device="cpu")
        self._entries = [replace(entry, grad=gone) for entry in entries]
        self._knobs: Sequence[Knobs] = []
        self._counters: Tensor | None = None
        self._loss_scale = 1.0
        self._skipped = False

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        check_grads(grads)
        self._grads = grads

    def prepare(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        self._knobs, self._counters = knobs, counters
        self._loss_scale = 1.0 if grad_scale is None else grad_scale.item()
        self._skipped = found_inf is not None and found_inf.item() != 0

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        squares = []
        for entry, grad in zip(self._entries, self._grads, strict=True):
            if grad is None:
                squares.append(entry.param.new_zeros((), dtype=torch.float64))
                continue
            group = self._knobs[entry.group]
            keep = self._keep(entry) if masked else None
            total = masked_squares(grad, keep, site=group.site, mask_scale=_mask_scale(group))
            squares.append(total / self._loss_scale**2)
        return torch.stack(squares)

    def step(self, clip_factor: Tensor | None) -> None:
        """See :class:`Executor`."""
        grads, self._grads = self._grads, []
        if self._skipped:
            return
        assert self._counters is not None
        factor = 1.0 if clip_factor is None else clip_factor.item()
        for entry, grad in zip(self._entries, grads, strict=True):
            if grad is None:
                continue
            group = self._knobs[entry.group]
            keep = self._keep(entry)
            entry.step.add_(1)
            adamw_step_(
                entry.param,
                grad,
                entry.exp_avg,
                entry.exp_avg_sq,
                keep,
                step=int(entry.step.item()),
                lr=float(group.lr),
                beta1=group.beta1,
                beta2=group.beta2,
                eps=group.eps,
                weight_decay=group.weight_decay,
                site=group.site,
                mask_decay=group.mask_decay,
                mask_scale=_mask_scale(group),
                grad_factor=(-factor if group.maximize else factor) / self._loss_scale,
                rounding_bits=entry.rounding_bits(group, int(self._counters[abi.STEPS_FINISHED])),
            )
        self._counters[abi.STEPS_FINISHED].add_(1)

    def _keep(self, entry: Entry) -> Tensor | None:
        assert self._counters is not None
        steps_finished, masks_begun = self._counters.tolist()
        group = self._knobs[entry.group]
        return group.keep_mask(
            tuple(entry.param.shape),
            stream_id=entry.stream_id,
            layer=entry.layer,
            shard=entry.shard,
            draw=group.draw(steps_finished, masks_begun),
            device=entry.param.device,
        )


def _mask_scale(knobs: Knobs) -> float:
    return rescale_factor(float(knobs.drop_prob)) if knobs.rescale else 1.0


class CpuExecutor:
    """All entries of a dtype signature in one call of the C++ kernel."""

    def __init__(self, entries: Sequence[Entry], knobs: Sequence[Knobs]) -> None:
        members: dict[tuple[Dtypes, bool], list[int]] = {}
        for index, entry in enumerate(entries):
            signature = entry.dtypes, knobs[entry.group].rounds(entry.param.dtype)
            members.setdefault(signature, []).append(index)
        self._calls = [
            (
                *signature,
                torch.tensor(rows, device="cpu"),
                *tensor_tables([entries[row] for row in rows], knobs),
            )
            for signature, rows in members.items()
        ]
        origins = torch.empty(len(entries), dtype=torch.int64, device="cpu")
        for _, _, rows, tensor_table, _ in self._calls:
            origins[rows] = tensor_table[:, abi.GRAD]
        self._grad_column = GradColumn(entries, origins)
        self._n_entries = len(entries)
        self._knobs: Sequence[Knobs] = ()
        self._group_table = self._counters = self._finished = torch.empty(0, device="cpu")
        self._loss_scale = 1.0
        self._skipped = False

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        if (origins := self._grad_column.moved(grads)) is not None:
            for _, _, rows, tensor_table, _ in self._calls:
                tensor_table[:, abi.GRAD] = origins[rows]

    def prepare(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        if knobs is not self._knobs or any(map(Knobs.has_tensors, knobs)):
            rows = [group.row() for group in knobs]
            for row, group in zip(rows, knobs, strict=True):
                row[abi.LR], row[abi.DROP_PROB] = float(group.lr), float(group.drop_prob)
            self._group_table = torch.tensor(rows, dtype=torch.float64, device="cpu")
            self._knobs = knobs
        if counters is not self._counters:
            self._counters, self._finished = counters, counters[abi.STEPS_FINISHED]
        self._loss_scale = 1.0 if grad_scale is None else grad_scale.item()
        self._skipped = found_inf is not None and found_inf.item() != 0

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        squares = torch.empty(self._n_entries, dtype=torch.float64, device="cpu")
        for dtypes, _, rows, tensor_table, layout_table in self._calls:
            squares[rows] = cpu.grad_squares(
                tensor_table,
                layout_table,
                self._group_table,
                self._counters,
                grad_dtype=dtypes[1],
                masked=masked,
            )
        return squares / self._loss_scale**2

    def step(self, clip_factor: Tensor | None) -> None:
        """See :class:`Executor`."""
        if self._skipped:
            return
        factor = 1.0 if clip_factor is None else clip_factor.item()
        for dtypes, rounds, _, tensor_table, layout_table in self._calls:
            cpu.step_(
                tensor_table,
                layout_table,
                self._group_table,
                self._counters,
                param_dtype=dtypes[0],
                grad_dtype=dtypes[1],
                moment_dtype=dtypes[2],
                stochastic_rounding=rounds,
                grad_factor=factor / self._loss_scale,
            )
        self._finished.add_(1)


class TritonExecutor:
    """All entries of a dtype signature in one launch; nothing waits for the device."""

    def __init__(
        self, entries: Sequence[Entry], knobs: Sequence[Knobs], device: torch.device
    ) -> None:
        launcher = _triton()
        assert launcher is not None
        tensor_table, layout_table = tensor_tables(entries, knobs)
        self._grad_column = GradColumn(entries, tensor_table[:, abi.GRAD])
        self._launcher = launcher.TritonStep(
            tensor_table,
            layout_table,
            [(*entry.dtypes, knobs[entry.group].rounds(entry.param.dtype)) for entry in entries],
            len(knobs),
            device,
        )
        self._knobs: Sequence[Knobs] = ()
        # The replays of a graph use them as long as it lives.
        self._counters: Tensor | None = None
        self._grad_scale: Tensor | None = None
        self._found_inf: Tensor | None = None

    @property
    def n_launches(self) -> int:
        """Kernel launches per step, without clipping."""
        return self._launcher.n_launches

    def set_grads(self, grads: Sequence[Tensor | None]) -> None:
        """See :class:`Executor`."""
        if (origins := self._grad_column.moved(grads)) is not None:
            self._launcher.set_grads(origins)

    def prepare(
        self,
        knobs: Sequence[Knobs],
        counters: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """See :class:`Executor`."""
        if knobs is not self._knobs:
            self._launcher.set_groups([group.row() for group in knobs])
            self._knobs = knobs
        for index, group in enumerate(knobs):
            for column, value in ((abi.LR, group.lr), (abi.DROP_PROB, group.drop_prob)):
                if isinstance(value, Tensor):
                    self._launcher.group_table[index, column].copy_(value.reshape(()))
        self._counters, self._grad_scale, self._found_inf = counters, grad_scale, found_inf
        self._launcher.prepare(counters, grad_scale, found_inf)

    def grad_squares(self, masked: bool) -> Tensor:
        """See :class:`Executor`."""
        return self._launcher.grad_squares(masked, self._grad_scale)

    def step(self, clip_factor: Tensor | None) -> None:
        """See :class:`Executor`."""
        self._launcher.step(clip_factor)


class GradColumn:
    """The column GRAD of tensor tables, which follows the gradients wherever they lie.

    Args:
        entries: one per row, each with a tensor like its gradients.
        origins: the column as it is for those: int64 [n_entries].
    """

    def __init__(self, entries: Sequence[Entry], origins: Tensor) -> None:
        self._addresses = [entry.grad.data_ptr() for entry in entries]
        self._before = origins - torch.tensor(self._addresses, dtype=torch.int64, device="cpu")

    def moved(self, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The column for these gradients, None if it is what it was.

        Raises:
            RuntimeError: a gradient whose memory has been freed.
        """
        found = [abi.NO_GRAD if grad is None else grad.data_ptr() for grad in grads]
        if found == self._addresses:
            return None
        if 0 in found:  # the address of no memory
            check_grads(grads)
        self._addresses = found
        addresses = torch.tensor(found, dtype=torch.int64, device="cpu")
        return torch.where(addresses == abi.NO_GRAD, addresses, addresses + self._before)
