"""What an optimizer saves, and how it takes it back: state dicts, pickles, copies."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .state.checkpoint import (
    as_tensor,
    fill_in,
    keep_tensors,
    loaded_groups,
    loaded_state,
    n_steps_of,
    warn_overridden,
)
from .state.counters import Counters, agreed_counters
from .state.group_knobs import GroupKnobs
from .state.groups import OF_ALL_GROUPS, Group, make_plain
from .state.loaded_masks import KEEP_MASK, LoadedMask, LoadedMasks, masks_of_state, warn_lost
from .state.plan_cache import PlanCache
from .state.skipping import Skipping
from .step.alignment import initial_alignment
from .step.backends import resolve
from .step.knobs import ALIGNMENT

# What a pickle holds beside torch's own, and what one without it means.
_PICKLED = {
    "_state_dtype": torch.float32,
    "_backend": "auto",
    "max_grad_norm": None,
    "masked_norm": False,
    "norm_group": None,
    "grad_norm": None,
    "_step_supports_amp_scaling": True,
}


class StatefulOptimizer(Optimizer):
    """An optimizer by its parts, each of which remembers something from one step to the next.

    What is saved of them has the form of ``torch.optim.AdamW``'s. A subclass makes the parts, and
    says what its users may set.
    """

    max_grad_norm: float | None
    masked_norm: bool
    norm_group: Any
    grad_norm: Tensor | None
    _state_dtype: torch.dtype
    _backend: str

    def _make_parts(self) -> None:
        """Those that know nothing yet; groups and masks come to them one by one."""
        self._counters = Counters()
        self._knobs = GroupKnobs()
        self._loaded_masks = LoadedMasks()
        self._plan_cache = PlanCache(self._backend)
        self._skipping = Skipping()

    def _moment_dtype(self, param: Tensor) -> torch.dtype:
        return self._state_dtype if param.dtype.itemsize == 2 else param.dtype

    def _initial_state(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        dtype = self._moment_dtype(param)
        # A GPU step counts on the device, as torch's fused and capturable steps do.
        backend = resolve(self._backend, param.device, (param.dtype, param.dtype, dtype))
        step_device = param.device if backend == "triton" or group["capturable"] else "cpu"
        return {
            "step": torch.zeros((), dtype=torch.float32, device=step_device),
            "exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, dtype=dtype, requires_grad=False),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state, in the form of ``torch.optim.AdamW``, with our knobs in the groups.

        Under ``rescale="alignment"`` a parameter's state has its ``alignment`` as well.

        Where a mask is loaded for a parameter (:meth:`load_masks`), its state has a ``keep_mask``,
        and its group says so in ``loaded_masks``, a list of bools, one per parameter.
        """
        self._counters.sync(self.param_groups)
        for group in self.param_groups:
            make_plain(group)
        self._loaded_masks.list_in(self.param_groups)
        own = self.state
        try:
            self.state = self._loaded_masks.beside(own)  # type: ignore[assignment]
            state_dict = super().state_dict()
        finally:
            self.state = own
        for group in state_dict.get("param_groups", ()):  # ZeroRedundancyOptimizer puts them there
            for name in OF_ALL_GROUPS & group.keys():
                del group[name]
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of ours, or one of ``torch.optim.AdamW``.

        Knobs in the loaded groups replace the constructor's; a warning names both where they
        differ. A schedule of ``drop_prob`` goes on from the loaded step. With a state of
        ``torch.optim.AdamW`` the knobs and loaded masks stay as they are here. Moments are loaded
        in the dtypes that they have here, not in the parameters'. Alignments that a state lacks,
        since it was made without ``rescale="alignment"``, begin with the next step.

        Args:
            state_dict: as :meth:`state_dict` made it. It is not changed and not aliased.

        Raises:
            ValueError: groups of other sizes, missing keys, moments or masks of other shapes, a
                mask that the groups name and the state lacks (a distributed checkpoint reads what
                its reader has: call :meth:`load_masks` first), ``amsgrad``, weight decay that is
                not decoupled (Adam's), or knobs outside their range. Nothing has changed then.
            TypeError: no dict, or a knob or a mask of the wrong type. Nothing has changed then.
            RuntimeError: param groups here that were appended or taken away by hand. Nor then.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(
                f"expected a state dict of an optimizer, got {type(state_dict)}: of a file pass "
                "what torch.load reads"
            )
        # torch's own load casts moments to the parameters' dtypes and cannot be told otherwise.
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        loaded = loaded_state(self.param_groups, state_dict)
        groups = loaded_groups(
            self.param_groups, state_dict["param_groups"], n_steps_of(loaded.values())
        )
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for group in groups:
            for param in group["params"]:
                if param in loaded:
                    state[param] = self._initial_state(param, group)
                    if group["rescale"] == ALIGNMENT and ALIGNMENT in loaded[param]:
                        state[param][ALIGNMENT] = initial_alignment(param)
                    for key, value in state[param].items():
                        value.copy_(as_tensor(loaded[param][key]).reshape(value.shape))
        masks = self._loaded_masks.prepare(masks_of_state(groups, state_dict))
        warn_lost(masks, self._loaded_masks)
        schedules = self._knobs.schedules(self.param_groups)
        warn_overridden(self.param_groups, groups, schedules)
        keep_tensors(self.param_groups, groups)
        new: dict[str, Any] = {"state": state, "param_groups": groups, "_schedules": schedules}
        self.__setstate__({**new, "_loaded_masks": self._loaded_masks})
        self._loaded_masks.put(masks, self.param_groups)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._counters.sync(self.param_groups)
        own: dict[str, Any] = {name: self.__dict__[name] for name in _PICKLED}
        own["_schedules"] = self._knobs.schedules(self.param_groups)
        own["_loaded_masks"] = self._loaded_masks
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups, mine = state["param_groups"], self.__dict__
        known = mine.get("param_groups", ())
        loaded_masks: LoadedMasks = (
            state.get("_loaded_masks") or mine.get("_loaded_masks") or LoadedMasks()
        )
        masks: dict[Tensor, LoadedMask | None] = {}
        if "_loaded_masks" not in state:  # torch's own loader leaves them in the state
            masks = loaded_masks.prepare(masks_of_state(groups, state, held=loaded_masks))
            warn_lost(masks, loaded_masks)
        fill_in(groups, known, state.get("defaults", mine.get("defaults", {})))
        counters = agreed_counters(groups, n_steps_of(state["state"].values()))
        schedules = state.get("_schedules")
        if schedules is None and len(known) == len(groups):
            schedules = self._knobs.schedules(self.param_groups)
        super().__setstate__({key: state[key] for key in state if key != "_schedules"})
        for group in groups:
            group.update(counters)
        for name, value in _PICKLED.items():
            mine.setdefault(name, value)
        self._counters = Counters()
        self._knobs = GroupKnobs(groups, schedules or [None] * len(groups))
        if "_plan_cache" not in mine:  # unpickled
            self._plan_cache = PlanCache(self._backend)
            self._skipping = Skipping()
        self._loaded_masks = loaded_masks
        loaded_masks.put(masks, groups)
        for param in [param for param, own in self.state.items() if KEEP_MASK in own]:
            del self.state[param][KEEP_MASK]
            if not self.state[param]:
                del self.state[param]
        self._plan_cache.forget()  # it holds on to the old state
        self._counters.look(groups)
