"""Laws of looking ahead: what the optimizer says of the next step is what the step does."""

import copy
import math
import time

import pytest
import torch
from helpers.small_runs import (
    NAMES,
    assert_same,
    differs,
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


def frozen_steps(optimizer, steps):
    """Steps under site="freeze": after each one, which entries moved and which should have."""
    for step in steps:
        set_grads(params_of(optimizer), step)
        keeps = [optimizer.keep_mask(param) for param in params_of(optimizer)]
        before = [param.detach().clone() for param in params_of(optimizer)]
        optimizer.step()
        moved = [p.detach() != old for p, old in zip(params_of(optimizer), before, strict=True)]
        yield keeps, moved


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


@pytest.mark.parametrize("period", [1, 2, 3])
def test_a_mask_lives_for_its_period(backend, device, period):
    """period=K: the same mask for K steps, then another one; "step" is 1."""
    optimizer = make_optimizer(backend, device, ((70,),), period=period, site="freeze")
    masks, draws = [], []
    for step in range(5):
        draws += optimizer.draws
        masks += next(frozen_steps(optimizer, [step]))[1]
    assert draws == [step // period for step in range(5)]
    for i in range(5):
        for j in range(i):
            assert torch.equal(masks[i], masks[j]) == (i // period == j // period)


def test_one_step_and_step_are_one_period():
    """A period of one step goes by either name."""
    runs = []
    for period in ("step", 1):
        optimizer = make_optimizer(period=period)
        train(optimizer, 3)
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_a_mask_lives_until_the_next_is_begun(backend, device):
    """period="epoch": one mask until new_mask(); other groups go their own way."""
    params = make_params(((70,), (71,)), device=device)
    optimizer = FusedGradDropAdamW(
        [{"params": params[:1], "period": "epoch"}, {"params": params[1:], "period": "step"}],
        site="freeze",
        seed=6,
        backend=backend,
    )
    optimizer.new_mask(0)
    masks = []
    for step in range(4):
        if step == 2:
            optimizer.new_mask()
        assert optimizer.draws == [step // 2, step]
        masks.append(next(frozen_steps(optimizer, [step]))[1])
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[2][0], masks[3][0])
    assert not torch.equal(masks[1][0], masks[2][0])
    assert not torch.equal(masks[0][1], masks[1][1])


def test_a_mask_begins_for_all_executors():
    """Parameters that no one backend serves together: one new_mask() is for all of them."""
    dtypes = (torch.float32, torch.float64)
    params = [param for dtype in dtypes for param in make_params(((70,),), dtype)]
    optimizer = FusedGradDropAdamW(params, period="epoch", site="freeze")
    before = None
    for epoch in range(3):
        optimizer.new_mask(epoch)
        for keeps, moved in frozen_steps(optimizer, [epoch]):
            assert_same(moved, keeps)
            assert (
                before is None or differs(moved[:1], before[:1]) and differs(moved[1:], before[1:])
            )
            before = moved


@pytest.mark.parametrize("exempt_first", [False, True])
def test_an_epoch_without_a_mask_is_said_once(exempt_first):
    """period="epoch" in any group, and no new_mask() before the second step: one warning."""
    first, second = make_params(SHAPES[:2])
    groups = [{"params": [first]}, {"params": [second], "period": "epoch"}]
    if exempt_first:
        groups[0] |= {"period": "epoch", "drop_prob": 0.0}
    optimizer = FusedGradDropAdamW(groups, drop_prob=0.5)
    train(optimizer, 1)  # as torch.distributed.checkpoint does to make the state
    with pytest.warns(UserWarning, match="has one mask until new_mask") as caught:
        train(optimizer, range(1, 4))
    assert len(caught) == 1 and caught[0].filename.endswith("small_runs.py")


@pytest.mark.parametrize("name_the_first", [True, False])
def test_an_epoch_that_has_its_mask_is_not_spoken_of(name_the_first):
    """Warnings are errors here: begun by name or by count, in an exempt group, or loaded."""
    optimizer = make_optimizer(shapes=((70,),), period="epoch")
    optimizer.new_mask(0 if name_the_first else None)
    train(optimizer, 3)
    optimizer.new_mask(3)
    resumed = make_optimizer(shapes=((70,),), period="epoch")
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, range(3, 6))
    train(make_optimizer(shapes=((70,),), period="epoch", drop_prob=0.0), 3)


def test_a_named_mask_is_begun_once():
    """new_mask(draw) is idempotent, and may go back to an old mask."""
    optimizer = make_optimizer(shapes=((70,),), period="epoch")
    (param,) = params_of(optimizer)
    first = optimizer.keep_mask(param)
    masks = {}
    for draw in (1, 1, 7, (1 << 32) - 1, 7, 0):
        optimizer.new_mask(draw)
        assert optimizer.draws == [draw]
        train(optimizer, 1)
        keep = optimizer.keep_mask(param)
        assert torch.equal(masks.setdefault(draw, keep), keep)
    assert torch.equal(masks[0], first)
    assert not any(torch.equal(masks[a], masks[b]) for a in masks for b in masks if a < b)
    optimizer.new_mask()
    assert optimizer.draws == [1]


SCHEDULES = {
    "linear": (schedules.Linear(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
    "cosine": (
        schedules.Cosine(1.0, 0.0, 4),
        [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)] + [0.0],
    ),
    "lambda": (lambda step: step / 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_sets_each_step(backend, device, name):
    """The drop probability follows the number of finished steps, as if it were set by hand."""
    schedule, expected = SCHEDULES[name]
    assert [schedule(step) for step in range(6)] == pytest.approx(expected)
    runs = []
    for drop_prob in (schedule, 0.5):
        optimizer = make_optimizer(backend, device, ((70,),), drop_prob=drop_prob)
        (param,) = params_of(optimizer)
        for step in range(6):
            if drop_prob == 0.5:
                optimizer.param_groups[0]["drop_prob"] = schedule(step)
            keep = optimizer.keep_mask(param)
            assert optimizer.param_groups[0]["drop_prob"] == pytest.approx(expected[step])
            assert abs(keep.float().mean().item() - (1 - expected[step])) <= 0.25
            train(optimizer, range(step, step + 1))
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_groups_have_schedules_of_their_own():
    """A schedule, a number, and a group that is added later with the constructor's schedule."""
    params = make_params(((4,),) * 3)
    optimizer = FusedGradDropAdamW(
        [{"params": params[:1]}, {"params": params[1:2], "drop_prob": 0.3}],
        drop_prob=schedules.Linear(0.0, 0.4, 4),
    )
    train(optimizer, 2, params[:2])
    optimizer.add_param_group({"params": params[2:]})
    assert [group["drop_prob"] for group in optimizer.param_groups][1:] == [0.3, 0.2]
    train(optimizer, range(2, 3))
    assert [group["drop_prob"] for group in optimizer.param_groups] == [0.2, 0.3, 0.2]


def test_a_schedule_ends_when_the_group_is_set():
    """Until then it goes on, after a load too; the value that was set stays."""
    optimizer = make_optimizer(drop_prob=schedules.Linear(0.0, 0.4, 4))
    train(optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, range(2, 3))
    assert optimizer.param_groups[0]["drop_prob"] == pytest.approx(0.2)
    optimizer.param_groups[0]["drop_prob"] = 0.9
    train(optimizer, range(3, 5))
    optimizer = copy.deepcopy(optimizer)
    train(optimizer, range(5, 6))
    assert optimizer.param_groups[0]["drop_prob"] == 0.9


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_what_changes_in_place_is_read_again(kind):
    """A list of betas, a learning rate in a tensor: the same object, another value."""
    runs = []
    for in_place in (True, False):
        optimizer = make_optimizer(lr=torch.tensor(0.01), betas=[0.9, 0.99])
        (group,) = optimizer.param_groups
        train(optimizer, 2)
        if kind == "list":
            group["betas"] = group["betas"] if in_place else list(group["betas"])
            group["betas"][0] = 0.5
        else:
            group["lr"] = group["lr"].mul_(3) if in_place else 0.03
        train(optimizer, range(2, 4))
        runs.append(snapshot(optimizer))
    assert_same(*runs)
    train(optimizer := make_optimizer(lr=0.01, betas=[0.9, 0.99]), 4)  # control
    assert differs(runs[0], snapshot(optimizer))


def test_a_schedule_stays_with_its_group():
    """Groups may change places."""
    params = make_params(((4,),) * 2)
    groups = [{"params": params[:1]}, {"params": params[1:], "drop_prob": lambda step: 0.7}]
    optimizer = FusedGradDropAdamW(groups, drop_prob=0.0)
    optimizer.param_groups.reverse()
    train(optimizer, 2)
    assert [group["drop_prob"] for group in optimizer.param_groups] == [0.7, 0.0]


def test_a_probability_in_a_tensor_is_that_probability(backend, device):
    """drop_prob may be a tensor, here or on the device, and may be changed in place."""
    runs = []
    for kind in ("float", "tensor", "on the device"):
        value = {
            "float": 0.25,
            "tensor": torch.tensor(0.25),
            "on the device": torch.tensor([0.25], device=device),
        }[kind]
        optimizer = make_optimizer(backend, device, ((70,),), drop_prob=value, rescale=True)
        train(optimizer, 1)
        if kind == "float":
            optimizer.param_groups[0]["drop_prob"] = 0.75
        else:
            value.fill_(0.75)
        train(optimizer, range(1, 2))
        runs.append(snapshot(optimizer))
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


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
