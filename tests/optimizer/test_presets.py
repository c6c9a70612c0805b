"""The law of each published method: what makes the preset's knobs that method."""

import pytest
import torch
from helpers.small_runs import make_grad, make_optimizer, make_params, params_of, set_grads

from graddrop import FusedGradDropAdamW, schedules
from graddrop.methods import PRESETS

N_LAYERS = 6


def make_preset(preset, n_layers=N_LAYERS, **knobs):
    """Layers of two tensors, and an embedding outside of them."""
    names = ["embedding", *(f"layer.{i}.{kind}" for i in range(n_layers) for kind in "wb")]
    named = list(zip(names, make_params(((40,),) * len(names)), strict=True))
    knobs = {"lr": 1e-2, "seed": 3, **PRESETS[preset].knobs} | knobs
    return FusedGradDropAdamW(named, **knobs)


def moves(optimizer, step):
    """Make a step; for each parameter, which entries moved."""
    before = [param.detach().clone() for param in params_of(optimizer)]
    set_grads(params_of(optimizer), step)
    optimizer.step()
    return [old != new.detach() for old, new in zip(before, params_of(optimizer), strict=True)]


def moved_layers(moved):
    """Layers whose tensors moved, both or none; the embedding always does."""
    assert moved[0].all()
    layers = [bool(part.any()) for part in moved[1:]]
    assert layers[::2] == layers[1::2]
    return [number for number, any_moved in enumerate(layers[::2]) if any_moved]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_source_and_makes_a_step(preset):
    """Its knobs are the optimizer's."""
    assert "arXiv" in PRESETS[preset].source or "drawing" in PRESETS[preset].source
    moves(make_preset(preset, drop_prob=0.5), 0)


def adamw_of(optimizer):
    """torch.optim.AdamW of copies of the parameters."""
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params_of(optimizer)]
    (group,) = optimizer.param_groups
    hyper = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    return torch.optim.AdamW(twins, foreach=False, **hyper)


@pytest.mark.parametrize(
    ("preset", "factor", "n_masks"),
    [
        ("graddrop", 1.0, 4),
        ("graddrop-epoch", 1.0, 2),
        ("layer-graddrop", 1.0, 4),
        ("child-tuning-f", 4 / 3, 4),
    ],
)
def test_adamw_gets_masked_gradients(preset, factor, n_masks):
    """A quarter of them is zero, for a step or an epoch, entry by entry or layer by layer.

    Moments and parameters are those of torch's AdamW, decay of what is dropped included. An eps
    that is felt tells whether what is kept has been scaled.
    """
    knobs = {"drop_prob": 0.25, "eps": 1e-1, "weight_decay": 0.1, "backend": "reference"}
    ours = make_preset(preset, n_layers=12, **knobs)
    theirs = adamw_of(ours)
    masks = []
    for step in range(4):
        ours.new_mask(step // 2)
        set_grads(params_of(ours), step)
        keeps = [ours.keep_mask(param) for param in params_of(ours)]
        for param, twin, keep in zip(params_of(ours), params_of(theirs), keeps, strict=True):
            twin.grad = torch.where(keep, factor * param.grad, 0.0)
        ours.step()
        theirs.step()
        for param, twin in zip(params_of(ours), params_of(theirs), strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)
        masks.append(torch.cat(keeps))
        if preset == "layer-graddrop":
            assert all(keep.all() == keep.any() for keep in keeps)
            assert keeps[0].all()  # the embedding
            kept = [bool(keep.any()) for keep in keeps[1:]]
            assert kept[::2] == kept[1::2]
    assert len({tuple(mask.tolist()) for mask in masks}) == n_masks
    assert torch.cat(masks).float().mean() == pytest.approx(0.75, abs=0.1)
    assert torch.cat(masks).float().mean() < 1


def test_lr_dropout_steps_some_entries_on_dense_moments():
    """AdamW's moments throughout; what is kept makes AdamW's own step, the rest none at all."""
    ours = make_preset("lr-dropout", drop_prob=0.25, weight_decay=0.1, backend="reference")
    theirs = adamw_of(ours)
    for step in range(3):
        set_grads(params_of(ours), step)
        before = [param.detach().clone() for param in params_of(ours)]
        keeps = [ours.keep_mask(param) for param in params_of(ours)]
        for param, twin in zip(params_of(ours), params_of(theirs), strict=True):
            twin.data.copy_(param)
            twin.grad = param.grad.clone()
        ours.step()
        theirs.step()
        for param, twin, old, keep in zip(
            params_of(ours), params_of(theirs), before, keeps, strict=True
        ):
            assert torch.equal(param, torch.where(keep, twin, old))
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(ours.state[param][moment], theirs.state[twin][moment])
        assert torch.cat(keeps).float().mean() == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(("preset", "n_steps"), [("lisa", 20), ("badam", 100), ("graddrop", 1)])
def test_a_mask_lives_as_long_as_published(preset, n_steps):
    """In optimizer steps, unless the user says otherwise."""
    optimizer = make_preset(preset, drop_prob=0.5)
    draws = []
    for _ in range(2 * n_steps):
        draws += optimizer.draws
        optimizer.step()  # without gradients: counts
    assert draws == [0] * n_steps + [1] * n_steps


def test_lisa_trains_so_many_layers_for_k_steps():
    """Two of six for 20 steps each; the embedding always, state of the others as it was."""
    optimizer = make_preset("lisa", drop_prob=1 - 2 / N_LAYERS)
    chosen = []
    for step in range(80):
        trained = moved_layers(moves(optimizer, step))
        assert len(trained) == 2
        if step % 20:
            assert trained == chosen[-1]
        else:
            chosen.append(trained)
    assert len(set(map(tuple, chosen))) > 1
    steps = [int(optimizer.state[param]["step"]) for param in params_of(optimizer)]
    assert steps[0] == 80
    assert steps[1::2] == [20 * sum(i in trained for trained in chosen) for i in range(N_LAYERS)]


def test_badam_gives_each_layer_its_turn():
    """One for K steps, each once in a round, and another order in another round."""
    optimizer = make_preset("badam", drop_prob=1 - 1 / N_LAYERS, period=2)
    turns = [moved_layers(moves(optimizer, step)) for step in range(6 * 2 * N_LAYERS)]
    assert turns[::2] == turns[1::2]
    assert all(len(turn) == 1 for turn in turns)
    order = [layer for (layer,) in turns[::2]]
    rounds = [order[i : i + N_LAYERS] for i in range(0, len(order), N_LAYERS)]
    assert all(sorted(one) == list(range(N_LAYERS)) for one in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_half_fine_tuning_freezes_half_of_each_category():
    """Categories are groups whose seeds differ; new_mask begins a stage."""
    params = make_params(((8,),) * 10)
    categories = [{"params": params[:6], "seed": 1}, {"params": params[6:], "seed": 2}]
    optimizer = FusedGradDropAdamW(
        categories, lr=1e-2, drop_prob=0.5, **PRESETS["half-fine-tuning"].knobs
    )
    stages = []
    for stage in range(6):
        optimizer.new_mask(stage)
        both = [[bool(part.any()) for part in moves(optimizer, step)] for step in range(2)]
        assert both[0] == both[1]
        assert (sum(both[0][:6]), sum(both[0][6:])) == (3, 2)
        stages.append(tuple(both[0]))
    assert len(set(stages)) > 3


def test_skip_update_keeps_moments_dense():
    """Moments are plain AdamW's; what steps at all steps twice as far, its decay as always."""
    knobs = PRESETS["skip-update"].knobs
    shapes = ((40,),) * 8
    ours = make_optimizer(shapes=shapes, weight_decay=0.1, **knobs)
    params = [param.detach().double().requires_grad_() for param in make_params(shapes)]
    lr, decay = 1e-2, 0.1
    n_skipped = 0
    for step in range(4):
        moved = [bool(part.any()) for part in moves(ours, step)]
        for index, (param, moves_now) in enumerate(zip(params, moved, strict=True)):
            state = ours.state[params_of(ours)[index]]
            grads = [make_grad(param, index, s).double() for s in range(step + 1)]
            m = sum(0.1 * 0.9 ** (step - s) * g for s, g in enumerate(grads))
            v = sum(1e-3 * 0.999 ** (step - s) * g * g for s, g in enumerate(grads))
            torch.testing.assert_close(state["exp_avg"].double(), m, rtol=1e-4, atol=1e-6)
            if not moves_now:
                n_skipped += 1
                continue
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                param.mul_(1 - lr * decay).sub_(2 * lr * m_hat / (v_hat.sqrt() + 1e-8))
        for mine, theirs in zip(params_of(ours), params, strict=True):
            torch.testing.assert_close(
                mine.detach().double(), theirs.detach(), rtol=1e-4, atol=1e-5
            )
    assert 0 < n_skipped < 32


def test_magma_scales_steps_by_agreement():
    """Moments are plain AdamW's; a step is a_t times AdamW's own, its decay as always, or none."""
    ours = make_preset("magma", drop_prob=0.5, weight_decay=0.1, backend="reference")
    theirs = adamw_of(ours)
    params, twins = params_of(ours), params_of(theirs)
    alignments, n_skipped = [0.5] * len(params), 0
    for step in range(4):
        set_grads(params, step // 2)  # the same twice, so that some cosines are large
        for param, twin in zip(params, twins, strict=True):
            twin.data.copy_(param)
            twin.grad = param.grad.clone()
        decayed = [param.detach() * (1 - 1e-2 * 0.1) for param in params]
        for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
            before = theirs.state[twin].get("exp_avg", torch.zeros_like(param))
            cosine = torch.cosine_similarity(param.grad, before, dim=0)
            alignments[index] = 0.9 * alignments[index] + 0.1 * float(torch.sigmoid(cosine / 2))
        moved = [bool(part.any()) for part in moves(ours, step // 2)]
        theirs.step()
        for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(ours.state[param][moment], theirs.state[twin][moment])
            if not moved[index]:
                n_skipped += 1
                continue
            expected = decayed[index] + alignments[index] * (twin.detach() - decayed[index])
            torch.testing.assert_close(param.detach(), expected, rtol=1e-5, atol=1e-7)
    assert 0 < n_skipped < 4 * len(params)
    assert max(alignments) > 0.51


def test_random_masking_trains_the_same_entries_throughout(backend, device):
    """About a tenth of them, and no other ever moves; new_mask changes nothing."""
    knobs = PRESETS["random-masking"].knobs
    optimizer = make_optimizer(backend, device, ((50, 40),), drop_prob=0.9, **knobs)
    first = moves(optimizer, 0)[0]
    assert torch.equal(first, optimizer.keep_mask(params_of(optimizer)[0]))
    assert 0.05 < first.float().mean() < 0.15
    for step in range(1, 4):
        optimizer.new_mask()
        assert torch.equal(moves(optimizer, step)[0], first)
    assert optimizer.draws == [0]


@pytest.mark.parametrize("preset", ["sparse-unfreezing", "sparse-unfreezing-cumulative"])
def test_sparse_unfreezing_releases_entries_epoch_by_epoch(preset):
    """0, 3, 6, 9 of 16 cells, then as many; cumulative ones are nested, the others are not."""
    values = (1.0, 13 / 16, 10 / 16, 7 / 16)
    optimizer = make_optimizer(
        shapes=((100, 40),),
        drop_prob=schedules.Stepwise(values, 2),
        weight_decay=0.1,
        **PRESETS[preset].knobs,
    )
    epochs = []
    for epoch in range(5):
        optimizer.new_mask(epoch)
        both = [moves(optimizer, 2 * epoch + step)[0] for step in range(2)]
        assert torch.equal(*both)
        epochs.append(both[0])
    for released, expected in zip(epochs, (0, 3, 6, 9, 9), strict=True):
        assert abs(released.float().mean().item() - expected / 16) < 0.03
    nested = [not (old & ~new).any() for old, new in zip(epochs, epochs[1:], strict=False)]
    assert all(nested) == (preset == "sparse-unfreezing-cumulative")
    # With dense moments an entry that is released at last makes no jump.
    assert all(param.isfinite().all() for param in params_of(optimizer))


@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
def test_masks_of_a_run_are_nested_while_drop_prob_falls(granularity):
    """period="run" at every granularity, and for units that are chosen by number."""
    selects = ("bernoulli", "exact") if granularity in ("tensor", "layer") else ("bernoulli",)
    for select in selects:
        optimizer = make_preset(
            "random-masking",
            granularity=granularity,
            select=select,
            drop_prob=schedules.Stepwise((0.9, 0.6, 0.3, 0.0), 1),
        )
        before = None
        for step in range(4):
            kept = torch.cat([optimizer.keep_mask(param) for param in params_of(optimizer)])
            assert before is None or not (before & ~kept).any()
            before = kept
            moves(optimizer, step)
        assert before.all()
