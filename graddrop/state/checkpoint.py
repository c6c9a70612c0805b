"""What a loaded state dict has to hold to go on from it, ours or that of ``torch.optim.AdamW``."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from reprlib import repr as beginning  # of long lists
from typing import Any

import torch
from torch import Tensor

from ..schedules import Schedule
from ..step.checks import check_knobs
from ..step.knobs import MASK_KNOBS
from .groups import COUNTERS, Group, check_names, knobs_of, place_in

STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")
# What is compared, and warned about, when a loaded state overrides it.
_OWN = (*MASK_KNOBS, "stream_ids", "layers")


def loaded_state(groups: Sequence[Group], state_dict: dict[str, Any]) -> dict[Tensor, Any]:
    """The loaded state of each parameter that has one, not copied yet.

    Args:
        groups: the optimizer's param groups.
        state_dict: as ``Optimizer.state_dict`` made it.

    Raises:
        ValueError: missing keys, groups of other sizes, moments of other shapes.
    """
    missing = {"state", "param_groups"} - state_dict.keys()
    if missing:
        raise ValueError(f"expected a state dict of an optimizer; missing keys: {sorted(missing)}")
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: expected "
            f"{len(groups)}, got {len(saved_groups)}"
        )
    loaded = {}
    for group_index, (mine, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        if len(mine["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: expected {len(mine['params'])} parameters, got "
                f"{len(saved['params'])}"
            )
        if saved.get("amsgrad"):
            raise ValueError("expected a state without amsgrad: FusedGradDropAdamW has none")
        for index, (param, param_id) in enumerate(
            zip(mine["params"], saved["params"], strict=True)
        ):
            if state := state_dict["state"].get(param_id):
                try:
                    _check_state(param, state)
                except ValueError as error:
                    error.add_note(place_in(mine, index, group_index))
                    raise
                loaded[param] = state
    return loaded


def loaded_groups(
    groups: Sequence[Group], saved_groups: Sequence[Group], steps_finished: int
) -> list[Group]:
    """Copies of the saved groups, with our knobs where a group of torch.optim.AdamW has none.

    Args:
        groups: the optimizer's param groups.
        saved_groups: as many, of the same sizes.
        steps_finished: by the saved state, for groups that do not count steps.

    Raises:
        ValueError: a saved knob outside its range.
        TypeError: a saved knob of the wrong type.
    """
    merged = []
    saved_groups = _in_order_of_names(groups, saved_groups)
    for mine, saved in zip(groups, saved_groups, strict=True):
        knobs = {key: value for key, value in mine.items() if key not in ("params", *COUNTERS)}
        counters = {"steps_finished": steps_finished, "masks_begun": 0}
        merged.append({**knobs, **counters, **deepcopy(saved), "params": mine["params"]})
        check_knobs(knobs_of(merged[-1]))
    check_names(merged)
    return merged


def _in_order_of_names(groups: Sequence[Group], saved_groups: Sequence[Group]) -> list[Group]:
    """The saved groups, their stream ids and layers in the order of our parameters' names.

    A distributed checkpoint puts state back by name, and leaves these lists as they were saved.
    Unless both sides name all parameters, they stay so.
    """
    found: dict[str, tuple[int, int | None]] = {}
    for saved in saved_groups:
        named = [saved.get(key) or () for key in ("param_names", "stream_ids", "layers")]
        if len(set(map(len, named))) == 1:
            names, *columns = named
            found |= dict(zip(names, zip(*columns, strict=True), strict=True))
    ordered = []
    for mine, saved in zip(groups, saved_groups, strict=True):
        names = mine.get("param_names") or ()
        if names and found.keys() >= set(names):
            stream_ids, layers = zip(*(found[name] for name in names), strict=True)
            lists = {"stream_ids": list(stream_ids), "layers": list(layers)}
            saved = {**saved, "param_names": names, **lists}
        ordered.append(saved)
    return ordered


def warn_overridden(
    groups: Sequence[Group], loaded: Sequence[Group], schedules: Sequence[Schedule | None]
) -> None:
    """Warn where loaded knobs are about to replace others, except a scheduled ``drop_prob``."""
    for index, (mine, new) in enumerate(zip(groups, loaded, strict=True)):
        for knob in _OWN:
            follows_schedule = knob == "drop_prob" and schedules[index] is not None
            if _differ(new[knob], mine[knob]) and not follows_schedule:
                warnings.warn(
                    f"param group {index}: the loaded {knob}={beginning(new[knob])} replaces "
                    f"{knob}={beginning(mine[knob])} of this optimizer; set it after loading, in "
                    "optimizer.param_groups, to change it",
                    stacklevel=3,
                )


def _differ(a: Any, b: Any) -> bool:
    """Whether knobs differ in value: a tensor, on any device, is its number."""
    a, b = (knob.item() if isinstance(knob, Tensor) else knob for knob in (a, b))
    return bool(a != b)


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is, a number as one on the CPU, whatever torch's default device."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def keep_tensors(groups: Sequence[Group], loaded: Sequence[Group]) -> None:
    """Let a tensor that a group has for ``lr`` or ``drop_prob`` take the loaded value where it is.

    Its owner, or a CUDA graph, goes on to write and read it there.

    Args:
        groups: the optimizer's param groups, whose tensors are written.
        loaded: those that replace them, which get the tensors.
    """
    for mine, new in zip(groups, loaded, strict=True):
        for knob in ("lr", "drop_prob"):
            if isinstance(mine[knob], Tensor):
                with torch.no_grad():
                    mine[knob].copy_(as_tensor(new[knob]).reshape(mine[knob].shape))
                new[knob] = mine[knob]


def _check_state(param: Tensor, state: dict[str, Any]) -> None:
    shape = tuple(param.shape)
    missing = set(STATE_KEYS) - state.keys()
    if missing:
        raise ValueError(
            f"expected state {', '.join(STATE_KEYS)} for a parameter of shape {shape}; "
            f"missing: {sorted(missing)}"
        )
    for key in ("exp_avg", "exp_avg_sq"):
        found = tuple(state[key].shape) if isinstance(state[key], Tensor) else type(state[key])
        if found != shape:
            raise ValueError(
                f"expected {key} of shape {shape}, got {found}: this state belongs to other "
                "parameters"
            )
    if as_tensor(state["step"]).numel() != 1:
        raise ValueError(f"expected step as one number, got {state['step']!r}")
