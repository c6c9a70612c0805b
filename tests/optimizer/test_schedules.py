"""Laws of knobs that change during training: by a schedule, by hand, in place."""

import copy
import math

import pytest
import torch
from helpers.small_runs import (
    assert_same,
    differs,
    make_optimizer,
    make_params,
    params_of,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, schedules

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


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_schedule_goes_on_while_others_end(n_before):
    """Whether the other group's was there and is set, or never was."""
    rising = schedules.Linear(0.0, 0.4, 4)
    params = make_params(((4,),) * 2)
    first = {"params": params[:1], "drop_prob": rising if n_before else 0.7}
    optimizer = FusedGradDropAdamW([first, {"params": params[1:]}], drop_prob=rising)
    train(optimizer, n_before)
    optimizer.param_groups[0]["drop_prob"] = 0.7
    for step in range(n_before, 4):
        train(optimizer, range(step, step + 1))
        used = [group["drop_prob"] for group in optimizer.param_groups]
        assert used == pytest.approx([0.7, 0.1 * step])


def test_a_schedule_stays_with_its_group():
    """Groups may change places."""
    params = make_params(((4,),) * 2)
    groups = [{"params": params[:1]}, {"params": params[1:], "drop_prob": lambda step: 0.7}]
    optimizer = FusedGradDropAdamW(groups, drop_prob=0.0)
    optimizer.param_groups.reverse()
    train(optimizer, 2)
    assert [group["drop_prob"] for group in optimizer.param_groups] == [0.7, 0.0]


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
