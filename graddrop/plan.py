"""The executors of one set of parameters, gradients and state: kept until one of them changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .backends import Executor, make_executor, resolve
from .sharding import local_tensor
from .tables import Entry, Knobs

Key = tuple[torch.device, str]  # where, and by which backend


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of the optimizer, with its entry of the step: None where it has no gradient."""

    param: Tensor
    state: dict[str, Any]
    entry: Entry | None


class Plan:
    """Executors, and what they were made for.

    Args:
        slots: all parameters of the optimizer.
        knobs: one per group.
        backend: the backend asked for.

    Raises:
        RuntimeError: the backend cannot serve an entry.
    """

    def __init__(self, slots: Sequence[Slot], knobs: Sequence[Knobs], backend: str) -> None:
        self._slots = slots
        self._structure = _structure(knobs)
        members: dict[Key, list[Entry]] = {}
        for slot in slots:
            if slot.entry is not None:
                device = slot.entry.param.device
                key = device, resolve(backend, device, slot.entry.dtypes)
                members.setdefault(key, []).append(slot.entry)
        self.executors: dict[Key, Executor] = {
            key: make_executor(key[1], entries, knobs, key[0]) for key, entries in members.items()
        }
        self._order = {key: [id(entry) for entry in entries] for key, entries in members.items()}
        # Pointers as they were: an entry's tensors may be swapped in place (`.data = `) later.
        self._params = [slot.entry.param.data_ptr() if slot.entry else 0 for slot in slots]
        self._grads = [slot.entry.grad.data_ptr() if slot.entry else 0 for slot in slots]

    def follow(self, params: Sequence[Tensor], knobs: Sequence[Knobs]) -> bool:
        """Follow gradients that have moved; False if anything else differs: a new plan is due.

        Args:
            params: all parameters of the optimizer, in order.
            knobs: one per group.
        """
        if len(params) != len(self._slots) or self._structure != _structure(knobs):
            return False
        grads: dict[int, Tensor] = {}  # id of an entry -> its gradient now
        moved = False
        for i, (param, slot) in enumerate(zip(params, self._slots, strict=True)):
            entry, grad = slot.entry, param.grad
            if param is not slot.param or (grad is None) != (entry is None):
                return False
            if entry is None or grad is None:
                continue
            grad, state = local_tensor(grad), slot.state
            if (
                local_tensor(param).data_ptr() != self._params[i]
                or grad.dtype != entry.grad.dtype
                or grad.stride() != entry.grad.stride()
                or grad.shape != entry.grad.shape
                or grad.device != entry.grad.device
                or grad.layout != torch.strided
                or local_tensor(state["exp_avg"]) is not entry.exp_avg
                or local_tensor(state["exp_avg_sq"]) is not entry.exp_avg_sq
                or state["step"] is not entry.step
            ):
                return False
            pointer = grad.data_ptr()
            moved |= pointer != self._grads[i]
            self._grads[i] = pointer
            grads[id(entry)] = grad
        if moved:
            for key, executor in self.executors.items():
                executor.set_grads([grads[entry_id] for entry_id in self._order[key]])
        return True


def _structure(knobs: Sequence[Knobs]) -> list[tuple[object, ...]]:
    """What the tables' modes depend on."""
    return [(k.granularity, k.site, k.mask_decay, k.masks_nothing) for k in knobs]
