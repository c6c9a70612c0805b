"""What follows from AdamW itself when its gradients are masked: each fact prints its number.

Simulated on independent Gaussian gradients, whose scale cancels.
"""

import math

import pytest
import torch

from graddrop.mask import keep_elements, threshold
from graddrop.reference import adamw_step_

N = 1024  # entries, all alike


def simulate(
    n_steps,
    keep_of,
    *,
    site="grad",
    scale=1.0,
    beta2=0.999,
    weight_decay=0.0,
    eps=1e-30,
    grads=None,
):
    """Adam on N entries of Gaussian gradients; returns each step's movement, [n_steps, N]."""
    generator = torch.Generator().manual_seed(0)
    param, exp_avg, exp_avg_sq = (torch.zeros(N, dtype=torch.float64) for _ in range(3))
    moves = torch.empty(n_steps, N, dtype=torch.float64)
    for step in range(n_steps):
        grad = torch.randn(N, generator=generator, dtype=torch.float64)
        before = param.clone()
        adamw_step_(
            param,
            grad if grads is None else grads(step),
            exp_avg,
            exp_avg_sq,
            keep_of(step),
            step=step + 1,
            lr=1.0,
            beta1=0.9,
            beta2=beta2,
            eps=1e-30,
            weight_decay=weight_decay,
            site=site,
            mask_scale=scale,
        )
        moves[step] = param - before
    return moves


def random_keep(drop_prob):
    """A new mask at every step."""
    return lambda step: keep_elements(
        torch.arange(N), stream=0, seed=1, draw=step, drop_threshold=threshold(drop_prob)
    )


def test_rescaling_changes_nothing_at_site_grad():
    """Adam is scale free: 1/q on every gradient cancels, but for eps."""
    plain, scaled = (simulate(60, random_keep(0.5), scale=scale) for scale in (1.0, 2.0))
    difference = (plain.cumsum(0) - scaled.cumsum(0)).abs().max().item()
    print(f"largest difference of the trajectories: {difference:.1e}")
    assert difference < 1e-7
    control = simulate(60, random_keep(0.5), site="update", scale=2.0)
    assert (
        control.cumsum(0) - simulate(60, random_keep(0.5), site="update").cumsum(0)
    ).abs().max() > 1


@pytest.mark.parametrize("drop_prob", [0.1, 0.5, 0.9])
def test_the_step_shrinks_by_the_root_of_the_keep_probability(drop_prob):
    """The drift on a constant signal shrinks by sqrt(q), not by q: match lr before comparing."""
    q = 1 - drop_prob
    signal = 0.05  # small beside the noise, as in fine-tuning

    def drift(keep_of):
        generator = torch.Generator().manual_seed(3)
        moves = simulate(
            1200,
            keep_of,
            grads=lambda _: signal + torch.randn(N, generator=generator, dtype=torch.float64),
        )
        return -moves[600:].mean().item()

    ratio = drift(random_keep(drop_prob)) / drift(lambda _: None)
    print(f"q = {q:.1f}: mean step {ratio:.3f}, sqrt(q) = {math.sqrt(q):.3f}")
    assert ratio == pytest.approx(math.sqrt(q), rel=0.03)
    assert ratio != pytest.approx(q, rel=0.03)


def test_dropped_is_not_frozen():
    """After its last gradient an entry goes on by beta1 / (1 - beta1) = 9 more first moments."""
    n_before, n_after = 300, 60
    moves = simulate(
        n_before + n_after,
        lambda step: torch.full((N,), step < n_before),
        grads=lambda _: torch.ones(N, dtype=torch.float64),
        beta2=0.9999,
    )
    last, residue = moves[n_before - 1, 0].item(), moves[n_before:, 0].sum().item()
    print(f"movement after the last gradient: {residue / last:.2f} steps")
    # sum of 0.9**j, j >= 1, is 9; the second moment fades a little meanwhile
    assert residue / last == pytest.approx(9.0, rel=0.02)
    frozen = simulate(
        n_before + n_after, lambda step: torch.full((N,), step < n_before), site="freeze"
    )
    assert frozen[n_before:].abs().max() == 0  # control: freeze is


def test_weight_decay_moves_what_is_dropped():
    """Decoupled decay goes on where the gradient is dropped, and not under freeze."""
    param = torch.ones(3)
    state = torch.zeros(3), torch.zeros(3)
    hyper = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.5}
    keep = torch.zeros(3, dtype=torch.bool)
    adamw_step_(param, torch.ones(3), *state, keep, **hyper)
    assert torch.equal(param, torch.full((3,), 1 - 0.1 * 0.5))
    adamw_step_(param, torch.ones(3), *state, keep, site="freeze", **hyper)
    assert torch.equal(param, torch.full((3,), 1 - 0.1 * 0.5))


def restart_peak(n_dropped, *, beta2=0.999, site="grad"):
    """Largest step after n_dropped dropped ones, over the ordinary one; constant gradient."""
    tensors = [torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    tensors += [torch.ones(1, dtype=torch.float64) for _ in range(2)]  # moments at rest
    drop, step = torch.zeros(1, dtype=torch.bool), 10**6
    hyper = {"lr": 1.0, "beta1": 0.9, "beta2": beta2, "eps": 1e-30, "weight_decay": 0.0}
    for _ in range(n_dropped):
        adamw_step_(*tensors, drop, step=step, site=site, **hyper)
    moves = []
    for _ in range(80):
        before = tensors[0].item()
        adamw_step_(*tensors, ~drop, step=step, site=site, **hyper)
        moves.append(before - tensors[0].item())
    return max(moves)


@pytest.mark.parametrize(
    ("n_dropped", "peak"), [(439, 1.2), (1544, 2.0), (3125, 3.6), (12272, 6.6)]
)
def test_an_entry_that_comes_back_jumps(n_dropped, peak):
    """v has decayed by beta2**N during N dropped steps: the first steps after are too long."""
    found = restart_peak(n_dropped)
    exact = max(
        (1 - 0.9**j) / math.sqrt(1 - (1 - 0.999**n_dropped) * 0.999**j) for j in range(1, 81)
    )
    print(f"peak after {n_dropped} dropped steps: {found:.2f} x, in closed form {exact:.2f} x")
    assert found == pytest.approx(exact, rel=1e-9)
    assert found == pytest.approx(peak, abs=0.05)


def test_a_shorter_memory_or_freezing_removes_the_jump():
    """beta2 = 0.98 caps the peak at 1.55 x; site="freeze" has none."""
    capped, frozen = restart_peak(12272, beta2=0.98), restart_peak(12272, site="freeze")
    print(f"beta2 = 0.98: {capped:.2f} x, freeze: {frozen:.2f} x")
    assert capped == pytest.approx(1.55, abs=0.01)
    assert frozen == pytest.approx(1.0, abs=1e-9)


def late_release_peak(n_dropped, site):
    """Largest step of an entry that all masks before had dropped, over the ordinary one.

    The gradient is constant, and the tensor's `step` goes on while the entry is dropped.
    """
    param, *moments = (torch.zeros(1, dtype=torch.float64) for _ in range(3))
    keep = torch.ones(1, dtype=torch.bool)
    hyper = {"lr": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-30, "weight_decay": 0.0}
    moves = []
    for step in range(1, n_dropped + 41):
        before = param.item()
        now = keep if step > n_dropped else ~keep
        adamw_step_(param, keep.double(), *moments, now, step=step, site=site, **hyper)
        moves.append(before - param.item())
    assert not any(moves[:n_dropped])
    return max(moves)


@pytest.mark.parametrize("site", ["grad", "update", "freeze"])
@pytest.mark.parametrize(("n_dropped", "peak"), [(0, 1.0), (100, 2.1), (1000, 5.2), (8000, 6.6)])
def test_an_entry_that_is_released_late_jumps(site, n_dropped, peak):
    """It begins with empty moments, of which `step` says that they are full.

    Under site="update" they are: there the moments see every gradient.
    """
    found = late_release_peak(n_dropped, site)
    exact = max(
        (1 - 0.9**j)
        / (1 - 0.9 ** (n_dropped + j))
        * math.sqrt((1 - 0.999 ** (n_dropped + j)) / (1 - 0.999**j))
        for j in range(1, 41)
    )
    print(f"{site}: peak after {n_dropped} dropped steps: {found:.2f} x")
    assert exact == pytest.approx(peak, abs=0.05)
    assert found == pytest.approx(1.0 if site == "update" else exact, rel=1e-9)
