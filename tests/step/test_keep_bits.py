"""Laws of packed masks: an independent packing gives the same bytes, and unpacking the mask."""

import numpy as np
import pytest
import torch

from graddrop.mask import Shard
from graddrop.step.keep_bits import KeepBits
from graddrop.step.slot import Slot
from graddrop.step.walk import walk

TILE = 1024


def random_mask(*shape):
    """Half of the entries."""
    return torch.rand(shape) < 0.5


def packed_by_numpy(in_order, begin):
    """Bytes of a mask whose entries are given in walking order."""
    before = begin % TILE
    n_tiles = -(-(before + len(in_order)) // TILE) if len(in_order) else 0
    entries = np.zeros(n_tiles * TILE, dtype=bool)
    entries[before : before + len(in_order)] = in_order
    return torch.from_numpy(np.packbits(entries, bitorder="little"))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1023, 1024, 1025, 5003])
@pytest.mark.parametrize("begin", [0, 1, 1023, 1024, 2**32 + 5])
def test_bits_are_those_of_numpy(n, begin):
    """Any length, and any first element of a shard; an eighth of a byte per entry, whole tiles."""
    keep = random_mask(n)
    packed = KeepBits.pack(keep, torch.empty(n), Shard((2**40,), (begin,)))
    assert torch.equal(packed.bits, packed_by_numpy(keep.numpy(), begin))
    assert torch.equal(packed.unpack(), keep)
    if n > 100:  # control: other bits are seen
        assert not torch.equal(packed.bits, packed_by_numpy((~keep).numpy(), begin))


LAYOUTS = {
    "contiguous": lambda t: t,
    "reversed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "gaps": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 4, 3, 7), (1, 6, 1, 5), (3, 1, 1, 1), (2, 0, 3, 1)])
def test_bits_lie_in_the_order_of_the_walk(layout, shape):
    """The walk of the kernels, which go by the parameter's memory, meets each entry's own bit."""
    param = LAYOUTS[layout](torch.randn(shape))
    shard = Shard((50, 60, 70, 80), (1, 2, 3, 4))
    keep = random_mask(*shape)
    packed = KeepBits.pack(keep, param, shard)
    slot = Slot(param, param, param, param, torch.zeros(()), 0, None, shard, 0)
    element_of = shard.elements(shape)
    keeps = dict(zip(element_of.flatten().tolist(), keep.flatten().tolist(), strict=True))
    elements = torch.tensor([shard.begin])
    for size, *_, stride in walk(slot):
        elements = (elements.unsqueeze(-1) + torch.arange(size) * stride).flatten()
    if not param.numel():
        elements = elements[:0]
    expected = np.array([keeps[element] for element in elements.tolist()], dtype=bool)
    assert torch.equal(packed.bits, packed_by_numpy(expected, shard.begin))
    assert torch.equal(packed.unpack(), keep)


def test_other_memory_does_not_fit():
    """Bits are for one order, place and device; sizes of 1 may stand anywhere."""
    param, shard = torch.randn(6, 5), Shard((60, 5), (3, 0))
    packed = KeepBits.pack(random_mask(6, 5), param, shard)
    assert packed.fits(param.clone(), shard)
    assert not packed.fits(param.t().contiguous().t(), shard)
    assert not packed.fits(param, Shard((60, 5), (4, 0)))
    assert not packed.fits(param[:5], shard)
    assert not packed.fits(param.to("meta"), shard)
