"""Laws of the workloads: the shapes of models, larger than a cache, measured where they fit."""

import math
from types import SimpleNamespace

import pytest
import torch

from bench import bench_step, conftest
from bench.record import NOT_MEASURED
from bench.workloads import WORKLOADS


@pytest.mark.parametrize(
    ("key", "hidden", "layers", "heads", "intermediate"),
    [("xlmr-base", 768, 12, 12, 3072), ("xlmr-large", 1024, 24, 16, 4096)],
)
def test_xlm_r_has_the_shapes_of_the_model(key, hidden, layers, heads, intermediate):
    """The workloads list the parameters that transformers makes, in its order."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.XLMRobertaConfig(
        vocab_size=250002,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        model = transformers.XLMRobertaModel(config)
    assert tuple(tuple(param.shape) for param in model.parameters()) == WORKLOADS[key].shapes


def test_llama_has_the_shapes_of_the_model():
    """As transformers makes it: 1,235,814,400 parameters."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    assert tuple(tuple(p.shape) for p in model.parameters()) == WORKLOADS["llama-1b"].shapes
    assert WORKLOADS["llama-1b"].n_elements == 1_235_814_400


def test_lora_has_the_shapes_of_the_adapters():
    """As peft makes them, on the maps of XLM-R Large's layers."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = transformers.XLMRobertaConfig(
        vocab_size=32,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    with torch.device("meta"):
        model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
        maps = peft.LoraConfig(r=64, target_modules=["query", "key", "value", "dense"])
        model = peft.inject_adapter_in_model(maps, model)
    shapes = tuple(tuple(p.shape) for name, p in model.named_parameters() if "lora_" in name)
    assert shapes == WORKLOADS["lora"].shapes


def test_every_workload_is_larger_than_a_cache():
    """Each step finds its operands in memory: 16 bytes an element, against hundreds of MB."""
    for workload in WORKLOADS.values():
        assert workload.n_elements == sum(math.prod(shape) for shape in workload.shapes)
        assert 16 * workload.n_elements > 300e6


@pytest.mark.parametrize(
    "name, total, lacking",
    [
        ("a card of 141 GB", 150_109_880_320, set()),
        ("a card of 80 GB", 85_017_493_504, set()),
        ("a card of 24 GB", 25_282_281_472, {"huge", "llama-1b"}),
    ],
)
def test_workloads_are_measured_where_they_fit(name, total, lacking, monkeypatch):
    """By what the card says of itself; what does not fit is a row that says so."""
    card = SimpleNamespace(name=name, total_memory=total)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    config = SimpleNamespace(stash={NOT_MEASURED: {}}, getoption=lambda option: "cuda")
    skipped = []
    items = [
        SimpleNamespace(
            nodeid=key,
            callspec=SimpleNamespace(params={"workload_key": key, "peer_key": "fused"}),
            add_marker=skipped.append,
        )
        for key in bench_step.MEASURED_ON["cuda"]
    ]
    conftest.pytest_collection_finish(SimpleNamespace(items=items, config=config))
    reasons = {key: row["reason"] for key, row in config.stash[NOT_MEASURED].items()}
    assert {key for key, reason in reasons.items() if reason != "not begun"} == lacking
    assert len(skipped) == len(lacking)
    for key in lacking:
        assert reasons[key].endswith(f"GB, {name} has {total / 1e9:.1f}")
