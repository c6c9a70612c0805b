"""The executors of one set of parameters, gradients and state: kept until one of them changes."""

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .backends import Executor, make_executor, resolve
from .clipping import Clipping
from .sharding import Total, local_tensor
from .tables import Entry, Knobs

Key = tuple[torch.device, str]  # where, and by which backend
State = Mapping[Tensor, dict[str, Any]]


class Plan:
    """Executors, and what they were made for.

    Gradients are not kept: between two steps their memory belongs to whoever needs it.

    Args:
        params: all parameters of the optimizer.
        entries: one per parameter; None where it has no gradient.
        knobs: one per group.
        backend: the backend asked for.

    Raises:
        RuntimeError: the backend cannot serve an entry.
        ValueError: unknown backend, or more strided dimensions than it takes.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        entries: Sequence[Entry | None],
        knobs: Sequence[Knobs],
        backend: str,
    ) -> None:
        present = [entry for entry in entries if entry is not None]
        self._members: dict[Key, list[int]] = {}  # positions among the entries that are present
        for position, entry in enumerate(present):
            device = entry.param.device
            key = device, resolve(backend, device, entry.dtypes)
            if key[1] != "reference" and entry.step.device != device:
                raise RuntimeError(
                    f"expected step on {device}, where the {key[1]} backend counts, got it on "
                    f"{entry.step.device}: move it there"
                )
            self._members.setdefault(key, []).append(position)
        self.executors: dict[Key, Executor] = {
            key: make_executor(key[1], [present[i] for i in members], knobs, key[0])
            for key, members in self._members.items()
        }
        self._totals: dict[Key, Total] = {}  # made when a norm is first asked for
        self._structure = _structure(knobs)
        self._params = list(params)
        self._absent = [entry is None for entry in entries]
        self._param_ptrs = [entry.param.data_ptr() for entry in present]
        self._state = [
            t for entry in present for t in (entry.exp_avg, entry.exp_avg_sq, entry.step)
        ]
        self._state_ptrs = [tensor.data_ptr() for tensor in self._state]
        self._grad_layouts = _layouts([entry.grad for entry in present])

    def fits(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: State,
        knobs: Sequence[Knobs],
    ) -> bool:
        """Whether these executors can make this step: only values, or gradients' places, differ.

        Pointers are compared, not objects alone: ``.data = `` swaps the memory of a tensor.

        Args:
            params: all parameters of the optimizer, in order.
            grads: their local gradients, None where there is none.
            state: the optimizer's.
            knobs: one per group.
        """
        if (
            len(params) != len(self._params)
            or not all(map(is_, params, self._params))
            or [grad is None for grad in grads] != self._absent
            or _structure(knobs) != self._structure
        ):
            return False
        present = [param for param, absent in zip(params, self._absent, strict=True) if not absent]
        held = [
            local_tensor(found[name]) if name in found else None
            for found in (state.get(param, {}) for param in present)
            for name in ("exp_avg", "exp_avg_sq", "step")
        ]
        return (
            all(map(is_, held, self._state))
            and [tensor.data_ptr() for tensor in self._state] == self._state_ptrs
            and [local_tensor(param).data_ptr() for param in present] == self._param_ptrs
            and _layouts([grad for grad in grads if grad is not None]) == self._grad_layouts
        )

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
        """
        present = [grad for grad in grads if grad is not None]
        for key, executor in self.executors.items():
            executor.set_grads([present[position] for position in self._members[key]])
            scaling = _on(grad_scale, key[0]), _on(found_inf, key[0])
            executor.prepare(knobs, counters[key], *scaling)
        norm = None if clipping is None else self._grad_norm(clipping.masked)
        factor = None if clipping is None or norm is None else clipping.factor(norm)
        for key, executor in self.executors.items():
            executor.step(_on(factor, key[0]))
        return norm

    def _grad_norm(self, masked: bool) -> Tensor | None:
        total = None
        for key, executor in self.executors.items():
            if key not in self._totals:
                params = [
                    p for p, absent in zip(self._params, self._absent, strict=True) if not absent
                ]
                members = [params[position] for position in self._members[key]]
                self._totals[key] = Total(members, key[0])
            part = self._totals[key](executor.grad_squares(masked))
            total = part if total is None else total + part.to(total.device)
        return None if total is None else total.sqrt()


def _on(scalar: Tensor | None, device: torch.device) -> Tensor | None:
    return None if scalar is None else scalar.to(device, non_blocking=True)


def _structure(knobs: Sequence[Knobs]) -> list[tuple[object, ...]]:
    """What the tables' modes depend on."""
    return [
        (k.granularity, k.site, k.mask_decay, k.masks_nothing, k.stochastic_rounding) for k in knobs
    ]


def _layouts(grads: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """What the tables and the choice of code depend on; only strided tensors have strides."""
    return [
        (grad.dtype, grad.device, grad.shape, grad.stride())
        if grad.layout is torch.strided
        else (grad.layout,)
        for grad in grads
    ]
