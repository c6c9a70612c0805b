"""Laws of the controls' learning rate: it gives the mean step that masks leave of AdamW's."""

import math
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("numpy", reason="needs the extra xglue")

import torch

from graddrop import FusedGradDropAdamW
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.controls import mean_step
from graddrop.xglue.training.steps import Steps, masked_lr


def moved(steps: int, lifetime: int = 1, **knobs: object) -> float:
    """How far 2048 entries move by a small mean gradient under much noise, lr falling to zero."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(2048))
    optimizer = FusedGradDropAdamW([parameter], lr=1.0, weight_decay=0.0, eps=1e-12, **knobs)
    for step in range(steps):
        parameter.grad = 0.1 + torch.randn(2048, generator=generator)
        optimizer.param_groups[0]["lr"] = 1 - step / steps
        optimizer.step()
    return parameter.detach().mean().item()


@pytest.mark.parametrize(
    ("knobs", "factor"),
    [
        ({}, {}),
        ({"site": "update"}, {"site": "update"}),
        ({"site": "update", "rescale": True}, {"site": "update", "rescale": True}),
        ({"site": "freeze"}, {"site": "freeze"}),
        ({"period": 100}, {"lifetime": 100}),
    ],
)
def test_the_mean_step_is_that_of_the_optimizer(
    knobs: dict[str, object], factor: dict[str, object]
) -> None:
    """Within 3 % of what 2048 masked entries do in 500 steps; the factors differ by far more."""
    expected = moved(500, drop_prob=0.5, seed=3, **knobs) / moved(500, drop_prob=0.0)
    assert mean_step(0.5, steps=500, **factor) == pytest.approx(expected, rel=0.03)  # type: ignore[arg-type]


def test_known_factors() -> None:
    """Masks drawn each step, dense moments, and masks that outlive the moments' memory."""
    assert mean_step(0.36, steps=7) == 0.8
    assert mean_step(0.36, steps=7, site="update") == 0.64
    assert mean_step(0.36, steps=7, site="update", rescale=True) == 1.0
    assert mean_step(0.0, steps=7, site="freeze") == 1.0
    assert mean_step(1.0, steps=7, lifetime=3) == 0.0
    assert mean_step(0.5, steps=7, site="freeze", lifetime=7) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, {}),
        ({"rescale": True}, {}),
        ({"granularity": "layer"}, {}),
        ({"period": 3}, {"lifetime": 3}),
        ({"period": "epoch"}, {"lifetime": 5}),
        ({"period": "run"}, {"lifetime": 20}),
        ({"site": "update"}, {"site": "update"}),
        ({"site": "update", "rescale": True}, {"site": "update", "rescale": True}),
        ({"site": "freeze"}, {"site": "freeze"}),
        ({"site": "freeze", "granularity": "row"}, {"site": "freeze"}),
        ({"site": "freeze", "granularity": "tensor"}, {"site": "freeze", "whole": True}),
        ({"site": "freeze", "granularity": "layer"}, {"site": "freeze", "whole": True}),
        ({"site": "freeze", "period": "epoch"}, {"site": "freeze", "lifetime": 5}),
    ],
)
def test_a_controls_learning_rate_is_that_of_its_settings(
    settings: dict[str, Any], factor: dict[str, Any]
) -> None:
    """Each setting of the masks that tells in the mean step; 20 steps are 4 epochs of 5."""
    steps = Steps(per_epoch=5, total=20)
    config = FinetuneConfig("pos", "D", "O", method="lr-matched", drop_prob=0.36, **settings)
    config = replace(config.resolved(), lr=1.0)
    assert masked_lr(config, steps) == mean_step(0.36, steps=20, **factor)
    assert masked_lr(replace(config, method="graddrop"), steps) == 1.0
    if factor:
        assert masked_lr(config, steps) != mean_step(0.36, steps=20)


def test_longer_masks_shorten_the_mean_step() -> None:
    """From sqrt(1 - p), for one step, down to 1 - p, for the whole training."""
    factors = [mean_step(0.5, steps=1000, lifetime=n) for n in (1, 10, 100, 500, 1000)]
    assert factors[0] == math.sqrt(0.5)
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.5)
    # A tensor that is frozen as a whole goes on where it was; an entry has its tensor's count.
    whole, entry = (mean_step(0.5, steps=200, site="freeze", whole=w) for w in (True, False))
    assert whole == pytest.approx(0.5, abs=0.01) and entry > 0.6
