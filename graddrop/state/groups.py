"""What is ours in a param group: the knobs of the masks, and what the masks call its parameters."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor
from torch.nn import Module, ParameterList

from ..mask import layer_of
from ..step.checks import check_ids, check_knobs, read_scalar
from ..step.knobs import KNOBS as FIELDS
from ..step.knobs import Knobs
from ..step.sharding import INSTEAD_OF_PARTITIONS
from .plain import plain
from .users_line import users_line

Group = dict[str, Any]

# Steps that a mask lives. 0: masks are begun by hand; no run makes as many as 2**52.
PERIODS = {"step": 1, "epoch": 0, "run": 1 << 52}
COUNTERS = ("steps_finished", "masks_begun")
LOADED_MASKS = "loaded_masks"  # for each parameter of a group, whether a mask is loaded for it
_BETAS = ("beta1", "beta2")  # fields of Knobs that a group holds as one pair
KNOBS = ("betas", *(name for name in FIELDS if name not in _BETAS))  # keys of a group
OF_ALL_GROUPS = {"max_grad_norm", "masked_norm", "norm_group", "state_dtype", "backend"}
# Arguments of torch.optim.AdamW that we have at one value only. They stand in our groups, since a
# distributed checkpoint wants the keys of its reader.
CONSTANTS = {
    "amsgrad": False,
    "foreach": None,
    "fused": None,
    "differentiable": False,
    "decoupled_weight_decay": True,
}
_KNOWN = {"params", "param_names", "stream_ids", "layers", LOADED_MASKS}
_KNOWN |= {*KNOBS, *CONSTANTS, *COUNTERS}


def knobs_of(group: Group) -> Knobs:
    """A param group's knobs as the backends take them.

    Raises:
        ValueError: unknown period, betas that are no pair or on a device, a tensor of several
            elements, or an argument of torch.optim.AdamW that we do not have.
    """
    check_constants(group)
    period, betas = group["period"], group["betas"]
    if isinstance(period, str):
        period = PERIODS.get(period)
    elif not isinstance(period, int) or isinstance(period, bool) or period < 1:
        period = None
    if period is None:
        raise ValueError(
            f"Invalid period: {group['period']!r}: expected one of {tuple(PERIODS)}, or an int "
            f">= 1, got {type(group['period'])}"
        )
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}: expected a pair of numbers in [0, 1)")
    values = {name: group[name] for name in KNOBS if name != "betas"}
    values["period"] = period
    for index, field in enumerate(_BETAS):
        values[field] = read_scalar(f"betas[{index}]", betas[index])
        if isinstance(values[field], Tensor):
            raise ValueError(
                f"Invalid betas: expected tensors on the CPU, got one on {betas[index].device}: "
                "the host reads them at each step"
            )
    for name in ("lr", "drop_prob"):
        values[name] = read_scalar(name, group[name])
    return Knobs(**values)


def check_constants(group: Group) -> None:
    """Check that a group asks for nothing of torch.optim.AdamW that we do not have.

    Raises:
        ValueError: it does.
    """
    for name, value in CONSTANTS.items():
        if name in group and group[name] is not value:
            raise ValueError(
                f"Invalid {name}: {group[name]!r}: FusedGradDropAdamW has it at {value} only"
            )


def values_of(groups: Sequence[Group], read: Callable[[Group], Any]) -> list[Any]:
    """What each group holds under some of its keys.

    Args:
        groups: the optimizer's param groups.
        read: an ``itemgetter`` of the keys.

    Raises:
        RuntimeError: a group without one of them.
    """
    try:
        return list(map(read, groups))
    except KeyError as missing:
        raise RuntimeError(
            f"expected param groups as add_param_group makes them, got one without {missing}: use "
            "add_param_group, which appends to param_groups what masks need"
        ) from None


def make_plain(group: Group) -> None:
    """Turn a group's knobs into what a checkpoint can hold, in place."""
    for name in KNOBS:
        group[name] = plain(group[name])


def draw_of(group: Group) -> int:
    """Index of the mask of the group's next step."""
    return knobs_of(group).draw(group["steps_finished"], group["masks_begun"])


def place_in(group: Group, index: int, group_index: int) -> str:
    """Which parameter an error is about, for a note at its end."""
    names = group.get("param_names")
    name = f', "{names[index]}"' if names else ""
    return f"This is parameter {index} of param group {group_index}{name}."


def check_listed(params: Any) -> None:
    """Check that parameters come one after the other, before they are walked.

    Raises:
        TypeError: a set, whose order changes, or a model or dict, whose members are no parameters.
    """
    if isinstance(params, (set, frozenset)):
        raise TypeError(
            f"optimizer parameters need to be organized in ordered collections, got {type(params)}:"
            " their order names them in the masks"
        )
    if isinstance(params, (Module, dict)) and not isinstance(params, ParameterList):
        raise TypeError(
            f"expected parameters, or pairs of names and parameters, got {type(params)}: pass "
            "model.named_parameters()"
        )


def complete(group: Group, others: Sequence[Group]) -> None:
    """Fill in, and check, what is ours in a new group.

    Args:
        group: as ``Optimizer.add_param_group`` leaves it; changed in place.
        others: the groups before it.

    Raises:
        ValueError: a knob outside its range, stream ids or layers that do not fit.
        TypeError: a knob of the wrong type.
    """
    first_id = sum(len(other["params"]) for other in others)
    n_params = len(group["params"])
    if misplaced := sorted(OF_ALL_GROUPS & group.keys()):
        raise ValueError(
            f"expected {', '.join(misplaced)} as an argument of the optimizer, got it in a param "
            "group: it holds for all of them"
        )
    _warn_misspelt(group.keys() - _KNOWN)
    for counter in COUNTERS:
        group[counter] = others[0][counter] if others else 0
    if callable(group["drop_prob"]):
        group["drop_prob"] = group["drop_prob"](group["steps_finished"])
    make_plain(group)
    stream_ids = group.get("stream_ids", range(first_id, first_id + n_params))
    group["stream_ids"] = _listed("stream_ids", stream_ids, n_params, len(others))
    names = group.get("param_names")
    layers = group.get("layers", [layer_of(name) for name in names] if names else None)
    if layers is None and group["granularity"] == "layer":
        raise ValueError(
            'granularity="layer" has to know the layers: pass model.named_parameters(), or '
            '"layers" (an int, or one per parameter) in each param group'
        )
    layers = plain(layers)
    one_for_all = layers is None or isinstance(layers, int)
    group["layers"] = (
        [layers] * n_params if one_for_all else _listed("layers", layers, n_params, len(others))
    )
    group[LOADED_MASKS] = [False] * n_params
    check_ids(group["stream_ids"], group["layers"])
    check_distinct([*others, group])
    check_values(group)


def _warn_misspelt(unknown: Iterable[str]) -> None:
    """Warn of keys that are nearly ours; torch takes any, for schedulers and for users."""
    for key in sorted(unknown):
        if near := get_close_matches(key, sorted(_KNOWN), n=1, cutoff=0.85):
            warnings.warn(
                f"{key!r} in a param group changes nothing here: did you mean {near[0]!r}?",
                stacklevel=users_line(),
            )


def _listed(name: str, found: Any, n_params: int, group_index: int) -> list[Any]:
    """What a user says of each parameter of a new group, as a list."""
    if not isinstance(found, Iterable) or isinstance(found, str):
        one = "an int, or a list" if name == "layers" else "a list"
        raise TypeError(
            f"expected {name} of param group {group_index} as {one} with one per parameter, got "
            f"{found!r}"
        )
    values = [plain(value) for value in found]
    if len(values) != n_params:
        raise ValueError(
            f"expected {n_params} {name} in param group {group_index}, one per parameter, got "
            f"{len(values)}"
        )
    return values


def check_values(group: Group) -> None:
    """Check the knobs of a group that is being made.

    Raises:
        ValueError: as :func:`knobs_of`, and betas of which one alone is a tensor.
        TypeError: as :func:`graddrop.step.checks.check_knobs`.
    """
    check_knobs(knobs_of(group))
    if len({isinstance(beta, Tensor) for beta in group["betas"]}) > 1:
        raise ValueError("betas must be either both floats or both Tensors")


def check_numbers(groups: Sequence[Group]) -> None:
    """Check that each group names as many parameters as it has.

    Raises:
        TypeError: no list of stream ids or layers.
        ValueError: stream ids or layers of another number than the parameters.
    """
    for index, group in enumerate(groups):
        n_params = len(group["params"])
        for name in ("stream_ids", "layers"):
            found = group[name]
            if not isinstance(found, (list, Sequence)):  # a list is seen to be one sooner
                raise TypeError(
                    f"expected {name} of param group {index} as a list, one per parameter, got "
                    f"{found!r}"
                )
            if len(found) != n_params:
                raise ValueError(
                    f"expected {n_params} {name} in param group {index}, one per parameter, got "
                    f"{len(found)}: add_param_group adds parameters; engines that put their "
                    f"partitions in place of parameters (ZeRO) are not served: "
                    f"{INSTEAD_OF_PARTITIONS}"
                )


def check_names(groups: Sequence[Group]) -> None:
    """Check what the masks call the parameters of all groups.

    Raises:
        TypeError: no list of stream ids or layers.
        ValueError: stream ids or layers of the wrong number or range, or a stream id used twice.
    """
    check_numbers(groups)
    for group in groups:
        check_ids(group["stream_ids"], group["layers"])
    check_distinct(groups)


def check_distinct(groups: Sequence[Group]) -> None:
    """Check that no two parameters have one stream id.

    Raises:
        ValueError: a stream id is used twice.
    """
    lists = [group["stream_ids"] for group in groups]
    if len(set().union(*lists)) == sum(map(len, lists)):
        return
    used: set[int] = set()
    for stream_ids in lists:
        if len(used.union(stream_ids)) != len(used) + len(stream_ids):
            raise ValueError(f"expected stream_ids that no other parameter has, got {stream_ids}")
        used.update(stream_ids)
