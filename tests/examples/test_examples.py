"""Every example runs as it stands, and does what it says."""

import importlib.util

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
    assert names == {"plain_loop", "trainer", "lora", "fsdp2_offload", "cuda_graph"}
