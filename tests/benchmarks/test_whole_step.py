"""What a whole training step is said to cost."""

import json

import pytest
import torch

from bench import whole_step
from bench.sizes import SIZES
from graddrop.mask import layer_of

pytest.importorskip("transformers", reason="transformers is not installed")

SIZE = ["--layers", "4", "--width", "32", "--vocabulary", "300", "--batch", "2", "8"]


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """Costs by model and way, without adapters, and the record."""
    file = tmp_path_factory.mktemp("record") / "record.json"
    ways = [way for way in whole_step.ways(4) if "lora" not in way]
    found = whole_step.main([*SIZE, "--rounds", "2", "--ways", *ways, "--output", str(file)])
    return {(cost.model, cost.way): cost for cost in found}, json.loads(file.read_text())


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_products_are_counted_thrice_where_all_is_trained_and_once_below_the_head(costs, model):
    """Forward pass, gradients of activations, gradients of weights.

    Only the first layer's input needs no gradient, were it not for embeddings; the head's does.
    """
    standard, head = (costs[0][model, way].operations for way in ("standard", "head-only"))
    assert standard / head == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_dropped_layers_save_the_products_of_their_weights(costs, model):
    """Two of four layers: half of a third, less what attention's own products take."""
    standard, lisa = (costs[0][model, way] for way in ("standard", "lisa"))
    assert lisa.dropped == 0.5
    assert standard.operations * (1 - 0.5 / 3) <= lisa.operations < standard.operations * 0.87
    assert lisa.saved < standard.saved


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_what_is_frozen_from_the_start_has_no_gradient_no_moments_and_keeps_no_input(costs, model):
    """The upper half: two of four layers, without embeddings."""
    standard, upper, head = (costs[0][model, w] for w in ("standard", "upper-half", "head-only"))
    for name in ("gradients", "moments", "saved", "operations"):
        assert getattr(head, name) < getattr(upper, name) < getattr(standard, name)
    assert standard.moments == 2 * standard.gradients == 2 * standard.parameters
    assert upper.moments == 2 * upper.gradients


def test_half_fine_tuning_drops_half_of_each_layer():
    """As users draw it: two of four matrices of attention, one of two of the rest, at each step."""
    model = whole_step.Mean(SIZES["encoder"].scaled(4, 32, 300).build())
    training = whole_step.Training(model, whole_step.ways(4)["half-fine-tuning"], 4)
    drawn = set()
    for _ in range(3):
        dropped = {id(param) for param in training.optimizer.dropped_params()}
        for layer in range(4):
            named = [(n, p) for n, p in model.named_parameters() if layer_of(n) == layer]
            matrices = [param for _, param in named if param.dim() == 2]
            gone = [param for param in matrices if id(param) in dropped]
            assert len(matrices) == 6 and len(gone) == 3
            assert 2 * sum(p.numel() for p in gone) == sum(p.numel() for p in matrices)
        drawn.add(frozenset(dropped))
        training.step(torch.zeros(2, 8, dtype=torch.int64))
    assert len(drawn) == 3


def test_a_record_says_where_it_comes_from(costs):
    """Each row, with machine, versions, commit."""
    found, record = costs
    assert len(record["costs"]) == len(found) and {"machine", "versions", "commit"} <= set(record)


def test_ways_apart_count_what_ways_together_do():
    """On a model of a named size, in bfloat16: order and memory differ, no count does."""
    chosen = ["--model", "decoder-7b", *SIZE, "--rounds", "2", "--ways", "lisa", "upper-half"]
    together, apart = (whole_step.main([*chosen, *flags]) for flags in ([], ["--apart"]))
    names = ("model", "way", "operations", "parameters", "gradients", "moments", "saved")
    for first, second in zip(together, apart, strict=True):
        assert all(getattr(first, name) == getattr(second, name) for name in names)
    assert [cost.way for cost in apart] == ["standard", "lisa", "upper-half"]
    assert apart[0].moments == 4 * apart[0].parameters  # two of float32 for each bfloat16


def test_adapters_are_trained_alone():
    """Two factors of rank 8 for each matrix of 4 layers, and the head's 33: nothing else moves."""
    pytest.importorskip("peft", reason="peft is not installed")
    found = whole_step.main([*SIZE, "--rounds", "2", "--ways", "lora", "lora, torch"])
    sides = {
        "encoder": 4 * (32 + 32) + 2 * (32 + 128),
        "decoder": (32 + 96) + (32 + 32) + 2 * (32 + 128),
    }
    for cost in found:
        if cost.way != "standard":
            assert cost.gradients == 4 * (4 * 8 * sides[cost.model] + 33)
            assert cost.moments == 2 * cost.gradients
