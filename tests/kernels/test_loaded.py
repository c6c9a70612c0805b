"""Laws of loaded masks in the kernels, on every backend: each entry reads its own bit.

Masks are compared bit for bit: under ``site="freeze"`` a kept entry halves and a dropped one stays.
Numbers are compared with the step in float64.
"""

from dataclasses import replace

import pytest
import torch
from helpers.kernel_steps import every_second, halving, judge_step, still, transposed, unaligned

from graddrop import testing
from graddrop.kernels.cpu import binding
from graddrop.mask import Shard
from graddrop.step.backends import make_executor
from graddrop.step.keep_bits import KeepBits
from graddrop.testing import DTYPES, make_knobs, random_slot

SITES = {
    "grad": {"site": "grad"},
    "update": {"site": "update"},
    "update, all decay": {"site": "update", "mask_decay": False},
    "freeze": {"site": "freeze"},
}
# Shape, layout, and where it lies in which whole: nothing, one entry, both sides of a tile, several
# chunks; strided ones; shards that begin anywhere, beyond 2**32 too, and are no range of the whole.
TENSORS = [
    ((0,), None, None),
    ((), None, None),
    ((1,), None, None),
    ((1023,), None, None),
    ((1025,), unaligned, None),
    ((19_000,), None, None),
    ((13, 7), None, None),
    ((30, 45), transposed, None),
    ((7, 50), every_second, None),
    ((1300,), None, Shard((2**36,), (2**32 + 1,))),
    ((3000,), None, Shard((9999,), (1016,))),
    ((40, 8), None, Shard((40, 32), (0, 24))),
]


def loaded(slot, seed):
    """The slot with a mask of half its entries."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(tuple(slot.param.shape), generator=generator) < 0.5
    return replace(slot, keep_bits=KeepBits.pack(keep, slot.param, slot.shard)), keep


def make_slots(dtypes, device):
    """A loaded tensor of each kind, and their masks."""
    slots, keeps = [], []
    for number, (shape, layout, shard) in enumerate(TENSORS):
        slot = random_slot(
            shape, DTYPES[dtypes], seed=number, stream_id=number, shard=shard, device=device
        )
        if layout is not None:
            slot = replace(slot, param=layout(slot.param))
        slot, keep = loaded(slot, seed=number)
        slots.append(slot)
        keeps.append(keep.to(device))
    return slots, keeps


def run(backend, slots, knobs, counters, masked_norm=False):
    """One step; squares of what enters the moments, if asked for."""
    executor = make_executor(backend, slots, knobs, counters.device)
    executor.set_grads([slot.grad for slot in slots])
    executor.begin(knobs, counters, None, None)
    squares = executor.grad_squares(True) if masked_norm else None
    executor.step(None)
    return squares


def no_steps(device):
    """Counters of a training that begins."""
    return torch.zeros(2, dtype=torch.int64, device=device)


def skip_what_has_no_code(backend, dtypes):
    """The C++ kernel has no 16-bit floats but bfloat16."""
    if backend == "cpu" and not binding.supports(*DTYPES[dtypes]):
        pytest.skip(f"the C++ kernel has no code for {dtypes}")


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("site", SITES)
def test_a_step_is_the_reference(backend, device, dtypes, site):
    """Whatever drop_prob, without its scale, in numbers and in the norm of what is kept."""
    skip_what_has_no_code(backend, dtypes)
    interpreted = backend == "triton" and device.type == "cpu"
    tolerance = testing.INTERPRETED if interpreted else testing.FP32_ARITHMETIC
    for drop_prob, rescale in ((0.3, True), (1.0, False), (0.0, False)):
        knobs = make_knobs(drop_prob=drop_prob, rescale=rescale, **SITES[site])
        slots, keeps = make_slots(dtypes, device)
        squares = []

        def step(slots, knobs, counters, squares=squares):
            counts = torch.tensor(counters, dtype=torch.int64, device=device)
            squares += run(backend, slots, knobs, counts, masked_norm=True).tolist()
            return counts.tolist()

        judge_step(step, tolerance, slots, [knobs])
        for slot, keep, square in zip(slots, keeps, squares, strict=True):
            grad = slot.grad.double()
            entering = grad if knobs.site == "update" else grad[keep]
            assert square == pytest.approx(float(entering.square().sum()), rel=1e-5), grad.shape


@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_what_moves_is_the_mask_bit_for_bit(backend, device, dtypes):
    """Contiguous or not, cut anywhere, in one launch beside tensors whose masks are drawn."""
    knobs = [halving(drop_prob=1.0), halving(drop_prob=0.5, granularity="row")]
    slots, keeps = make_slots(dtypes, device)
    drawn = random_slot((300, 12), DTYPES[dtypes], seed=99, group=1, device=device)
    slots.append(drawn)
    keeps.append(drawn.keep(knobs[1], 0))
    slots = [still(slot) for slot in slots]
    before = [slot.param.clone() for slot in slots]
    run(backend, slots, knobs, no_steps(device))
    for slot, old, keep in zip(slots, before, keeps, strict=True):
        moved = slot.param != old
        assert torch.equal(moved, keep), slot.param.shape
        if keep.numel() > 100:  # control: another mask is seen
            assert not torch.equal(moved, keep.flip(0))


def test_what_is_dropped_may_be_anything(backend, device):
    """A NaN in a dropped entry goes nowhere; in a kept one it shows."""
    slot, keep = loaded(random_slot((3000,), seed=0, device=device), seed=1)
    keep = keep.to(device)
    slot.grad[~keep] = torch.nan
    first = int(keep.nonzero()[0])
    slot.grad[first] = torch.nan
    run(backend, [slot], [make_knobs()], no_steps(device))
    assert (
        slot.param.isnan().nonzero().tolist()
        == slot.exp_avg.isnan().nonzero().tolist()
        == [[first]]
    )
