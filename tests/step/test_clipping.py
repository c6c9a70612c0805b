"""Laws of max_grad_norm: one look at the gradients, one factor in the step, none in memory."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.small_runs import (
    SHAPES,
    SMALL,
    assert_same,
    make_grad,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, Shard
from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot

# An fp32 norm has some roundings, the factor too: Adam's update moves by as little.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def norm_of(grads):
    """Norm in float64."""
    return math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))


def assert_close(ours, theirs):
    """Equal but for roundings."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("max_norm", [0.3, 1e6])
def test_it_is_clip_grad_norm_in_the_step(backend, device, max_norm):
    """The same parameters as torch's clipping before the step, and gradients left as they were."""
    ours = make_optimizer(backend, device, SMALL, eps=1e-2, max_grad_norm=max_norm)
    theirs = make_optimizer(backend, device, SMALL, eps=1e-2)
    for step in range(3):
        for optimizer in (ours, theirs):
            set_grads(params_of(optimizer), step)
        expected = torch.nn.utils.clip_grad_norm_(params_of(theirs), max_norm)
        ours.step()
        theirs.step()
        assert float(ours.grad_norm) == pytest.approx(float(expected), rel=1e-6)
        for index, param in enumerate(params_of(ours)):
            assert torch.equal(param.grad, make_grad(param, index, step))
    assert_close(snapshot(ours), snapshot(theirs))
    if max_norm == 1e6:  # the factor is 1: nothing is rounded
        assert_same(snapshot(ours), snapshot(theirs))


@pytest.mark.parametrize("size", [1e-7, 1e-8])
def test_small_norms_are_clipped_as_torch_clips_them(backend, device, size):
    """Beside a norm as small as what keeps its inverse finite, the factor is still torch's."""
    ours = make_optimizer(backend, device, SMALL, eps=size, max_grad_norm=size)
    theirs = make_optimizer(backend, device, SMALL, eps=size)
    for optimizer in (ours, theirs):
        set_grads(params_of(optimizer), 0)
        for param in params_of(optimizer):
            param.grad.mul_(size)
    torch.nn.utils.clip_grad_norm_(params_of(theirs), size)
    for optimizer in (ours, theirs):
        optimizer.step()
    assert_close(snapshot(ours), snapshot(theirs))


def test_clipping_moves_otherwise(backend, device):
    """Control: with an eps that is felt, clipped steps are not the unclipped ones."""
    runs = []
    for max_norm in (0.3, None):
        optimizer = make_optimizer(backend, device, SMALL, eps=1e-2, max_grad_norm=max_norm)
        train(optimizer, 3)
        runs.append(snapshot(optimizer))
    assert not torch.allclose(runs[0][0], runs[1][0], **CLOSE)


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("site", ["grad", "update", "freeze"])
def test_a_masked_norm_is_of_what_enters_the_moments(backend, device, granularity, site):
    """Dropped entries do not count, what is kept counts rescaled; an update's mask drops none."""
    knobs = {"granularity": granularity, "site": site, "rescale": True, "drop_prob": 0.25}
    shapes = SMALL if backend == "triton" and device.type == "cpu" else SHAPES
    ours = make_optimizer(
        backend, device, shapes, max_grad_norm=math.inf, masked_norm=True, **knobs
    )
    for step in range(2):
        set_grads(params_of(ours), step)
        entering = [
            param.grad if site == "update" else ours.keep_mask(param) * param.grad / 0.75
            for param in params_of(ours)
        ]
        everything = norm_of(param.grad for param in params_of(ours))
        ours.step()
        assert float(ours.grad_norm) == pytest.approx(norm_of(entering), rel=1e-6)
        assert site == "update" or float(ours.grad_norm) != pytest.approx(everything, rel=1e-3)


# Infinity times a clipping factor of 0 is the NaN that the test makes on purpose: Triton's
# interpreter computes in NumPy, which warns of it.
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_what_is_dropped_may_be_anything(backend, device):
    """An infinity in a dropped entry stays out of the masked norm, and is in the norm of all."""
    ours = make_optimizer(backend, device, SMALL, max_grad_norm=1.0, masked_norm=True)
    set_grads(params_of(ours), 0)
    for param in params_of(ours):
        param.grad[~ours.keep_mask(param)] = torch.inf
    everything = copy.deepcopy(ours)
    for optimizer in (ours, everything):
        optimizer.masked_norm = optimizer is ours
        for ours_param, param in zip(params_of(ours), params_of(optimizer), strict=True):
            param.grad = ours_param.grad
        optimizer.step()
    assert math.isfinite(ours.grad_norm)
    assert all(tensor.isfinite().all() for tensor in snapshot(ours))
    assert float(everything.grad_norm) == math.inf


# The NaN of infinity times 0 is what is tested; NumPy, in Triton's interpreter, warns of it.
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("masked_norm", [False, True])
def test_norms_that_are_not_finite_do_what_they_do_in_torch(backend, device, value, masked_norm):
    """Beside an infinity finite gradients are 0, momentum goes on; beside a NaN all are NaN."""
    options = {"drop_prob": 0.0, "eps": 1e-2}
    bound = {"max_grad_norm": 1.0, "masked_norm": masked_norm}
    ours = make_optimizer(backend, device, SMALL, **options, **bound)
    theirs = make_optimizer(backend, device, SMALL, **options)
    for step in range(2):
        for optimizer in (ours, theirs):
            set_grads(params_of(optimizer), step)
            if step == 1:
                params_of(optimizer)[0].grad[1, 2:4] = value
        torch.nn.utils.clip_grad_norm_(params_of(theirs), 1.0)
        for optimizer in (ours, theirs):
            optimizer.step()
    assert str(float(ours.grad_norm)) == str(abs(value))
    for a, b in zip(snapshot(ours), snapshot(theirs), strict=True):
        torch.testing.assert_close(a, b, **CLOSE, equal_nan=True)
    n_nan = sum(int(param.isnan().sum()) for param in params_of(ours))
    assert n_nan == (105 if math.isnan(value) else 2)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("scale", [None, 0.25])
def test_gradients_whose_squares_overflow_are_clipped(backend, device, scale):
    """By a factor that is not 0, as torch's in the gradients' own dtype would be."""
    optimizer = make_optimizer(backend, device, SMALL, drop_prob=0.0, max_grad_norm=8.0)
    params = params_of(optimizer)
    set_grads(params, 0)
    for param in params:
        param.grad.mul_(5e37)
    if scale is not None:
        optimizer.grad_scale = torch.tensor([scale], device=device)
    optimizer.step()
    norm = norm_of(param.grad for param in params)
    assert norm > torch.finfo(torch.float32).max
    for param in params:
        clipped = param.grad.double() * (8.0 / norm)
        # of first steps the first moment is a tenth of the gradient
        found = optimizer.state[param]["exp_avg"].double() * 10
        torch.testing.assert_close(found, clipped, rtol=1e-4, atol=0)


def test_norms_of_any_layout_and_dtype(backend, device):
    """Strided, unaligned and 16-bit gradients, and tensors of several kinds in one step."""
    generator = torch.Generator().manual_seed(5)
    grads, params = [], []
    for dtypes in DTYPES.values():
        if backend == "cpu" and torch.float16 in dtypes:
            continue
        whole = torch.randn(13, 38, generator=generator).to(device, dtypes[1])
        for grad in (whole, whole.t(), whole[:, ::2], whole.flatten()[1:450], whole[:0]):
            param = torch.nn.Parameter(torch.zeros(grad.shape, dtype=dtypes[0], device=device))
            param.grad = grad
            grads.append(grad)
            params.append(param)
    ours = FusedGradDropAdamW(params, drop_prob=0.5, max_grad_norm=math.inf, backend=backend)
    ours.step()
    assert float(ours.grad_norm) == pytest.approx(norm_of(grads), rel=1e-6)


# Second moments of such gradients do overflow, in every backend.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_squares_beyond_fp32_are_in_the_norm(backend, device, masked):
    """Gradients up to the largest number have a norm, strided ones and those of bf16 too."""
    whole = torch.linspace(-1, 1, 3000, device=device) * 3e38
    grads = [whole, whole[:1024], whole[:600].view(20, 30).t(), whole.bfloat16(), whole[:5] / 1e18]
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    ours = FusedGradDropAdamW(
        params, drop_prob=0.5, max_grad_norm=math.inf, masked_norm=masked, backend=backend
    )
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    kept = [ours.keep_mask(param) * param.grad if masked else param.grad for param in params]
    ours.step()
    assert float(ours.grad_norm) == pytest.approx(norm_of(kept), rel=1e-6)


def test_one_norm_is_of_all_executors():
    """Parameters of which no one backend serves all: the bound is that of their squares' sum."""
    dtypes = (torch.float32, torch.float64, torch.float16)
    params = [param for dtype in dtypes for param in make_params(((70,), (9,)), dtype)]
    optimizer = FusedGradDropAdamW(params, max_grad_norm=math.inf)
    set_grads(params, 0)
    optimizer.step()
    expected = norm_of(param.grad for param in params)
    assert float(optimizer.grad_norm) == pytest.approx(expected, rel=1e-6)
    if len(optimizer._plan_cache.latest.executors) < 2:
        pytest.skip("the CPU kernel is not built: one executor serves all")


def test_every_partial_sum_counts():
    """A tensor's chunks are added up whatever their number, its neighbours' are not."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from graddrop.kernels.gpu.norm import sum_chunks

    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = [1, 1023, 0, 1024, 1025, 3000]
    partials = torch.rand(sum(counts), dtype=torch.float64, device=device)
    parts = partials.split(counts)
    firsts = torch.tensor([0, *counts]).cumsum(0)[:-1]
    spans = torch.stack([firsts, torch.tensor(counts)], dim=1).to(device, torch.int32)
    squares = torch.empty(len(counts), dtype=torch.float64, device=device)
    factors = torch.ones(len(counts), 8, device=device)
    sum_chunks[(len(counts),)](spans, partials, factors, None, squares, MASKED=False)
    torch.testing.assert_close(squares, torch.stack([part.sum() for part in parts]))


def test_a_norm_follows_gradients_to_another_alignment(backend, device):
    """Each tensor's squares keep the factor of its own group, wherever its gradient lies."""
    drop_probs = (0.0, 0.25, 0.75)
    params = make_params(((64,), (48,), (32,)), device=device)
    groups = [{"params": [p], "drop_prob": q} for p, q in zip(params, drop_probs, strict=True)]
    optimizer = FusedGradDropAdamW(
        groups, rescale=True, max_grad_norm=math.inf, masked_norm=True, backend=backend
    )
    for step, unaligned in enumerate([(), (0,), (0, 2), (1,), ()]):
        set_grads(params, step)
        for index in unaligned:
            room = torch.zeros(params[index].numel() + 1, device=device)[1:]
            params[index].grad = room.copy_(params[index].grad)
        entering = [
            optimizer.keep_mask(param) * param.grad / (1 - drop_prob)
            for param, drop_prob in zip(params, drop_probs, strict=True)
        ]
        optimizer.step()
        assert float(optimizer.grad_norm) == pytest.approx(norm_of(entering), rel=1e-6), step


@pytest.mark.parametrize("size", [1, 100, 128, 500, 513, 600, 700, 1000, 1023, 1600])
def test_a_masked_norm_of_any_size(backend, device, size):
    """A vector may end anywhere in a block, in either half of a tile."""
    optimizer = make_optimizer(
        backend, device, ((size,),), max_grad_norm=math.inf, masked_norm=True
    )
    (param,) = params_of(optimizer)
    set_grads([param], 0)
    kept = optimizer.keep_mask(param) * param.grad
    optimizer.step()
    assert float(optimizer.grad_norm) == pytest.approx(norm_of([kept]), rel=1e-6)


@pytest.mark.parametrize("begin", [0, 1, 127, 500, 513, 1000])
@pytest.mark.parametrize("size", [1, 40, 200, 1300])
def test_a_masked_norm_of_any_shard(backend, device, begin, size):
    """Local entries meet the bits of their own places, wherever in a block they begin."""
    shard = Shard((4096,), (begin,))
    slot = random_slot((size,), seed=0, shard=shard, device=device)
    knobs = make_knobs(drop_prob=0.5)
    executor = make_executor(backend, [slot], [knobs], device)
    executor.set_grads([slot.grad])
    executor.begin([knobs], torch.zeros(2, dtype=torch.int64, device=device), None, None)
    whole = {"stream_id": 0, "layer": None, "shard": None, "draw": 0, "device": device}
    keep = knobs.keep_mask((4096,), **whole)[begin : begin + size]
    (squares,) = executor.grad_squares(masked=True)
    assert float(squares) ** 0.5 == pytest.approx(norm_of([keep * slot.grad]), rel=1e-6)


def test_a_loss_scale_is_taken_out(backend, device):
    """grad_norm and the bound are of the gradients without the scale that they carry."""
    ours = make_optimizer(backend, device, SMALL, eps=1e-2, max_grad_norm=0.3)
    plain = make_optimizer(backend, device, SMALL, eps=1e-2, max_grad_norm=0.3)
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
    for masked in (False, True):
        for optimizer in (ours, plain):
            optimizer.masked_norm = masked
            set_grads(params_of(optimizer), 0)
        for param in params_of(ours):
            param.grad = scaler.scale(param.grad)
        scaler.step(ours)
        scaler.update()
        plain.step()
        torch.testing.assert_close(ours.grad_norm, plain.grad_norm, rtol=1e-6, atol=0)
        assert_close(snapshot(ours), snapshot(plain))


def test_the_norm_is_the_same_for_any_number_of_threads():
    """The CPU kernel adds up in one order, whoever computed the parts."""
    norms = set()
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            optimizer = make_optimizer("cpu", shapes=((301, 1027),), max_grad_norm=1.0)
            train(optimizer, 1)
            norms.add(float(optimizer.grad_norm))
    finally:
        torch.set_num_threads(threads)
    assert len(norms) == 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm: 0.0: expected a number > 0"),
        ({"max_grad_norm": -1}, ValueError, "expected a number > 0"),
        ({"max_grad_norm": math.nan}, ValueError, "expected a number > 0"),
        ({"max_grad_norm": "1"}, TypeError, "expected a number > 0"),
        ({"max_grad_norm": 1.0, "masked_norm": 1}, TypeError, "masked_norm: 1: expected a bool"),
        ({"max_grad_norm": 1.0, "norm_group": 0}, TypeError, "norm_group: 0: expected a process"),
        ({"masked_norm": "yes"}, TypeError, "masked_norm: 'yes': expected a bool"),
        ({"norm_group": "gloo"}, TypeError, "norm_group: 'gloo': expected a process"),
    ],
)
def test_bad_bounds_are_refused(arguments, error, message):
    """At construction, and at the step if they are set later: nothing has changed then."""
    with pytest.raises(error, match=message):
        make_optimizer(**arguments)
    optimizer = make_optimizer()
    train(optimizer, 1)
    before = snapshot(optimizer)
    for name, value in arguments.items():
        setattr(optimizer, name, value)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_a_step_without_gradients_has_no_norm(backend, device):
    """Nothing to measure: None, and no error."""
    optimizer = make_optimizer(backend, device, SMALL, max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm is None


def test_which_norm_says_nothing_until_there_is_a_bound():
    """masked_norm alone measures and clips nothing; it counts from the step that has a bound."""
    alone, plain = make_optimizer(masked_norm=True), make_optimizer()
    for each in (alone, plain):
        train(each, 2)
        assert each.grad_norm is None
    assert_same(snapshot(alone), snapshot(plain))
    for each in (alone, plain):
        each.max_grad_norm = 0.1
        train(each, range(2, 3))
    assert 0 < alone.grad_norm < plain.grad_norm


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("masked_norm", [False, True])
def test_an_infinite_bound_measures_and_does_not_clip(backend, device, value, masked_norm):
    """Gradients that are not finite meet no factor: all others step as without a bound."""
    options = {"max_grad_norm": math.inf, "masked_norm": masked_norm, "drop_prob": 0.0}
    measured = make_optimizer(backend, device, SMALL, **options)
    plain = make_optimizer(backend, device, SMALL, drop_prob=0.0)
    clipped = make_optimizer(backend, device, SMALL, **(options | {"max_grad_norm": 1.0}))
    for optimizer in (measured, plain, clipped):
        params = params_of(optimizer)
        set_grads(params, 0)
        params[0].grad.fill_(value)
        with np.errstate(all="ignore"):  # which the interpreter computes with
            optimizer.step()
    assert not measured.grad_norm.isfinite()
    assert_same(snapshot(measured), snapshot(plain))
    assert snapshot(measured)[4].isfinite().all()
    # control: a finite bound takes the others' steps away, or turns them to NaN
    assert not torch.equal(snapshot(clipped)[4], snapshot(plain)[4])
