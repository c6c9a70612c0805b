"""Laws of what torch hands to an optimizer when it loads, copies or unpickles it."""

import copy
import pickle
from functools import partial

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)
from helpers.untouched import Untouched
from torch.optim import Optimizer

from graddrop import FusedGradDropAdamW, schedules
from graddrop.state.groups import CONSTANTS

LATER_KEYS = ("_schedules", "_state_dtype", "_backend", "max_grad_norm", "masked_norm", "grad_norm")
LATER_KEYS += ("_loaded_masks",)


def make(**knobs):
    """An optimizer of two groups that has made two steps."""
    first, second = make_params(SMALL)
    knobs = {"lr": 1e-2, "drop_prob": schedules.Linear(0.1, 0.9, 9), "seed": 5} | knobs
    optimizer = FusedGradDropAdamW([{"params": [first]}, {"params": [second], "seed": 6}], **knobs)
    train(optimizer, 2)
    return optimizer


def with_torchs_keys(optimizer):
    """Torch's three keys alone."""
    optimizer.__setstate__(
        {
            "defaults": optimizer.defaults,
            "state": optimizer.state,
            "param_groups": optimizer.param_groups,
        }
    )
    return optimizer


def with_state_and_groups(optimizer):
    """What torch's own loader passes on."""
    optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    return optimizer


def by_torchs_loader(optimizer):
    """The base class's loader, which knows nothing of ours."""
    torch.optim.Optimizer.load_state_dict(optimizer, copy.deepcopy(optimizer.state_dict()))
    return optimizer


def by_pickle(optimizer):
    """Through a pickle of today."""
    return pickle.loads(pickle.dumps(optimizer))


WAYS = (with_torchs_keys, with_state_and_groups, by_torchs_loader, by_pickle, copy.deepcopy)


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on(way):
    """Bit for bit, schedule, knobs and clipping included."""
    knobs = {"max_grad_norm": 1.0, "masked_norm": True, "fused": False, "backend": "reference"}
    judge, ours = (make(state_dtype=torch.bfloat16, **knobs) for _ in range(2))
    ours = way(ours)
    for name in ("max_grad_norm", "masked_norm", "norm_group", "_state_dtype", "_backend"):
        assert getattr(ours, name) == getattr(judge, name)
    assert ours._step_supports_amp_scaling is False
    for each in (judge, ours):
        train(each, range(2, 4))
    assert_same(snapshot(ours), snapshot(judge))
    assert ours.param_groups[0]["drop_prob"] == judge.param_groups[0]["drop_prob"]
    assert ours.param_groups[0]["drop_prob"] == pytest.approx(0.1 + 3 * 0.8 / 9)


def test_an_old_pickle_is_an_optimizer():
    """One of before these keys: the schedule's last number stays, the rest is the default."""
    old = {k: v for k, v in make().__getstate__().items() if k not in LATER_KEYS}
    for group in old["param_groups"]:
        for key in ("mask_decay", "layers", "loaded_masks", *CONSTANTS):
            del group[key]
    ours = FusedGradDropAdamW.__new__(FusedGradDropAdamW)
    ours.__setstate__(old)
    for group in ours.param_groups:
        assert group["drop_prob"] == pytest.approx(0.1 + 0.8 / 9)
        assert group["mask_decay"] is True and group["layers"] == [None]
    train(ours, range(2, 4))
    assert ours.draws == [4, 4] and ours.max_grad_norm is None


def test_an_old_pickle_is_masked_by_the_places_and_names_of_its_parameters():
    """One of before the masks' own names for them, over all groups, as a new optimizer has them."""
    named = list(
        zip(("a.layer.3.w", "head", "layers.0.w", "b"), make_params((SMALL[0],) * 4), strict=True)
    )
    groups = [{"params": named[:1]}, {"params": named[1:3]}, {"params": named[3:]}]
    new = FusedGradDropAdamW(groups)
    old = copy.deepcopy(new).__getstate__()
    for group in old["param_groups"]:
        del group["stream_ids"], group["layers"]
    ours = FusedGradDropAdamW.__new__(FusedGradDropAdamW)
    ours.__setstate__(old)
    assert [group["stream_ids"] for group in ours.param_groups] == [[0], [1, 2], [3]]
    assert [group["layers"] for group in ours.param_groups] == [[3], [None, 0], [None]]
    assert_same([*map(ours.keep_mask, params_of(ours))], [*map(new.keep_mask, params_of(new))])


def test_torchs_loader_takes_a_state_of_adamw():
    """Called by the base class's name; knobs that AdamW lacks stay as they are here."""
    theirs = torch.optim.AdamW([{"params": [p]} for p in make_params(SMALL)], lr=0.5)
    train(theirs, 4)
    ours = make()
    torch.optim.Optimizer.load_state_dict(ours, theirs.state_dict())
    assert ours.draws == [4, 4]
    assert [group["seed"] for group in ours.param_groups] == [5, 6]
    assert [group["lr"] for group in ours.param_groups] == [0.5, 0.5]
    for mine, its in zip(params_of(ours), params_of(theirs), strict=True):
        assert torch.equal(ours.state[mine]["exp_avg"], theirs.state[its]["exp_avg"])
    train(ours, range(4, 5))
    assert ours.param_groups[0]["drop_prob"] == pytest.approx(0.1 + 4 * 0.8 / 9)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (torch.optim.Adam, "got one of Adam with weight_decay=0.1"),
        (partial(torch.optim.AdamW, amsgrad=True), "expected a state without amsgrad"),
    ],
    ids=["Adam", "amsgrad"],
)
@pytest.mark.parametrize("load", [FusedGradDropAdamW.load_state_dict, Optimizer.load_state_dict])
def test_a_state_of_another_method_is_refused(theirs, message, load):
    """In a later group, too; ours would decay, or divide, otherwise than what it goes on from."""
    ours = make(lr=1e-3)
    saved = [theirs([p], lr=0.5, weight_decay=0.1) for p in make_params(SMALL)]
    state_dict = torch.optim.AdamW([{"params": [p]} for p in make_params(SMALL)]).state_dict()
    state_dict["param_groups"][1] |= {**saved[1].state_dict()["param_groups"][0], "params": [1]}
    set_grads(params_of(ours), 2)
    untouched = Untouched(ours)
    with pytest.raises(ValueError, match=message):
        load(ours, state_dict)
    untouched.check()
    state_dict["param_groups"][1] |= {"weight_decay": 0.0, "amsgrad": False}
    load(ours, state_dict)  # control: Adam and AdamW are one where nothing decays
    assert ours.param_groups[1]["lr"] == 0.5


def test_torchs_loader_brings_loaded_masks():
    """As load_state_dict does: from a state that has them, from one that has not, with a warning.

    Neither a mask nor an empty state is left where only moments belong.
    """
    saved = make(site="freeze")
    first, second = params_of(saved)
    keep = torch.arange(70) % 3 == 0
    saved.load_masks({second: keep})
    ours, early = make(site="freeze"), make(site="freeze")
    torch.optim.Optimizer.load_state_dict(ours, copy.deepcopy(saved.state_dict()))
    assert torch.equal(ours.keep_mask(params_of(ours)[1]), keep)
    for each in (saved, ours):
        train(each, range(2, 4))
    assert_same(snapshot(ours), snapshot(saved))

    fresh = FusedGradDropAdamW(make_params(SMALL))
    fresh.load_masks({params_of(fresh)[1]: keep})
    other = FusedGradDropAdamW(make_params(SMALL))
    torch.optim.Optimizer.load_state_dict(other, copy.deepcopy(fresh.state_dict()))
    assert not other.state and torch.equal(other.keep_mask(params_of(other)[1]), keep)

    with pytest.warns(UserWarning, match="no masks for 1 parameters that have one here"):
        torch.optim.Optimizer.load_state_dict(ours, copy.deepcopy(early.state_dict()))
    assert ours.state_dict()["param_groups"][1]["loaded_masks"] == [False]


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_saved_mask_that_no_step_would_read_is_refused(n_before):
    """State and groups that somebody puts in by hand leave no mask behind in silence."""
    saved, ours = make(site="freeze"), make(site="freeze")
    saved.load_masks({params_of(saved)[1]: torch.arange(70) % 3 == 0})
    state_dict = copy.deepcopy(saved.state_dict())
    train(ours, n_before)
    second = params_of(ours)[1]
    set_grads(params_of(ours), 7)
    before = snapshot(ours)
    ours.state[second] = state_dict["state"][1]
    with pytest.raises(RuntimeError, match=r'pop\("keep_mask"\).*load_masks') as caught:
        ours.step()
    assert caught.value.__notes__ == ["This is parameter 0 of param group 1."]
    keep = ours.state[second].pop("keep_mask")
    ours.param_groups[1]["loaded_masks"] = [True]
    with pytest.raises(RuntimeError, match="the masks that loaded_masks of param group 1 names"):
        ours.step()
    assert torch.equal(second, before[4])
    ours.load_masks({second: keep.bool()})
    ours.step()
    assert torch.equal(second.detach() != before[4], keep)
