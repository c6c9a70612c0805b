"""What a loaded state dict has to hold to go on from it, ours or that of ``torch.optim.AdamW``."""

import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from numbers import Real
from reprlib import repr as beginning  # of long lists
from typing import Any

import torch
from torch import Tensor

from ..mask import layer_of
from ..schedules import Schedule
from ..step.checks import check_knobs
from ..step.knobs import ALIGNMENT, MASK_KNOBS
from .counters import agreed_counters
from .groups import (
    CONSTANTS,
    COUNTERS,
    LOADED_MASKS,
    Group,
    check_names,
    knobs_of,
    make_plain,
    place_in,
)
from .loaded_masks import KEEP_MASK
from .users_line import users_line

State = dict[str, Any]

STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")
# What a group lists of each of its parameters.
_LISTS = ("stream_ids", "layers", LOADED_MASKS)
# What is compared, and warned about, when a loaded state overrides it.
_OWN = (*MASK_KNOBS, "stream_ids", "layers")


def loaded_state(groups: Sequence[Group], state_dict: dict[str, Any]) -> dict[Tensor, Any]:
    """The loaded state of each parameter that has one, not copied yet.

    Args:
        groups: the optimizer's param groups.
        state_dict: as ``Optimizer.state_dict`` made it.

    Raises:
        ValueError: missing keys, groups of other sizes, ids that come twice or name none of the
            state, moments of other shapes or without real numbers, what AdamW has and we have not.
        TypeError: a number of steps that is no number.
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
    ids = [param_id for saved in saved_groups for param_id in saved["params"]]
    if len(set(ids)) != len(ids):
        raise ValueError("expected an id for each parameter of the saved groups, got one twice")
    found = list(state_dict["state"])
    if found and not set(ids).intersection(found):
        raise ValueError(
            f"expected state by the ids of the saved groups, such as {ids[:1]}, got it by "
            f"{beginning(found)}: JSON makes texts of numbers"
        )
    loaded = {}
    for group_index, (mine, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        if len(mine["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: expected {len(mine['params'])} parameters, got "
                f"{len(saved['params'])}"
            )
        _check_method(saved)
        for index, (param, param_id) in enumerate(
            zip(mine["params"], saved["params"], strict=True)
        ):
            state = state_dict["state"].get(param_id) or {}
            if state.keys() - {KEEP_MASK}:  # which may be loaded before the first step
                try:
                    _check_state(param, state)
                except (TypeError, ValueError) as error:
                    error.add_note(place_in(mine, index, group_index))
                    raise
                loaded[param] = state
    return loaded


def _check_method(saved: Group) -> None:
    """Check that a group whose constants ours replace was not stepped by another method."""
    if saved.get("amsgrad"):
        raise ValueError("expected a state without amsgrad: FusedGradDropAdamW has none")
    if not saved.get("decoupled_weight_decay", True) and saved.get("weight_decay"):
        raise ValueError(
            "expected a state with decoupled weight decay, as of torch.optim.AdamW, got one of "
            f"Adam with weight_decay={saved['weight_decay']}"
        )


def loaded_groups(
    groups: Sequence[Group], saved_groups: Sequence[Group], n_steps: int
) -> list[Group]:
    """Copies of the saved groups, with our knobs where a group of torch.optim.AdamW has none.

    Args:
        groups: the optimizer's param groups.
        saved_groups: as many, of the same sizes.
        n_steps: the greatest ``step`` of the saved state.

    Raises:
        ValueError: a saved knob or counter outside its range, or counters that differ.
        TypeError: a saved knob or counter of the wrong type.
    """
    merged = []
    saved_groups = _in_order_of_names(groups, saved_groups)
    for mine, saved in zip(groups, saved_groups, strict=True):
        knobs = {key: value for key, value in mine.items() if key not in ("params", *COUNTERS)}
        # Which of its own loops a step of torch.optim.AdamW takes says nothing here.
        merged.append({**knobs, **deepcopy(saved), **CONSTANTS, "params": mine["params"]})
        make_plain(merged[-1])
        check_knobs(knobs_of(merged[-1]))
    check_names(merged)
    counters = agreed_counters(merged, n_steps)
    for group in merged:
        group.update(counters)
    return merged


def n_steps_of(states: Iterable[State]) -> int:
    """The greatest ``step`` of the parameters' states, 0 where there is none."""
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def fill_in(groups: Sequence[Group], known: Sequence[Group], defaults: Group) -> None:
    """Give groups of ``torch.optim.AdamW``, or of an older version, the keys that they lack.

    Args:
        groups: what torch is about to make the optimizer's groups; changed in place.
        known: the optimizer's groups so far, whose values they get; of another number: none.
        defaults: the optimizer's, for what is left.

    Raises:
        ValueError: a group of amsgrad, or of Adam with weight decay. Nothing has changed then.
    """
    for group in groups:
        _check_method(group)
    first_id = 0
    for index, group in enumerate(groups):
        n_params, names = len(group["params"]), group.get("param_names")
        drop_prob = defaults.get("drop_prob")
        values = {
            "stream_ids": list(range(first_id, first_id + n_params)),
            "layers": [layer_of(name) for name in names] if names else [None] * n_params,
            LOADED_MASKS: [False] * n_params,
            **defaults,
            "drop_prob": drop_prob(0) if callable(drop_prob) else drop_prob,
            **(known[index] if len(known) == len(groups) else {}),
        }
        for key in values.keys() - group.keys() - set(COUNTERS):
            group[key] = values[key]
        group.update(CONSTANTS)
        first_id += n_params


def _in_order_of_names(groups: Sequence[Group], saved_groups: Sequence[Group]) -> list[Group]:
    """The saved groups, what they list of each parameter in the order of our parameters' names.

    A distributed checkpoint puts state back by name, and leaves these lists as they were saved.
    Unless both sides name all parameters, they stay so.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for saved in saved_groups:
        names = saved.get("param_names") or ()
        without = {LOADED_MASKS: [False] * len(names)}  # as a state of an older version is
        columns = [(without | saved).get(key) for key in _LISTS]
        if all(isinstance(column, Sequence) and len(column) == len(names) for column in columns):
            found |= dict(zip(names, zip(*columns, strict=True), strict=True))
    ordered = []
    for mine, saved in zip(groups, saved_groups, strict=True):
        names = mine.get("param_names") or ()
        if names and found.keys() >= set(names):
            in_order = map(list, zip(*(found[name] for name in names), strict=True))
            lists = dict(zip(_LISTS, in_order, strict=True))
            if LOADED_MASKS not in saved:
                del lists[LOADED_MASKS]
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
                    stacklevel=users_line(),
                )


def _differ(a: Any, b: Any) -> bool:
    """Whether knobs differ in value: a tensor, on any device, is its number."""
    a, b = (knob.item() if isinstance(knob, Tensor) else knob for knob in (a, b))
    return bool(a != b)


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is, a number as one on the CPU, whatever torch's default device."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def keep_tensors(groups: Sequence[Group], loaded: Sequence[Group]) -> None:
    """Let a tensor that a group has as a knob take the loaded value where it is.

    Its owner, or a CUDA graph, goes on to write and read it there.

    Args:
        groups: the optimizer's param groups, whose tensors are written.
        loaded: those that replace them, which get the tensors.
    """
    for mine, new in zip(groups, loaded, strict=True):
        for knob in ("lr", "drop_prob"):
            new[knob] = _kept(mine[knob], new[knob])
        betas = list(map(_kept, mine["betas"], new["betas"]))
        new["betas"] = betas if isinstance(new["betas"], list) else tuple(betas)


@torch.no_grad()
def _kept(mine: Any, new: Any) -> Any:
    return mine.copy_(as_tensor(new).reshape(mine.shape)) if isinstance(mine, Tensor) else new


def _check_state(param: Tensor, state: dict[str, Any]) -> None:
    shape = tuple(param.shape)
    missing = set(STATE_KEYS) - state.keys()
    if missing:
        raise ValueError(
            f"expected state {', '.join(STATE_KEYS)} for a parameter of shape {shape}; "
            f"missing: {sorted(missing)}"
        )
    for key in ("exp_avg", "exp_avg_sq"):
        moment = state[key]
        found = tuple(moment.shape) if isinstance(moment, Tensor) else type(moment)
        if found != shape:
            raise ValueError(
                f"expected {key} of shape {shape}, got {found}: this state belongs to other "
                "parameters"
            )
        if moment.is_meta or not moment.is_floating_point():
            raise ValueError(
                f"expected {key} as a real floating-point tensor with data, got dtype "
                f"{moment.dtype} on {moment.device}"
            )
    alignment = state.get(ALIGNMENT, 0.5)
    is_one = isinstance(alignment, Real) and not isinstance(alignment, bool)
    if isinstance(alignment, Tensor):
        is_one = alignment.numel() == 1 and alignment.is_floating_point() and not alignment.is_meta
    if not is_one:
        raise ValueError(f"expected alignment as one number, got {alignment!r}")
    step = state["step"]
    if isinstance(step, Tensor) and step.numel() == 1 and not step.is_meta:
        step = step.item()
    if isinstance(step, Tensor):
        raise ValueError(f"expected step as one number, got {step!r}")
    if not isinstance(step, Real) or isinstance(step, bool):
        raise TypeError(f"expected step as one number, got {step!r}")
    if not (float(step) >= 0 and float(step).is_integer()):
        raise ValueError(f"expected step as a number of steps, got {state['step']!r}")
