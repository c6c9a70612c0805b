"""What is ours in a param group: the knobs of the masks, their checks, their way through a load."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .functional import check_knobs, check_stream_ids
from .mask import layer_of
from .tables import Knobs

Group = dict[str, Any]

PERIODS = {"step": 1, "epoch": 0}  # 0: masks are begun by hand
# The knobs that make the masks: compared, and warned about, when a loaded state overrides them.
MASK_KNOBS = (
    "drop_prob",
    "granularity",
    "period",
    "site",
    "rescale",
    "mask_decay",
    "seed",
    "stream_ids",
    "layers",
)
COUNTERS = ("steps_finished", "masks_begun")


def knobs_of(group: Group) -> Knobs:
    """A param group's knobs as the backends take them.

    Raises:
        ValueError: unknown period.
    """
    period, lr, drop_prob = group["period"], group["lr"], group["drop_prob"]
    if isinstance(period, str):
        if period not in PERIODS:
            raise ValueError(
                f"Invalid period: {period!r}: expected one of {tuple(PERIODS)}, or an int >= 1"
            )
        period = PERIODS[period]
    elif not isinstance(period, int) or isinstance(period, bool) or period < 1:
        raise ValueError(
            f"Invalid period: {period!r}: expected one of {tuple(PERIODS)}, or an int >= 1"
        )
    return Knobs(
        lr=float(lr) if isinstance(lr, Tensor) and lr.device.type == "cpu" else lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        maximize=group["maximize"],
        drop_prob=(
            float(drop_prob)
            if isinstance(drop_prob, Tensor) and drop_prob.device.type == "cpu"
            else drop_prob
        ),
        granularity=group["granularity"],
        site=group["site"],
        rescale=group["rescale"],
        mask_decay=group["mask_decay"],
        seed=group["seed"],
        period=period,
    )


def draw_of(group: Group) -> int:
    """Index of the mask of the group's next step."""
    return knobs_of(group).draw(group["steps_finished"], group["masks_begun"])


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
    for counter in COUNTERS:
        group[counter] = others[0][counter] if others else 0
    if callable(group["drop_prob"]):
        group["drop_prob"] = group["drop_prob"](group["steps_finished"])
    group["stream_ids"] = list(group.get("stream_ids", range(first_id, first_id + n_params)))
    names = group.get("param_names")
    layers = group.get("layers", [layer_of(name) for name in names] if names else None)
    if layers is None and group["granularity"] == "layer":
        raise ValueError(
            'granularity="layer" has to know the layers: pass model.named_parameters(), or '
            '"layers" (an int, or one per parameter) in each param group'
        )
    layers = [layers] * n_params if layers is None or isinstance(layers, int) else list(layers)
    group["layers"] = layers
    for name in ("stream_ids", "layers"):
        if len(group[name]) != n_params:
            raise ValueError(
                f"expected {n_params} {name}, one per parameter, got {len(group[name])}"
            )
    check_stream_ids(group["stream_ids"])
    used = {stream_id for other in others for stream_id in other["stream_ids"]}
    if len(set(group["stream_ids"]) - used) != n_params:
        raise ValueError(
            f"expected stream_ids that no other parameter has, got {group['stream_ids']}"
        )
    check_knobs(knobs_of(group))


def merge_saved(groups: Sequence[Group], saved_groups: Sequence[Group]) -> list[Group]:
    """The saved groups, with our knobs where a group of torch.optim.AdamW has none."""
    if len(saved_groups) != len(groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: expected "
            f"{len(groups)}, got {len(saved_groups)}"
        )
    merged = []
    for mine, saved in zip(groups, saved_groups, strict=True):
        if len(mine["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: expected {len(mine['params'])} parameters, got "
                f"{len(saved['params'])}"
            )
        if saved.get("amsgrad"):
            raise ValueError("expected a state without amsgrad: FusedGradDropAdamW has none")
        missing = {
            key: value
            for key, value in mine.items()
            if key not in saved and key not in ("params", *COUNTERS)
        }
        merged.append({**saved, **missing})
    return merged


def warn_overridden(
    groups: Sequence[Group], saved_groups: Sequence[Group], scheduled: Sequence[bool]
) -> None:
    """Warn where saved knobs are about to replace others, except a scheduled ``drop_prob``."""
    for index, (mine, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        for knob in MASK_KNOBS:
            follows_schedule = knob == "drop_prob" and scheduled[index]
            if knob in saved and saved[knob] != mine[knob] and not follows_schedule:
                warnings.warn(
                    f"param group {index}: the loaded {knob}={saved[knob]!r} replaces "
                    f"{knob}={mine[knob]!r} of this optimizer; set it after loading, in "
                    "optimizer.param_groups, to change it",
                    stacklevel=3,
                )
