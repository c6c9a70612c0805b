"""Laws of saving and loading: ours, torch's, and what libraries do in between."""

import copy
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.small_runs import (
    NAMES,
    SMALL,
    assert_same,
    copy_params,
    differs,
    make_params,
    params_of,
    set_grads,
    snapshot,
    through_a_file,
    train,
)

from graddrop import FusedGradDropAdamW, schedules

SHAPES = ((5, 7), (70,), ())


def make_optimizer(dtype=torch.float32, shapes=SHAPES, **knobs):
    """An optimizer of small parameters in two groups."""
    params = make_params(shapes, dtype)
    knobs = {"lr": 1e-2, "backend": "reference"} | knobs
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]
    return FusedGradDropAdamW(groups, **knobs)


def make_adamw(dtype=torch.float32, **options):
    """torch's optimizer of the same parameters."""
    params = make_params(SHAPES, dtype)
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, **({"foreach": False} | options))


def test_state_is_that_of_adamw():
    """State keys, shapes and dtypes are AdamW's; groups hold all that AdamW's loader asks for."""
    ours, theirs = make_optimizer(), make_adamw()
    for optimizer in (ours, theirs):
        train(optimizer, 1)
    our_dict, their_dict = ours.state_dict(), theirs.state_dict()
    assert our_dict.keys() == their_dict.keys()
    assert our_dict["state"].keys() == their_dict["state"].keys()
    for param_id, state in their_dict["state"].items():
        mine = our_dict["state"][param_id]
        assert mine.keys() == state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in state.items():
            assert (mine[key].shape, mine[key].dtype) == (value.shape, value.dtype)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False, "fused": True}])
def test_training_goes_on_from_adamw(tmp_path, options):
    """A state of torch.optim.AdamW loads in silence, and without a mask the steps are its own."""
    source = make_adamw(**options)
    train(source, 3)
    saved = through_a_file(source.state_dict(), tmp_path)
    ours, theirs = make_optimizer(drop_prob=0.0), make_adamw()
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(saved)
        copy_params(source, optimizer)
    for group in theirs.param_groups:
        group.update(foreach=False, fused=None)
    assert ours.draws == [3, 3]
    for optimizer in (ours, theirs):
        train(optimizer, range(3, 6))
    assert_same(snapshot(ours), snapshot(theirs))
    masked = make_optimizer(drop_prob=0.5)  # control: knobs that AdamW's state cannot hold stay
    masked.load_state_dict(theirs.state_dict())
    assert masked.param_groups[0]["drop_prob"] == 0.5 and masked.draws == [6, 6]


def test_adamw_goes_on_from_ours(tmp_path):
    """Our state loads into torch.optim.AdamW, and without a mask the steps are ours."""
    ours, theirs = make_optimizer(drop_prob=0.0), make_adamw(weight_decay=0.5)
    train(ours, 3)
    theirs.load_state_dict(through_a_file(ours.state_dict(), tmp_path))
    copy_params(ours, theirs)
    assert [group["weight_decay"] for group in theirs.param_groups] == [1e-2, 0.0]
    for optimizer in (ours, theirs):
        train(optimizer, range(3, 6))
    for param in params_of(theirs):
        assert theirs.state[param].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert_same(snapshot(ours), snapshot(theirs))
    behind = make_adamw()  # control: without the state the steps are others
    copy_params(ours, behind)
    for optimizer in (ours, behind):
        train(optimizer, range(6, 7))
    assert differs(snapshot(ours), snapshot(behind))


def test_masks_go_on_after_the_parameter_with_the_most_steps():
    """Of an AdamW whose parameters had gradients in some steps only, whichever came last."""
    for busiest in range(len(SHAPES)):
        theirs = make_adamw()
        train(theirs, 1)
        for _ in range(2):
            theirs.zero_grad()
            params_of(theirs)[busiest].grad = torch.ones_like(params_of(theirs)[busiest])
            theirs.step()
        ours = make_optimizer()
        ours.load_state_dict(theirs.state_dict())
        assert ours.draws == [3, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_moments_survive(tmp_path, dtype):
    """Moments of 16-bit parameters come back in float32, not rounded on the way."""
    ours, again = make_optimizer(dtype), make_optimizer(dtype)
    train(ours, 3)
    again.load_state_dict(through_a_file(ours.state_dict(), tmp_path))
    copy_params(ours, again)
    assert_same(snapshot(again), snapshot(ours))
    moments = [again.state[param]["exp_avg_sq"] for param in params_of(again)]
    assert all(moment.dtype == torch.float32 for moment in moments)
    # control: they do not fit into 16 bits, and torch's own loader rounds them
    assert differs(moments, [moment.to(dtype).float() for moment in moments])
    theirs = make_adamw(dtype)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[params_of(theirs)[0]]["exp_avg"].dtype == dtype


def test_what_is_loaded_is_a_copy():
    """Steps after loading change neither the loaded state dict nor the optimizer it came from."""
    ours, again = make_optimizer(), make_optimizer()
    train(ours, 2)
    state_dict = ours.state_dict()
    frozen, before = copy.deepcopy(state_dict), snapshot(ours)
    again.load_state_dict(state_dict)
    train(again, 2)
    assert state_dict["param_groups"] == frozen["param_groups"]
    for param_id, state in frozen["state"].items():
        assert_same(list(state_dict["state"][param_id].values()), list(state.values()))
    assert_same(snapshot(ours), before)


def test_lists_that_are_loaded_are_copies():
    """Ids and layers may be edited here without those of the state, and there without ours."""
    ours, again = make_optimizer(), make_optimizer()
    train(ours, 1)
    state_dict = ours.state_dict()
    again.load_state_dict(state_dict)
    loaded, saved = again.param_groups[1], state_dict["param_groups"][1]
    loaded["stream_ids"][0], loaded["layers"][1] = 77, 5
    assert (saved["stream_ids"], saved["layers"]) == ([1, 2], [None, None])
    saved["stream_ids"][1], saved["layers"][0] = 78, 6
    assert (loaded["stream_ids"], loaded["layers"]) == ([77, 2], [None, 5])


def test_everything_is_plain(tmp_path):
    """All knobs at once pass through a file of plain numbers, names and tensors."""
    knobs = {
        "drop_prob": schedules.Cosine(0.1, 0.9, 10),
        "granularity": "layer",
        "period": "epoch",
        "site": "update",
        "rescale": True,
        "mask_decay": False,
        "seed": (1 << 64) - 1,
    }
    optimizer = FusedGradDropAdamW(
        list(zip(NAMES, make_params(), strict=True)),
        lr=torch.tensor(1e-2),
        maximize=True,
        capturable=True,
        **knobs,
    )
    optimizer.new_mask(0)
    train(optimizer, 2)
    optimizer.new_mask()
    loaded = through_a_file(optimizer.state_dict(), tmp_path)
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    again = FusedGradDropAdamW(list(zip(NAMES, make_params(), strict=True)), **knobs)
    again.load_state_dict(loaded)
    copy_params(optimizer, again)
    for each in (optimizer, again):
        train(each, range(2, 4))
    assert_same(snapshot(again), snapshot(optimizer))
    assert again.draws == optimizer.draws == [1]


@pytest.mark.parametrize(
    "knob, loaded, own",
    [
        ("drop_prob", 0.25, 0.75),
        ("drop_prob", schedules.Linear(0.25, 0.5, 4), 0.75),
        ("granularity", "row", "element"),
        ("period", 4, "step"),
        ("site", "freeze", "grad"),
        ("rescale", True, False),
        ("mask_decay", False, True),
        ("seed", 3, 4),
        ("select", "exact", "shuffled"),
        ("stochastic_rounding", True, False),
    ],
)
def test_a_warning_names_both_values(knob, loaded, own):
    """A loaded knob replaces the constructor's, and a warning says which replaced which."""
    rest = {"granularity": "tensor"} if knob == "select" else {}
    source, target = (make_optimizer(**{knob: value}, **rest) for value in (loaded, own))
    train(source, 1)
    saved = source.state_dict()["param_groups"][0][knob]
    with pytest.warns(UserWarning) as caught:
        target.load_state_dict(source.state_dict())
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2  # one per group
    for index, message in enumerate(messages):
        assert f"param group {index}" in message
        assert f"{knob}={saved!r}" in message and f"{knob}={own!r}" in message
    assert caught[0].filename == __file__
    assert [group[knob] for group in target.param_groups] == [saved, saved]


def test_equal_knobs_load_in_silence():
    """No warning where nothing is overridden: equal knobs, lr of a scheduler, a drop schedule."""
    schedule = schedules.Linear(0.0, 1.0, 10)
    source, target = (make_optimizer(drop_prob=schedule) for _ in range(2))
    train(source, 4)
    source.param_groups[0]["lr"] = 1e-5
    target.load_state_dict(source.state_dict())  # warnings are errors
    set_grads(params_of(target), 4)
    target.step()
    assert target.param_groups[0]["drop_prob"] == 0.4  # the schedule goes on, not the saved number


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor, int])
def test_a_schedule_may_give_any_number(tmp_path, number):
    """A checkpoint holds what torch.load takes by itself, whatever the schedule computes in."""
    ours = make_optimizer(drop_prob=lambda step: number(1))
    train(ours, 2)
    loaded = make_optimizer()
    with pytest.warns(UserWarning, match="drop_prob"):
        loaded.load_state_dict(through_a_file(ours.state_dict(), tmp_path))
    assert float(loaded.param_groups[0]["drop_prob"]) == 1


def test_loading_its_own_state_changes_nothing(backend, device):
    """``load_state_dict(state_dict())`` at any time is silent and harmless."""
    runs = []
    for reload in (False, True):
        optimizer = FusedGradDropAdamW(
            make_params(((5, 7),), device=device),
            drop_prob=schedules.Linear(0.1, 0.9, 4),
            backend=backend,
            period=2,
            lr=1e-2,
        )
        for step in range(3):
            if reload:
                optimizer.load_state_dict(optimizer.state_dict())
            train(optimizer, range(step, step + 1))
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_accelerate_prepares_it_in_silence():
    """What accelerate does to an optimizer leaves its masks and schedules alone."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    optimizer, plain = (make_optimizer(drop_prob=schedules.Linear(0.2, 0.8, 4)) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    for step in range(3):
        for each, stepper in ((optimizer, prepared), (plain, plain)):
            set_grads(params_of(each), step)
            stepper.step()
    assert_same(snapshot(optimizer), snapshot(plain))


def test_hooks_see_and_change_what_is_saved_and_loaded():
    """Hooks of saving and loading run as in torch, on the final state."""
    ours, again = make_optimizer(), make_optimizer()
    train(ours, 2)
    ours.register_state_dict_post_hook(lambda opt, saved: {"wrapped": saved})
    again.register_load_state_dict_pre_hook(lambda opt, saved: saved["wrapped"])
    seen = []
    again.register_load_state_dict_post_hook(lambda opt: seen.append(snapshot(opt)))
    again.load_state_dict(ours.state_dict())
    copy_params(ours, again)
    assert_same(snapshot(again), snapshot(ours))
    assert len(seen) == 1 and len(seen[0]) == len(snapshot(ours))


def test_a_state_may_be_partial():
    """Parameters that had no gradient yet have no state, before and after."""
    ours, again = make_optimizer(), make_optimizer()
    params_of(ours)[1].grad = torch.ones(70)
    ours.step()
    again.load_state_dict(ours.state_dict())
    copy_params(ours, again)
    assert list(again.state) == params_of(again)[1:2]
    for optimizer in (ours, again):
        train(optimizer, range(1, 3))
    assert_same(snapshot(again), snapshot(ours))


def test_a_state_of_adam_without_decay_loads():
    """Adam and AdamW are one where nothing decays; with decay its state is refused."""
    theirs = torch.optim.Adam(make_params(SMALL), lr=1e-2)
    train(theirs, 2)
    ours = FusedGradDropAdamW(make_params(SMALL), lr=1e-2)
    ours.load_state_dict(theirs.state_dict())
    assert ours.draws == [2] and ours.param_groups[0]["weight_decay"] == 0


def test_layers_follow_the_names():
    """Of a distributed checkpoint whose parameters came in another order."""
    from torch.distributed.checkpoint import state_dict as distributed

    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in "ab")}
    )
    listed = list(model.named_parameters())
    saved, loaded = (
        FusedGradDropAdamW(order, granularity="layer") for order in (listed, listed[::-1])
    )
    train(saved, 1)
    state = copy.deepcopy(distributed.get_optimizer_state_dict(model, saved))
    with pytest.warns(UserWarning, match="the loaded stream_ids"):
        distributed.set_optimizer_state_dict(model, loaded, state)
    assert loaded.param_groups[0]["layers"] == [1, 1, 0, 0]
    assert loaded.param_groups[0]["stream_ids"] == [3, 2, 1, 0]
    for param in params_of(saved):
        assert torch.equal(loaded.keep_mask(param), saved.keep_mask(param))


def test_steps_may_be_plain_numbers():
    """States of old versions of torch, which counted steps in ints, load too."""
    theirs, ours = make_adamw(), make_optimizer(drop_prob=0.0)
    train(theirs, 3)
    state_dict = theirs.state_dict()
    for state in state_dict["state"].values():
        state["step"] = 3
    ours.load_state_dict(state_dict)
    assert {state["step"].item() for state in ours.state.values()} == {3.0}
    assert ours.draws == [3, 3]


def test_tensors_take_the_loaded_values_where_they_are():
    """Whoever holds the tensor of a learning rate still does after loading."""
    lr, drop_prob = torch.tensor([0.5]), torch.tensor(0.25)
    ours = FusedGradDropAdamW(make_params(SMALL), lr=lr, drop_prob=drop_prob)
    other = FusedGradDropAdamW(make_params(SMALL), lr=1e-3, drop_prob=torch.tensor([0.75]))
    with pytest.warns(UserWarning, match="the loaded drop_prob=tensor"):
        ours.load_state_dict(other.state_dict())
    (group,) = ours.param_groups
    assert group["lr"] is lr and group["drop_prob"] is drop_prob
    assert (float(lr), float(drop_prob)) == (pytest.approx(1e-3), 0.75)
    ours.load_state_dict(other.state_dict())  # equal values: no warning


def test_others_may_keep_state_beside_ours():
    """What was there before the first step stays, and ours is made."""
    ours = FusedGradDropAdamW(make_params(SMALL))
    (param, _) = params_of(ours)
    ours.state[param]["ema"] = average = torch.zeros(5, 7)
    train(ours, 2)
    assert ours.state[param]["ema"] is average
    assert ours.state[param]["step"] == 2


@pytest.mark.parametrize("named", [True, False])
def test_masks_follow_the_names(named):
    """A distributed checkpoint puts state back by name; with names here, masks go with it."""
    from torch.distributed.checkpoint import state_dict as distributed

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    listed = list(model.named_parameters() if named else model.parameters())
    saved, loaded = (FusedGradDropAdamW(order, seed=1) for order in (listed, listed[::-1]))
    model(torch.ones(2, 8)).sum().backward()
    saved.step()
    state = copy.deepcopy(distributed.get_optimizer_state_dict(model, saved))
    # Without names the lists are loaded as they were saved, and are what they were: no warning.
    expected = pytest.warns(UserWarning, match="loaded stream_ids") if named else nullcontext()
    with expected:
        distributed.set_optimizer_state_dict(model, loaded, state)
    weight = model[0].weight
    assert torch.equal(loaded.state[weight]["exp_avg"], saved.state[weight]["exp_avg"])
    assert torch.equal(loaded.keep_mask(weight), saved.keep_mask(weight)) == named
