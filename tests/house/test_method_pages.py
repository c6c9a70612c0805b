"""The pages of docs/methods are what the table of methods makes of them, and their code runs."""

import re
import types

import pytest
import torch
from helpers.root import ROOT

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
