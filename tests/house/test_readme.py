"""The README keeps its word."""

import re

import pytest
import torch
from helpers.root import ROOT

from graddrop import FusedGradDropAdamW

README = ROOT / "README.md"


def test_the_first_example_runs_as_it_stands():
    """Ten lines, copied as they are, train: the loss falls."""
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in example.group(1).splitlines() if line.strip()]
    assert len(lines) <= 11
    losses: list[float] = []
    code = example.group(1).replace(
        "loss.backward()", "loss.backward(); losses.append(loss.item())"
    )
    exec(compile(code, str(README), "exec"), {"losses": losses, "__name__": "readme"})
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_the_trainer_takes_both_ways(tmp_path):
    """Both examples make the Trainer's optimizer: one by its class, one with groups of our own."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    examples = [block for block in blocks if "Trainer(" in block]
    assert len(examples) == 2
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    names = {
        "Trainer": transformers.Trainer,
        "FusedGradDropAdamW": FusedGradDropAdamW,
        "args": transformers.TrainingArguments(
            str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        "data": [{"input_ids": [1, 2, 3], "labels": 0}] * 4,
    }
    for example in examples:
        torch.manual_seed(0)
        names["model"] = transformers.BertForSequenceClassification(config)
        exec(compile(example, str(README), "exec"), names)
        names["trainer"].train()
    body, head = names["optimizer"].param_groups
    assert set(body["layers"]) == {0, 1} and body["drop_prob"] == 0.5
    assert set(head["layers"]) == {None} and head["drop_prob"] == 0.0
    assert names["optimizer"].draws == [2, 2]


def test_what_it_links_to_exists():
    """Every relative link and every path in the first code of a command leads to a file."""
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    for script in re.findall(r"`(?:python|pytest)(?: -s)? ([\w/]+\.py)", text):
        assert (README.parent / script).exists(), script
