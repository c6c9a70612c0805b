"""Every example runs as it stands, and does what it says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.processes import gang
from helpers.root import ROOT


def load(name):
    """An example as a module."""
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_loop_trains(capsys):
    """The loss falls, and the log says what is kept."""
    losses = load("plain_loop").main()
    assert losses[-1] < 0.7 * losses[0]
    assert "50% of the entries kept" in capsys.readouterr().out


def test_the_trainer_drops_layers(tmp_path):
    """Some steps drop layers, others none, and the log counts them."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    logs = [log for log in load("trainer").main(str(tmp_path)) if "loss" in log]
    assert len(logs) == 4
    assert all(log["kept_is_exact"] and 0 <= log["dropped_layers"] <= 4 for log in logs)
    assert any(log["dropped_layers"] for log in logs)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_adapters_are_masked_by_layer_and_the_head_is_not():
    """PEFT's names tell layers and head."""
    pytest.importorskip("peft", reason="peft is not installed")
    adapters, head = load("lora").main().param_groups
    assert set(adapters["layers"]) == {0, 1, 2, 3}
    assert len(head["params"]) == 2 and head["drop_prob"] == 0.0


def test_a_loaded_mask_trains_a_twentieth():
    """Exactly what it keeps has moved, and the new task is learnt."""
    said = load("loaded_mask").main()
    assert said["moved"] == said["kept"] == pytest.approx(0.05, abs=1e-3)
    assert said["after"] < min(0.69, said["before"])


def test_accelerate_trains():
    """Losses of accumulated batches fall, though layers are left out of backward passes."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    losses = load("accelerate_loop").main()
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_skipped_layers_save_operations_and_change_nothing():
    """Two networks of the same bits, one for less work."""
    full, skipped, share = load("skip_layers").main(width=32, steps=8)
    pairs = zip(full.parameters(), skipped.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert 1 / 3 < share < 0.75  # forward passes remain, and a third of six is what they are


@pytest.mark.filterwarnings("ignore")  # Lightning's own: devices, loaders, torch's internals
def test_lightning_draws_a_mask_for_each_epoch(tmp_path):
    """The losses fall, and the fourth epoch's mask is the last."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    module = load("lightning_module").main(str(tmp_path))
    assert sum(module.losses[-4:]) < 0.7 * sum(module.losses[:4])
    assert module.masked.draws == [3]


@pytest.mark.filterwarnings("ignore")  # trl's own: names that transformers has replaced
def test_supervised_fine_tuning_drops_layers(tmp_path):
    """trl's Trainer takes our keywords, and its log counts the layers."""
    pytest.importorskip("trl", reason="trl is not installed")
    logs = [log for log in load("sft").main(str(tmp_path)) if "loss" in log]
    assert len(logs) == 4 and logs[-1]["loss"] < logs[0]["loss"]
    assert all(log["kept_is_exact"] for log in logs)
    assert any(log["dropped_layers"] for log in logs)


@pytest.mark.slow
def test_torchrun_starts_the_shards():
    """The command of the example's first lines."""
    example = ROOT / "examples" / "fsdp2_offload.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", example]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"loss 0\.[0-4]\d+, gradient norm \d+\.\d+\n", done.stdout)


def check_fsdp2():
    """What torchrun would run."""
    assert load("fsdp2_offload").main() < 0.5


def test_shards_train():
    """Two processes, whose losses fall below that of a coin."""
    with gang(2) as processes:
        processes.run(check_fsdp2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_new_masks():
    """The loss falls over the replays."""
    losses = load("cuda_graph").main()
    assert losses[-1] < losses[0]


def test_every_example_is_here():
    """A file without a test would rot."""
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'load("{name}")' not in text} == set()
