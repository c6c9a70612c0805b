"""How many optimizer steps a run takes, and what of its optimizer depends on that."""

import math
from dataclasses import dataclass
from typing import Any

from graddrop.schedules import Cosine, Linear, Schedule, Stepwise
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.controls import mean_step
from graddrop.xglue.methods import METHODS


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a run, as transformers' Trainer counts them.

    Args:
        per_epoch: In one pass over the training set, by batches of `batch_size` on each device.
        total: Of the whole training.
    """

    per_epoch: int
    total: int

    @staticmethod
    def of(config: FinetuneConfig, inputs: int) -> "Steps":
        """Count the steps of a run.

        Args:
            config: The run, with its recipe filled in.
            inputs: Model inputs in its training set.
        """
        assert config.batch_size is not None and config.processes is not None
        batches = math.ceil(inputs / (config.batch_size // config.accumulation))
        on_each = math.ceil(batches / config.processes)
        per_epoch = max(1, math.ceil(on_each / config.accumulation))
        total = config.max_steps or math.ceil((config.epochs or 1.0) * per_epoch)
        return Steps(per_epoch, total)


def drop_prob(config: FinetuneConfig, steps: Steps) -> float | Schedule:
    """Return the drop probability of a run as its optimizer takes it."""
    values = config.drop_probs
    if len(values) < 2:
        return config.knobs()["drop_prob"]
    if config.drop_schedule == "epochs":
        return Stepwise(values, steps.per_epoch)
    shape = Linear if config.drop_schedule == "linear" else Cosine
    start, end = values
    return shape(start, end, steps.total)


def masked_lr(config: FinetuneConfig, steps: Steps) -> float:
    """Return the learning rate of the parameters that are masked, or would be in a control."""
    assert config.lr is not None
    if not METHODS[config.method].shrinks_step:
        return config.lr
    period: Any = config.period or "step"
    lifetimes = {"step": 1, "epoch": steps.per_epoch, "run": steps.total}
    lifetime = lifetimes.get(period, period)
    return config.lr * mean_step(
        config.drop_probs[0],
        steps=steps.total,
        site=config.site or "grad",
        lifetime=lifetime,
        rescale=bool(config.rescale),
        whole=config.granularity in ("tensor", "layer"),
    )
