"""Laws of launchers: they are used unchanged, and one process speaks and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

from graddrop.xglue.mini import MiniSize, write_mini_xglue

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


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_make_one_run(launcher: str, data: Path, tmp_path: Path) -> None:
    """They share the examples out; there is one table, one result, and every language in it."""
    output = tmp_path / "run"
    arguments, n_processes = LAUNCHERS[launcher]
    command = [sys.executable, "-m", *arguments.split(), "graddrop.cli", "finetune"]
    command += ["--task", "pos", "--data", str(data), "--output", str(output), "--seed", "1"]
    command += ["--method", "graddrop", "--epochs", "1", "--batch-size", "4", "--log-steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((output / "result.json").read_text())
    assert result["steps"] == 48 / (4 * n_processes)
    assert done.stdout.count("Written to") == 1
    assert len(result["scores"]["test"]) == 8
