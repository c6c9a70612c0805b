"""Laws of mixed precision: torch's GradScaler around the step, without waiting for the device."""

import copy

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_grad,
    make_optimizer,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, schedules

SCALE = 1024.0  # a power of two: scaling and unscaling are exact


def scaled_step(optimizer, scaler, step, overflow=False):
    """One step on gradients that carry the scaler's loss scale; with an infinity if asked for."""
    for index, param in enumerate(params_of(optimizer)):
        param.grad = scaler.scale(make_grad(param, index, step))
    if overflow:
        params_of(optimizer)[-1].grad.view(-1)[3] = torch.inf
    scaler.step(optimizer)
    scaler.update()


def make_pair(backend, device, **knobs):
    """An optimizer, and a scaler of its device."""
    scaler = torch.amp.GradScaler(device.type, init_scale=SCALE, growth_interval=1000)
    return make_optimizer(backend, device, SMALL, **knobs), scaler


@pytest.mark.parametrize("site", ["grad", "update"])
def test_scaled_training_is_unscaled_training(backend, device, site):
    """The loss scale is divided out of what is computed, to the last bit, not out of memory."""
    ours, scaler = make_pair(backend, device, site=site)
    plain = make_optimizer(backend, device, SMALL, site=site)
    for step in range(3):
        scaled_step(ours, scaler, step)
    train(plain, 3)
    assert_same(snapshot(ours), snapshot(plain))
    grad = params_of(ours)[0].grad
    assert torch.equal(grad, SCALE * make_grad(params_of(ours)[0], 0, 2))
    assert not hasattr(ours, "grad_scale") and not hasattr(ours, "found_inf")


def test_an_overflow_skips_the_step_whole(backend, device):
    """Nothing is stepped and nothing is counted: the next step takes the mask that was not used."""
    ours, scaler = make_pair(backend, device)
    plain = make_optimizer(backend, device, SMALL)
    scaled_step(ours, scaler, 0)
    before, draws, masks = snapshot(ours), ours.draws, [*map(ours.keep_mask, params_of(ours))]
    scaled_step(ours, scaler, 1, overflow=True)
    assert scaler.get_scale() == SCALE / 2
    assert_same(snapshot(ours), before)
    assert ours.draws == draws == [1]
    assert_same([*map(ours.keep_mask, params_of(ours))], masks)
    assert ours.state_dict()["param_groups"][0]["steps_finished"] == 1
    scaled_step(ours, scaler, 1)
    train(plain, 2)
    assert_same(snapshot(ours), snapshot(plain))


def test_a_first_step_may_overflow(backend, device):
    """State that the skipped step has made is that of a step to come."""
    ours, scaler = make_pair(backend, device)
    plain = make_optimizer(backend, device, SMALL)
    scaled_step(ours, scaler, 0, overflow=True)
    assert all(not tensor.any() for state in ours.state.values() for tensor in state.values())
    scaled_step(ours, scaler, 0)
    train(plain, 1)
    assert_same(snapshot(ours), snapshot(plain))


def test_a_scaler_may_find_no_gradient(backend, device):
    """Of two optimizers that share it one has none: that step is counted, as without a scaler."""
    waiting, scaler = make_pair(backend, device)
    plain = make_optimizer(backend, device, SMALL)
    busy = make_optimizer(backend, device, SMALL)
    for step in range(3):
        for optimizer in (plain, waiting, busy):
            optimizer.zero_grad()
        if step == 1:  # its first
            train(plain, range(step, step + 1))
            for index, param in enumerate(params_of(waiting)):
                param.grad = scaler.scale(make_grad(param, index, step))
        else:
            plain.step()
        for index, param in enumerate(params_of(busy)):
            param.grad = scaler.scale(make_grad(param, index, step))
        scaler.step(waiting)
        scaler.step(busy)
        scaler.update()
        assert waiting.draws == plain.draws == [step + 1]
    assert_same(snapshot(waiting), snapshot(plain))


@pytest.mark.parametrize(("found", "counted"), [(0.0, [1]), (1.0, [0])])
def test_found_inf_counts_before_there_is_any_state(backend, device, found, counted):
    """A first step without gradients is counted unless it is skipped."""
    ours = make_optimizer(backend, device, SMALL)
    ours.found_inf = torch.tensor([found], device=device)
    ours.step()
    assert ours.draws == counted


def test_who_sits_out_counts_no_skipped_step():
    """A model that has changed its dtype has another executor: counts of both go on together."""
    model = torch.nn.Linear(7, 5)
    ours = FusedGradDropAdamW(model.parameters(), lr=1e-2)
    train(ours, 1)
    model.double()
    for found, counted in ((1.0, 1), (0.0, 2), (1.0, 2), (0.0, 3)):
        set_grads(model.parameters(), 1)
        ours.found_inf = torch.tensor([found])
        ours.step()
        assert ours.draws == [counted]
        assert {int(counts[0]) for counts in ours._counters._on.values()} == {counted}


def test_an_executor_that_joins_begins_at_the_present_count():
    """Also where the device alone knew it."""
    model = torch.nn.Linear(7, 5)
    ours = FusedGradDropAdamW(model.parameters(), lr=1e-2)
    ours.found_inf = torch.zeros(1)
    train(ours, 2)
    del ours.found_inf
    model.double()
    train(ours, range(2, 3))
    assert {int(counts[0]) for counts in ours._counters._on.values()} == {3}
    assert ours.draws == [3]


LOOKS = {
    "draws": lambda optimizer: optimizer.draws,
    "keep_mask": lambda optimizer: [
        bool(optimizer.keep_mask(p).all()) for p in params_of(optimizer)
    ],
    "dropped_params": lambda optimizer: [tuple(p.shape) for p in optimizer.dropped_params()],
    "log_values": lambda optimizer: optimizer.log_values(wait=True)["kept_fraction"],
    "state_dict": lambda optimizer: optimizer.state_dict()["param_groups"][0]["steps_finished"],
    "deepcopy": lambda optimizer: copy.deepcopy(optimizer).draws,
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_waits_for_the_count(look):
    """Of steps that the device alone has counted, each view knows all."""
    shapes = tuple((n,) for n in range(1, 15))
    knobs = {"shapes": shapes, "granularity": "tensor", "seed": 1}
    seen = []
    for n_steps in (1, 1, 0):
        optimizer = make_optimizer(**knobs)
        if not seen:
            optimizer.found_inf = torch.zeros(1)
        train(optimizer, n_steps)
        if n_steps:  # and one without gradients, which the state does not show
            optimizer.zero_grad()
            optimizer.step()
        if not seen:
            assert optimizer.param_groups[0]["steps_finished"] < 2  # control: it is behind
        seen.append(LOOKS[look](optimizer))
    assert seen[0] == seen[1] != seen[2]


def test_a_schedule_counts_steps_that_were_made(backend, device):
    """A skipped step does not move the drop rate on."""
    ours, scaler = make_pair(backend, device, drop_prob=schedules.Linear(0.0, 1.0, 4))
    for step, overflow in enumerate((False, True, True, False)):
        scaled_step(ours, scaler, step, overflow)
    assert ours.draws == [2]
    assert ours.param_groups[0]["drop_prob"] == 0.25


def test_unscaled_gradients_can_be_clipped(backend, device):
    """After scaler.unscale_ the step takes the gradients as they are."""
    ours, scaler = make_pair(backend, device)
    plain = make_optimizer(backend, device, SMALL)
    for optimizer in (ours, plain):
        for index, param in enumerate(params_of(optimizer)):
            param.grad = make_grad(param, index, 0)
            if optimizer is ours:
                param.grad = scaler.scale(param.grad)
        if optimizer is ours:
            scaler.unscale_(ours)
        torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)
        scaler.step(ours) if optimizer is ours else plain.step()
    assert_same(snapshot(ours), snapshot(plain))


# torch itself says once that this check of its is a prototype; that is no fault of the step.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
@pytest.mark.parametrize("knobs", [{}, {"site": "update", "rescale": "alignment"}])
def test_the_step_does_not_wait_for_the_device(knobs):
    """torch raises at a synchronisation: the step has none, with a scaler or without."""
    ours, scaler = make_pair("triton", torch.device("cuda"), **knobs)
    scaled_step(ours, scaler, 0)
    ours.grad_scale, ours.found_inf = torch.ones(2, device="cuda").chunk(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step()
        del ours.grad_scale, ours.found_inf
        ours.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
