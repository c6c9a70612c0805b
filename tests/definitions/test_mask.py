"""Laws of the mask contract."""

import math

import pytest
import torch

from graddrop.mask import (
    GRANULARITIES,
    LAYER_STREAM,
    ROW_STREAM,
    TENSOR_STREAM,
    Shard,
    keep_elements,
    keep_mask,
    layer_of,
    philox4x32,
    random_u16,
    rescale_factor,
    threshold,
)

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
# Known-answer vectors of Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "seed", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, seed, expected):
    """Philox4x32-10 is the generator of Salmon et al., to the bit."""
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), seed)
    assert tuple(word.item() for word in words) == expected


def test_one_round_less_is_another_generator():
    """Control: the known answers depend on the number of rounds."""
    zero = torch.zeros(1, dtype=torch.int64)
    words = philox4x32((zero, zero, zero, zero), 0, n_rounds=9)
    assert words[0].item() != KNOWN_ANSWERS[0][2][0]


@pytest.mark.parametrize("element", [0, 3, 511, 512, 1023, 1024, 123_457, 2**31 + 5, 2**36 + 777])
def test_an_element_has_its_half_of_its_word_of_its_call(element):
    """e = 1024 t + 512 h + 4 c + w: half h of word w of call 128 t + c, with integers alone."""
    seed, draw, stream = 0x0123456789ABCDEF, 77, 5
    tile, inside = divmod(element, 1024)
    half, inside = divmod(inside, 512)
    call, word = divmod(inside, 4)
    group = 128 * tile + call
    counter = (group % 2**32, group // 2**32, stream, draw)
    words = philox4x32(tuple(torch.tensor([c]) for c in counter), seed)
    expected = (words[word].item() >> (16 * half)) & 0xFFFF
    bits = random_u16(torch.tensor([element]), stream=stream, seed=seed, draw=draw)
    assert bits.item() == expected


@pytest.mark.parametrize(
    ("drop_prob", "expected"),
    [
        (0, 0),
        (1, 65536),
        (0.5, 32768),
        (1 / 65536, 1),
        (0.1, 6554),
        (1.5 / 65536, 2),
        (2.5 / 65536, 2),
    ],
)
def test_threshold_rounds_half_to_even(drop_prob, expected):
    """T = round(65536 p), as an integer."""
    assert threshold(drop_prob) == expected


@pytest.mark.parametrize("drop_prob", [-1e-9, 1.0001, math.nan, math.inf])
def test_threshold_refuses_what_is_no_probability(drop_prob):
    """A probability lies in [0, 1]."""
    with pytest.raises(ValueError, match=r"Invalid drop_prob value.*\[0, 1\]"):
        threshold(drop_prob)


def test_rescale_uses_the_realised_probability():
    """s = 1 / q with q = 1 - T / 65536, not with the probability asked for."""
    assert rescale_factor(0.1) == 65536 / (65536 - 6554)
    assert rescale_factor(0.1) != 1 / 0.9
    with pytest.raises(ValueError, match="keep probability, which is 0"):
        rescale_factor(1 - 1e-9)


@pytest.mark.parametrize("drop_prob", [0.0, 1.0])
def test_the_ends_keep_all_and_drop_all(drop_prob):
    """drop_prob 0 keeps every entry, 1 drops every entry."""
    keep = keep_elements(
        torch.arange(100_003), stream=1, seed=2, draw=3, drop_threshold=threshold(drop_prob)
    )
    assert keep.all() if drop_prob == 0 else not keep.any()


def test_a_block_boundary_changes_nothing():
    """Elements are decided one by one, however many are asked for at once."""
    key = {"stream": 1, "seed": 2, "draw": 3, "drop_threshold": 20_000}
    elements = torch.arange(65_536 - 5, 65_536 + 1029)
    many = keep_elements(torch.arange(70_000), **key)
    assert torch.equal(many[elements], keep_elements(elements, **key))


def _mask(shape, *, granularity="element", shard=None, **changes):
    key = {"stream_id": 4, "layer": 2, "seed": 99, "draw": 6, "drop_prob": 0.4} | changes
    return keep_mask(shape, granularity=granularity, shard=shard, **key)


WHOLE = (11, 7, 13)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("offset", "shape"),
    [
        ((0, 0, 0), WHOLE),
        ((3, 0, 0), (5, 7, 13)),
        ((0, 2, 0), (11, 4, 13)),
        ((0, 0, 9), (11, 7, 4)),
        ((10, 6, 12), (1, 1, 1)),
        ((2, 3, 5), (4, 4, 6)),
        ((11, 0, 0), (0, 7, 13)),
    ],
)
def test_a_shard_draws_what_the_whole_would(granularity, offset, shape):
    """The mask of any block of a parameter is that block of the parameter's mask."""
    block = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
    whole = _mask(WHOLE, granularity=granularity)
    assert torch.equal(
        _mask(shape, granularity=granularity, shard=Shard(WHOLE, offset)), whole[block]
    )


def test_a_shard_at_a_wrong_place_draws_something_else():
    """Control: the place matters."""
    here = _mask((5, 7, 13), shard=Shard(WHOLE, (3, 0, 0)))
    assert not torch.equal(here, _mask((5, 7, 13), shard=Shard(WHOLE, (4, 0, 0))))


@pytest.mark.parametrize("begin", [2**31 - 700, 2**32 - 3, 2**35 + 1])
def test_indices_beyond_32_bits_are_indices(begin):
    """A shard that lies far into a huge parameter has the bits of its own elements."""
    keep = _mask((1500,), shard=Shard((2**36,), (begin,)))
    bits = random_u16(torch.arange(begin, begin + 1500), stream=4, seed=99, draw=6)
    assert torch.equal(keep, bits >= threshold(0.4))
    wrapped = _mask((1500,), shard=Shard((2**36,), (begin % 2**30,)))
    assert not torch.equal(keep, wrapped)


@pytest.mark.parametrize(
    "change", [{"seed": 98}, {"draw": 7}, {"stream_id": 5}, {"seed": 99 + 2**32}]
)
def test_seed_draw_and_stream_each_change_the_mask(change):
    """Nothing of (seed, draw, stream) is ignored, the seed's high half included."""
    assert not torch.equal(_mask((40, 50)), _mask((40, 50), **change))


def test_rows_are_element_decisions_of_the_row_stream():
    """Row r is dropped iff element r of stream id + 2**30 is."""
    keep = _mask((60, 5), granularity="row")
    rows = keep_elements(
        torch.arange(60), stream=ROW_STREAM + 4, seed=99, draw=6, drop_threshold=threshold(0.4)
    )
    assert torch.equal(keep, rows[:, None].expand(60, 5))
    assert 0 < rows.sum() < 60


@pytest.mark.parametrize(
    ("granularity", "stream", "unit"),
    [("tensor", TENSOR_STREAM, "id"), ("layer", LAYER_STREAM, "layer")],
)
def test_tensors_and_layers_share_one_decision(granularity, stream, unit):
    """A tensor decides at element id of stream 2**31, a layer at its number of stream 2**31 + 1."""
    decisions = keep_elements(
        torch.arange(32), stream=stream, seed=99, draw=6, drop_threshold=threshold(0.4)
    )
    assert 0 < decisions.sum() < 32
    for number in range(32):
        key = {"stream_id": number} if unit == "id" else {"layer": number}
        keep = _mask((3, 2), granularity=granularity, **key)
        assert torch.equal(keep, decisions[number].expand(3, 2))


def test_a_parameter_in_no_layer_is_kept():
    """Layer granularity drops layers; what lies in none is never dropped."""
    assert _mask((9,), granularity="layer", layer=None, drop_prob=1.0).all()


def test_scalars_have_masks():
    """A 0-dim parameter is one element, one row, one tensor."""
    for granularity in GRANULARITIES:
        assert _mask((), granularity=granularity).shape == ()


def test_an_unknown_granularity_is_named():
    """The error says what was expected."""
    with pytest.raises(ValueError, match="Invalid granularity: 'column'.*element"):
        _mask((2, 2), granularity="column")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("roberta.encoder.layer.3.output.dense.weight", 3),
        ("model.layers.31.mlp.up_proj.weight", 31),
        ("transformer.h.0.attn.c_attn.bias", 0),
        ("blocks.12.norm1.weight", 12),
        ("encoder.block.5.layer.1.DenseReluDense.wo.weight", 5),
        ("roberta.embeddings.word_embeddings.weight", None),
        ("classifier.dense.weight", None),
        ("player.3.weight", None),
        ("layer.weight", None),
    ],
)
def test_a_layer_is_what_the_name_says(name, layer):
    """The first of layer.N., layers.N., h.N., block.N. and blocks.N. names layer N."""
    assert layer_of(name) == layer


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(1 << 40, 0), (0, 1 << 40), (1 << 40, 0, 1 << 20)])
def test_a_mask_of_nothing_takes_no_memory(granularity, shape):
    """However many rows an empty tensor has; one that is no granularity is still refused."""
    random = {"stream_id": 0, "layer": 0, "seed": 0, "draw": 0, "drop_prob": 0.5}
    keep = keep_mask(shape, granularity=granularity, **random)
    assert (keep.shape, keep.dtype) == (shape, torch.bool)
    assert Shard.whole(shape).elements(shape).shape == shape
    with pytest.raises(ValueError, match="Invalid granularity"):
        keep_mask(shape, granularity="column", **random)
