"""Laws of the C++ kernel: the reference's step on every instruction set, thread count and cut.

Masks are compared bit for bit: under ``site="freeze"`` the first moment leaves zero exactly where
kept. Numbers are compared with the step in float64; bit for bit where only the way differs.
"""

import itertools
import shutil
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
from graddrop.kernels.cpu import binding
from graddrop.mask import Shard, keep_mask
from graddrop.step import backends
from graddrop.testing import BF16, F32, FP32_ARITHMETIC, make_knobs, random_slot

pytestmark = pytest.mark.skipif(
    not binding.LIBRARY.exists() and shutil.which("c++") is None,
    reason="the CPU kernel is not built, and there is no C++ compiler to build it",
)

DTYPES = {name: dtypes for name, dtypes in testing.DTYPES.items() if binding.supports(*dtypes)} | {
    "fp32 with bf16 moments": (F32, F32, BF16),
    "bf16 with fp32 gradients": (BF16, F32, F32),
}
SITES = {
    "grad": {"site": "grad"},
    "update": {"site": "update"},
    "update, all decay": {"site": "update", "mask_decay": False},
    "freeze": {"site": "freeze"},
}
# empty, tiny, around a tile; matrices with rows of all kinds; a scalar
SHAPES = [(0,), (1,), (3,), (1023,), (1024,), (1025,), (2051,), (9, 20), (13, 7), (50, 1), ()]


@pytest.fixture(params=binding.ISAS)
def isa(request, monkeypatch):
    """Every instruction set that this machine runs."""
    return force_isa(request.param, monkeypatch)


def force_isa(name, monkeypatch):
    """Run the named instruction set, skip where the machine does not have it."""
    monkeypatch.setenv("GRADDROP_CPU_ISA", name)
    binding.load.cache_clear()
    try:
        binding.load()
    except RuntimeError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(autouse=True)
def _forget_what_was_forced():
    """Load anew after each test."""
    yield
    binding.load.cache_clear()
    binding.is_available.cache_clear()


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    """Fewer and more threads than there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def step(slots, knobs, counters=(0, 0)):
    """One step of slots; returns the counters afterwards."""
    counters = torch.tensor(counters, dtype=torch.int64)
    executor = backends.make_executor("cpu", slots, knobs, torch.device("cpu"))
    executor.begin(knobs, counters, None, None)
    executor.step(None)
    return counters.tolist()


def slots_of(shapes, dtypes=DTYPES["fp32"], **options):
    """One random tensor of each shape, every stream and three layers among them."""
    return [
        random_slot(shape, dtypes, seed=i, stream_id=i, layer=i % 3, **options)
        for i, shape in enumerate(shapes)
    ]


def copied(slot):
    """The slot with its own copy of everything a step changes."""
    names = ("param", "exp_avg", "exp_avg_sq", "step")
    return replace(slot, **{name: getattr(slot, name).clone() for name in names})


def values(slot):
    """What a step changes, its counter aside."""
    return [slot.param, slot.exp_avg, slot.exp_avg_sq]


def assert_same_bits(slots, others):
    """Judge that pairs of slots agree in every bit."""
    for slot, other in zip(slots, others, strict=True):
        for a, b in zip(values(slot), values(other), strict=True):
            assert torch.equal(a, b)


assert_step_is_the_reference = partial(judge_step, step, FP32_ARITHMETIC)


# -- the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_the_reference(fused, dtypes, site, granularity, monkeypatch):
    """Best and worst instruction set x dtype x site x granularity, a mix of sizes in one call."""
    if not fused:
        force_isa("baseline", monkeypatch)
    knobs = make_knobs(granularity=granularity, rescale=True, **SITES[site])
    assert_step_is_the_reference(slots_of(SHAPES, DTYPES[dtypes]), [knobs], counters=(5, 0))


@pytest.mark.parametrize("drop_prob", [0.0, 1.5 / 65536, 2.5 / 65536, 0.1, 0.5, 0.9, 1.0])
def test_every_drop_prob(drop_prob):
    """From exempt to everything dropped, halves of 1/65536 rounded to even."""
    for site, granularity in itertools.product(SITES, ["element", "row", "tensor"]):
        knobs = make_knobs(drop_prob=drop_prob, granularity=granularity, **SITES[site])
        assert_step_is_the_reference(slots_of([(1500,), (37, 3)]), [knobs])


def test_groups_keep_their_own_numbers():
    """Several groups, modes and dtypes in one step: each tensor has its own group's knobs."""
    knobs = [
        make_knobs(drop_prob=0.0, lr=1e-3),
        make_knobs(drop_prob=0.7, weight_decay=0.3, seed=5),
        make_knobs(drop_prob=0.5, site="freeze", granularity="row", beta1=0.5),
        make_knobs(drop_prob=0.5, site="update", granularity="tensor", period=0),
        make_knobs(maximize=True, beta1=0.0, beta2=0.0),
    ]
    slots = [
        random_slot(shape, dtypes, seed=i, stream_id=i, group=i % 5)
        for i, (dtypes, shape) in enumerate(
            itertools.product(DTYPES.values(), [(700,), (8, 12), (40_003,)])
        )
    ]
    assert_step_is_the_reference(slots, knobs, counters=(3, 2))


@pytest.mark.parametrize("changes", [{}, {"beta1": 0.5}, {"beta2": 0.9}])
def test_moments_are_corrected_for_their_own_bias(changes):
    """Neighbours that differ in their step or one of their betas alone."""
    knobs = [make_knobs(), make_knobs(**changes)]
    slots = [
        random_slot((700,), DTYPES["fp32"], seed=i, group=i, steps=3 if changes else i)
        for i in range(2)
    ]
    assert_step_is_the_reference(slots, knobs)


@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.49, 0.5, 0.51])
def test_the_first_moment_loses_neither_of_its_ends(isa, beta1):
    """A gradient of 1 beside a moment of 1e8 counts by its weight, which at beta1 = 0 is all."""
    (slot,) = slots_of([(1300,)])
    slot.exp_avg.mul_(1e9)
    assert_step_is_the_reference([slot], [make_knobs(beta1=beta1, drop_prob=0.0)])
    assert torch.equal(slot.exp_avg, slot.grad) == (beta1 == 0)


def test_the_judge_can_fail():
    """Control: a mask of the next draw, or a tenth of a percent in lr, is far outside."""
    for draw, lr in ((1, 1e-2), (0, 1.001e-2)):
        (slot,) = slots_of([(1300,)])
        before = testing.values_of(slot)
        exact = testing.exact_step(slot, make_knobs(lr=lr), steps_finished=draw)
        knobs = make_knobs()
        step([slot], [knobs])
        assert testing.excess_error(before, slot, exact, knobs, FP32_ARITHMETIC) > 10


# -- the masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_masks_are_the_contract_bit_for_bit(isa, granularity, dtypes):
    """What moves under freeze is exactly what graddrop.mask keeps."""
    slots = slots_of([(9001,), (33, 36), (33, 35), (5, 1000), (2000, 1)], DTYPES[dtypes])
    knobs = make_knobs(granularity=granularity, site="freeze")
    masks = drawn_masks(slots, knobs, counters=(7, 0))
    for slot, mask in zip(slots, masks, strict=True):
        expected = mask_of(slot, knobs, draw=7)
        assert torch.equal(mask, expected)
        assert not torch.equal(expected, expected.flip(0))  # control: the comparison can fail


def drawn_masks(slots, knobs, counters=(0, 0)):
    """The keep masks that the kernel draws, read from what moves under freeze."""
    assert knobs.site == "freeze"
    for slot in slots:
        slot.grad.fill_(1.0)
        slot.exp_avg.zero_()
    step(slots, [knobs], counters)
    return [slot.exp_avg != 0 for slot in slots]


def mask_of(slot, knobs, draw):
    """The keep mask by the contract."""
    return keep_mask(
        tuple(slot.param.shape),
        granularity=knobs.granularity,
        stream_id=slot.stream_id,
        layer=slot.layer,
        seed=knobs.seed,
        draw=draw,
        drop_prob=knobs.drop_prob,
        shard=slot.shard,
    )


@pytest.mark.parametrize(
    ("period", "counters", "draw"), [(1, (9, 4), 9), (4, (9, 4), 2), (0, (9, 2**32 - 1), 2**32 - 1)]
)
def test_the_draw_follows_the_period(period, counters, draw):
    """Steps finished, that // K, or masks begun by hand."""
    (slot,) = slots_of([(1200,)])
    knobs = make_knobs(period=period, site="freeze")
    (mask,) = drawn_masks([slot], knobs, counters)
    assert torch.equal(mask, mask_of(slot, knobs, draw))
    assert not torch.equal(mask, mask_of(slot, knobs, draw - 1))


@pytest.mark.parametrize("begin", [1, 500, 512, 1000, 2**31 - 500, 2**32 + 1, 2**42 - 700])
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_a_shard_steps_as_part_of_the_whole(isa, begin, dtypes):
    """Any first element, beyond 2**31, 2**32 and call 2**32 of the generator too."""
    shard = Shard((2**43,), (begin,))
    for size in (1, 11, 1300):
        slot = random_slot((size,), DTYPES[dtypes], seed=0, shard=shard)
        knobs = make_knobs(site="freeze")
        assert_step_is_the_reference([slot], [knobs])
        (mask,) = drawn_masks([slot], knobs)
        assert torch.equal(mask, mask_of(slot, knobs, draw=0))


@pytest.mark.parametrize("site", SITES)
def test_what_is_dropped_stays_out(isa, site):
    """NaN and infinity in a dropped entry's gradient go nowhere; in a kept entry's they show."""
    for poison, dtypes in itertools.product((float("nan"), float("inf")), ("fp32", "all bf16")):
        (slot,) = slots_of([(3000,)], DTYPES[dtypes])
        knobs = make_knobs(**SITES[site])
        keep = mask_of(slot, knobs, draw=0)
        slot.grad[~keep] = poison
        first_kept = keep.nonzero()[0].item()
        slot.grad[first_kept] = poison
        step([slot], [knobs])
        expected = torch.zeros(3000, dtype=torch.bool)
        expected[first_kept] = True
        assert torch.equal(slot.param.isnan(), expected)
        if site in ("grad", "freeze"):
            assert torch.equal(slot.exp_avg.isfinite(), ~expected)


def test_a_frozen_tensor_stays_as_it_is():
    """A tensor that is dropped whole under freeze keeps its bits, and its step."""
    slots = slots_of([(2000,)] * 20)
    befores = [copied(slot) for slot in slots]
    knobs = make_knobs(granularity="tensor", site="freeze", drop_prob=0.5)
    step(slots, [knobs])
    dropped = [not mask_of(slot, knobs, draw=0).any() for slot in slots]
    assert 0 < sum(dropped) < 20
    for slot, before, is_dropped in zip(slots, befores, dropped, strict=True):
        assert torch.equal(slot.param, before.param) == is_dropped
        assert torch.equal(slot.exp_avg, before.exp_avg) == is_dropped
        assert slot.step.item() == before.step.item() + (not is_dropped)


# -- what must not matter --------------------------------------------------------------------------


def mixed_slots():
    """Tensors of all dtypes; the large ones make several chunks."""
    shapes = [(40_003,), (1,), (300, 128), (64, 33), (5,)]
    return [slot for dtypes in DTYPES.values() for slot in slots_of(shapes, dtypes)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("own_threads", [False, True])
def test_thread_counts_give_the_same_bits(n_threads, own_threads, site, monkeypatch):
    """More threads, the same result; also where torch's OpenMP is not found."""
    knobs = [make_knobs(**SITES[site])]
    slots, others = mixed_slots(), mixed_slots()
    if own_threads:
        alone = replace(binding.load(), gomp_parallel=None)
        monkeypatch.setattr(binding, "load", lambda: alone)
    step(slots, knobs)
    monkeypatch.undo()
    torch.set_num_threads(1)
    step(others, knobs)
    assert_same_bits(slots, others)


def test_each_tile_is_stepped_once():
    """However many threads ask for tiles, step after step: none is taken twice, none left out."""
    results = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 8):
            torch.set_num_threads(n_threads)
            slot = random_slot((1_000_000,), seed=0)
            for _ in range(60):
                step([slot], [make_knobs(drop_prob=0.0)])
            results.append(slot)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(*([slot] for slot in results))


@pytest.mark.parametrize("site", SITES)
def test_instruction_sets_with_fma_give_the_same_bits(site, monkeypatch):
    """AVX2 and AVX-512 round alike; the baseline, which cannot fuse, differs: the control."""
    results = {}
    for name in ("avx512", "avx2", "baseline"):
        force_isa(name, monkeypatch)
        results[name] = mixed_slots()
        step(results[name], [make_knobs(**SITES[site])])
    assert_same_bits(results["avx512"], results["avx2"])
    assert not torch.equal(results["avx2"][0].exp_avg, results["baseline"][0].exp_avg)


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_cutting_a_parameter_changes_no_bit(granularity, dtypes, dim):
    """Shards of either dimension, cut anywhere, end in the bits of the whole."""
    knobs = [make_knobs(granularity=granularity, site="freeze")]
    shape = (71, 130)
    whole = random_slot(shape, DTYPES[dtypes], seed=0)
    shards = []
    for begin, end in itertools.pairwise((0, 1, 8, 39, shape[dim])):
        names = ("param", "grad", "exp_avg", "exp_avg_sq")
        cuts = {name: getattr(whole, name).narrow(dim, begin, end - begin) for name in names}
        offset = (begin, 0) if dim == 0 else (0, begin)
        shards.append(copied(replace(whole, shard=Shard(shape, offset), **cuts)))
    before = whole.param.clone()
    step([whole], knobs)
    step(shards, knobs)
    for index in range(3):
        joined = torch.cat([values(shard)[index] for shard in shards], dim=dim)
        assert torch.equal(joined, values(whole)[index])
    assert not torch.equal(whole.param, before)


LAYOUTS = {
    "transposed": ((70, 45), (transposed,) * 3),
    "transposed gradient": ((70, 45), (torch.clone, transposed, torch.clone)),
    "transposed parameter": ((70, 45), (transposed, torch.clone, torch.clone)),
    "channels last": ((16, 4, 5, 7), (channels_last,) * 3),
    "channels last gradient": ((16, 4, 5, 7), (torch.clone, channels_last, torch.clone)),
    "every second entry": ((7, 500), (every_second, torch.clone, torch.clone)),
    "unaligned": ((3300,), (unaligned,) * 3),
    "unaligned gradient": ((3300,), (torch.clone, unaligned, torch.clone)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("granularity", ["element", "row"])
def test_any_layout_gives_the_same_bits(layout, dtypes, granularity):
    """Strides and alignment decide where an entry lies, never what becomes of it."""
    shape, layouts = LAYOUTS[layout]
    slot = random_slot(shape, DTYPES[dtypes], seed=0)
    other = relaid(slot, *layouts)
    before = slot.param.clone()
    knobs = [make_knobs(granularity=granularity, site="freeze")]
    step([slot], knobs)
    step([other], knobs)
    assert_same_bits([slot], [other])
    assert not torch.equal(slot.param, before)


def test_an_exempt_group_is_plain_adamw():
    """drop_prob 0 gives the bits of a tensor that is not masked at all, whatever the knobs."""
    plain = slots_of([(5000,)])
    step(plain, [make_knobs(drop_prob=0.0)])
    for granularity, site in itertools.product(["element", "row", "tensor"], SITES):
        slots = slots_of([(5000,)])  # in a masked mode, with a threshold that rounds to 0
        step(slots, [make_knobs(drop_prob=1e-9, granularity=granularity, **SITES[site])])
        assert_same_bits(slots, plain)
