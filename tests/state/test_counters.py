"""Laws of the counters that a state brings: after any load, keep_mask shows what step does."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.small_runs import assert_same, make_params, params_of, set_grads, train
from helpers.untouched import Untouched

from graddrop import FusedGradDropAdamW, schedules

SHAPES = ((5, 7), (70,), (40,))


def make(n_empty_first=0, **knobs):
    """An optimizer of three groups, after as many empty ones; freeze shows the mask."""
    groups = [{"params": []} for _ in range(n_empty_first)]
    groups += [{"params": [param]} for param in make_params(SHAPES)]
    return FusedGradDropAdamW(groups, lr=1e-2, site="freeze", backend="reference", **knobs)


def assert_the_mask_is_told(optimizer):
    """What moves in the next step is what keep_mask keeps."""
    params = params_of(optimizer)
    keeps = [*map(optimizer.keep_mask, params)]
    before = [param.detach().clone() for param in params]
    set_grads(params, 9)
    optimizer.step()
    assert_same([p.detach() != old for p, old in zip(params, before, strict=True)], keeps)


def changed(optimizer, **counters):
    """The optimizer's state dict with other counters: one value per group."""
    state_dict = copy.deepcopy(optimizer.state_dict())
    for name, values in counters.items():
        for group, value in zip(state_dict["param_groups"], values, strict=True):
            group[name] = value
    return state_dict


@pytest.mark.parametrize("counter", ["steps_finished", "masks_begun"])
@pytest.mark.parametrize("values", [(7, 4, 4), (4, 4, 7), (4, 7, 9)])
def test_groups_that_disagree_are_refused(counter, values):
    """One count for all: other groups would draw other masks than keep_mask shows."""
    optimizer = make()
    train(optimizer, 3)
    state_dict = changed(optimizer, **{counter: values})
    set_grads(params_of(optimizer), 2)
    untouched = Untouched(optimizer)
    for load in (optimizer.load_state_dict, optimizer.__setstate__):
        with pytest.raises(ValueError, match="expected param groups that agree in"):
            load(state_dict if load == optimizer.load_state_dict else copied(optimizer, state_dict))
    untouched.check()


def copied(optimizer, state_dict):
    """The state that torch's own loader hands over."""
    groups = [
        {**saved, "params": mine["params"]}
        for mine, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
    ]
    return {"state": optimizer.state, "param_groups": groups}


@pytest.mark.parametrize("n_empty", [1, 2])
def test_empty_groups_follow(n_empty):
    """A distributed checkpoint leaves the counters of an empty group as they were."""
    optimizer = make(n_empty, period=2)
    train(optimizer, 5)
    behind = [0] * n_empty + [5, 5, 5]
    optimizer.load_state_dict(changed(optimizer, steps_finished=behind))
    assert optimizer.draws == [2] * (n_empty + 3)
    assert_the_mask_is_told(optimizer)
    nothing = FusedGradDropAdamW([{"params": []}, {"params": []}])
    nothing.load_state_dict(changed(nothing, steps_finished=[3, 3]))
    assert nothing.draws == [3, 3]  # control: nobody else is there to follow


@pytest.mark.parametrize(("found", "expected"), [(0, 3), (2, 3), (3, 3), (8, 8)])
def test_steps_finished_is_at_least_what_the_state_says(found, expected):
    """A partial load leaves it behind; it is ahead where steps had no gradients."""
    optimizer = make()
    train(optimizer, 3)
    optimizer.load_state_dict(changed(optimizer, steps_finished=[found] * 3))
    assert optimizer.draws == [expected] * 3
    assert_the_mask_is_told(optimizer)


@pytest.mark.parametrize(
    "knobs",
    [{}, *({"granularity": "tensor", "select": s} for s in ("exact", "shuffled", "descending"))],
    ids=str,
)
def test_draws_begin_anew_after_32_bits(backend, device, knobs):
    """Step 2**32 + 3 uses the mask of step 3, and no other one."""
    runs = {}
    for n_steps in (3, (1 << 32) + 3, 4):
        optimizer = FusedGradDropAdamW(
            make_params(((40,),) * 3, device=device), site="freeze", backend=backend, **knobs
        )
        optimizer.load_state_dict(changed(optimizer, steps_finished=[n_steps]))
        assert optimizer.draws == [n_steps % (1 << 32)]
        keeps = [*map(optimizer.keep_mask, params_of(optimizer))]
        before = [param.detach().clone() for param in params_of(optimizer)]
        train(optimizer, 1)
        moved = [p.detach() != old for p, old in zip(params_of(optimizer), before, strict=True)]
        assert_same(moved, keeps)
        runs[n_steps] = torch.cat(moved)
    assert torch.equal(runs[3], runs[(1 << 32) + 3])
    assert not torch.equal(runs[3], runs[4])


BAD_COUNTS = ("1", None, math.nan, 1.5, 2.0, -1, True, 1 << 70, torch.tensor(1), [1])


@pytest.mark.parametrize("value", BAD_COUNTS, ids=map(repr, BAD_COUNTS))
@pytest.mark.parametrize("counter", ["steps_finished", "masks_begun"])
@pytest.mark.parametrize("group", [0, 1, 3])
def test_a_bad_counter_is_refused(counter, value, group):
    """In any group, an empty one, too; nothing has changed then."""
    optimizer = make(1)
    train(optimizer, 2)
    set_grads(params_of(optimizer), 2)
    values = [2, 2, 2, 2]
    values[group] = value
    untouched = Untouched(optimizer)
    with pytest.raises((TypeError, ValueError), match=f"Invalid {counter}: "):
        optimizer.load_state_dict(changed(optimizer, **{counter: values}))
    untouched.check()


@pytest.mark.parametrize(("counter", "n_bits"), [("steps_finished", 63), ("masks_begun", 32)])
def test_a_counter_may_use_all_its_bits_and_no_more(counter, n_bits):
    """Steps are counted in 64 bits with a sign, draws are of 32."""
    optimizer = make()
    most = (1 << n_bits) - 1
    optimizer.load_state_dict(changed(optimizer, **{counter: [most] * 3}))
    assert optimizer.state_dict()["param_groups"][2][counter] == most
    with pytest.raises(ValueError, match=f"Invalid {counter}: {most + 1}: expected an integer in"):
        optimizer.load_state_dict(changed(optimizer, **{counter: [most + 1] * 3}))


def test_counters_of_numpy_are_counters(tmp_path):
    """They go on as plain ints, which every checkpoint can hold."""
    optimizer = make()
    train(optimizer, 2)
    optimizer.load_state_dict(changed(optimizer, steps_finished=[np.int64(4)] * 3))
    assert optimizer.draws == [4, 4, 4]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


BAD_STEPS = (-1.0, torch.tensor(-2.0), math.nan, math.inf, 1.5, "3", None, True, torch.zeros(2))


@pytest.mark.parametrize("step", BAD_STEPS, ids=map(repr, BAD_STEPS))
def test_a_bad_step_is_refused(step):
    """The error names the parameter; nothing has changed then."""
    optimizer = make()
    train(optimizer, 2)
    set_grads(params_of(optimizer), 2)
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1]["step"] = step
    untouched = Untouched(optimizer)
    with pytest.raises((TypeError, ValueError), match="expected step as") as caught:
        optimizer.load_state_dict(state_dict)
    assert caught.value.__notes__ == ["This is parameter 0 of param group 1."]
    untouched.check()


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor([3.0]), torch.tensor(3), np.float32(3)])
def test_a_step_of_any_form_is_a_number(step):
    """Ints of old versions of torch, tensors of one element, of any dtype."""
    optimizer = make()
    train(optimizer, 2)
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1]["step"] = step
    optimizer.load_state_dict(state_dict)
    loaded = optimizer.state[params_of(optimizer)[1]]["step"]
    assert (loaded.shape, loaded.dtype, loaded.item()) == ((), torch.float32, 3.0)
    assert optimizer.draws == [3, 3, 3]
    assert_the_mask_is_told(optimizer)


@pytest.mark.parametrize("name", ["steps_finished", "masks_begun"])
@pytest.mark.parametrize("n_before", [0, 3])
def test_counters_put_into_the_groups_are_followed(backend, device, name, n_before):
    """By hand, at any time: keep_mask and the step go on from there, wherever they count."""
    knobs = {"period": "epoch"} if name == "masks_begun" else {"period": 2}
    groups = [{"params": [param]} for param in make_params(SHAPES, device=device)]
    optimizer = FusedGradDropAdamW(groups, lr=1e-2, site="freeze", backend=backend, **knobs)
    optimizer.new_mask(1)
    train(optimizer, n_before)
    for group in optimizer.param_groups:
        group[name] = 12
    draw = 12 if name == "masks_begun" else 6
    assert_the_mask_is_told(optimizer)  # first the mask, then the step
    assert optimizer.draws == [draw] * 3
    for group in optimizer.param_groups:
        group[name] = 40
    train(optimizer, 1)  # first the step
    assert optimizer.draws == [40 if name == "masks_begun" else 20] * 3
    assert_the_mask_is_told(optimizer)
    counts = {"steps_finished": n_before + 3, "masks_begun": 1} | {name: 40 + 2}
    counts["masks_begun"] = 40 if name == "masks_begun" else 1
    assert optimizer.state_dict()["param_groups"][2].items() >= counts.items()


@pytest.mark.parametrize("period", ["step", "epoch"])
def test_every_executor_follows(period):
    """Where no one backend serves all parameters; so does a mask that is begun by hand."""
    params = [*make_params(SHAPES), *make_params(SHAPES, torch.float64)]
    optimizer = FusedGradDropAdamW(params, lr=1e-2, site="freeze", period=period)
    optimizer.new_mask(1)
    train(optimizer, 2)
    if len(optimizer._plan_cache.latest.executors) < 2:
        pytest.skip("the CPU kernel is not built: one executor serves all")
    (group,) = optimizer.param_groups
    for draw in (12, 31):
        if draw == 12:
            group |= {"steps_finished": 12, "masks_begun": 12}
        elif period == "epoch":
            optimizer.new_mask(31)
        else:
            train(optimizer, range(optimizer.draws[0], 31))
        assert optimizer.draws == [draw]
        assert_the_mask_is_told(optimizer)


@pytest.mark.parametrize("value", [7, *BAD_COUNTS], ids=repr)
@pytest.mark.parametrize("n_before", [0, 3])
def test_bad_counters_in_the_groups_are_refused(value, n_before):
    """One group alone, or no number: nothing has changed then, and a right one goes on."""
    optimizer = make()
    train(optimizer, n_before)
    set_grads(params_of(optimizer), 2)
    untouched = Untouched(optimizer)
    optimizer.param_groups[1]["steps_finished"] = value
    for look in (optimizer.step, lambda: optimizer.draws, optimizer.state_dict):
        with pytest.raises((TypeError, ValueError), match="steps_finished"):
            look()
    optimizer.param_groups[1]["steps_finished"] = n_before
    untouched.check()
    assert_the_mask_is_told(optimizer)


def test_a_schedule_goes_on_from_a_state_put_in_by_hand():
    """As from a loaded one; a value that the schedule does not give there ends it."""
    saved = make(drop_prob=schedules.Linear(0.0, 0.8, 16))
    train(saved, 4)
    for value, expected in ((None, 0.8 * 4 / 16), (0.7, 0.7)):
        ours = make(drop_prob=schedules.Linear(0.0, 0.8, 16))
        for mine, its in zip(ours.param_groups, saved.state_dict()["param_groups"], strict=True):
            mine.update({key: its[key] for key in its if key != "params"})
            if value is not None:
                mine["drop_prob"] = value
        train(ours, 1)
        assert ours.param_groups[0]["drop_prob"] == pytest.approx(expected)


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_seed_that_comes_with_counters_is_anothers(n_before):
    """Groups that are put in by hand bring the seed of who saved them: it is set again, or refused.

    One that is set alone is taken.
    """
    saved, ours = make(seed=1), make(seed=2)
    train(saved, 4)
    train(ours, n_before)
    set_grads(params_of(ours), 4)
    for mine, its in zip(ours.param_groups, saved.state_dict()["param_groups"], strict=True):
        mine.update({key: its[key] for key in its if key != "params"})
    with pytest.raises(
        ValueError, match=r"seed 2 that param group 0 has had, got 1 .*Set the seed"
    ):
        ours.step()
    for group in ours.param_groups:
        group["seed"] = 2
    assert ours.draws == [4, 4, 4]
    assert_the_mask_is_told(ours)
    for group in ours.param_groups:
        group["seed"] = 3
    assert_the_mask_is_told(ours)
    assert ours.draws == [6, 6, 6]
