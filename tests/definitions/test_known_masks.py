"""Whole masks as numbers, which another implementation of the written contract has computed.

A mask is written as an integer, whose bit i says whether entry i is kept. Streams, orders and
thresholds stand nowhere in here but in these numbers: whoever changes one changes everybody's runs.
"""

import pytest
import torch
from helpers.small_runs import make_params, params_of, set_grads

from graddrop import FusedGradDropAdamW, Shard, graddrop_adamw_
from graddrop.mask import keep_mask

LOW, MIDDLE, HIGH = 0, 0x0123456789ABCDEF, (1 << 64) - 1  # seeds
LAST_ID, LAST_DRAW = (1 << 30) - 1, (1 << 32) - 1

# seed, draw, id, drop_prob, first of 64 elements, their mask
ELEMENTS = [
    (LOW, 0, 0, 0.5, 0, 0x69C775C9C6BB119F),
    (MIDDLE, 1, 7, 0.1, 480, 0x7BDFFFFFFFFFFE7D),  # from one half of a tile into the other
    (HIGH, LAST_DRAW, LAST_ID, 0.9, 992, 0x6021028000004001),  # from a tile into the next
    (5, 3, 2, 0.3, (1 << 31) - 16, 0xE6E9BE9E7EA7D46F),
    (5, 3, 2, 0.3, (1 << 42) + 504, 0xF77DE9BEFDFF9FB4),  # calls beyond 2**32
]
# seed, draw, id, drop_prob, mask of 40 rows
ROWS = [
    (LOW, 0, 0, 0.5, 0xEFF94FA9BB),
    (MIDDLE, 1, 7, 0.1, 0x7FCFFF7BFF),
    (HIGH, LAST_DRAW, LAST_ID, 0.9, 0x0044002204),
]
# granularity, seed, draw, drop_prob, ids or layers, mask of the 24 tensors
WHOLES = [
    ("tensor", LOW, 0, 0.5, range(24), 0xA3A93A),
    ("tensor", HIGH, LAST_DRAW, 0.3, range(LAST_ID, LAST_ID - 24, -1), 0xF32AFB),
    ("layer", LOW, 0, 0.5, range(24), 0x83ABA0),
    ("layer", HIGH, LAST_DRAW, 0.3, range(0, 24_000, 1000), 0xA6DDDA),
]
# seed, draw, id, of 64 entries those that are rounded up with a chance of 3/4
ROUNDINGS = [
    (LOW, 0, 0, 0x3FB98BFFFFCADB63),
    (MIDDLE, 1, 7, 0x3E565FDEF1F9BB1D),
    (HIGH, LAST_DRAW, LAST_ID, 0x3FD857FDF93AFE3F),
]
# Of 7 units, 3 kept, at seed 7: those kept at draws 0 to 4.
UNITS = {"tensor": [4, 9, 17, 100, 1 << 20, (1 << 29) + 1, LAST_ID], "layer": list(range(7))}
SELECTED = {
    ("tensor", "exact"): ["045", "246", "234", "034", "023"],
    ("tensor", "ascending"): ["012", "345", "016", "234", "056"],
    ("tensor", "descending"): ["456", "123", "056", "234", "016"],
    ("tensor", "shuffled"): ["236", "015", "246", "013", "245"],
    ("layer", "exact"): ["146", "045", "456", "014", "145"],
    ("layer", "ascending"): ["012", "345", "016", "234", "056"],
    ("layer", "descending"): ["456", "123", "056", "234", "016"],
    ("layer", "shuffled"): ["035", "124", "056", "123", "456"],
}


def number_of(keep):
    """A mask as an integer."""
    return sum(int(kept) << i for i, kept in enumerate(keep.flatten().tolist()))


def moved_by_a_step(shapes, backend, device, **knobs):
    """Which entries of tensors of zeros move in a step that freezes what it drops."""
    tensors = [[torch.zeros(shape, device=device) for shape in shapes] for _ in range(3)]
    grads = [torch.ones(shape, device=device) for shape in shapes]
    steps = [torch.zeros((), device=device) for _ in shapes]
    params, *moments = tensors
    graddrop_adamw_(params, grads, *moments, steps, lr=0.1, site="freeze", backend=backend, **knobs)
    return [param != 0 for param in params]


@pytest.mark.parametrize(("seed", "draw", "stream_id", "drop_prob", "begin", "number"), ELEMENTS)
def test_elements(backend, device, seed, draw, stream_id, drop_prob, begin, number):
    """The entries that the definition keeps, and those that move."""
    shard = Shard((1 << 43,), (begin,))
    knobs = {"seed": seed, "draw": draw, "drop_prob": drop_prob}
    mask = keep_mask(
        (64,), granularity="element", stream_id=stream_id, layer=None, shard=shard, **knobs
    )
    assert number_of(mask) == number
    place = {"stream_ids": [stream_id], "shards": [shard]}
    (moved,) = moved_by_a_step([(64,)], backend, device, **place, **knobs)
    assert number_of(moved) == number


@pytest.mark.parametrize("width", [1, 3, 4, 6, 34, 256])
@pytest.mark.parametrize(("seed", "draw", "stream_id", "drop_prob", "number"), ROWS)
def test_rows(backend, device, seed, draw, stream_id, drop_prob, number, width):
    """Rows of any length are decided by their number alone; each moves as a whole, or not."""
    knobs = {"seed": seed, "draw": draw, "drop_prob": drop_prob, "granularity": "row"}
    mask = keep_mask((40, width), stream_id=stream_id, layer=None, **knobs)
    (moved,) = moved_by_a_step([(40, width)], backend, device, stream_ids=[stream_id], **knobs)
    for keep in (mask, moved):
        assert torch.equal(keep, keep[:, :1].expand(40, width))
        assert number_of(keep[:, 0]) == number


@pytest.mark.parametrize("width", [1 << 31, 1 << 32, (1 << 32) + 4])
def test_rows_beyond_32_bits(backend, device, width):
    """A part of a row, of a length that no 32 bits hold, is decided by the row's number."""
    seed, draw, stream_id, drop_prob, number = ROWS[1]
    for row in (9, 10, 28, 38):  # kept, dropped, dropped, kept
        (moved,) = moved_by_a_step(
            [(1, 300)], backend, device, stream_ids=[stream_id], granularity="row",
            shards=[Shard((40, width), (row, 100))], seed=seed, draw=draw, drop_prob=drop_prob,
        )  # fmt: skip
        assert set(moved.flatten().tolist()) == {bool(number >> row & 1)}


@pytest.mark.parametrize(("granularity", "seed", "draw", "drop_prob", "names", "number"), WHOLES)
def test_wholes(backend, device, granularity, seed, draw, drop_prob, names, number):
    """Tensors are decided by their ids, layers by their numbers."""
    knobs = {"seed": seed, "draw": draw, "drop_prob": drop_prob, "granularity": granularity}
    by_id = granularity == "tensor"
    masks = [
        keep_mask((2,), stream_id=name if by_id else 3, layer=None if by_id else name, **knobs)
        for name in names
    ]
    called = {"stream_ids" if by_id else "layers": list(names)}
    moved = moved_by_a_step([(2,)] * 24, backend, device, **called, **knobs)
    for keeps in (masks, moved):
        assert all(keep.all() == keep.any() for keep in keeps)
        assert number_of(torch.stack([keep[0] for keep in keeps])) == number


@pytest.mark.parametrize(("seed", "draw", "stream_id", "number"), ROUNDINGS)
def test_roundings(backend, device, seed, draw, stream_id, number):
    """A step of a quarter of the way from 1 to the next number below ends at either of them."""
    param = torch.ones(64, dtype=torch.bfloat16, device=device)
    moments = [torch.zeros(64, device=device) for _ in range(2)]
    counter = torch.zeros((), device=device)
    graddrop_adamw_(
        [param], [torch.ones_like(param)], *([each] for each in (*moments, counter)),
        lr=2.0**-10, weight_decay=0.0, drop_prob=0.0, stochastic_rounding=True,
        seed=seed, draw=draw, stream_ids=[stream_id], backend=backend,
    )  # fmt: skip
    assert set(param.tolist()) == {1.0, 1 - 2.0**-8}
    assert number_of(param == 1) == number


@pytest.mark.parametrize(("granularity", "select"), SELECTED)
def test_selections(backend, device, granularity, select):
    """Which are kept, said beforehand and done, at the first five draws of an optimizer."""
    params = make_params(((3,),) * 7, device=device)
    called = {"stream_ids" if granularity == "tensor" else "layers": UNITS[granularity]}
    optimizer = FusedGradDropAdamW(
        [{"params": params, **called}],
        drop_prob=4 / 7,
        granularity=granularity,
        select=select,
        site="freeze",
        seed=7,
        backend=backend,
    )
    for step, kept in enumerate(SELECTED[granularity, select]):
        dropped = {id(param) for param in optimizer.dropped_params()}
        before = [param.detach().clone() for param in params]
        set_grads(params_of(optimizer), step)
        optimizer.step()
        moved = [not torch.equal(p, old) for p, old in zip(params, before, strict=True)]
        assert "".join(str(i) for i in range(7) if moved[i]) == kept
        assert moved == [id(param) not in dropped for param in params]
