"""Laws of adapters: what they change of a model while it is trained, and that nothing is left."""

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.finetune_runs import assert_same_run, config, trainer_of, write_data
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2ForSequenceClassification

from graddrop.exemptions import head_of
from graddrop.xglue.adapters import RANK, add_adapters, merge_adapters
from graddrop.xglue.heads.model import load_model, load_tokenizer
from graddrop.xglue.tasks import get_task
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.run import finetune


@pytest.fixture
def with_peft() -> None:
    """Nothing here runs without it but what says so."""
    pytest.importorskip("peft", reason="needs the extra lora")


needs_peft = pytest.mark.usefixtures("with_peft")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a toy grammar."""
    return write_data(tmp_path_factory.mktemp("data"))


def model_for(kind: str, folder: Path) -> Any:
    """A small model with a head that has linear layers itself, or whose layers are `Conv1D`."""
    torch.manual_seed(0)
    if kind == "gpt2":
        values = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
        ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        return GPT2ForSequenceClassification(GPT2Config(**values, **ends))
    tokenizer = load_tokenizer("tiny", ["a b"])
    name = "tiny"
    if kind == "bert":  # without a pooler, which becomes a part of the head
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        encoder = BertModel(
            BertConfig(**size, vocab_size=300, intermediate_size=64), add_pooling_layer=False
        )
        encoder.save_pretrained(folder)
        name = str(folder)
    return load_model(name, get_task("xnli"), tokenizer, seed=0)


def shape(model: nn.Module) -> list[tuple[str, type, tuple[str, ...]]]:
    """Modules by name and class, with the names of their own parameters."""
    return [
        (name, type(module), tuple(n for n, _ in module.named_parameters(recurse=False)))
        for name, module in model.named_modules()
    ]


def draw_adapters(model: nn.Module) -> None:
    """Give both factors other values, as a training would."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)


@needs_peft
@pytest.mark.parametrize("kind", ["tiny", "bert", "gpt2"])
def test_adapters_and_head_are_trained_beside_every_linear_layer(kind: str, tmp_path: Path) -> None:
    """Two factors of rank 8 for each matrix outside the head; before training they do nothing."""
    model = model_for(kind, tmp_path).eval()
    tokens = torch.randint(99, (2, 7), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens).logits
    head = head_of(model)
    # What multiplies, by its shape; embeddings, the other matrices, are looked up.
    matrices = {
        name.removesuffix(".weight"): parameter.shape
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and name not in head
        if not any(part in name for part in ("embeddings", "wte", "wpe"))
    }
    assert len(matrices) >= 8
    add_adapters(model, head)
    assert torch.equal(model(input_ids=tokens).logits, before)
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert (
        head
        <= trained.keys()
        == {
            *head,
            *(f"{name}.lora_{side}.default.weight" for name in matrices for side in "AB"),
        }
    )
    for name, own in matrices.items():
        first, second = (trained[f"{name}.lora_{side}.default.weight"] for side in "AB")
        assert first[0] == second[1] == RANK and {first[1], second[0]} == set(own)


@needs_peft
@pytest.mark.parametrize("kind", ["tiny", "bert", "gpt2"])
def test_merging_leaves_a_plain_model_that_computes_the_same(kind: str, tmp_path: Path) -> None:
    """The modules and names of before; logits but for rounding, though adapters did something."""
    model = model_for(kind, tmp_path).eval()
    plain = copy.deepcopy(model)
    tokens = torch.randint(99, (2, 7), generator=torch.Generator().manual_seed(1))
    add_adapters(model, head_of(model))
    draw_adapters(model)
    adapted = model(input_ids=tokens).logits
    merge_adapters(model)
    torch.testing.assert_close(model(input_ids=tokens).logits, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(input_ids=tokens).logits, adapted, rtol=1e-2)
    assert shape(model) == shape(plain)
    assert vars(model).keys() == vars(plain).keys()


@needs_peft
def test_a_run_saves_a_model_like_any_other(data: Path, tmp_path: Path) -> None:
    """It loads as it is; matrices and head have moved, embeddings, norms and biases have not."""
    start = trainer_of(config(data, tmp_path / "start", method="standard")).model.state_dict()
    result = finetune(config(data, tmp_path / "run", method="lora", lr=1e-2))
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert saved.keys() == start.keys()
    moved = {name for name, value in saved.items() if not torch.equal(value, start[name])}
    matrices = {n for n in start if n.endswith(".weight") and "Norm" not in n}
    assert moved == {n for n in matrices if "embeddings" not in n} | {"classifier.bias"}
    assert result["parameters"] == sum(value.numel() for value in saved.values())
    assert "peft" in result["versions"]
    losses = [row["loss"] for row in result["history"] if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]


@needs_peft
def test_adapters_are_the_seeds(data: Path, tmp_path: Path) -> None:
    """One seed draws the same ones in any process, another others."""

    def drawn(seed: int, name: str) -> dict[str, torch.Tensor]:
        trainer = trainer_of(config(data, tmp_path / name, method="lora", seed=seed))
        return {n: p for n, p in trainer.model.named_parameters() if "lora_A" in n}

    first = drawn(1, "a")
    torch.manual_seed(7)
    for name, value in drawn(1, "b").items():
        assert torch.equal(value, first[name])
    assert not any(torch.equal(value, first[name]) for name, value in drawn(2, "c").items())


@needs_peft
@pytest.mark.parametrize("step", [6, 15])
@pytest.mark.parametrize("select", ["en-dev", "last"])
def test_resume_equals_the_uninterrupted_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, select: str
) -> None:
    """In the middle of an epoch, and after the last step, when only scores are wanting."""
    seal = trainer_module.seal

    def seal_and_copy(checkpoint: Path, note: dict[str, Any]) -> None:
        seal(checkpoint, note)
        if checkpoint.name == f"checkpoint-{step}":
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "seal", seal_and_copy)
        finetune(config(data, tmp_path / "whole", method="lora", select=select))
    finetune(config(data, tmp_path / "resumed", method="lora", select=select), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_without_peft_a_run_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read or written."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'needs PEFT.*pip install "\.\[lora\]"'):
        finetune(config(data, tmp_path / "run", method="lora"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="lora drops nothing"):
        config(data, tmp_path / "run", method="lora", drop_prob=0.5)
