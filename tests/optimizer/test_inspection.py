"""Laws of looking ahead: what the optimizer says of the next step is what the step does."""

import math
import time

import pytest
import torch
from helpers.small_runs import (
    NAMES,
    assert_same,
    frozen_steps,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, schedules

SHAPES = ((9, 7), (6, 4), (70,), (3,), ())
LAYERS = ("layer.0.w", "layer.0.b", "layer.1.w", "layer.1.b", "head")


@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
def test_the_mask_is_the_one_that_the_step_uses(backend, device, granularity):
    """Under site="freeze" exactly the entries that keep_mask drops stay as they are."""
    params = make_params(SHAPES, device=device)
    optimizer = FusedGradDropAdamW(
        list(zip(LAYERS, params, strict=True)),
        lr=0.1,
        granularity=granularity,
        site="freeze",
        seed=4,
        backend=backend,
    )
    shares = []
    for keeps, moved in frozen_steps(optimizer, range(3)):
        for param, keep in zip(params, keeps, strict=True):
            assert (keep.shape, keep.dtype, keep.device) == (param.shape, torch.bool, param.device)
        assert_same(moved, keeps)
        shares += [keep.float().mean().item() for keep in keeps]
    assert 0 < sum(shares) < len(shares)  # control: some are kept, some dropped


def test_to_look_changes_nothing():
    """keep_mask, draws, dropped_params and dropped_layers leave the run as it is."""
    runs = []
    for look in (False, True):
        optimizer = make_optimizer(
            granularity="tensor", period="epoch", drop_prob=schedules.Linear(0.2, 0.8, 4)
        )
        optimizer.new_mask(0)
        for step in range(3):
            if look:
                for param in params_of(optimizer):
                    optimizer.keep_mask(param)
                optimizer.dropped_params(), optimizer.dropped_layers(), optimizer.draws
            train(optimizer, range(step, step + 1))
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_an_exempt_group_keeps_everything():
    """drop_prob=0 and parameters in no layer: all entries are kept."""
    params = make_params(SHAPES)
    optimizer = FusedGradDropAdamW(
        [
            {"params": params[:2], "drop_prob": 0.0},
            {"params": params[2:], "granularity": "layer", "layers": [None] * 3, "drop_prob": 1.0},
        ]
    )
    with pytest.warns(UserWarning, match='granularity="layer" drops nothing here'):
        optimizer.keep_mask(params[0])
    assert all(optimizer.keep_mask(param).all() for param in params)
    assert optimizer.dropped_params() == [] and optimizer.dropped_layers() == []
    optimizer.param_groups[0]["drop_prob"] = 1.0  # control
    assert not any(optimizer.keep_mask(param).any() for param in params[:2])


@pytest.mark.parametrize("knob, value", [("granularity", "layer"), ("drop_prob", 0.5)])
def test_layers_that_are_not_there_are_warned_of_when_they_are_asked_for(knob, value):
    """Once, by the first step that would drop some, however many were made before."""
    params = make_params(SHAPES)
    late = {"granularity": "layer", "drop_prob": 0.5} | {
        knob: {"granularity": "element", "drop_prob": 0.0}[knob]
    }
    optimizer = FusedGradDropAdamW([{"params": params, "layers": [None] * len(params)}], **late)
    train(optimizer, 1)
    optimizer.param_groups[0][knob] = value
    with pytest.warns(UserWarning, match='granularity="layer" drops nothing here'):
        train(optimizer, range(1, 2))
    optimizer.param_groups[0]["lr"] = 0.5  # knobs are read anew: no second warning, an error here
    train(optimizer, range(2, 3))


@pytest.mark.parametrize("granularity", ["tensor", "layer"])
def test_what_is_dropped_as_a_whole_is_known_before_backward(granularity):
    """dropped_params and dropped_layers are what keep_mask says, without any gradient."""
    names = [f"encoder.layer.{i // 2}.w{i}" for i in range(40)] + ["head.weight"]
    params = make_params(((2, 3),) * len(names))
    optimizer = FusedGradDropAdamW(
        list(zip(names, params, strict=True)), granularity=granularity, drop_prob=0.6, seed=2
    )
    seen = set()
    for _ in range(3):
        whole = [param for param in params if not optimizer.keep_mask(param).any()]
        part = [param for param in params if not optimizer.keep_mask(param).all()]
        assert optimizer.dropped_params() == whole == part
        ids = {id(param) for param in whole}
        expected = [i for i in range(20) if {id(p) for p in params[2 * i : 2 * i + 2]} <= ids]
        assert optimizer.dropped_layers() == expected
        seen.add(tuple(expected))
        optimizer.step()  # without gradients: counts
    assert len(seen) == 3 and all(0 < len(layers) < 20 for layers in seen)
    fine = FusedGradDropAdamW(list(zip(names, make_params(((2, 3),) * len(names)), strict=True)))
    assert fine.dropped_params() == [] and fine.dropped_layers() == []


def test_dropped_layers_come_in_ascending_order():
    """Whatever the order of the parameters."""
    names = ("layer.2.w", "layer.10.w", "layer.0.w", "layer.10.b", "layer.1.w")
    named = list(zip(names, make_params(((3,),) * 5), strict=True))
    optimizer = FusedGradDropAdamW(named, granularity="layer", drop_prob=1.0)
    assert optimizer.dropped_layers() == [0, 1, 2, 10]


def test_layers_may_be_said_in_the_groups():
    """A group names its layer, or the layer of each parameter; else the names of parameters do."""
    ways = [
        lambda p: (
            [{"params": p[:2], "layers": 0}, {"params": p[2:4], "layers": 1}]
            + [{"params": p[4:], "layers": [None]}]
        ),
        lambda p: [{"params": p, "layers": [0, 0, 1, 1, None]}],
        lambda p: list(zip(LAYERS, p, strict=True)),
    ]
    runs = []
    for way in ways:
        optimizer = FusedGradDropAdamW(
            way(make_params(SHAPES)), granularity="layer", lr=0.1, seed=1, backend="reference"
        )
        history = []
        for step in range(4):
            history.append(optimizer.dropped_layers())
            train(optimizer, range(step, step + 1))
        runs.append((history, snapshot(optimizer)))
    for history, values in runs[1:]:
        assert history == runs[0][0]
        assert_same(values, runs[0][1])
    assert {layer for layers in runs[0][0] for layer in layers} == {0, 1}


@pytest.mark.parametrize("site", ["grad", "freeze"])
def test_gradients_of_dropped_parameters_are_not_read(backend, device, site):
    """What is known to be dropped as a whole may have any gradient, NaN too."""
    runs = []
    for spoil in (False, True):
        optimizer = make_optimizer(
            backend, device, ((5, 7), (70,)), granularity="tensor", site=site
        )
        n_dropped = 0
        for step in range(3):
            set_grads(params_of(optimizer), step)
            for param in optimizer.dropped_params():
                n_dropped += 1
                if spoil:
                    param.grad.fill_(math.nan)
            optimizer.step()
        assert 0 < n_dropped < 6
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_many_parameters_are_looked_at_together():
    """What 391 parameters drop is one question: it costs less than a third of 100 masks."""
    names = [f"layer.{i % 24}.w{i}" for i in range(391)]
    params = make_params(((1,),) * 391)
    optimizer = FusedGradDropAdamW(list(zip(names, params, strict=True)), granularity="tensor")

    def seconds(look):
        times = []
        for _ in range(3):
            start = time.process_time()
            look()
            times.append(time.process_time() - start)
        return min(times)

    one_by_one = seconds(lambda: [optimizer.keep_mask(param) for param in params[:100]])
    assert seconds(optimizer.dropped_layers) < one_by_one / 3


def test_names_name_layers():
    """Control for the names that other tests use."""
    optimizer = FusedGradDropAdamW(list(zip(NAMES, make_params(), strict=True)))
    assert optimizer.param_groups[0]["layers"] == [0, 0, 1, 1, 2]
