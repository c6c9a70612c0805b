"""Laws of the step in plain torch: the definition that judges the kernels."""

import pytest
import torch

from graddrop.reference import (
    INITIAL_ALIGNMENT,
    SITES,
    adamw_step_,
    moment_dots,
    next_alignment,
)

HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.05}


def _state(shape=(37, 5), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    param = torch.randn(shape, generator=generator).to(dtype)
    grads = [torch.randn(shape, generator=generator).to(dtype) for _ in range(6)]
    return param, grads, torch.zeros_like(param), torch.zeros_like(param)


def _torch_adamw(param, grads, **options):
    param = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.AdamW(
        [param],
        lr=HYPER["lr"],
        betas=(HYPER["beta1"], HYPER["beta2"]),
        eps=HYPER["eps"],
        weight_decay=HYPER["weight_decay"],
        foreach=False,
        **options,
    )
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_a_mask_it_is_adamw_to_the_last_bit(dtype, maximize):
    """Same operations in the same order as torch.optim.AdamW: equal, not close."""
    param, grads, exp_avg, exp_avg_sq = _state(dtype=dtype)
    expected, state = _torch_adamw(param, grads, maximize=maximize)
    for step, grad in enumerate(grads, start=1):
        factor = -1.0 if maximize else 1.0
        adamw_step_(param, grad, exp_avg, exp_avg_sq, None, step=step, grad_factor=factor, **HYPER)
    assert torch.equal(param, expected)
    assert torch.equal(exp_avg, state["exp_avg"])
    assert torch.equal(exp_avg_sq, state["exp_avg_sq"])


def test_keeping_all_is_no_mask():
    """A mask of ones changes no bit, at every site."""
    keep = torch.ones(37, 5, dtype=torch.bool)
    for site in SITES:
        results = []
        for mask in (None, keep):
            param, grads, exp_avg, exp_avg_sq = _state()
            for step, grad in enumerate(grads, start=1):
                adamw_step_(param, grad, exp_avg, exp_avg_sq, mask, step=step, site=site, **HYPER)
            results.append((param, exp_avg, exp_avg_sq))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_site_grad_is_torch_fed_with_masked_gradients(scale):
    """site="grad": AdamW of k s g, to the last bit."""
    param, grads, exp_avg, exp_avg_sq = _state()
    masks = [torch.rand(37, 5, generator=torch.Generator().manual_seed(i)) > 0.4 for i in range(6)]
    masked = [torch.where(k, g * scale, 0.0) for k, g in zip(masks, grads, strict=True)]
    expected, _ = _torch_adamw(param, masked)
    for step, (grad, keep) in enumerate(zip(grads, masks, strict=True), start=1):
        adamw_step_(param, grad, exp_avg, exp_avg_sq, keep, step=step, mask_scale=scale, **HYPER)
    assert torch.equal(param, expected)


@pytest.mark.parametrize("mask_decay", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_site_update_moves_only_what_is_kept_on_dense_moments(mask_decay, scale):
    """site="update": moments are AdamW's; dropped entries stay, or only decay."""
    param, grads, exp_avg, exp_avg_sq = _state()
    before, keep = param.clone(), torch.rand(37, 5) > 0.5
    dense, state = _torch_adamw(param, grads[:1])
    adamw_step_(
        param,
        grads[0],
        exp_avg,
        exp_avg_sq,
        keep,
        step=1,
        site="update",
        mask_decay=mask_decay,
        mask_scale=scale,
        **HYPER,
    )
    assert torch.equal(exp_avg, state["exp_avg"]) and torch.equal(exp_avg_sq, state["exp_avg_sq"])
    decayed = before * (1 - HYPER["lr"] * HYPER["weight_decay"])
    assert torch.equal(param[~keep], (before if mask_decay else decayed)[~keep])
    moved = decayed + scale * (dense - decayed)
    assert torch.allclose(param[keep], moved[keep], rtol=0, atol=5e-7)  # one rounding of 4.0
    assert not torch.equal(param[keep], before[keep])


def test_site_freeze_changes_nothing_where_dropped():
    """site="freeze": parameter and both moments of a dropped entry keep their bits."""
    param, grads, exp_avg, exp_avg_sq = _state()
    adamw_step_(param, grads[0], exp_avg, exp_avg_sq, None, step=1, **HYPER)
    before = [t.clone() for t in (param, exp_avg, exp_avg_sq)]
    free = [t.clone() for t in before]
    keep = torch.rand(37, 5) > 0.5
    adamw_step_(param, grads[1], exp_avg, exp_avg_sq, keep, step=2, site="freeze", **HYPER)
    adamw_step_(*free[:1], grads[1], *free[1:], None, step=2, **HYPER)
    for after, old, new in zip((param, exp_avg, exp_avg_sq), before, free, strict=True):
        assert torch.equal(after, torch.where(keep, new, old))
        assert not torch.equal(new[~keep], old[~keep])  # control: they would have moved


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_dropped_nan_stays_out(poison):
    """Dropped means selected away: 0 * nan would be nan."""
    param, grads, exp_avg, exp_avg_sq = _state()
    keep = torch.rand(37, 5) > 0.5
    for site in ("grad", "freeze"):
        grad = torch.where(keep, grads[0], poison)
        adamw_step_(param, grad, exp_avg, exp_avg_sq, keep, step=1, site=site, **HYPER)
        assert all(t.isfinite().all() for t in (param, exp_avg, exp_avg_sq))
    adamw_step_(param, grad, exp_avg, exp_avg_sq, None, step=2, **HYPER)
    assert not param.isfinite().all()  # control: undropped, it gets in


def test_arithmetic_of_bf16_is_in_fp32():
    """bf16 tensors are widened once and rounded once: the fp32 step of the same values."""
    param, grads, _, _ = _state(dtype=torch.bfloat16)
    moments = [torch.zeros(37, 5), torch.zeros(37, 5)]
    wide = [t.float().clone() for t in (param, *moments)]
    adamw_step_(param, grads[0], *moments, None, step=1, **HYPER)
    adamw_step_(wide[0], grads[0].float(), *wide[1:], None, step=1, **HYPER)
    assert torch.equal(param, wide[0].to(torch.bfloat16))
    assert torch.equal(moments[0], wide[1]) and torch.equal(moments[1], wide[2])


def test_an_unknown_site_is_named_before_anything_changes():
    """The error says what was expected, and the tensors are as they were."""
    param, grads, exp_avg, exp_avg_sq = _state()
    before = param.clone()
    with pytest.raises(ValueError, match="Invalid site: 'weights'.*grad"):
        adamw_step_(param, grads[0], exp_avg, exp_avg_sq, None, step=1, site="weights", **HYPER)
    assert torch.equal(param, before)


def test_an_alignment_is_the_mean_of_what_cosines_say():
    """Magma's scale by torch's own cosine and sigmoid; shards of a tensor add up their products."""
    _, grads, exp_avg, _ = _state()
    alignment = torch.tensor(INITIAL_ALIGNMENT)
    for step, grad in enumerate(grads):
        dots = sum(map(moment_dots, grad.split(10), exp_avg.split(10)))
        cosine = torch.cosine_similarity(grad.flatten(), exp_avg.flatten(), dim=0)
        expected = 0.9 * alignment + 0.1 * torch.sigmoid(cosine / 2)
        alignment = next_alignment(alignment, dots)
        assert float(alignment) == pytest.approx(float(expected), abs=1e-7)
        assert (step == 0) == (alignment == 0.5)  # a first moment of zero has no direction
        exp_avg = exp_avg.lerp(grad, 0.1)
    turned = next_alignment(alignment, moment_dots(grad, exp_avg, grad_factor=-1.0))
    assert turned < next_alignment(alignment, moment_dots(grad, exp_avg))  # control: it has a sign


def test_alignments_stay_where_agreement_leads():
    """From 1/2 on, between sigmoid(-1/2) and sigmoid(1/2), which full agreement comes to."""
    ones = torch.ones(3, dtype=torch.float64)
    found = torch.full((2,), INITIAL_ALIGNMENT)
    for _ in range(300):
        found = next_alignment(found, torch.stack([ones, ones * torch.tensor([1.0, -1.0, 1.0])]))
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([0.5, -0.5])))


@pytest.mark.parametrize("zero", [0, 2])
def test_what_has_no_direction_is_at_right_angles(zero):
    """A zero gradient, or moment, has the cosine 0, not NaN; other numbers make their own."""
    dots = torch.ones(3, dtype=torch.float64)
    dots[[1, zero]] = 0
    assert next_alignment(torch.tensor(0.5), dots) == 0.5
    assert next_alignment(torch.tensor(0.5), dots * torch.inf).isnan()
