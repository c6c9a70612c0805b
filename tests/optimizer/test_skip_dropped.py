"""Laws of skipping the backward pass of what is dropped: cheaper, and the same training."""

from contextlib import nullcontext

import pytest
import torch
from helpers.layered_net import N_STEPS, Net, batch, make_net, train_net
from helpers.small_runs import assert_same, differs, snapshot

from graddrop import FusedGradDropAdamW

SEEDS_APART = (4, 1)  # whose first two masks, and first masks, drop other layers


def assert_skipping_changes_nothing(backend="reference", net=Net, knobs=None, **how):
    """Parameters and state are the same, and gradients were left out."""
    runs, counts = [], []
    for skip in (False, True):
        model, optimizer = make_net(backend, net, **(knobs or {}))
        counts.append(train_net(model, optimizer, skip, **how))
        runs.append(snapshot(optimizer))
    assert_same(*runs)
    assert min(counts[1]) < min(counts[0]) == len(list(model.parameters()))


@pytest.mark.parametrize("granularity", ["tensor", "layer"])
@pytest.mark.parametrize("site", ["grad", "freeze"])
def test_skipping_trains_the_same(backend, site, granularity):
    """Parameters, moments and counters are those of the full backward pass, to the last bit."""
    assert_skipping_changes_nothing(backend, knobs={"site": site, "granularity": granularity})


def test_a_missing_gradient_is_not_a_skipped_one():
    """Control: with requires_grad taken away by hand, what is dropped stands still."""
    runs = []
    for by_hand in (False, True):
        model, optimizer = make_net()
        for step in range(N_STEPS):
            dropped = set(map(id, optimizer.dropped_params()))
            for param in model.parameters():
                param.requires_grad_(not by_hand or id(param) not in dropped)
            optimizer.zero_grad()
            model(batch(step)).backward()
            optimizer.step()
        runs.append([param.detach() for param in model.parameters()])
    assert differs(*runs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"rescale": True},
        {"period": 2, "maximize": True},
        {"max_grad_norm": 0.1, "masked_norm": True},
        {"max_grad_norm": 0.1, "masked_norm": True, "site": "freeze", "rescale": True},
    ],
    ids=str,
)
def test_other_knobs_skip_the_same(backend, knobs):
    """So do rescaled masks, masks of several steps, and the norm of what is kept."""
    assert_skipping_changes_nothing(backend, knobs=knobs)


def test_accumulated_batches_skip_the_same():
    """Each pass of a batch has a block of its own."""
    assert_skipping_changes_nothing(micros=3)


def test_a_block_in_some_passes_is_enough():
    """Passes outside of the block add to gradients that nobody reads."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net()
        for step in range(N_STEPS):
            optimizer.zero_grad()
            for micro in range(2):
                with optimizer.skip_dropped() if skip and micro else nullcontext():
                    model(batch(step, micro)).backward()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_checkpointed_layers_skip_the_same():
    """Activations that are computed again in the backward pass."""
    assert_skipping_changes_nothing(net=lambda: Net(checkpointed=True))


def test_autocast_skips_the_same():
    """Weights cast to bfloat16 for the forward pass."""
    assert_skipping_changes_nothing(
        around=lambda: torch.autocast("cpu", torch.bfloat16), knobs={"site": "freeze"}
    )


def test_gradient_scaler_skips_the_same(backend):
    """Scaled losses, with a step whose kept gradients overflow; it is not counted."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net(backend, drop_prob=0.6)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(N_STEPS):
            optimizer.zero_grad()
            with optimizer.skip_dropped() if skip else nullcontext():
                loss = model(batch(step)) * (torch.inf if step == 2 else 1)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.draws == [N_STEPS - 1]
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_nothing_is_computed_below_the_lowest_kept_parameter():
    """Neither weight gradients of what is dropped nor activation gradients below all that is kept.

    Here the embedding is no parameter of the optimizer and needs no gradient.
    """

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, number):
            ctx.number = number
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            reached.append(ctx.number)
            return grad, None

    model = Net(n_layers=4)
    model.embedding.requires_grad_(False)
    for number, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda module, x, out, n=number: Probe.apply(out, n))
    optimizer = FusedGradDropAdamW(
        [(name, p) for name, p in model.named_parameters() if p.requires_grad],
        granularity="layer",
        seed=5,
    )
    seen = set()
    for step in range(8):
        reached = []
        optimizer.zero_grad()
        dropped = optimizer.dropped_layers()
        with optimizer.skip_dropped():
            model(batch(step)).backward()
        lowest = min({0, 1, 2, 3} - set(dropped), default=4)
        # The output of the lowest kept layer, and of those above it.
        assert sorted(reached) == list(range(lowest, 4))
        for number, layer in enumerate(model.layers):
            for param in layer.parameters():
                assert (param.grad is None) == (number in dropped)
        seen.add(lowest)
        optimizer.step()
    assert len(seen) > 1 and seen != {0}


def test_parameters_come_out_as_they_went_in():
    """Also those that needed no gradient before, after an error, and from nested blocks."""
    model, optimizer = make_net(drop_prob=0.7)
    dropped = optimizer.dropped_params()
    assert dropped
    dropped[0].requires_grad_(False)
    before = [param.requires_grad for param in model.parameters()]

    def now():
        return [param.requires_grad for param in model.parameters()]

    with pytest.raises(ZeroDivisionError), optimizer.skip_dropped():
        with optimizer.skip_dropped():
            assert not any(param.requires_grad for param in dropped)
        assert not any(param.requires_grad for param in dropped)
        assert now() != before
        raise ZeroDivisionError
    assert now() == before


def test_a_parameter_frozen_by_hand_stays_frozen():
    """What needed no gradient before the block is not skipped: it stands still, as without it."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net()
        model.layers[1].requires_grad_(False)
        train_net(model, optimizer, skip)
        runs.append([*map(torch.clone, model.parameters())])
    assert_same(*runs)


def test_where_all_is_dropped_backward_works():
    """A loss without any kept parameter has a backward pass, and the training is the same."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net(granularity="tensor", drop_prob=1.0)
        train_net(model, optimizer, skip)
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_fine_masks_skip_nothing():
    """Entries and rows are not dropped as a whole: every gradient is there."""
    for granularity in ("element", "row"):
        model, optimizer = make_net(granularity=granularity, max_grad_norm=1.0, site="update")
        counts = train_net(model, optimizer, skip=True)
        assert set(counts) == {len(list(model.parameters()))}


def test_what_the_step_would_read_is_not_skipped():
    """site="update", and a norm of all gradients, are refused; nothing has changed."""
    for knobs, cure in (
        ({"site": "update"}, "freeze"),
        ({"max_grad_norm": 1.0}, "masked_norm=True"),
        ({"max_grad_norm": torch.inf}, "masked_norm=True"),
    ):
        model, optimizer = make_net(**knobs)
        with pytest.raises(ValueError, match=cure), optimizer.skip_dropped():
            pass
        assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize("between", ["new_mask", "seed", "drop_prob", "load", "clipping", "site"])
def test_another_mask_than_the_skipped_one_is_refused(between):
    """A mask, a knob or a state that comes between backward and step; the step changes nothing."""
    model, optimizer = make_net(period="epoch", seed=SEEDS_APART[0])
    optimizer.new_mask(0)
    train_net(model, optimizer, skip=True, steps=1)
    state = optimizer.state_dict()
    optimizer.zero_grad()
    with optimizer.skip_dropped():
        model(batch(1)).backward()
    error = RuntimeError
    if between == "new_mask":
        optimizer.new_mask()
    elif between == "load":
        state["param_groups"][0]["masks_begun"] = 1
        optimizer.load_state_dict(state)
    elif between == "clipping":
        optimizer.max_grad_norm, error = 1.0, ValueError
    elif between == "site":
        optimizer.param_groups[0]["site"], error = "update", ValueError
    else:
        optimizer.param_groups[0][between] = {"seed": SEEDS_APART[1], "drop_prob": 1.0}[between]
    before = snapshot(optimizer)
    with pytest.raises(error):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
    if between in ("new_mask", "load", "seed"):
        with pytest.raises(RuntimeError, match="another"), optimizer.skip_dropped():
            pass


def test_a_batch_that_is_begun_anew_may_have_another_mask():
    """After zero_grad nothing that was skipped is waited for."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net(period="epoch", drop_prob=0.6)
        for step in range(4):
            for draw in (step, step + 1):  # the first one is given up
                optimizer.zero_grad()
                optimizer.new_mask(draw)
                with optimizer.skip_dropped() if skip else nullcontext():
                    model(batch(step)).backward()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_gradients_may_be_zeroed_within_the_block():
    """What the block has skipped stays skipped."""
    runs = []
    for skip in (False, True):
        model, optimizer = make_net()
        for step in range(3):
            with optimizer.skip_dropped() if skip else nullcontext():
                optimizer.zero_grad()
                model(batch(step)).backward()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_what_is_zeroed_within_the_block_is_not_begun_anew():
    """The gradients that come after are of the block's mask: no other may be stepped with them."""
    model, optimizer = make_net(period="epoch", seed=SEEDS_APART[0])
    optimizer.new_mask(0)
    with optimizer.skip_dropped():
        optimizer.zero_grad()
        model(batch(0)).backward()
    optimizer.new_mask()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="expected the mask whose gradients"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_a_step_within_the_block_is_refused():
    """The block's mask would be that of the next step, too."""
    model, optimizer = make_net()
    with optimizer.skip_dropped():
        model(batch(0)).backward()
        with pytest.raises(RuntimeError, match="after the block"):
            optimizer.step()
    optimizer.step()


def test_a_capture_is_refused(monkeypatch):
    """The replays of a graph go on to other masks."""
    _, optimizer = make_net(capturable=True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="captured"), optimizer.skip_dropped():
        pass


def test_a_compiled_model_is_compiled_once_for_each_set_of_layers():
    """torch.compile follows what needs a gradient; the training is the same."""
    runs = []
    for skip in (False, True):
        torch.compiler.reset()
        model, optimizer = make_net(net=lambda: Net(n_layers=1))
        compilations = []

        def count(graph, inputs, compilations=compilations):
            compilations.append(graph)
            return graph

        train_net(torch.compile(model, backend=count), optimizer, skip, steps=8)
        runs.append(snapshot(optimizer))
        assert len(compilations) == (2 if skip else 1)  # with its only layer, and without
    assert_same(*runs)
    torch.compiler.reset()


@pytest.mark.parametrize("site", ["grad", "freeze"])
@pytest.mark.parametrize("granularity", ["tensor", "layer"])
@pytest.mark.parametrize("masked_norm", [False, True])
def test_dropped_gradients_are_read_for_a_norm_of_all(
    backend, device, masked_norm, granularity, site
):
    """Stale gradients of dropped_params change nothing, but for the norm of all gradients."""
    grads, runs, norms = {}, [], []
    knobs = {"max_grad_norm": 1.0, "granularity": granularity, "site": site}
    for stale in (1.0, torch.nan if masked_norm else 1e3):
        model, optimizer = make_net(backend, masked_norm=masked_norm, **knobs)
        dropped = set(map(id, optimizer.dropped_params()))
        for index, param in enumerate(model.parameters()):
            grads.setdefault(index, torch.randn_like(param))
            param.grad = grads[index] * (stale if id(param) in dropped else 1.0)
        optimizer.step()
        runs.append(snapshot(optimizer))
        norms.append(float(optimizer.grad_norm))
    assert 0 < len(dropped) < len(grads)
    assert differs(*runs) == (norms[0] != norms[1]) == (not masked_norm)
