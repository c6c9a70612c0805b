"""Masks of the executed kernels against the reference, bit for bit, over a million decisions."""

import torch
from helpers.kernel_steps import every_second, halving, kept, still, transposed, unaligned

from graddrop.mask import Shard
from graddrop.testing import random_slot

KNOBS = [
    halving(granularity=granularity, drop_prob=drop_prob)
    for granularity, drop_prob in (("element", 0.3), ("row", 0.5), ("tensor", 0.4), ("layer", 0.6))
]
KNOBS += [halving(granularity="tensor", select="exact", units=tuple(range(2000, 2100)))]
ELEMENT, ROW, TENSOR, LAYER, COUNTED = range(5)
STEPS_FINISHED = 41


def slot(shape, group, number, relay=None, whole=None, offset=None, layer=None):
    """A still tensor; its values are those of a number, its id too."""
    shard = None if whole is None else Shard(whole, offset)
    made = random_slot(shape, seed=number, stream_id=number, group=group, shard=shard, layer=layer)
    relayed = {} if relay is None else {"param": relay(made.param)}
    return still(made, **relayed)


def tensors():
    """Of all granularities and layouts, and of shards that begin beyond 2**32."""
    elements = [
        slot((400_001,), ELEMENT, 0),
        slot((200_003,), ELEMENT, 1, relay=unaligned),
        slot((120_000,), ELEMENT, 2, whole=(2**36,), offset=(2**32 - 50_001,)),
        slot((100_000,), ELEMENT, 3, whole=(2**37,), offset=(2**35 + 16,)),
        slot((300, 401), ELEMENT, 4, relay=transposed),
        slot((90, 77), ELEMENT, 5, relay=every_second),
    ]
    rows = [
        slot((40_000, 4), ROW, 6),
        slot((3_000, 12), ROW, 7, relay=unaligned),
        slot((1_025, 29), ROW, 8),
        slot((20_000, 8), ROW, 9, whole=(2**33, 8), offset=(2**32 - 10_000, 0)),
        slot((1_500, 6), ROW, 10, relay=transposed),
    ]
    wholes = [slot((2,), TENSOR, 100 + i) for i in range(400)]
    layers = [slot((3,), LAYER, 1000 + i, layer=i) for i in range(400)]
    counted = [slot((2,), COUNTED, unit) for unit in KNOBS[COUNTED].units]
    return elements, rows, [*wholes, *counted], layers


def test_a_million_decisions_are_the_references(execution):
    """One launch per layout, all granularities in each: what moves is what graddrop.mask keeps."""
    elements, rows, wholes, layers = tensors()
    decisions = {
        "element": sum(each.param.numel() for each in elements),
        "row": sum(len(each.param) for each in rows),
        "tensor": len(wholes),
        "layer": len(layers),
    }
    assert sum(decisions.values()) >= 1_000_000, decisions
    slots = [*elements, *rows, *wholes, *layers]
    for each, moved in zip(slots, kept(slots, KNOBS, STEPS_FINISHED), strict=True):
        expected = KNOBS[each.group].keep_mask(
            tuple(each.param.shape),
            stream_id=each.stream_id,
            layer=each.layer,
            shard=each.shard,
            draw=STEPS_FINISHED,
            device=each.param.device,
        )
        assert torch.equal(moved, expected), (each.stream_id, moved.shape)
        if each.group == ELEMENT:  # control: masks differ, so that the comparison can fail
            assert not torch.equal(moved, expected.flip(0))
    names = sorted(launch.kernel for launch in execution.launches)
    assert names == ["dense_step", "dense_step", "prepare", "strided_step"]
