"""Laws of the benchmarks: what is measured is what the tables say."""

import math

import pytest
import torch
from torch.nn import Parameter

from bench import bench_step, render
from bench.peers import PEERS
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


def test_every_workload_is_larger_than_a_cache():
    """Each step finds its operands in memory: 16 bytes an element, against hundreds of MB."""
    for workload in WORKLOADS.values():
        assert workload.n_elements == sum(math.prod(shape) for shape in workload.shapes)
        assert 16 * workload.n_elements > 300e6


@pytest.fixture
def params():
    """Small parameters with gradients; two are longer than the window that is judged."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(n) * 0.02) for n in (9001, 5, 6000, 700)]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    return params


@pytest.mark.parametrize("key", PEERS)
def test_every_peer_steps(key, params):
    """Each changes every parameter, and gives the gradients back as they were."""
    before = [param.detach().clone() for param in params]
    grads = [param.grad.clone() for param in params]
    stepper = PEERS[key].make(params)
    stepper.step()
    stepper.renew()
    for param, old, grad in zip(params, before, grads, strict=True):
        assert not torch.equal(param, old)
        assert torch.equal(param.grad, grad)


def test_the_judge_passes_the_step_and_refuses_another_mask(params, monkeypatch):
    """No speed is reported of a wrong step: with another seed the judge fails."""
    bench_step.assert_step_is_the_reference(params)
    monkeypatch.setattr(bench_step, "SEED", bench_step.SEED + 1)
    with pytest.raises(AssertionError, match="parameter 0"):
        bench_step.assert_step_is_the_reference(params)


def test_a_record_becomes_a_table():
    """Medians, ratios within rounds, and bytes over time."""
    info = {
        "workload": "one tensor",
        "n_tensors": 1,
        "n_elements": 50_000_000,
        "peer": "GradDrop",
        "bytes_per_element": 28,
        "ratio_to_baseline": {"median": 0.954, "quartiles": [0.94, 0.97]},
        "pass_bytes_per_second": 35e9,
        "device_name": None,
        "n_threads": 2,
        "torch": "2.13.0",
        "load_average": 0.25,
    }
    record = {
        "benchmarks": [{"extra_info": info, "stats": {"median": 0.050, "q1": 0.049, "q3": 0.0512}}],
        "machine_info": {
            "cpu": {"brand_raw": "A processor"},
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.11.7",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05.678+00:00",
    }
    table = render.render(record)
    assert "| GradDrop | 50.0 | 49.0 to 51.2 | 0.95 | 0.94 to 0.97 | 28.0 | 80% |" in table
    assert "A processor, 2 threads" in table
    assert "commit 0123456789 with changes" in table
