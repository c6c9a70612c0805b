"""How long AdamW's mean step is under masks: the learning rate of a control without any."""

import math
from functools import cache
from typing import Any

_BETAS = (0.9, 0.999)
_SEQUENCES = 1024
"""Sequences of masks that are followed, where there are more."""


def mean_step(
    drop_prob: float,
    *,
    steps: int,
    site: str = "grad",
    lifetime: int = 1,
    rescale: bool = False,
    whole: bool = False,
) -> float:
    """Return the mean step of AdamW under masks, in units of its step without masks.

    Where noise outweighs the mean gradient and each step draws its masks, masked gradients have
    1 - p times the first and the second moment: the step, their ratio m / sqrt(v), is sqrt(1 - p)
    times as long. Where the moments are dense and the update is masked, it is 1 - p. In between,
    for masks that live longer or freeze the moments, both moments' expectations are followed
    through many sequences of masks, with AdamW's usual betas (0.9, 0.999) and a learning rate that
    falls linearly to zero: from sqrt(1 - p) for few steps to 1 - p for many.

    Args:
        drop_prob: p, in [0, 1].
        steps: Optimizer steps of the training, at least 1.
        site: Where the mask acts: `grad`, `update` or `freeze`.
        lifetime: Steps for which one mask lives, at least 1.
        rescale: Whether what is kept is scaled by 1 / (1 - p); it matters for `update` alone, since
            AdamW does not see its gradients' scale.
        whole: Whether a mask drops whole tensors: their steps are not counted while they are
            frozen, those of single entries are.

    Returns:
        A number in [0, 1].
    """
    keep = 1.0 - drop_prob
    if keep in (0.0, 1.0):
        return keep
    if site == "update":
        return 1.0 if rescale else keep
    if site == "grad" and lifetime == 1:
        return math.sqrt(keep)
    return _followed(keep, steps, site == "freeze", min(lifetime, steps), whole)


@cache
def _followed(keep: float, steps: int, freezes: bool, lifetime: int, whole: bool) -> float:
    import numpy as np

    masks, weights = _sequences(keep, -(-steps // lifetime))
    first, second, own = (np.zeros(len(weights)) for _ in range(3))
    moved = total = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        for step in range(steps):
            kept = masks[:, step // lifetime]
            updated = kept if freezes else np.ones_like(kept)
            first = np.where(updated, _BETAS[0] * first + (1 - _BETAS[0]) * kept, first)
            second = np.where(updated, _BETAS[1] * second + (1 - _BETAS[1]) * kept, second)
            own += updated
            count = own if freezes and whole else step + 1
            ratio = (first / (1 - _BETAS[0] ** count)) / np.sqrt(second / (1 - _BETAS[1] ** count))
            lr = 1 - step / steps
            # Before its first gradient an entry stands still.
            moved += lr * float(np.where((second > 0) & updated, ratio, 0.0) @ weights)
            total += lr
    return moved / total


def _sequences(keep: float, count: int) -> tuple[Any, Any]:
    """Return sequences of masks, and their probabilities: all of them, or as many random ones."""
    import numpy as np

    if 1 << min(count, 64) <= _SEQUENCES:
        masks = np.arange(1 << count)[:, None] >> np.arange(count) & 1 == 1
        kept = masks.sum(axis=1)
        return masks, keep**kept * (1 - keep) ** (count - kept)
    masks = np.random.default_rng(0).random((_SEQUENCES, count)) < keep
    return masks, np.full(_SEQUENCES, 1 / _SEQUENCES)
