"""What a run logs of its masks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..mask import count_dropped, threshold
from ..step.knobs import Knobs
from .groups import Group, draw_of
from .loaded_masks import LoadedMasks


def mask_values(
    groups: Sequence[Group], knobs: Sequence[Knobs], loaded_masks: LoadedMasks, *, wait: bool
) -> dict[str, Any]:
    """Of the step to come: the fraction of entries that it keeps, and the probability in force.

    Args:
        groups: the optimizer's param groups, which know the draw if ``wait``.
        knobs: one per group.
        loaded_masks: of the parameters that have one; what they keep is known.
        wait: whether numbers on a device are read, and the draw is known.

    Returns:
        ``drop_prob``: mean over the entries whose masks are drawn, 0 without any;
        ``kept_fraction``: over all entries; ``kept_is_exact``: whether that is counted, as it is
        for decisions on wholes, or expected. Numbers that a device holds are 0-dim tensors unless
        ``wait``.
    """
    n_entries = n_masked = 0
    kept: Any = 0
    probability: Any = 0
    exact = True
    for group, group_knobs in zip(groups, knobs, strict=True):
        kept_of_loaded = [loaded_masks.n_kept(param) for param in group["params"]]
        kept += sum(n for n in kept_of_loaded if n is not None)
        n_entries += sum(param.numel() for param in group["params"])
        # What is loaded counts as nothing among what is drawn.
        sizes = [
            param.numel() if n is None else 0
            for param, n in zip(group["params"], kept_of_loaded, strict=True)
        ]
        if group_knobs.masks_nothing or not any(sizes):
            kept += sum(sizes)
            continue
        drop_prob: Any = group_knobs.drop_prob
        if isinstance(drop_prob, Tensor) and wait:
            drop_prob = drop_prob.item()
        n_masked += sum(sizes)
        probability += drop_prob * sum(sizes)
        if wait and group_knobs.drops_wholes:
            keeps = group_knobs.keep_wholes(group["stream_ids"], group["layers"], draw_of(group))
            kept += sum(size for size, keep in zip(sizes, keeps, strict=True) if keep)
            continue
        exact = False
        by_layer = group_knobs.granularity == "layer"
        maskable = sum(
            size
            for size, layer in zip(sizes, group["layers"], strict=True)
            if not by_layer or layer is not None
        )
        kept += sum(sizes) - _realised(group_knobs, drop_prob) * maskable
    return {
        "drop_prob": probability / max(n_masked, 1),
        "kept_fraction": kept / max(n_entries, 1),
        "kept_is_exact": exact,
    }


def _realised(knobs: Knobs, drop_prob: float | Tensor) -> float | Tensor:
    """The share that is dropped: of units that are counted, or of all that 16 bits can say."""
    if knobs.counts and knobs.units:
        n_units = len(knobs.units)
        if isinstance(drop_prob, Tensor):
            return count_dropped(n_units, drop_prob, drop_prob.device) / n_units
        return int(count_dropped(n_units, drop_prob)) / n_units
    return drop_prob if isinstance(drop_prob, Tensor) else threshold(drop_prob) / 65536
