"""Launches of the Triton step: tables kept on the device, uploaded again only where they moved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .. import abi
from .capture import relaxed_capture
from .dots import dense_dots, strided_dots
from .launches import Launch, Signature, long_rows_named, plan_launches
from .norm import dense_squares, strided_squares, sum_chunks
from .options import (
    DTYPES,
    Dtypes,
    dtype_constants,
    is_crowded,
    launch_options,
    vector_width,
)
from .prepare import ACTIVE, FLOATS, GRAD_FACTOR, INTS, STEP_SIZE, prepare
from .step import dense_step, strided_step
from .streams import keep_for_current_stream

PREPARE_BLOCK = 128  # tensors per program, one a thread


def supports(dtypes: Dtypes) -> bool:
    """Whether the kernels take these dtypes of (param, grad, moments)."""
    return all(dtype in DTYPES for dtype in dtypes)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    return not isinstance(dense_step, triton.runtime.JITFunction)


def compiles_to_ptx() -> bool:
    """Whether the kernels are compiled by way of PTX, which is to say for NVIDIA's GPUs."""
    return not isinstance(dense_step, InterpretedFunction) and torch.version.hip is None


class TritonStep:
    """The step of a fixed set of tensors on one device.

    :meth:`prepare`, one launch of a thread per tensor, advances the counters; then :meth:`step`,
    one launch per (dtypes, layout class), moves all tensors. Between them :meth:`moment_dots` and
    :meth:`grad_squares` may look at the gradients. There is no host synchronisation, and everything
    that changes from step to step is read from device memory, so a CUDA graph can capture the
    launches.
    """

    def __init__(
        self,
        tensor_table: Tensor,  # int64 CPU, see abi.py
        layout_table: Tensor,  # int64 CPU
        signatures: list[Signature],  # one per row of the tensor table
        n_groups: int,
        device: torch.device,
    ) -> None:
        self._host_table = long_rows_named(tensor_table)
        self._signatures = signatures
        self._device = device
        self._pinned: list[Tensor] = []  # sources of uploads that a CUDA graph repeats
        n_tensors = len(tensor_table)
        self._tensor_table = torch.empty_like(tensor_table, device=device)
        self._warp_size = 32
        self._processors = 1  # the interpreter's
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._warp_size, self._processors = (
                properties.warp_size,
                properties.multi_processor_count,
            )
        self._layout_table = self._sent(layout_table)
        self.group_table = torch.empty(
            (n_groups, abi.N_GROUP_COLUMNS), dtype=torch.float64, device=device
        )
        self._floats = torch.empty((n_tensors, FLOATS.value), dtype=torch.float32, device=device)
        self._ints = torch.empty((n_tensors, INTS.value), dtype=torch.int32, device=device)
        self._arrived = torch.zeros(1, dtype=torch.int32, device=device)
        self._aligned = self._alignment()
        self._launches = self._plan_launches()
        self._sums: tuple[Tensor, Tensor] | None = None  # made when it is first needed
        self._n_launched = 0  # of the step's launches
        self._upload(self._tensor_table, self._host_table)

    def set_grads(self, origins: Tensor) -> None:
        """Take over where the gradients lie now: int64 [n_tensors], the column GRAD."""
        self._host_table[:, abi.GRAD] = origins
        aligned = self._alignment()
        if not torch.equal(aligned, self._aligned):
            self._aligned = aligned
            self._launches = self._plan_launches()
            self._sums = None
        self._upload(self._tensor_table, self._host_table)

    def set_decisions(self, decisions: Tensor) -> None:
        """Take over the column DECISION, int64 [n_tensors] on the device."""
        self._tensor_table[:, abi.DECISION].copy_(decisions)

    def set_groups(self, rows: list[list[float]]) -> None:
        """Take over the groups' new numbers."""
        self._upload(self.group_table, torch.tensor(rows, dtype=torch.float64, device="cpu"))

    def prepare(
        self, counters: Tensor, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Launch what comes before the step: counters advance, scalars are derived.

        Args:
            counters: int64 [2] on the device, advanced.
            grad_scale: float32, 1 element on the device: loss scale that the gradients carry.
            found_inf: float32, 1 element on the device: unless 0, nothing changes.
        """
        n_tensors = len(self._tensor_table)
        self._n_launched = 0
        keep_for_current_stream(self._device, self._tables())
        with self._on_device():
            prepare[(triton.cdiv(n_tensors, PREPARE_BLOCK),)](
                self._tensor_table,
                self.group_table,
                counters,
                self._arrived,
                self._floats,
                self._ints,
                grad_scale,
                found_inf,
                n_tensors,
                BLOCK=PREPARE_BLOCK,
                **self._options(vector=4),
            )

    def moment_dots(self) -> Tensor:
        """Launch the products of gradients and first moments, of the launches that ask for them.

        Returns:
            float64 [n_tensors, 3] on the device: sums of g g, g m and m m, the gradients as they
            enter the moments but for a positive factor. Of other tensors zeros.
        """
        partials = self._partials()
        with self._on_device():
            for launch, first in self._first_partials():
                _, grad_dtype, moment_dtype = launch.dtypes
                if launch.dotted:
                    self._launch(
                        launch,
                        (dense_dots, strided_dots),
                        (partials, first, partials.shape[1]),
                        {"GRAD_DTYPE": DTYPES[grad_dtype], "MOMENT_DTYPE": DTYPES[moment_dtype]},
                        vector=4,
                    )
            dots = torch.stack([self._sum_chunks(each, False, None) for each in partials], dim=1)
        dots[:, 1] *= self._floats[:, GRAD_FACTOR.value].sign()
        return dots

    def grad_squares(self, masked: bool, grad_scale: Tensor | None) -> Tensor:
        """Launch the sums of squares of the gradients of the step that is prepared.

        Where their products with first moments are asked for, these come first: a gradient is read
        once.

        Args:
            masked: of what is kept, as it enters the moments, instead of all.
            grad_scale: as for :meth:`prepare`; the sums are free of it.

        Returns:
            float64 [n_tensors] on the device.
        """
        partials = self._partials()
        with self._on_device():
            for launch, first in self._first_partials():
                grad_dtype = launch.dtypes[1]
                if not launch.dotted:  # there the masks, on updates, drop nothing of gradients
                    self._launch(
                        launch,
                        (dense_squares, strided_squares),
                        (self._ints, partials, first),
                        {
                            "GRAD_DTYPE": DTYPES[grad_dtype],
                            "MASKED": masked,
                            "MODES": launch.modes if masked else 1,
                        },
                        vector=16 // grad_dtype.itemsize,  # 128 bits
                        PTX=compiles_to_ptx(),
                    )
            return self._sum_chunks(partials[0], masked, grad_scale)

    def _partials(self) -> Tensor:
        """Room for partial sums, see :meth:`_plan_sums`, which is asked when it is first needed."""
        if self._sums is None:
            self._sums = self._plan_sums()
        return self._sums[1]

    def _first_partials(self) -> Iterator[tuple[Launch, int]]:
        """The launches, each with the number of its first chunk's sum."""
        first = 0
        for launch in self._launches:
            yield launch, first
            first += len(launch.chunks)

    def _sum_chunks(self, partials: Tensor, masked: bool, grad_scale: Tensor | None) -> Tensor:
        """Each tensor's sum of its chunks' sums: float64 [n_tensors]."""
        assert self._sums is not None
        sums = torch.empty(len(self._tensor_table), dtype=torch.float64, device=self._device)
        sum_chunks[(len(sums),)](
            self._sums[0],
            partials,
            self._floats,
            grad_scale,
            sums,
            MASKED=masked,
            **self._options(vector=4),
        )
        return sums

    def step(self, clip_factor: Tensor | None = None, step_scales: Tensor | None = None) -> None:
        """Launch the step that is prepared.

        Args:
            clip_factor: float32, 1 element on the device, multiplies every gradient.
            step_scales: float32 [n_tensors] on the device, multiply learning rates but not decay.
        """
        if clip_factor is not None:
            self._floats[:, GRAD_FACTOR.value].mul_(clip_factor)
        if step_scales is not None:
            self._floats[:, STEP_SIZE.value].mul_(step_scales)
        with self._on_device():
            for launch in self._launches:
                self._launch(
                    launch,
                    (dense_step, strided_step),
                    (self._floats, self._ints),
                    {
                        **dtype_constants(launch.dtypes),
                        "MODES": launch.modes,
                        "STOCHASTIC": launch.stochastic,
                        "PTX": compiles_to_ptx(),
                    },
                    vector=vector_width(launch.dtypes, launch.modes, launch.stochastic),
                    crowded=is_crowded(launch.modes, launch.stochastic),
                )
                self._n_launched += 1

    def _launch(
        self,
        launch: Launch,
        kernels: tuple[Any, Any],  # for dense and for strided tensors
        operands: tuple[Any, ...],
        constants: dict[str, Any],
        *,
        vector: int,
        crowded: bool = False,
        **of_dense: Any,  # constants that the other kernel does not take
    ) -> None:
        """Launch one of two kernels, whose first and last operands and constants are alike."""
        dense, strided = kernels
        if launch.strided:
            strided[(len(launch.chunks),)](
                launch.chunks,
                self._tensor_table,
                self._layout_table,
                *operands,
                **constants,
                **self._options(vector=4),
            )
        else:
            dense[(len(launch.chunks),)](
                launch.chunks,
                self._tensor_table,
                *operands,
                launch.tiles,
                **constants,
                **of_dense,
                ALIGNED=launch.aligned,
                VECTOR=vector,
                **self._options(vector, crowded),
            )

    def _tables(self) -> Iterator[Tensor]:
        """All that is its own on the device."""
        yield from (self._tensor_table, self._layout_table, self.group_table)
        yield from (self._floats, self._ints, self._arrived, *(self._sums or ()))
        yield from (launch.chunks for launch in self._launches)

    def waiting(self) -> list[bool]:
        """Of each tensor, whether it was counted by the step that is prepared and has not moved.

        For a step that an error has ended; waits for the device.
        """
        moved = {
            row for launch in self._launches[: self._n_launched] for row in launch.rows.tolist()
        }
        active = self._ints[:, ACTIVE.value].tolist()
        return [bool(counted) and row not in moved for row, counted in enumerate(active)]

    @property
    def n_launches(self) -> int:
        """Kernel launches per step, without clipping."""
        return 1 + len(self._launches)

    def _options(self, vector: int, crowded: bool = False) -> dict[str, int | bool]:
        backend = "hip" if torch.version.hip else "cuda"
        return launch_options(vector, backend, self._warp_size, crowded=crowded)

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches on the current device, which may be another one."""
        if self._device.type == "cuda" and torch.cuda.current_device() != self._device.index:
            return torch.cuda.device(self._device)
        return nullcontext()

    def _alignment(self) -> Tensor:
        """bool [n_tensors]: every origin is a multiple of 16 bytes, as 128-bit loads want it."""
        origins = self._host_table[:, [abi.PARAM, abi.GRAD, abi.EXP_AVG, abi.EXP_AVG_SQ]]
        return ((origins % 16 == 0) | (origins == abi.NO_GRAD)).all(dim=1)

    def _plan_launches(self) -> list[Launch]:
        plan = plan_launches(
            self._host_table, self._signatures, self._aligned.tolist(), self._processors
        )
        return [replace(launch, chunks=self._sent(launch.chunks)) for launch in plan]

    def _plan_sums(self) -> tuple[Tensor, Tensor]:
        """On the device: spans of the tensors' partial sums, see `sum_chunks`; room for them.

        One row of sums, or three where products with moments are asked for, each as aligned as the
        first: where numbers lie shall not compile a second kernel.
        """
        spans = torch.zeros((len(self._tensor_table), 2), dtype=torch.int64, device="cpu")
        total = 0
        for launch in self._launches:
            spans[launch.rows, 0] = total + launch.n_chunks.cumsum(0) - launch.n_chunks
            spans[launch.rows, 1] = launch.n_chunks
            total += len(launch.chunks)
        if any(launch.dotted for launch in self._launches):
            room = -(-total // 2) * 2
            partials = torch.zeros((3, room), dtype=torch.float64, device=self._device)
        else:
            partials = torch.empty((1, total), dtype=torch.float64, device=self._device)
        return self._sent(spans.to(torch.int32)), partials

    def _sent(self, source: Tensor) -> Tensor:
        """A copy on the device."""
        target = torch.empty_like(source, device=self._device)
        self._upload(target, source)
        return target

    def _upload(self, target: Tensor, source: Tensor) -> None:
        if target.device.type != "cuda":
            target.copy_(source)
            return
        # torch's pinned allocator reuses a block only after the copies that read it: no ring of
        # our own is needed. A captured copy runs again at each replay, so its source stays.
        capturing = torch.cuda.is_current_stream_capturing()
        with relaxed_capture() if capturing else nullcontext():
            pinned = source.pin_memory()
        target.copy_(pinned, non_blocking=True)
        if capturing:
            self._pinned.append(pinned)
