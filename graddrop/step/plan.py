"""One step of tensors on any devices: an executor for each device and backend."""

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from .alignment import Alignments
from .backends import make_executor, resolve
from .clipping import Clipping
from .executors.base import Executor
from .knobs import Knobs
from .slot import Slot
from .totals import Total

Key = tuple[torch.device, str]  # where, and by which backend


class Plan:
    """Executors of certain parameters and their state; they read gradients that may move.

    Args:
        params: all parameters of the optimizer.
        slots: one per parameter; None where it takes no part.
        knobs: one per group.
        backend: the backend asked for.

    Raises:
        RuntimeError: the backend cannot serve a slot.
        ValueError: unknown backend, or more strided dimensions than it takes.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        slots: Sequence[Slot | None],
        knobs: Sequence[Knobs],
        backend: str,
    ) -> None:
        present = [slot for slot in slots if slot is not None]
        self._members: dict[Key, list[int]] = {}  # positions among the slots that are present
        for position, slot in enumerate(present):
            device = slot.param.device
            key = device, resolve(backend, device, slot.dtypes)
            if key[1] != "reference" and slot.step.device != device:
                raise RuntimeError(
                    f"expected step on {device}, where the {key[1]} backend counts, got it on "
                    f"{slot.step.device}: move it there"
                )
            self._members.setdefault(key, []).append(position)
        self.executors: dict[Key, Executor] = {
            key: make_executor(key[1], [present[i] for i in members], knobs, key[0])
            for key, members in self._members.items()
        }
        self._totals: dict[Key, Total] = {}  # made when a norm is first asked for
        self._planned = [slot is not None for slot in slots]
        self._params = list(compress(params, self._planned))
        self._alignments = {}
        for key, members in self._members.items():
            mine = [self._params[i] for i in members], [present[i] for i in members]
            if alignments := Alignments(*mine, knobs, key[0]):
                self._alignments[key] = alignments

    def step(
        self,
        grads: Sequence[Tensor | None],
        knobs: Sequence[Knobs],
        counters: Mapping[Key, Tensor],
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        clipping: Clipping | None = None,
    ) -> Tensor | None:
        """Make the step.

        Args:
            grads: local gradients, one per parameter, None where there is none.
            knobs: one per group.
            counters: int64 [2] for each of :attr:`executors`, advanced by it.
            grad_scale: float32, one element, on any device: loss scale that the gradients carry.
            found_inf: float32, one element, on any device: unless 0, nothing changes.
            clipping: bounds the norm of all gradients together; None: looks at no norm.

        Returns:
            The norm before clipping, 0-dim, on the first executor's device; None without clipping.

        Raises:
            RuntimeError: a gradient whose memory has been freed. Nothing has changed then.

        What else may end it, such as Ctrl-C while a kernel compiles, leaves ``counters`` as if the
        step had not been begun.
        """
        planned = list(compress(grads, self._planned))
        for key, executor in self.executors.items():
            executor.set_grads(self._of(key, planned))
        try:
            for key, executor in self.executors.items():
                executor.begin(knobs, counters[key], grad_scale, found_inf)
            scales = {}
            for key, alignments in self._alignments.items():
                scales[key] = alignments.find(self.executors[key], found_inf)
            norm = None if clipping is None else self._grad_norm(clipping)
            factor = None if clipping is None or norm is None else clipping.factor(norm)
            for key, executor in self.executors.items():
                executor.step(factor, scales.get(key))
            for key, alignments in self._alignments.items():
                alignments.keep(self._of(key, planned))
        except BaseException:
            for executor in self.executors.values():
                executor.abandon()
            raise
        # Autograd sees no write through an address, and would use graphs that hold old values.
        written = [p for p, grad in zip(self._params, planned, strict=True) if grad is not None]
        torch.autograd.graph.increment_version(written)
        return norm

    def _of(self, key: Key, planned: list[Tensor | None]) -> list[Tensor | None]:
        """An executor's gradients."""
        return planned if len(self.executors) == 1 else [planned[i] for i in self._members[key]]

    def _grad_norm(self, clipping: Clipping) -> Tensor | None:
        total = None
        for key, executor in self.executors.items():
            if key not in self._totals:
                members = [self._params[position] for position in self._members[key]]
                self._totals[key] = Total(members, key[0])
            part = self._totals[key](executor.grad_squares(clipping.masked))
            total = part if total is None else total + part.to(total.device)
        total = clipping.over_group(total)
        return None if total is None else total.sqrt()
