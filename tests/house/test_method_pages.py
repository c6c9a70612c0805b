"""The pages of docs/methods are what the table of methods makes of them, and their code runs."""

import re
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.root import ROOT

import graddrop
from graddrop.mask import SELECTIONS
from graddrop.method_pages import index, page
from graddrop.methods import PRESETS

FOLDER = ROOT / "docs" / "methods"


def test_every_method_has_its_page() -> None:
    """And no page is left of one that is gone: `python -m graddrop.method_pages docs/methods`."""
    expected = {f"{name}.md": page(name) for name in PRESETS} | {"README.md": index()}
    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()} == expected


def test_every_way_to_choose_has_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that no published method has yet."""
    pages = set()
    for select in SELECTIONS:
        preset = replace(PRESETS["lisa"], knobs={"granularity": "layer", "select": select})
        monkeypatch.setitem(PRESETS, "another", preset)  # type: ignore[arg-type]
        pages.add(page("another").replace(f'"{select}"', ""))
    assert len(pages) == len(SELECTIONS)


def test_the_law_of_every_method_has_its_test() -> None:
    """The one that its row names, which a marker or a parameter may have several runs of."""
    for name, preset in PRESETS.items():
        file, _, test = preset.test.partition("::")
        source = (ROOT / "tests" / "optimizer" / file).read_text(encoding="utf-8")
        assert f"\ndef {test}(" in source, name


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
    at_hand = {"model": model, "p": 0.3, "batches": [{"x": torch.ones(2, 3)}] * 3}
    at_hand |= {"examples": [{"x": torch.ones(1, 3)}] * 3, "head": {"layers.1.bias"}}
    exec(code, at_hand)
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


MADE = [name for name, preset in PRESETS.items() if preset.made]


@pytest.mark.parametrize("name", ["lisa", "graddrop-epoch", "half-fine-tuning", *MADE])
def test_the_code_for_the_trainer_trains(name: str, tmp_path: Path) -> None:
    """With the backward pass of dropped layers left out, and without; with masks that are made.

    Where it goes on from a checkpoint, masks are the checkpoint's: other weights would make others.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra xglue")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    masks = []
    for attempt in range(2):
        torch.manual_seed(attempt)
        given = {
            "graddrop": graddrop,
            "Trainer": transformers.Trainer,
            "model": transformers.BertForSequenceClassification(config).eval(),
            "args": transformers.TrainingArguments(
                str(tmp_path),
                max_steps=2 + attempt,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                save_steps=2,
            ),
            "data": [{"input_ids": [1, 2, 3], "labels": 1}] * 16,
            "knobs": PRESETS[name].knobs,
            "p": 0.5,
        }
        exec(re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)[1], given)
        before = [param.detach().clone() for param in given["model"].parameters()]
        made = given.get("masks", {})
        given["trainer"].train(resume_from_checkpoint=True if attempt else None)
        params = given["model"].parameters()
        assert any(not torch.equal(*pair) for pair in zip(before, params, strict=True))
        optimizer = given["trainer"].optimizer.optimizer
        named = dict(given["model"].named_parameters())
        loaded = {key: optimizer.keep_mask(named[key]) for key in made}
        same = [torch.equal(loaded[key], made[key]) for key in made]
        assert all(same) or attempt
        assert not made or not all(same) or not attempt
        masks.append(loaded)
    assert all(torch.equal(masks[0][key], mask) for key, mask in masks[1].items())
    kept = sum(int(mask.sum()) for mask in masks[0].values())
    assert kept == pytest.approx(sum(mask.numel() for mask in masks[0].values()) / 2, rel=0.01)
