"""Laws of the Triton kernels against the reference: in the interpreter, or on a GPU.

Masks are compared bit for bit: under ``site="freeze"`` a dropped entry keeps its bits and a kept
one does not. Numbers are compared as updates, against the step in float64.
"""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.kernel_steps import (
    channels_last,
    every_second,
    judge_step,
    relaid,
    transposed,
    unaligned,
)

from graddrop import testing
from graddrop.mask import Shard, keep_mask
from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot

pytest.importorskip("triton", reason="Triton is not installed")
from graddrop.kernels.gpu import launch, launches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = testing.INTERPRETED if launch.interpreted() else testing.FP32_ARITHMETIC
SITES = {
    "grad": {"site": "grad"},
    "update": {"site": "update"},
    "update, all decay": {"site": "update", "mask_decay": False},
    "freeze": {"site": "freeze"},
}
# 0, 1, both sides of a tile, an odd one of two tiles, one with full chunks; matrices with rows that
# are and are not multiples of four, a vector of one-entry rows, a scalar
SHAPES = [(0,), (1,), (1023,), (1024,), (1025,), (2051,), (9, 20), (13, 7), (50, 1), ()]

pytestmark = pytest.mark.gpu


def executor_of(slots, knobs):
    """The executor of the kernels."""
    return make_executor("triton", slots, knobs, DEVICE)


def step(slots, knobs, counters=(0, 0), **scaling):
    """One step of slots; returns the counters afterwards."""
    counters = torch.tensor(counters, dtype=torch.int64, device=DEVICE)
    scaling = {"grad_scale": None, "found_inf": None} | scaling
    executor = executor_of(slots, knobs)
    executor.begin(knobs, counters, **scaling)
    executor.step(None)
    return counters.tolist()


def slots_of(shapes, dtypes=DTYPES["fp32"], **options):
    """One random tensor of each shape, every stream and three layers among them."""
    return [
        random_slot(shape, dtypes, seed=i, stream_id=i, layer=i % 3, device=DEVICE, **options)
        for i, shape in enumerate(shapes)
    ]


assert_step_is_the_reference = partial(judge_step, step, TOLERANCE)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
def test_a_step_is_the_reference(dtypes, site, granularity):
    """dtype x site x granularity, over a mix of sizes in one launch per signature."""
    knobs = make_knobs(granularity=granularity, rescale=True, **SITES[site])
    assert_step_is_the_reference(slots_of(SHAPES, DTYPES[dtypes]), [knobs], counters=(5, 0))


@pytest.mark.parametrize("drop_prob", [0.0, 1 / 65536, 0.1, 0.5, 0.9, 1.0])
def test_every_drop_prob(drop_prob):
    """From exempt to everything dropped."""
    for site in ("grad", "freeze"):
        knobs = make_knobs(drop_prob=drop_prob, site=site)
        assert_step_is_the_reference(slots_of([(1500,), (37,)]), [knobs])


def test_maximize_and_zero_betas():
    """The sign of the gradient, and beta = 0, whose logarithm is infinite."""
    knobs = make_knobs(maximize=True, beta1=0.0, beta2=0.0)
    assert_step_is_the_reference(slots_of([(1500,)]), [knobs])


@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.49, 0.5, 0.51])
def test_the_first_moment_loses_neither_of_its_ends(beta1):
    """A gradient of 1 beside a moment of 1e8 counts by its weight, which at beta1 = 0 is all."""
    (slot,) = slots_of([(1300,)])
    slot.exp_avg.mul_(1e9)
    assert_step_is_the_reference([slot], [make_knobs(beta1=beta1, drop_prob=0.0)])
    assert torch.equal(slot.exp_avg, slot.grad) == (beta1 == 0)


# Lanes out of bounds divide zeros.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("eps", [0.0, 1e-30])
def test_tiny_gradients_take_whole_steps(eps):
    """Second moments that are subnormal have roots: without eps a first step is lr, whatever g."""
    (slot,) = slots_of([(1300,)], steps=0)
    for tensor in (slot.param, slot.exp_avg, slot.exp_avg_sq):
        tensor.zero_()
    slot.grad.sign_().mul_(1e-20)
    step([slot], [make_knobs(eps=eps, lr=1.0, weight_decay=0.0, drop_prob=0.0)])
    # 1e-43, the second moment, is a whole number of 71 units.
    assert torch.allclose(slot.param, -slot.grad.sign(), rtol=0.5 / 71 + 1e-5, atol=0)


# Lanes out of bounds divide zeros.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("eps", [1e-8, 1e-39, 1e-45])
def test_who_never_had_a_gradient_stands_still(eps):
    """Zero over any eps that fp32 holds is zero, over a subnormal one too."""
    (slot,) = slots_of([(1300,)], steps=0)
    for tensor in (slot.grad, slot.exp_avg, slot.exp_avg_sq):
        tensor.zero_()
    before = slot.param.clone()
    step([slot], [make_knobs(eps=eps, lr=1.0, weight_decay=0.0, drop_prob=0.0)])
    assert torch.equal(slot.param, before)


def decaying(slots, **changes):
    """Make each kept entry halve, and nothing else: a mask that can be read off, in any dtype."""
    for slot in slots:
        slot.grad.zero_()
        slot.exp_avg.zero_()
    return make_knobs(site="freeze", lr=1.0, weight_decay=0.5, **changes)


def kept_bits(slot, before):
    """Which entries moved, as those do that are kept."""
    return slot.param.detach() != before


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_masks_are_the_contract_bit_for_bit(granularity, dtypes):
    """What moves under freeze is exactly what graddrop.mask keeps."""
    shapes = [(4099,), (33, 36), (33, 35)]
    slots = slots_of(shapes, DTYPES[dtypes])
    knobs = decaying(slots, granularity=granularity)
    befores = [slot.param.clone() for slot in slots]
    step(slots, [knobs], counters=(7, 0))
    for slot, before in zip(slots, befores, strict=True):
        expected = keep_mask(
            tuple(slot.param.shape),
            granularity=granularity,
            stream_id=slot.stream_id,
            layer=None,
            seed=knobs.seed,
            draw=7,
            drop_prob=knobs.drop_prob,
            device=DEVICE,
        )
        assert torch.equal(kept_bits(slot, before), expected)
        assert not torch.equal(expected, expected.flip(0))  # control: the comparison can fail


@pytest.mark.parametrize(
    ("row_size", "first_row"),
    [(256, 0), (512, 510), (768, 1021), (1280, 2**33 + 1022), (2304, 3)],
)
def test_long_rows_draw_what_other_rows_draw(row_size, first_row):
    """Rows of a multiple of 256 entries share a call by four: the contract's decisions, any row."""
    shard = Shard((2**34, row_size), (first_row, 0))
    slot = random_slot((9, row_size), seed=0, shard=shard, device=DEVICE)
    before = slot.param.clone()
    knobs = decaying([slot], granularity="row", drop_prob=0.5)
    step([slot], [knobs], counters=(3, 0))
    expected = knobs.keep_mask(
        (9, row_size), stream_id=0, layer=None, shard=shard, draw=3, device=DEVICE
    )
    assert torch.equal(kept_bits(slot, before), expected)
    assert 0 < expected.float().mean() < 1  # control: the comparison can fail


@pytest.mark.parametrize(
    ("period", "counters", "draw"), [(1, (9, 4), 9), (4, (9, 4), 2), (0, (9, 4), 4)]
)
def test_the_draw_follows_the_period(period, counters, draw):
    """Steps finished, that // K, or masks begun by hand: computed on the device."""
    (slot,) = slots_of([(1200,)])
    before = slot.param.clone()
    knobs = decaying([slot], period=period)
    step([slot], [knobs], counters)
    key = {"granularity": "element", "stream_id": 0, "layer": None, "drop_prob": 0.3}
    moved = kept_bits(slot, before)
    assert torch.equal(moved, keep_mask((1200,), seed=knobs.seed, draw=draw, device=DEVICE, **key))
    assert not torch.equal(
        moved, keep_mask((1200,), seed=knobs.seed, draw=draw + 1, device=DEVICE, **key)
    )


@pytest.mark.parametrize("begin", [16, 1024 - 16, 1000, 7, 2**31 - 500, 2**32 + 1, 2**35 + 16])
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_a_shard_steps_as_part_of_the_whole(begin, dtypes):
    """Any first element, aligned or not, beyond 2**31 and 2**32 too: 64-bit offsets."""
    shard = Shard((2**36,), (begin,))
    slots = [random_slot((1300,), DTYPES[dtypes], seed=0, shard=shard, device=DEVICE)]
    assert_step_is_the_reference(slots, [make_knobs(site="freeze")])


@pytest.mark.parametrize("site", ["grad", "freeze"])
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_a_cut_changes_no_bit(dtypes, site, monkeypatch):
    """Main loop or edge of a chunk of any size, aligned or not, strided: the same result."""
    n, begin = 16 * 1024 + 700, 5003
    (whole,) = slots_of([(n,)], DTYPES[dtypes])
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    parts = {name: getattr(whole, name)[begin:].clone() for name in names}
    shard = replace(whole, **parts, step=whole.step.clone(), shard=Shard((n,), (begin,)))
    moved = {name: unaligned(getattr(whole, name)) for name in names}
    shifted = replace(whole, **moved, step=whole.step.clone())
    spread = {name: every_second(getattr(whole, name)) for name in names}
    strided = replace(whole, **spread, step=whole.step.clone())
    for slot, tiles in ((whole, 16), (shard, 3), (shifted, 1), (strided, 16)):
        monkeypatch.setattr(launches, "tiles_per_chunk", lambda n_tiles, processors: tiles)  # noqa: B023
        step([slot], [make_knobs(drop_prob=0.3, **SITES[site])])
    for name in ("param", "exp_avg", "exp_avg_sq"):
        values = getattr(whole, name)
        assert torch.equal(getattr(shard, name), values[begin:])
        assert torch.equal(getattr(shifted, name), values)
        assert torch.equal(getattr(strided, name), values)


def test_a_block_of_a_matrix_steps_as_part_of_the_whole():
    """A shard that is no contiguous range of the parameter: dimension 1, and rows of it."""
    for offset, shape in (((0, 24), (40, 8)), ((10, 3), (5, 11))):
        for granularity in ("element", "row"):
            slot = random_slot(shape, seed=0, shard=Shard((40, 32), offset), device=DEVICE)
            knobs = make_knobs(granularity=granularity, site="freeze")
            assert_step_is_the_reference([slot], [knobs])


LAYOUTS = {
    "transposed": ((30, 45), (transposed,) * 3),
    "transposed gradient": ((30, 45), (torch.clone, transposed, torch.clone)),
    "transposed parameter": ((30, 45), (transposed, torch.clone, torch.clone)),
    "channels last": ((6, 4, 5, 3), (channels_last,) * 3),
    "channels last gradient": ((6, 4, 5, 3), (torch.clone, channels_last, torch.clone)),
    "every second entry": ((7, 50), (every_second, torch.clone, torch.clone)),
    "unaligned": ((1300,), (unaligned,) * 3),
    "unaligned gradient": ((1300,), (torch.clone, unaligned, torch.clone)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", ["element", "row"])
def test_any_layout_steps_alike(layout, granularity):
    """Strides and alignment decide where an entry lies, never which bits it has."""
    shape, layouts = LAYOUTS[layout]
    slot = relaid(random_slot(shape, seed=0, device=DEVICE), *layouts)
    assert_step_is_the_reference([slot], [make_knobs(granularity=granularity, site="freeze")])


def test_groups_keep_their_own_numbers():
    """Several groups, modes and dtypes in one step: each tensor has its own group's knobs."""
    knobs = [
        make_knobs(drop_prob=0.0, lr=1e-3),
        make_knobs(drop_prob=0.7, weight_decay=0.3, seed=5),
        make_knobs(drop_prob=0.5, site="freeze", granularity="row", beta1=0.5),
        make_knobs(drop_prob=0.5, site="update", granularity="tensor", period=0),
    ]
    slots = [
        random_slot(shape, dtypes, seed=i, stream_id=i, group=i % 4, device=DEVICE)
        for i, (dtypes, shape) in enumerate(
            itertools.product(DTYPES.values(), [(700,), (8, 12), (3,)])
        )
    ]
    assert_step_is_the_reference(slots, knobs, counters=(3, 2))


def test_many_tensors_are_of_one_draw():
    """Programs that share out the tensors count each step once, and all before they do.

    The counter of a tensor that the step freezes stays.
    """
    n_tensors = launch.PREPARE_BLOCK + 5
    slots = slots_of([(3,)] * n_tensors)
    knobs = make_knobs(granularity="tensor", site="freeze", drop_prob=0.5)
    counters = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    executor = executor_of(slots, [knobs])
    for draw in range(2):
        before = [slot.param.clone() for slot in slots]
        counts = [slot.step.item() for slot in slots]
        executor.begin([knobs], counters, None, None)
        executor.step(None)
        moved = [not torch.equal(slot.param, old) for slot, old in zip(slots, before, strict=True)]
        assert moved == knobs.keep_wholes(range(n_tensors), [None] * n_tensors, draw)
        assert counters.tolist() == [draw + 1, 0]
        counted = [slot.step.item() - n for slot, n in zip(slots, counts, strict=True)]
        assert counted == moved


@pytest.mark.parametrize("found_inf", [1.0, 0.0])
def test_found_inf_skips_the_step_on_the_device(found_inf):
    """Unless found_inf is 0 nothing changes, counters included."""
    slots = slots_of([(300,)])
    befores = [(slot.param.clone(), slot.exp_avg.clone(), slot.step.clone()) for slot in slots]
    flag = torch.tensor([found_inf], device=DEVICE)
    counters = step(slots, [make_knobs()], (4, 0), found_inf=flag)
    unchanged = [
        torch.equal(after, before)
        for slot, values in zip(slots, befores, strict=True)
        for after, before in zip((slot.param, slot.exp_avg, slot.step), values, strict=True)
    ]
    assert counters == [4 if found_inf else 5, 0]
    assert all(unchanged) if found_inf else not any(unchanged)


def test_gradients_are_unscaled_in_passing():
    """grad_scale divides the gradient in registers; memory keeps the scaled one."""
    scaled, plain = slots_of([(300,)]), slots_of([(300,)])
    scaled[0].grad.mul_(1024.0)
    kept = scaled[0].grad.clone()
    step(scaled, [make_knobs()], grad_scale=torch.tensor([1024.0], device=DEVICE))
    step(plain, [make_knobs()])
    assert torch.equal(scaled[0].param, plain[0].param)
    assert torch.equal(scaled[0].grad, kept)


def test_a_device_threshold_rounds_half_to_even():
    """drop_prob as a tensor is rounded on the device as on the host: ties to even."""
    for numerator in (1.5, 2.5, 3.5, 65535.5):
        (slot,) = slots_of([(1030,)])
        before = slot.param.clone()
        probability = numerator / 65536
        knobs = decaying(
            [slot], drop_prob=torch.tensor(probability, dtype=torch.float64, device=DEVICE)
        )
        step([slot], [knobs])
        expected = keep_mask(
            (1030,),
            granularity="element",
            stream_id=0,
            layer=None,
            seed=knobs.seed,
            draw=0,
            drop_prob=probability,
            device=DEVICE,
        )
        assert torch.equal(kept_bits(slot, before), expected)


def test_moved_gradients_are_followed():
    """A gradient at a new address is read there, also when its alignment changes."""
    (slot,) = slots_of([(1300,)])
    knobs = [make_knobs(drop_prob=0.0)]
    executor = executor_of([slot], knobs)
    counters = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for move in (torch.clone, unaligned, torch.clone):
        grad = move(torch.randn(1300, device=DEVICE))
        executor.set_grads([grad])
        fields = {name: getattr(slot, name) for name in slot.__slots__} | {"grad": grad}
        moved = type(slot)(**fields)
        before, exact = testing.values_of(moved), testing.exact_step(moved, knobs[0])
        executor.begin(knobs, counters, None, None)
        executor.step(None)
        assert testing.excess_error(before, moved, exact, knobs[0], TOLERANCE) <= 1


def test_the_judge_can_fail():
    """Control: a mask of the next draw, or a tenth of a percent in lr, is far outside."""
    for change in ({"draw": 1}, {"lr": 1e-2 * 1.001}):
        (slot,) = slots_of([(1300,)])
        knobs = make_knobs()
        before = testing.values_of(slot)
        other = make_knobs(lr=change.get("lr", knobs.lr))
        exact = testing.exact_step(slot, other, steps_finished=change.get("draw", 0))
        step([slot], [knobs])
        assert testing.excess_error(before, slot, exact, knobs, TOLERANCE) > 10
