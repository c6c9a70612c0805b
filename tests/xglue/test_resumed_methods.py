"""Laws of a run that goes on from a checkpoint, whatever its method."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

from helpers.small_bert import CLASSIFIER, POOLER, bert
from transformers import TrainerCallback

from graddrop.xglue.methods import METHODS
from graddrop.xglue.training import run as train_module
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.run import FinetuneConfig, finetune


def test_a_resumed_run_has_the_head_of_its_first_attempt(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the folder of the encoder holds a pooler by then."""
    name = bert(tmp_path / "bert")
    values: dict[str, Any] = {"task": "xnli", "data": str(root), "model": name, "max_steps": 3}
    values |= {"method": "head-only", "batch_size": 8, "max_length": 32, "save_steps": 1}
    config = FinetuneConfig(**values, lr=1e-3, output=str(tmp_path / "run"))
    seen: list[set[str]] = []

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Remember what is trained; end the first attempt after its first checkpoint."""
            model = kwargs["model"]
            seen.append({n for n, p in model.named_parameters() if p.requires_grad})
            if len(seen) == 2:
                raise KeyboardInterrupt

    callbacks = train_module._callbacks
    monkeypatch.setattr(train_module, "_callbacks", lambda c: [*callbacks(c), Stop()])
    with pytest.raises(KeyboardInterrupt):
        finetune(config)
    bert(tmp_path / "bert", pooler=True)
    finetune(config, resume=True)
    assert seen == [CLASSIFIER | POOLER] * 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_resumes(method: str, root: Path, tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint in the middle of the second of two epochs."""
    if METHODS[method].trains == "adapters":
        pytest.importorskip("peft", reason="needs the extra lora")
    values: dict[str, Any] = {"task": "pos", "data": str(root), "method": method, "lr": 1e-3}
    values |= {"epochs": 2, "batch_size": 8, "max_length": 32, "save_steps": 6}
    config = FinetuneConfig(**values, output=str(tmp_path / "whole"))
    seal = trainer_module.seal
    with pytest.MonkeyPatch.context() as patch:

        def seal_and_copy(checkpoint: Path, note: dict[str, Any]) -> None:
            seal(checkpoint, note)
            if checkpoint.name == "checkpoint-6":
                shutil.copytree(tmp_path / "whole", tmp_path / "resumed")

        patch.setattr(trainer_module, "seal", seal_and_copy)
        whole = finetune(config)
    resumed = finetune(FinetuneConfig(**values, output=str(tmp_path / "resumed")), resume=True)
    assert resumed["steps"] == 8
    assert resumed["history"] == whole["history"]
    assert json.dumps(resumed["scores"]) == json.dumps(whole["scores"])
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
