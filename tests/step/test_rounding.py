"""Laws of stochastic rounding: unbiased, the same bits everywhere, never in the mask's way."""

import pytest
import torch
from helpers.small_runs import (
    assert_same,
    differs,
    make_optimizer,
    make_params,
    params_of,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, graddrop_adamw_
from graddrop.mask import ROUNDING_STREAM, random_u16
from graddrop.reference import round_to_bfloat16
from graddrop.testing import BF16, F16, F32

# Around tiles, unaligned, strided later; small enough for the interpreter.
SHAPES = ((5, 7), (1030,), (6, 4))


def run(backend, device, steps=3, dtype=BF16, loaded=False, **knobs):
    """Parameters and state after some steps with stochastic rounding, and masks that are loaded."""
    knobs = {"stochastic_rounding": True} | knobs
    optimizer = make_optimizer(backend, device, SHAPES, dtype, **knobs)
    if loaded:
        generator = torch.Generator().manual_seed(0)
        keeps = [torch.rand(shape, generator=generator) < 0.5 for shape in SHAPES]
        optimizer.load_masks(dict(zip(params_of(optimizer), keeps, strict=True)))
    train(optimizer, steps)
    return snapshot(optimizer)


def test_rounding_goes_to_a_neighbour_and_is_unbiased():
    """Of all 65536 words, as many round up as the value is above its lower neighbour."""
    bits = torch.arange(65536)
    for value in (1.0 + 1 / 1024, -3.0e-5, 1.7, 1e30, 1e-39):
        rounded = round_to_bfloat16(torch.full((65536,), value), bits)
        low, high = sorted(set(rounded.tolist()))
        assert rounded.double().mean().item() == pytest.approx(
            torch.tensor(value).double().item(), rel=1e-12
        )
        assert low < value < high
        nearest = torch.tensor(value).to(BF16).item()
        assert nearest in (low, high)
        assert rounded.double().mean() != nearest  # control: rounding to nearest is biased


def test_exact_and_endless_values_stay():
    """What bfloat16 holds is never moved; infinities and NaN stay what they are."""
    exact = torch.tensor([0.0, -0.0, 1.5, -(2.0**-130), 3.0e38, torch.inf, -torch.inf, torch.nan])
    exact = exact.to(BF16)
    for word in (0, 1, 65535):
        rounded = round_to_bfloat16(exact.float(), torch.full((8,), word))
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0, equal_nan=True)


def test_ties_go_to_even(backend, device):
    """Without random bits a value in the middle between two numbers becomes the even one."""
    if backend == "triton" and device.type == "cpu":
        pytest.skip("stored by Triton's interpreter, which cuts off")
    numbers = (1 + torch.arange(128) / 128).to(BF16)
    param = torch.nn.Parameter(numbers.to(device))
    optimizer = FusedGradDropAdamW(  # of which a first step is lr to the last bit
        [param], lr=2.0**-8, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, drop_prob=0.0,
        backend=backend,
    )  # fmt: skip
    param.grad = torch.ones_like(param)
    optimizer.step()
    mantissas = ((param.detach().cpu().double() - 1) * 128)[2:]
    assert mantissas.tolist() == [k - k % 2 for k in range(2, 128)]


# Quiet and signalling ones of either sign, the least and the greatest payload: those that a carry
# would turn into infinity, zero, or a number.
NANS = (0x7F800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF)


# Triton's interpreter computes in NumPy, which speaks of signalling ones.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("moments", [F32, BF16])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("bits", NANS, ids=hex)
def test_every_nan_stays_one(backend, device, bits, stochastic, moments):
    """In bfloat16 parameters and moments, rounded at random or to nearest."""
    if backend == "triton" and device.type == "cpu" and not (stochastic and moments == F32):
        pytest.skip("stored by Triton's interpreter, whose rounding is its own")
    param = torch.nn.Parameter(torch.ones(1300, dtype=BF16, device=device))
    param.grad_dtype = None  # any
    optimizer = FusedGradDropAdamW(
        [param],
        drop_prob=0.0,
        stochastic_rounding=stochastic,
        state_dtype=moments,
        backend=backend,
    )
    words = torch.full((1300,), bits, dtype=torch.int64).to(torch.int32)
    param.grad = words.view(F32).to(device)
    optimizer.step()
    state = optimizer.state[param]
    assert all(t.isnan().all() for t in (param, state["exp_avg"], state["exp_avg_sq"]))


@pytest.mark.parametrize(
    "knobs", [{}, {"drop_prob": 0.0}, {"granularity": "row"}, {"loaded": True}], ids=str
)
@pytest.mark.parametrize("site", ["grad", "update", "freeze"])
def test_every_backend_rounds_with_the_same_bits(backend, device, site, knobs):
    """Parameters differ from the reference's in a few roundings, those of moments' last places."""
    ours = run(backend, device, site=site, **knobs)
    reference = run("reference", "cpu", site=site, **knobs)
    nearest = run("reference", "cpu", site=site, **knobs, stochastic_rounding=False)

    def share_that_differs(a, b):
        params = [(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True) if x.dtype == BF16]
        return torch.cat([(x != y).flatten() for x, y in params]).float().mean()

    assert share_that_differs(ours, reference) < 0.01
    assert share_that_differs(nearest, reference) > 0.1  # control: the bits matter


@pytest.mark.parametrize("steps_finished", [0, 7, (1 << 32) + 7])
def test_the_bits_are_those_of_the_contract(backend, device, steps_finished):
    """Element rule, stream id + 3 * 2**30, draw = steps finished: recomputed here by hand.

    Draws have 32 bits and begin anew.
    """
    param = torch.nn.Parameter(torch.ones(1100, dtype=BF16, device=device))
    optimizer = FusedGradDropAdamW(
        [{"params": [param], "stream_ids": [9]}],
        lr=2.0**-10,  # an eighth of the distance to the next lower bfloat16 at 1
        weight_decay=0.0,
        drop_prob=0.0,
        seed=11,
        stochastic_rounding=True,
        backend=backend,
    )
    optimizer.param_groups[0]["steps_finished"] = steps_finished
    param.grad = torch.ones_like(param)
    optimizer.step()
    draw = steps_finished % (1 << 32)
    bits = random_u16(torch.arange(1100), stream=ROUNDING_STREAM + 9, seed=11, draw=draw)
    # 1 - lr lies at 3/4 between its neighbours 1 - 2**-8 and 1
    assert torch.equal(param.detach().cpu() == 1, bits >= 16384)


@pytest.mark.parametrize("of", ["param", "grad", "both"])
def test_any_layout_rounds_with_the_same_bits(backend, device, of):
    """An entry's bits are those of its index, wherever in memory it lies."""
    runs = []
    for odd in ("", of):
        (param,) = make_params([(9, 70)], BF16, device)
        if odd in ("param", "both"):
            param = torch.nn.Parameter(param.detach().t().contiguous().t())
        optimizer = FusedGradDropAdamW([param], stochastic_rounding=True, backend=backend)
        for step in range(2):
            grad = torch.randn(9, 70, generator=torch.Generator().manual_seed(step))
            param.grad = grad.to(device, BF16)
            if odd in ("grad", "both"):
                param.grad = param.grad.t().contiguous().t()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_a_shard_rounds_as_the_whole(device, backend):
    """Row 3 on, stepped alone, is rounded as in the whole parameter."""
    import graddrop

    whole = make_params([(7, 300)], BF16, device)[0].detach()
    grad = torch.randn(7, 300, generator=torch.Generator().manual_seed(2)).to(device, BF16)

    def step(part, place):
        state = [torch.zeros(part.shape, dtype=F32, device=device) for _ in range(2)]
        counter = torch.zeros((), device=device)
        graddrop_adamw_(
            [part], [grad[place].clone()], [state[0]], [state[1]], [counter],
            lr=1e-3, draw=4, stream_ids=[1], stochastic_rounding=True, backend=backend,
            shards=[graddrop.Shard((7, 300), (place.start, 0))],
        )  # fmt: skip
        return part

    ours = step(whole[3:].clone(), slice(3, 7))
    theirs = step(whole.clone(), slice(0, 7))[3:]
    assert (ours != theirs).float().mean() <= (0 if backend != "reference" else 0.01)


def test_small_steps_add_up(backend, device):
    """A hundred steps, each far below half a place of bfloat16, move the mean by their sum."""
    moved = {}
    for stochastic in (True, False):
        param = torch.nn.Parameter(torch.ones(2048, dtype=BF16, device=device))
        optimizer = FusedGradDropAdamW(
            [param],
            lr=1e-4,
            weight_decay=0.0,
            drop_prob=0.0,
            stochastic_rounding=stochastic,
            backend=backend,
        )
        param.grad = torch.ones_like(param)
        for _ in range(20 if backend == "triton" and device.type == "cpu" else 100):
            optimizer.step()
        n_steps = int(optimizer.state[param]["step"])
        moved[stochastic] = (1 - param.detach().double().mean().item()) / (n_steps * 1e-4)
    # n steps of lr / 2**-8 places: the mean over 2048 entries is off by 3 standard errors at most
    error = (2.0**-8 / (n_steps * 1e-4)) * (n_steps * 1e-4 / 2.0**-8 / 2048) ** 0.5
    assert abs(moved[True] - 1) < 3 * error
    if not (backend == "triton" and device.type == "cpu"):  # Triton's interpreter cuts off
        assert moved[False] == 0  # control: to nearest, nothing ever moves


def test_dropped_entries_stay(backend, device):
    """Where site="update" or "freeze" drops, the parameter keeps every bit."""
    for site in ("update", "freeze"):
        optimizer = make_optimizer(
            backend, device, SHAPES, BF16, site=site, stochastic_rounding=True
        )
        keeps = [optimizer.keep_mask(param) for param in params_of(optimizer)]
        before = [param.detach().clone() for param in params_of(optimizer)]
        train(optimizer, 1)
        for keep, old, param in zip(keeps, before, params_of(optimizer), strict=True):
            assert torch.equal(param[~keep], old[~keep])


def test_bits_are_new_while_a_mask_lives(backend, device):
    """With one mask for an epoch the rounding still draws anew at each step."""
    runs = [
        run(backend, device, steps=3, period="epoch", drop_prob=0.0, seed=seed) for seed in (1, 2)
    ]
    assert differs(*runs)
    param = torch.nn.Parameter(torch.ones(4096, dtype=BF16, device=device))
    optimizer = FusedGradDropAdamW(
        [param], lr=2.0**-10, weight_decay=0.0, period="epoch", drop_prob=0.0,
        stochastic_rounding=True, backend=backend,
    )  # fmt: skip
    param.grad = torch.ones_like(param)
    went_down = []
    for _ in range(2):
        with torch.no_grad():
            param.fill_(1)
        optimizer.step()
        went_down.append(param.detach() != 1)
    both = (went_down[0] & went_down[1]).float().mean().item()
    assert both == pytest.approx(1 / 16, abs=0.02)  # independent; the same bits would give 1/4


@pytest.mark.parametrize("dtype", [F32, F16])
def test_other_dtypes_are_stored_as_always(dtype):
    """The switch speaks of bfloat16 parameters alone."""
    plain = run("reference", "cpu", dtype=dtype, stochastic_rounding=False)
    assert_same(run("reference", "cpu", dtype=dtype), plain)
