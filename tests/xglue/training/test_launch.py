"""Laws of launchers: they are used unchanged, one process speaks and writes, none is a surprise."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import transformers
from transformers import TrainingArguments

from graddrop.xglue.heads.model import tiny_config, train_tokenizer
from graddrop.xglue.mini import MiniSize, write_mini_xglue
from graddrop.xglue.training.arguments import OneDeviceArguments
from graddrop.xglue.training.run import FinetuneConfig, finetune
from graddrop.xglue.training.run_folder import RunFolderError

LAUNCHERS = {  # command, processes
    "torchrun": ("torch.distributed.run --nproc-per-node 2 -m", 2),
    # Several on CPUs would need MPI.
    "accelerate launch": (
        "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 "
        "--mixed_precision no --dynamo_backend no -m",
        1,
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few sentences in each language."""
    folder = tmp_path_factory.mktemp("mini") / "data"
    write_mini_xglue(folder, MiniSize(train=48, dev=5, test=7, text_lines=50), 0)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that is the same in each forward pass: it drops nothing out."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["nothing in particular"], 300)
    config = tiny_config(len(tokenizer))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    transformers.set_seed(0)
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_make_one_run(launcher: str, data: Path, model: Path, tmp_path: Path) -> None:
    """They share the examples out; there is one table, one result, and every language in it.

    It is the training that one process makes of the whole batches: the same masks and losses.
    """
    output = tmp_path / "run"
    arguments, n_processes = LAUNCHERS[launcher]
    command = [sys.executable, "-m", *arguments.split(), "graddrop.cli", "finetune"]
    command += ["--task", "pos", "--data", str(data), "--output", str(output), "--seed", "1"]
    command += ["--model", str(model), "--method", "graddrop", "--epochs", "1", "--lr", "1e-3"]
    command += ["--batch-size", "4", "--log-steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((output / "result.json").read_text())
    assert result["steps"] == 48 / (4 * n_processes)
    assert done.stdout.count("Written to") == 1
    assert len(result["scores"]["test"]) == 8
    assert result["config"]["processes"] == n_processes
    alone = FinetuneConfig(
        "pos",
        str(data),
        str(output),
        model=str(model),
        method="graddrop",
        epochs=1,
        lr=1e-3,
        batch_size=4,
        log_steps=2,
        seed=1,
    )
    if n_processes == 1:
        assert finetune(alone, resume=True) == result
        return
    # Dropout would be another with another number of processes, so it is another run.
    with pytest.raises(RunFolderError, match=r"\(processes: there 2, asked 1\)"):
        finetune(alone, resume=True)
    whole = dataclasses.replace(alone, output=str(tmp_path / "whole"), batch_size=8)
    losses, expected = (
        [entry["loss"] for entry in run["history"] if "loss" in entry]
        for run in (result, finetune(whole))
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[0] - losses[-1] > 0.02, "nothing was learnt that could differ"


def test_processes_that_the_launcher_has_not_started_are_refused(
    data: Path, tmp_path: Path
) -> None:
    """Nothing is trained on fewer devices than the configuration says."""
    with pytest.raises(ValueError, match="expected 3 processes, the launcher has started 1"):
        finetune(FinetuneConfig("pos", str(data), str(tmp_path / "run"), processes=3))
    assert not (tmp_path / "run").exists()


def test_a_precision_of_the_launchers_own_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --mixed_precision bf16` makes no fp32 run another one silently."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="launcher asks for mixed precision bf16, the run for no"):
        finetune(FinetuneConfig("pos", str(data), str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    asked = OneDeviceArguments(str(tmp_path / "run"), bf16=True, use_cpu=True, report_to=[])
    assert asked.mixed_precision == "bf16"


def test_one_process_uses_one_gpu(tmp_path: Path) -> None:
    """However many it sees: a batch has as many examples as the configuration says."""
    sizes = []
    for kind in (TrainingArguments, OneDeviceArguments):
        arguments = kind(str(tmp_path), per_device_train_batch_size=7, use_cpu=True, report_to=[])
        assert arguments.train_batch_size == 7
        arguments._n_gpu = 2  # what the Trainer counts on a machine with two
        sizes.append(arguments.train_batch_size)
    assert sizes == [14, 7]
