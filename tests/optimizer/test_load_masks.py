"""Laws of load_masks: a loaded mask replaces the drawn one, at any site, whatever ``drop_prob``."""

import copy
import pickle

import pytest
import torch
from helpers.small_runs import (
    NAMES,
    SMALL,
    assert_same,
    differs,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)
from helpers.untouched import Untouched, trained

from graddrop import FusedGradDropAdamW
from graddrop.reference import adamw_step_


def random_masks(params, seed=0, kept=0.5):
    """Masks of half the entries."""
    generator = torch.Generator().manual_seed(seed)
    return {
        p: (torch.rand(tuple(p.shape), generator=generator) < kept).to(p.device) for p in params
    }


def as_captured(patch):
    """Let it seem that a CUDA graph is being captured."""
    patch.setattr(torch.cuda, "is_initialized", lambda: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.mark.parametrize("site", ["grad", "update", "freeze"])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
def test_it_is_masked_adamw_with_that_mask(backend, device, site, drop_prob):
    """Several steps of the definition with the mask, not rescaled; drop_prob does not matter."""
    optimizer = make_optimizer(backend, device, SMALL, site=site, drop_prob=drop_prob, seed=1)
    masks = random_masks(params_of(optimizer))
    optimizer.load_masks(masks)
    params = [param.detach().clone() for param in params_of(optimizer)]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    for step in range(3):
        set_grads(params_of(optimizer), step)
        for param, trained_param, state in zip(params, params_of(optimizer), moments, strict=True):
            adamw_step_(
                param,
                trained_param.grad,
                *state,
                masks[trained_param],
                step=step + 1,
                lr=1e-2,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=1e-2,
                site=site,
            )
        optimizer.step()
    for param, trained_param in zip(params, params_of(optimizer), strict=True):
        torch.testing.assert_close(trained_param.detach(), param, rtol=1e-5, atol=1e-6)
        assert torch.equal(optimizer.keep_mask(trained_param), masks[trained_param])


def test_it_is_not_rescaled(backend, device):
    """rescale=True steps as rescale=False where all masks are loaded; drawn ones do not."""
    runs = []
    for load in (True, False):
        for rescale in (True, False):
            optimizer = make_optimizer(backend, device, SMALL, rescale=rescale, site="update")
            if load:
                optimizer.load_masks(random_masks(params_of(optimizer)))
            train(optimizer, 2)
            runs.append(snapshot(optimizer))
    assert_same(runs[0], runs[1])
    assert differs(runs[2], runs[3])


def test_none_gives_the_drawn_mask_back(backend, device):
    """And what is not named keeps what it has."""
    ours, plain = (make_optimizer(backend, device, SMALL) for _ in range(2))
    first, second = params_of(ours)
    ours.load_masks(random_masks(params_of(ours)))
    ours.load_masks({first: None})
    for mine, theirs in zip(params_of(ours), params_of(plain), strict=True):
        same = torch.equal(ours.keep_mask(mine), plain.keep_mask(theirs))
        assert same == (mine is first)
    assert ours.param_groups[0]["loaded_masks"] == [False, True]
    ours.load_masks({second: None, first: None})
    for optimizer in (ours, plain):
        train(optimizer, 2)
    assert_same(snapshot(ours), snapshot(plain))


def test_a_mask_acts_from_the_next_step_on(backend, device):
    """Loaded, replaced and removed in the midst of training, where the plan is made already."""
    optimizer = make_optimizer(backend, device, SMALL, site="freeze", drop_prob=0.0)
    for step in range(6):
        masks = random_masks(params_of(optimizer), seed=step)
        if step == 3:
            masks = dict.fromkeys(masks)
        if step != 4:
            optimizer.load_masks(masks)
        before = [param.detach().clone() for param in params_of(optimizer)]
        train(optimizer, range(step, step + 1))
        for param, old in zip(params_of(optimizer), before, strict=True):
            keep = torch.ones_like(param, dtype=torch.bool) if step in (3, 4) else masks[param]
            assert torch.equal(param.detach() != old, keep)


def test_masks_go_by_name_too():
    """Names and parameters may be mixed, each parameter once."""
    params = make_params()
    optimizer = FusedGradDropAdamW(list(zip(NAMES, params, strict=True)))
    masks = random_masks(params)
    optimizer.load_masks({NAMES[0]: masks[params[0]], params[1]: masks[params[1]]})
    assert optimizer.param_groups[0]["loaded_masks"] == [True, True, False, False, False]
    for param in params[:2]:
        assert torch.equal(optimizer.keep_mask(param), masks[param])


HALF = torch.ones(5, 7, dtype=torch.bool)
BAD = [
    (lambda p: [HALF], TypeError, "expected masks as a mapping"),
    (lambda p: {0: HALF}, TypeError, "expected a name or a parameter to load a mask for, got 0"),
    (lambda p: {"w": HALF}, ValueError, "has no names: make it of model.named_parameters"),
    (lambda p: {HALF: HALF}, ValueError, r"one of the optimizer's parameters, got .*\(5, 7\)"),
    (lambda p: {p: HALF.float()}, TypeError, "bool tensor, True where kept, or None, got dtype"),
    (lambda p: {p: [True]}, TypeError, "bool tensor, .*got <class 'list'>"),
    (lambda p: {p: HALF.t()}, ValueError, r"whole parameter's shape \(5, 7\), got \(7, 5\)"),
    (lambda p: {p: HALF.to("meta")}, ValueError, "with data, got torch.strided on meta"),
    (lambda p: {p: HALF.to_sparse()}, ValueError, "expected a strided mask"),
]


@pytest.mark.parametrize("masks, error, message", BAD)
def test_bad_masks_are_refused(masks, error, message):
    """Also behind good ones: nothing has changed then."""
    optimizer = trained()
    first, second = params_of(optimizer)
    untouched = Untouched(optimizer)
    bad = masks(first)
    if isinstance(bad, dict):
        bad = {second: torch.zeros(4, dtype=torch.bool)} | bad
    with pytest.raises(error, match=message) as caught:
        optimizer.load_masks(bad)
    if first in (bad if isinstance(bad, dict) else ()):
        assert caught.value.__notes__ == ["This is parameter 0 of param group 0."]
    assert torch.equal(
        optimizer.keep_mask(second), untouched.twin.keep_mask(params_of(untouched.twin)[1])
    )
    untouched.check()


def test_unknown_and_double_names_are_refused():
    """An optimizer with names says which it has."""
    params = make_params()
    optimizer = FusedGradDropAdamW(list(zip(NAMES, params, strict=True)))
    keep = torch.ones(5, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got 'w'; its names are \['encoder.layer.0.weight0'"):
        optimizer.load_masks({"w": keep})
    with pytest.raises(ValueError, match="twice among the masks"):
        optimizer.load_masks({NAMES[0]: keep, params[0]: keep})
    assert not any(optimizer.param_groups[0]["loaded_masks"])


def test_no_decision_drops_it_as_a_whole():
    """A loaded mask is not in the lists, its backward pass not skipped, and its step counts."""
    optimizer = make_optimizer("auto", granularity="tensor", drop_prob=1.0, site="freeze")
    params = params_of(optimizer)
    optimizer.load_masks({params[0]: torch.zeros(5, 7, dtype=torch.bool)})
    assert [id(p) for p in optimizer.dropped_params()] == [id(p) for p in params[1:]]
    with optimizer.skip_dropped():
        assert [param.requires_grad for param in params] == [True] + [False] * 4
    train(optimizer, 2)
    assert [optimizer.state[param]["step"].item() for param in params] == [2, 0, 0, 0, 0]


def test_what_is_logged_is_counted():
    """The exact fraction that is kept, of entries that are loaded; drop_prob is of the others."""
    optimizer = make_optimizer("auto", granularity="tensor", drop_prob=0.25)
    params = params_of(optimizer)
    for kept in (0.1, 0.6, 0.6):  # masks that take the place of others
        optimizer.load_masks(random_masks(params[:3], kept=kept))
        train(optimizer, 1)
        keeps = [optimizer.keep_mask(param) for param in params]
        expected = sum(int(keep.sum()) for keep in keeps) / sum(keep.numel() for keep in keeps)
        values = optimizer.log_values(wait=True)
        assert values["kept_is_exact"] and values["kept_fraction"] == expected
        assert values["drop_prob"] == 0.25
    optimizer.load_masks(random_masks(params))
    values = optimizer.log_values()  # nothing is drawn, so nothing is expected
    assert values["kept_is_exact"] and values["drop_prob"] == 0
    optimizer.load_masks({params[2]: None})  # control
    assert not optimizer.log_values()["kept_is_exact"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_masks_of_their_own(copied):
    """Which change with their own optimizer alone."""
    optimizer = make_optimizer(site="freeze")
    optimizer.load_masks(random_masks(params_of(optimizer)))
    train(optimizer, 1)
    again = copied(optimizer)
    for each in (optimizer, again):
        train(each, range(1, 3))
    assert_same(snapshot(again), snapshot(optimizer))
    before = [optimizer.keep_mask(param) for param in params_of(optimizer)]
    again.load_masks(random_masks(params_of(again), seed=9))
    assert_same([optimizer.keep_mask(param) for param in params_of(optimizer)], before)
    assert differs([again.keep_mask(param) for param in params_of(again)], before)


def test_new_groups_have_none():
    """A group's list says who has one, also where it was made of another optimizer's group."""
    optimizer = make_optimizer()
    optimizer.load_masks(random_masks(params_of(optimizer)))
    optimizer.add_param_group({"params": make_params(SMALL), "loaded_masks": [True, True]})
    lists = [group["loaded_masks"] for group in optimizer.param_groups]
    assert lists == [[True] * 5, [False] * 2]
    train(optimizer, 2)


def test_other_memory_is_walked_otherwise(backend, device):
    """Bits follow a parameter whose memory is laid out anew, such as channels last."""
    shapes = ((4, 6, 3, 2),)
    moved, plain = (
        make_optimizer(backend, device, shapes, site="freeze", drop_prob=0.0) for _ in range(2)
    )
    for optimizer in (moved, plain):
        optimizer.load_masks(random_masks(params_of(optimizer)))
        train(optimizer, 1)
    (param,) = params_of(moved)
    param.data = param.data.contiguous(memory_format=torch.channels_last)
    for optimizer in (moved, plain):
        train(optimizer, range(1, 3))
    assert_same(snapshot(moved), snapshot(plain))
    assert torch.equal(moved.keep_mask(param), plain.keep_mask(params_of(plain)[0]))
    fresh = make_optimizer(backend, device, shapes)
    fresh.load_masks(random_masks(params_of(fresh)))
    (param,) = params_of(fresh)
    param.data = param.data[:3].clone()
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"mask was loaded for, .*got \(3, 6, 3, 2\)"):
        fresh.step()


def test_a_mask_without_its_parameter_is_seen():
    """Engines that put other tensors in the parameters' place would lose it in silence."""
    optimizer = make_optimizer(shapes=SMALL)
    optimizer.load_masks(random_masks(params_of(optimizer)))
    optimizer.param_groups[0]["params"] = make_params(SMALL)
    set_grads(params_of(optimizer), 0)
    with pytest.raises(RuntimeError, match="call load_masks after that"):
        optimizer.step()


def test_a_graph_follows_a_mask_that_replaces_another(monkeypatch):
    """It is written where the other is, also by a state that is loaded; a capture refuses it."""
    optimizer = make_optimizer("auto", capturable=True)
    params = params_of(optimizer)
    optimizer.load_masks(random_masks(params))
    train(optimizer, 1)
    saved = optimizer.state_dict()

    def places():
        slots = optimizer._loaded_masks._masks.values()
        return [mask.bits.bits.data_ptr() for mask in slots]

    before, plan = places(), optimizer._plan_cache.latest
    masks = random_masks(params, seed=1)
    optimizer.load_masks(masks)
    assert places() == before and optimizer._plan_cache.latest is plan
    assert all(torch.equal(optimizer.keep_mask(param), masks[param]) for param in params)
    optimizer.load_state_dict(saved)
    assert places() == before
    with monkeypatch.context() as patch:
        as_captured(patch)
        with pytest.raises(RuntimeError, match="expected no CUDA graph to be captured in load_ma"):
            optimizer.load_masks(masks)
    optimizer.load_masks({params[0]: None})  # control: what goes or comes makes a new plan
    assert len(places()) == 4 and optimizer._plan_cache.latest is None
