"""Laws of the benchmarks: what is measured is what the tables say."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.root import ROOT
from torch.nn import Parameter

from bench import bench_step, conftest, footprint, render
from bench.peers import PEERS, Peer
from bench.workloads import WORKLOADS
from graddrop.xglue.training import provenance


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


@pytest.fixture
def params():
    """Small parameters with gradients; two are longer than the window that is judged."""
    torch.manual_seed(0)
    params = [Parameter(torch.randn(n) * 0.02) for n in (9001, 5, 6000, 700)]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    return params


# Other packages are not installed here, and a compiler takes a minute for each of its rows.
OWN_PEERS = [
    key
    for key, peer in PEERS.items()
    if peer.package in (None, "graddrop") and "compil" not in key and peer.only_on is None
]


@pytest.mark.parametrize("key", OWN_PEERS)
def test_every_peer_steps(key, params):
    """Each changes every parameter; the gradients are as they were, or are renewed."""
    peer = PEERS[key]
    params = bench_step.in_dtype(params, peer.dtype)
    before = [param.detach().clone() for param in params]
    grads = [param.grad.clone() for param in params]
    renew = bench_step.renewal(params)
    _, reason = bench_step.begin(peer, params)
    assert reason is None
    assert peer.writes_grads or all(map(torch.equal, grads, [p.grad for p in params]))
    renew()
    for param, old, grad in zip(params, before, grads, strict=True):
        assert not torch.equal(param, old)
        assert torch.equal(param.grad, grad)


def test_a_peer_that_cannot_run_is_a_row_that_says_why(params):
    """Another package's error becomes a reason; an error of ours is one."""

    def fail(_):
        raise RuntimeError("no such device\nand more")

    peer = Peer("another", fail)
    assert bench_step.begin(peer, params) == (None, "RuntimeError: no such device")
    with pytest.raises(RuntimeError, match="no such device"):
        bench_step.begin(replace(peer, package="graddrop"), params)
    reason = bench_step.begin(replace(peer, max_tensors=3), params)[1]
    assert reason == "compiles code per tensor: not run on more than 3"
    reason = bench_step.begin(replace(peer, only_on="cuda"), params)[1]
    assert reason == "runs on cuda only"


def test_memory_is_what_tensors_take():
    """What stays, and the most at a time: two of three thousand entries stay, four were there."""
    device, entry = torch.device("cpu"), 4
    with footprint.memory(device) as found:
        kept = torch.empty(1000)
        other = torch.empty(2000)
        for _ in range(2):
            torch.empty(1000)
        del other
        other = torch.empty(1000)
    assert (found.kept, found.peak) == (2000 * entry, 4000 * entry)
    del kept, other


@pytest.mark.parametrize("key", ["fused", "graddrop", "eager-rand", "clip-graddrop", "foreach"])
def test_a_step_takes_the_memory_that_is_promised(key):
    """Two moments; nothing else while it runs, where masks written by hand take 5 bytes more."""
    param = Parameter(torch.randn(100_000))
    param.grad = torch.randn(100_000)
    with footprint.memory(param.device) as state:
        step, _ = bench_step.begin(PEERS[key], [param])
    with footprint.memory(param.device) as temporary:
        step()
    scalars = 4096  # bytes: step number, tables, norm
    assert 0 <= state.kept - 8 * param.numel() < scalars
    expected = {"eager-rand": 5, "foreach": 4}.get(key, 0) * param.numel()
    assert 0 <= temporary.peak - expected < scalars


def test_the_host_is_timed_with_gradients_that_move(params):
    """Each step finds the same gradients elsewhere than the step before."""
    seen = []

    def step():
        seen.append([(param.grad.data_ptr(), param.grad.sum().item()) for param in params])

    footprint.host_seconds(step, params)
    assert len(seen) == footprint.CALLS
    for before, after in pairwise(seen):
        for (place, total), (new_place, new_total) in zip(before, after, strict=True):
            assert place != new_place
            assert total == new_total


def test_the_judge_passes_the_step_and_refuses_another_mask(params, monkeypatch):
    """No speed is reported of a wrong step: with another seed the judge fails."""
    bench_step.assert_step_is_the_reference(params)
    monkeypatch.setattr(bench_step, "SEED", bench_step.SEED + 1)
    with pytest.raises(AssertionError, match="parameter 0"):
        bench_step.assert_step_is_the_reference(params)


INTERRUPTING = """
import os, signal
from dataclasses import replace
from itertools import pairwise
from bench.peers import PEERS
from bench.workloads import WORKLOADS, Workload

WORKLOADS["50m"] = Workload("small", ((5000,),))
steps = iter(range(1, 100))

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def step():
    if next(steps) == int(os.environ["INTERRUPTED_STEP"]):
        interrupt()

def pytest_keyboard_interrupt():
    interrupt()  # again, as `timeout` does

PEERS["foreach"] = replace(PEERS["foreach"], make=lambda params: step)
"""


@pytest.mark.parametrize("interrupted_step", [1, 2, 4], ids=["first", "warm-up", "measured"])
def test_an_interrupted_run_keeps_the_rows_that_are_whole(tmp_path, interrupted_step):
    """As at a time limit: the row that was begun says so, and the others have their table."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    peers = ("fused", "foreach", "clip-fused")
    rows = [f"bench/bench_step.py::test_step[50m-{peer}]" for peer in peers]
    options = ["--quick", "-p", "interrupting", "-p", "no:cacheprovider", "-o", "addopts="]
    path = tmp_path / "record.json"
    # Not a worker's child: pytest-benchmark measures nothing under pytest-xdist.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env |= {
        "INTERRUPTED_STEP": str(interrupted_step),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "GRADDROP_COMMIT": "0123456789abcdef-dirty",
    }
    command = [sys.executable, "-m", "pytest", *options, "--benchmark-json", str(path), *rows]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, run.stdout + run.stderr
    record = json.loads(path.read_text())
    assert [row["extra_info"]["peer_key"] for row in record["benchmarks"]] == ["fused"]
    table = render.render(record)
    assert "| torch AdamW fused, no mask |" in table
    assert "| torch AdamW foreach, no mask | not measured: begun, not finished |" in table
    assert "| `clip_grad_norm_`, torch AdamW fused | not measured: not begun |" in table
    assert "commit 0123456789 with changes" in table


def test_a_record_names_its_commit(tmp_path, monkeypatch):
    """Of git, dirty where what it measured is edited; of the environment, which comes first."""
    monkeypatch.delenv("GRADDROP_COMMIT", raising=False)
    for name in ("graddrop/__init__.py", "kernels/step.py", "bench/peers.py", "docs/index.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setattr(provenance.graddrop, "__file__", str(tmp_path / "graddrop/__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert named() == {"id": "unversioned", "dirty": False}

    def git(*arguments):
        ours = ("-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *ours, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    found = git("rev-parse", "HEAD")
    assert named() == {"id": found, "dirty": False}
    for name, counts in (("docs/index", 0), ("bench/peers", 1), ("kernels/step", 1)):
        edited = next(tmp_path.glob(f"{name}.*"))
        edited.write_text("edited")
        assert named() == {"id": found, "dirty": bool(counts)}
        assert provenance.commit() == found + "-dirty" * (name == "kernels/step")
        git("checkout", ".")
    monkeypatch.setenv("GRADDROP_COMMIT", "89ab")
    assert named() == {"id": "89ab", "dirty": False}


def named():
    """The commit as pytest-benchmark writes it into a record."""
    info = {"id": "its own", "dirty": True}
    conftest.pytest_benchmark_update_commit_info(info)
    return info


def make_record():
    """A record with a row of two peers that were measured, and one that could not be."""
    info = {
        "workload": "one tensor",
        "peer_key": "graddrop",
        "package": None,
        "state_bytes": 400_000_000,
        "temporary_bytes": None,
        "host_seconds": 0.00021,
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
    stats = {"median": 0.050, "q1": 0.049, "q3": 0.0512}
    fused = {**info, "peer_key": "fused", "peer": "fused", "package": "other 1.2"}
    return {
        "benchmarks": [
            {"extra_info": fused, "stats": {**stats, "median": 0.00123}},
            {"extra_info": info, "stats": stats},
        ],
        "not_measured": [
            {"workload": "one tensor", "peer": "absent", "reason": "has no wheel"},
            {"workload": "two tensors", "peer": "fused", "reason": "not begun"},
        ],
        "machine_info": {
            "cpu": {"brand_raw": "A processor"},
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.11.7",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05.678+00:00",
    }


def test_a_record_becomes_a_table():
    """Medians, ratios within rounds, bytes over time, memory; and what is missing, with why."""
    table = render.render(make_record())
    assert (
        "| GradDrop | 50.0 | 49.0 to 51.2 | 0.95 | 0.94 to 0.97 | 28.0 | 80% | 8.0 |  | 210 |"
        in table
    )
    assert "| absent | not measured: has no wheel |" in table
    assert "**two tensors**: not measured" in table
    assert "A processor, 2 threads" in table
    assert "other 1.2, commit 0123456789 with changes" in table


def test_the_summary_has_a_column_per_workload():
    """Medians in milliseconds, ours in bold."""
    table = render.summary(make_record())
    assert table.splitlines()[0] == "| optimizer step, fp32, median ms | one tensor |"
    assert "| torch AdamW fused, no mask | 1.23 |" in table
    assert "| **GradDrop, one pass** | **50.0** |" in table


def test_a_record_without_a_row_has_no_table(tmp_path):
    """It is refused by name, before anything is printed or drawn."""
    path = tmp_path / "none.json"
    path.write_text(json.dumps(make_record() | {"benchmarks": []}))
    with pytest.raises(ValueError, match=r"none\.json: expected a row that was measured, got none"):
        render.main(str(path))
    assert [*tmp_path.iterdir()] == [path]


def test_a_record_becomes_a_plot(tmp_path):
    """A panel with a mark for each row: other rows make another picture."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    record = make_record()
    render.draw(record, tmp_path / "two.png")
    record["benchmarks"].pop()
    render.draw(record, tmp_path / "one.png")
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_readme_shows_the_record():
    """The README's table is the committed record's, to the last digit."""
    record = json.loads((ROOT / "bench/results/step-cpu.json").read_text())
    found = render.SUMMARY.search((ROOT / "README.md").read_text())
    assert found is not None and found.group() == render.summary(record)
