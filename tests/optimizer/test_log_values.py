"""Laws of log_values: what a run logs is what its masks do."""

import math

import pytest
import torch
from helpers.small_runs import make_params, params_of, train

from graddrop import FusedGradDropAdamW

SHAPES = ((301, 107), (64, 5), (1027,))


def make(granularity, **knobs):
    """Two masked groups of unequal probabilities, and an exempt one."""
    params = make_params((*SHAPES, *SHAPES, (40, 40)))
    groups = [
        {"params": params[:3], "drop_prob": 0.25, "layers": [0, 1, None]},
        {"params": params[3:6], "drop_prob": 0.5, "layers": [1, 2, 3]},
        {"params": params[6:], "drop_prob": 0.0, "layers": [None]},
    ]
    return FusedGradDropAdamW(groups, granularity=granularity, seed=4, **knobs)


def kept_by(optimizer):
    """Fraction of all entries that the next masks keep, counted."""
    keeps = [optimizer.keep_mask(param) for param in params_of(optimizer)]
    return sum(int(keep.sum()) for keep in keeps) / sum(keep.numel() for keep in keeps)


@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
def test_the_fraction_kept_is_that_of_the_masks(granularity):
    """Counted for decisions on wholes, expected for the finer ones; at each step anew."""
    optimizer = make(granularity)
    fractions = set()
    for step in range(4):
        values = optimizer.log_values(wait=True)
        fractions.add(values["kept_fraction"])
        assert values["kept_is_exact"] == (granularity in ("tensor", "layer"))
        error = 0 if values["kept_is_exact"] else 0.05
        assert values["kept_fraction"] == pytest.approx(kept_by(optimizer), abs=error + 1e-12)
        assert values["dropped_layers"] == optimizer.dropped_layers()
        assert values["drop_prob"] == pytest.approx(0.375)  # groups of equal sizes
        train(optimizer, range(step, step + 1))
    assert (len(fractions) > 1) == (granularity in ("tensor", "layer"))


def test_probabilities_are_weighed_by_entries():
    """Not by groups, nor by tensors."""
    params = make_params(((300,), (60,), (40,)))
    groups = [{"params": params[:1], "drop_prob": 0.2}, {"params": params[1:], "drop_prob": 0.6}]
    assert FusedGradDropAdamW(groups).log_values()["drop_prob"] == pytest.approx(0.3)


def test_a_probability_that_rounds_to_nothing_keeps_all():
    """Expected is what the masks do, whose probabilities are multiples of 1/65536."""
    assert make("element").log_values()["kept_fraction"] < 1  # control
    tiny = FusedGradDropAdamW(make_params(SHAPES), drop_prob=1e-6).log_values()
    assert (tiny["drop_prob"], tiny["kept_fraction"]) == (pytest.approx(1e-6), 1)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_of_units_that_are_counted_the_count_is_expected(kind):
    """Of five layers of one size p = 1/2 drops two, which is what every mask does."""
    named = [(f"layer.{i}.w", p) for i, p in enumerate(make_params(((8,),) * 5))]
    knobs = {"granularity": "layer", "select": "exact", "drop_prob": kind(0.5)}
    optimizer = FusedGradDropAdamW(named, **knobs)
    assert optimizer.log_values()["kept_fraction"] == pytest.approx(0.6)
    assert optimizer.log_values(wait=True)["kept_fraction"] == pytest.approx(0.6)


def test_nothing_is_read_unless_asked():
    """Numbers that a device holds stay tensors, and wholes are expected."""
    optimizer = make("layer", max_grad_norm=math.inf)
    assert optimizer.log_values()["grad_norm"] is None
    train(optimizer, 1)
    values = optimizer.log_values()
    assert values["grad_norm"] is optimizer.grad_norm
    assert not values["kept_is_exact"] and values["dropped_layers"] is None
    waited = optimizer.log_values(wait=True)
    assert waited["grad_norm"] == float(optimizer.grad_norm) > 0
    n_all = sum(param.numel() for param in params_of(optimizer))
    n_first = sum(math.prod(shape) for shape in SHAPES[:2])  # the third is in no layer
    n_second = sum(map(math.prod, SHAPES))
    expected = 1 - (0.25 * n_first + 0.5 * n_second) / n_all
    assert values["kept_fraction"] == pytest.approx(expected)


def test_a_scheduled_probability_is_the_one_in_force():
    """It follows its schedule, and an exempt optimizer drops nothing."""
    optimizer = FusedGradDropAdamW(make_params(), drop_prob=lambda step: step / 10)
    train(optimizer, 3)
    assert optimizer.log_values()["drop_prob"] == pytest.approx(0.3)
    plain = FusedGradDropAdamW(make_params(), drop_prob=0.0).log_values()
    assert (plain["drop_prob"], plain["kept_fraction"], plain["kept_is_exact"]) == (0, 1, True)
