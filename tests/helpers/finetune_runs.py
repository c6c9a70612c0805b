"""Fine-tuning runs of a second on a toy grammar, and what makes two of them the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.run import finetune

WORDS = {"DET": ("the", "a"), "NOUN": ("cat", "dog", "moon"), "VERB": ("sees", "eats")}


def write_sentences(path: Path, count: int) -> None:
    """Write sentences of a toy grammar in the layout of POS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = []
    for number in range(count):
        tags = ["DET", "NOUN", "VERB", "DET", "NOUN"][: 3 + 2 * (number % 2)]
        words = [WORDS[tag][(number + place) % len(WORDS[tag])] for place, tag in enumerate(tags)]
        sentences.append("".join(f"{w} {t}\n" for w, t in zip(words, tags, strict=True)))
    # As in the archive, no blank line after the last sentence.
    path.write_text("\n".join(sentences), encoding="utf-8")


def write_data(root: Path) -> Path:
    """Write POS files in two of the languages, one of them without a test set; return the root."""
    write_sentences(root / "POS/en.train", 37)
    for name, count in (("en.dev", 9), ("en.test", 7), ("de.dev", 5)):
        write_sentences(root / "POS" / name, count)
    return root


def config(data: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """A run of 15 steps in 3 epochs of 5, with checkpoints inside of the epochs."""
    values: dict[str, Any] = {
        "task": "pos",
        "data": str(data),
        "output": str(output),
        "epochs": 3,
        "batch_size": 8,
        "lr": 1e-3,
        "save_steps": 2,
        "log_steps": 4,
        "max_length": 32,
    }
    return FinetuneConfig(**{**values, **changes})


class ReadyError(Exception):
    """Raised where training would begin, with the trainer."""


def trainer_of(run: FinetuneConfig) -> Any:
    """Return the trainer of a run as it is when training would begin."""

    def stop(self: Any, **_: Any) -> None:
        raise ReadyError(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.ZeroShotTrainer, "train", stop)
        with pytest.raises(ReadyError) as ready:
            finetune(run)
    return ready.value.args[0]


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what the clock put into it."""
    kept = {name: value for name, value in result.items() if name != "seconds"}
    clocked = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    kept["history"] = [
        {name: value for name, value in entry.items() if name not in clocked}
        for entry in result["history"]
    ]
    return kept


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that two output folders hold the same weights and results, bit for bit."""
    weights = [load_file(folder / "model/model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert without_times(results[0]) == without_times(results[1])
