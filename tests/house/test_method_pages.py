"""The pages of docs/methods are what the table of methods makes of them, and their code runs."""

import re
import types
from pathlib import Path

import pytest
import torch
from helpers.root import ROOT

import graddrop
from graddrop.method_pages import index, page
from graddrop.methods import PRESETS

FOLDER = ROOT / "docs" / "methods"


def test_every_method_has_its_page() -> None:
    """And no page is left of one that is gone: `python -m graddrop.method_pages docs/methods`."""
    expected = {f"{name}.md": page(name) for name in PRESETS} | {"README.md": index()}
    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()} == expected


@pytest.mark.parametrize("name", PRESETS)
def test_the_code_of_a_page_trains(name: str) -> None:
    """The lines for plain torch, on a model of two layers."""
    layer = torch.nn.Linear(3, 3)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer, torch.nn.Linear(3, 1)])})

    def forward(x: torch.Tensor) -> types.SimpleNamespace:
        for part in model["layers"]:
            x = part(x)
        return types.SimpleNamespace(loss=x.square().mean())

    model.forward = forward
    before = [param.detach().clone() for param in model.parameters()]
    code = re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)[0]
    exec(code, {"model": model, "p": 0.3, "batches": [{"x": torch.ones(2, 3)}] * 3})
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["lisa", "graddrop-epoch", "child-tuning-d"])
def test_the_code_for_the_trainer_trains(name: str, tmp_path: Path) -> None:
    """With the backward pass of dropped layers left out, and without; with masks that are made."""
    transformers = pytest.importorskip("transformers", reason="needs the extra xglue")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    given = {
        "graddrop": graddrop,
        "Trainer": transformers.Trainer,
        "model": transformers.BertForSequenceClassification(config),
        "args": transformers.TrainingArguments(
            str(tmp_path), max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True
        ),
        "data": [{"input_ids": [1, 2, 3], "labels": 1}] * 16,
        "knobs": PRESETS[name].knobs,
        "p": 0.5,
    }
    exec(re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)[1], given)
    before = [param.detach().clone() for param in given["model"].parameters()]
    given["trainer"].train()
    params = given["model"].parameters()
    assert any(not torch.equal(*pair) for pair in zip(before, params, strict=True))
