"""Laws of loaded masks in checkpoints: they go with the state, or whoever lacks them is told."""

import pytest
import torch
from helpers.small_runs import (
    assert_same,
    copy_params,
    differs,
    make_optimizer,
    make_params,
    params_of,
    snapshot,
    through_a_file,
    train,
)
from torch.distributed.checkpoint import state_dict as distributed

from graddrop import FusedGradDropAdamW

SHAPES = ((5, 7), (1030,), ())


def masks_of(optimizer, seed=0):
    """Masks of half the entries, for all parameters but the last."""
    generator = torch.Generator().manual_seed(seed)
    params = params_of(optimizer)[:-1]
    return {param: torch.rand(tuple(param.shape), generator=generator) < 0.5 for param in params}


def make(load=True, **knobs):
    """An optimizer with masks."""
    optimizer = make_optimizer("auto", shapes=SHAPES, **({"site": "freeze"} | knobs))
    if load:
        optimizer.load_masks(masks_of(optimizer))
    return optimizer


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(backend, device, tmp_path, n_before):
    """Through a file that holds tensors and plain lists, also from before the first step."""
    ours, fresh = (make_optimizer(backend, device, SHAPES, site="freeze") for _ in range(2))
    ours.load_masks(masks_of(ours))
    train(ours, n_before)
    saved = through_a_file(ours.state_dict(), tmp_path)
    assert saved["param_groups"][0]["loaded_masks"] == [True, True, False]
    for param_id, param in enumerate(params_of(ours)[:-1]):
        assert torch.equal(saved["state"][param_id]["keep_mask"], masks_of(ours)[param])
    assert saved["state"].get(2, {}).keys() & {"keep_mask"} == set()
    fresh.load_state_dict(saved)
    copy_params(ours, fresh)
    assert params_of(fresh)[0] not in fresh.state or n_before
    for optimizer in (ours, fresh):
        train(optimizer, range(n_before, n_before + 2))
    assert_same(snapshot(fresh), snapshot(ours))
    drawn = make(load=False)  # control: without the masks the steps are others
    copy_params(ours, drawn)
    before = snapshot(drawn)[0]
    train(drawn, 1)
    assert differs([drawn.keep_mask(params_of(drawn)[0])], [ours.keep_mask(params_of(ours)[0])])
    assert differs([snapshot(drawn)[0]], [before])


def test_saving_changes_nothing():
    """The state of the optimizer is AdamW's as before; reloading its own state is silent."""
    ours, plain = make(), make()
    for step in range(3):
        state = ours.state
        ours.load_state_dict(ours.state_dict())
        assert state is not ours.state or not step
        for optimizer in (ours, plain):
            train(optimizer, range(step, step + 1))
    assert_same(snapshot(ours), snapshot(plain))
    assert all(own.keys() == {"step", "exp_avg", "exp_avg_sq"} for own in ours.state.values())


def test_lists_say_what_there_is():
    """Whatever somebody has put into the groups: ZeroRedundancyOptimizer keeps the first lists."""
    ours = make()
    ours.param_groups[0]["loaded_masks"] = [False] * 3
    train(ours, 1)
    assert ours.state_dict()["param_groups"][0]["loaded_masks"] == [True, True, False]
    assert torch.equal(ours.keep_mask(params_of(ours)[0]), masks_of(ours)[params_of(ours)[0]])


def test_masks_that_a_state_lacks_are_removed_with_a_warning():
    """A state of ours says who has one; equal ones load in silence."""
    ours, without = make(), make(load=False)
    train(without, 1)
    with pytest.warns(UserWarning, match="no masks for 2 parameters that have one here"):
        ours.load_state_dict(without.state_dict())
    assert ours.param_groups[0]["loaded_masks"] == [False] * 3
    ours.load_state_dict(make().state_dict())
    assert torch.equal(ours.keep_mask(params_of(ours)[0]), masks_of(ours)[params_of(ours)[0]])


def test_adamw_may_have_had_it_in_between():
    """torch's loader makes numbers of masks, which ours takes; AdamW's own state leaves masks."""
    ours, again = make(), make(load=False)
    theirs = torch.optim.AdamW(make_params(SHAPES), foreach=False)
    train(ours, 2)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[params_of(theirs)[0]]["keep_mask"].is_floating_point()
    again.load_state_dict(theirs.state_dict())
    copy_params(ours, again)
    for optimizer in (ours, again):
        train(optimizer, range(2, 4))
    assert_same(snapshot(again), snapshot(ours))
    plain = torch.optim.AdamW(make_params(SHAPES), foreach=False)
    train(plain, 2)
    ours.load_state_dict(plain.state_dict())
    assert ours.param_groups[0]["loaded_masks"] == [True, True, False]
    assert torch.equal(ours.keep_mask(params_of(ours)[0]), masks_of(ours)[params_of(ours)[0]])


BAD = [
    (lambda s: s["state"][0].pop("keep_mask"), ValueError, "so call load_masks first"),
    (lambda s: s["state"][0].update(keep_mask=torch.ones(7, 5).bool()), ValueError, "whole param"),
    (lambda s: s["state"][1].update(keep_mask=torch.ones(1030).int()), TypeError, "a bool tensor"),
    (lambda s: s["param_groups"][0].update(loaded_masks=[True]), ValueError, "expected 3 loaded_m"),
    (lambda s: s["param_groups"][0].update(loaded_masks=[1, 1, 0]), TypeError, "a list of bools"),
    (lambda s: s["param_groups"][0].update(loaded_masks=True), TypeError, "a list of bools"),
]


@pytest.mark.parametrize("spoil, error, message", BAD)
def test_a_bad_state_is_refused(spoil, error, message):
    """And nothing has changed."""
    ours, source = make(), make()
    for optimizer in (ours, source):
        train(optimizer, 1)
    source.load_masks(masks_of(source, seed=1))
    saved = source.state_dict()
    spoil(saved)
    before = snapshot(ours) + [ours.keep_mask(param) for param in params_of(ours)]
    with pytest.raises(error, match=message):
        ours.load_state_dict(saved)
    assert_same(snapshot(ours) + [ours.keep_mask(param) for param in params_of(ours)], before)
    assert ours.param_groups[0]["loaded_masks"] == [True, True, False]


def two_layers():
    """A model, its parameters' masks by name."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    names = ("0.weight", "1.weight")
    return model, {n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters() if n in names}


# torch says so of every checkpoint of a single process, which this one is.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_distributed_checkpoint_has_them_for_who_asks(tmp_path):
    """It fills what its reader has: with masks of any kind, with none it says what to do."""
    import torch.distributed.checkpoint as dcp

    model, masks = two_layers()
    ours = FusedGradDropAdamW(model.named_parameters(), drop_prob=0.0)
    ours.load_masks(masks)
    model(torch.ones(2, 8)).sum().backward()
    ours.step()
    dcp.save(distributed.get_optimizer_state_dict(model, ours), checkpoint_id=tmp_path)
    for asks in (True, False):
        again, _ = two_layers()
        fresh = FusedGradDropAdamW(again.named_parameters(), drop_prob=0.0)
        if asks:
            fresh.load_masks({name: torch.ones_like(keep) for name, keep in masks.items()})
        state = distributed.get_optimizer_state_dict(again, fresh)
        dcp.load(state, checkpoint_id=tmp_path)
        if not asks:
            with pytest.raises(ValueError, match="so call load_masks first"):
                distributed.set_optimizer_state_dict(again, fresh, state)
            continue
        distributed.set_optimizer_state_dict(again, fresh, state)
        for name, param in again.named_parameters():
            expected = masks.get(name, torch.ones_like(param, dtype=torch.bool))
            assert torch.equal(fresh.keep_mask(param), expected), name


def test_masks_follow_the_names():
    """Where a distributed checkpoint puts state back by name, into another order."""
    model, masks = two_layers()
    listed = list(model.named_parameters())
    saved, loaded = (FusedGradDropAdamW(order, drop_prob=0.0) for order in (listed, listed[::-1]))
    saved.load_masks(masks)
    loaded.load_masks({name: torch.ones_like(keep) for name, keep in masks.items()})
    model(torch.ones(2, 8)).sum().backward()
    saved.step()
    state = distributed.get_optimizer_state_dict(model, saved)
    with pytest.warns(UserWarning, match="loaded stream_ids"):
        distributed.set_optimizer_state_dict(model, loaded, state)
    assert loaded.param_groups[0]["loaded_masks"] == [False, True, False, True]
    for _, param in listed:
        assert torch.equal(loaded.keep_mask(param), saved.keep_mask(param))
