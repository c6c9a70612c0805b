"""Laws of how long a mask lives: some steps, or until the next is begun."""

import pytest
import torch
from helpers.small_runs import (
    assert_same,
    differs,
    frozen_steps,
    make_optimizer,
    make_params,
    params_of,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW

SHAPES = ((9, 7), (6, 4))


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


@pytest.mark.parametrize("other", [{}, {"period": "epoch", "drop_prob": 0.0}], ids=str)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("later", [False, True])
def test_an_epoch_without_a_mask_is_said_once(other, place, later):
    """period="epoch" in any group, and no new_mask() before the second step: one warning."""
    groups = [{"params": [param]} for param in make_params(SHAPES[:2])]
    groups[1 - place] |= other
    if not later:
        groups[place]["period"] = "epoch"
    optimizer = FusedGradDropAdamW(groups, drop_prob=0.5)
    if later:
        train(optimizer, 3)
        optimizer.param_groups[place]["period"] = "epoch"
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
