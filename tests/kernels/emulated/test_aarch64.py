"""The C++ kernel compiled for aarch64, run under emulation: the same masks, the same bits."""

import itertools
import re
import subprocess
from dataclasses import replace

import pytest
import torch
from helpers.emulation import COMPILER, EMULATOR, EmulatedLibrary, as_library, build, require
from helpers.kernel_steps import every_second, halving, still, transposed, unaligned

from graddrop import testing
from graddrop.kernels.cpu import binding
from graddrop.mask import Shard
from graddrop.step import backends
from graddrop.step.keep_bits import KeepBits
from graddrop.testing import BF16, F32, FP32_ARITHMETIC, make_knobs, random_slot

pytestmark = pytest.mark.slow

SITES = [("grad", True), ("update", True), ("update", False), ("freeze", True)]
GRANULARITIES = ["element", "row", "tensor", "layer"]
DTYPES = [(F32, F32, F32), (BF16, BF16, F32), (BF16, BF16, BF16), (F32, F32, BF16)]
RELAYS = {(30, 45): transposed, (7, 50): every_second, (1300,): unaligned}
SHAPES = [(0,), (1,), (1025,), (13, 7), (), *RELAYS]
FAR = Shard((2**36,), (2**32 - 500,))  # begins before 2**32, ends behind it
ANYWHERE = Shard((9999,), (1017,))  # begins within a byte of bits


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The kernel and its driver."""
    require(COMPILER, EMULATOR)
    return build(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture
def emulated(program):
    """The library of that machine."""
    return EmulatedLibrary(program)


@pytest.fixture(params=[1, 3])
def n_threads(request):
    """One thread, and more than there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def executor_of(slots, knobs, counters):
    """The C++ kernel's executor, begun."""
    executor = backends.make_executor("cpu", slots, knobs, torch.device("cpu"))
    executor.begin(knobs, torch.tensor(counters, device="cpu"), None, None)
    return executor


def step(slots, knobs, counters=(5, 2)):
    """One step, clipped by a half."""
    executor_of(slots, knobs, counters).step(torch.tensor(0.5, device="cpu"))


def a_mix(dtypes):
    """(slots, knobs): tensors of every shape, layout, mask and site; a far shard of each."""
    knobs, slots = [], []
    for mask, (site, mask_decay) in itertools.product([*GRANULARITIES, "loaded"], SITES):
        group = len(knobs)
        knobs.append(
            make_knobs(
                granularity="element" if mask == "loaded" else mask,
                site=site,
                mask_decay=mask_decay,
                rescale=True,
                stochastic_rounding=group % 2 == 1,
                period=group % 3,
            )
        )
        of_group = []
        for shape, shard in [*((shape, None) for shape in SHAPES), ((1100,), FAR)]:
            number = len(slots) + len(of_group)
            slot = random_slot(
                shape, dtypes, seed=number, stream_id=number, layer=number, shard=shard, group=group
            )
            relay = RELAYS.get(shape)
            of_group.append(slot if relay is None else replace(slot, param=relay(slot.param)))
        slots += with_masks(of_group)[0] if mask == "loaded" else of_group
    return slots, knobs


def with_masks(slots):
    """The slots, each with a loaded mask of half its entries; and the masks."""
    keeps = [
        torch.rand(slot.param.shape, generator=torch.Generator().manual_seed(number)) < 0.5
        for number, slot in enumerate(slots)
    ]
    return [
        replace(slot, keep_bits=KeepBits.pack(keep, slot.param, slot.shard))
        for slot, keep in zip(slots, keeps, strict=True)
    ], keeps


def values(slots):
    """All that a step changes."""
    return [t for slot in slots for t in (slot.param, slot.exp_avg, slot.exp_avg_sq, slot.step)]


def use(isa, monkeypatch):
    """Run an instruction set of this machine, or skip."""
    monkeypatch.setenv("GRADDROP_CPU_ISA", isa)
    binding.load.cache_clear()
    try:
        binding.load()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_step_has_the_bits_of_x86(dtypes, emulated, n_threads, monkeypatch):
    """With fused products as with AVX2; the x86 baseline, which cannot fuse, is as near as allowed.

    That the baseline differs in bits is the control.
    """
    slots, knobs = a_mix(dtypes)
    befores = [testing.values_of(slot) for slot in slots]
    with monkeypatch.context() as patch:
        patch.setattr(binding, "load", lambda: as_library(emulated))
        step(slots, knobs)
    assert emulated.n_calls == 1 + (dtypes[0] == BF16)  # of each way to round
    found = values(slots)
    for isa in ("avx2", "baseline"):
        use(isa, monkeypatch)
        others, _ = a_mix(dtypes)
        step(others, knobs)
        same = [torch.equal(a, b) for a, b in zip(found, values(others), strict=True)]
        assert all(same) == (isa == "avx2")
    monkeypatch.undo()
    binding.load.cache_clear()
    for slot, other, before in zip(slots, others, befores, strict=True):
        if not knobs[slot.group].rounds(slot.param.dtype):
            exact = testing.Values(*(t.double() for t in values([other])[:3]))
            excess = testing.excess_error(before, slot, exact, knobs[slot.group], FP32_ARITHMETIC)
            assert excess <= 2, excess  # each of the two may be off by what is allowed


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_are_the_contract_bit_for_bit(granularity, emulated, monkeypatch):
    """What moves is what graddrop.mask keeps, on either side of 2**32, unaligned and strided."""
    knobs = halving(granularity=granularity)
    slots = [
        still(random_slot((40_000,), seed=0, stream_id=0, layer=0)),
        still(random_slot((20_000,), seed=1, stream_id=1, layer=1, shard=FAR)),
        still(random_slot((300, 45), seed=2, stream_id=2, layer=2)),
    ]
    slots += [replace(slots[0], param=unaligned(slots[0].param), step=torch.zeros(()))]
    slots += [replace(slots[2], param=transposed(slots[2].param), step=torch.zeros(()))]
    before = [slot.param.clone() for slot in slots]
    monkeypatch.setattr(binding, "load", lambda: as_library(emulated))
    step(slots, [knobs], counters=(7, 0))
    for slot, old in zip(slots, before, strict=True):
        expected = knobs.keep_mask(
            tuple(slot.param.shape),
            stream_id=slot.stream_id,
            layer=slot.layer,
            shard=slot.shard,
            draw=7,
            device=slot.param.device,
        )
        assert torch.equal(slot.param != old, expected)
        if granularity in ("element", "row"):
            assert not torch.equal(expected, expected.flip(0))  # control


def test_loaded_masks_are_read_bit_for_bit(emulated, monkeypatch):
    """What moves is what the mask keeps, whatever drop_prob, unaligned, strided, cut anywhere."""
    knobs = halving(drop_prob=1.0)
    slots = [
        random_slot(shape, seed=number, stream_id=number, shard=shard)
        for number, (shape, shard) in enumerate(
            [*((shape, None) for shape in SHAPES), ((20_000,), FAR), ((3000,), ANYWHERE)]
        )
    ]
    slots = [
        still(slot, param=RELAYS.get(tuple(slot.param.shape), torch.clone)(slot.param))
        for slot in slots
    ]
    slots, keeps = with_masks(slots)
    before = [slot.param.clone() for slot in slots]
    monkeypatch.setattr(binding, "load", lambda: as_library(emulated))
    step(slots, [knobs])
    for slot, old, keep in zip(slots, before, keeps, strict=True):
        assert torch.equal(slot.param != old, keep), slot.param.shape
        if keep.numel() > 100:  # control: another mask is seen
            assert not torch.equal(slot.param != old, keep.flip(0))


@pytest.mark.parametrize("masked", [False, True])
def test_norms_have_the_bits_of_x86(masked, emulated, monkeypatch):
    """Sums of squares, of all and of what is kept."""
    slots, knobs = a_mix(DTYPES[0])
    here = executor_of(slots, knobs, (5, 2)).grad_squares(masked)
    monkeypatch.setattr(binding, "load", lambda: as_library(emulated))
    there = executor_of(slots, knobs, (5, 2)).grad_squares(masked)
    assert here.count_nonzero() > len(slots) // 2
    assert torch.equal(there, here)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_products_with_moments_have_the_bits_of_x86(dtypes, emulated, monkeypatch):
    """Sums of g g, g m and m m, of tensors whose step an alignment scales."""
    knobs = [make_knobs(granularity="tensor", site="update", rescale="alignment")]
    slots = [
        random_slot(shape, dtypes, seed=number, stream_id=number)
        for number, shape in enumerate([(1,), (1025,), (13, 7), (40_000,), *RELAYS])
    ]
    slots = [
        replace(slot, param=RELAYS.get(tuple(slot.param.shape), torch.clone)(slot.param))
        for slot in slots
    ]
    here = executor_of(slots, knobs, (5, 2)).moment_dots()
    monkeypatch.setattr(binding, "load", lambda: as_library(emulated))
    there = executor_of(slots, knobs, (5, 2)).moment_dots()
    assert (here[:, [0, 2]] > 0).all() and len(here[:, 1].unique()) == len(slots)
    assert torch.equal(there, here)


def loops_of(listing):
    """The instructions of each loop of up to 400, as objdump prints a program."""
    lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", listing, re.MULTILINE)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    code = [text for _, text in lines]
    loops = []
    for end, text in enumerate(code):
        branch = re.match(r"(?:b(?:\.\w+)?|cbn?z|tbn?z)\s+(?:.*,\s*)?([0-9a-f]+) <", text)
        begin = place.get(int(branch[1], 16), len(code)) if branch else len(code)
        if end - 400 <= begin <= end:
            loops.append(code[begin : end + 1])
    return loops


def has(loop, *names):
    """Whether each of these instructions occurs on vectors."""
    return all(any(re.match(rf"{name}\s+v", text) for text in loop) for name in names)


def test_the_loop_is_neon(program):
    """Fused products, roots, quotients of four entries at a time, and Philox's long products."""
    require("aarch64-linux-gnu-objdump")
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    loops = loops_of(listing)
    steps = [loop for loop in loops if has(loop, "fsqrt")]
    print(f"{len(steps)} loops; the shortest, of eight entries a turn:")
    print("\n".join(min(steps, key=len)))
    assert steps and all(has(loop, "fmla", "fdiv", "fmul") for loop in steps)
    assert not [loop for loop in loops if any(re.match(r"fsqrt\s+s", text) for text in loop)]
    assert [loop for loop in loops if has(loop, "umull", "umull2", "eor")]
