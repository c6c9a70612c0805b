"""What is computed of large models is what is counted of small ones, and stands in the docs."""

import re
from dataclasses import replace
from statistics import mean

import pytest
import torch
from helpers.root import ROOT

pytest.importorskip("transformers", reason="needs the extra xglue")

from bench import savings
from bench.sizes import SIZES
from bench.ways import ways
from bench.whole_step import Mean, Training

LAYERS = 4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# Name of the size, dtype, changes of its configuration, how that is said to the formula. On a CPU
# attention with dropout keeps its scores, and a mask of dropout is float32.
MODELS = {
    "encoder": ("xlm-roberta-large", torch.float32, NO_DROPOUT, {"dropout": 0}),
    "encoder, dropout": ("xlm-roberta-large", torch.float32, {}, {"fused": False, "dropout": 4}),
    "decoder": ("decoder-7b", torch.float32, {}, {}),
    "decoder, bf16": ("decoder-7b", torch.bfloat16, {}, {}),
}


def small(model):
    """The size, as of 64 entries in 4 layers."""
    name, dtype, _, _ = MODELS[model]
    return replace(SIZES[name].scaled(LAYERS, 64, 300), batch=(3, 40), dtype=dtype)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    """The name, and the model itself."""
    torch.manual_seed(0)
    _, dtype, changes, _ = MODELS[request.param]
    body = small(request.param).build(**changes)
    return request.param, Mean(body).to(dtype).train()


@pytest.mark.parametrize("way", [way for way in ways(LAYERS) if way != "lora, torch"])
def test_what_is_computed_is_what_is_counted(model, way):
    """Operations, gradients, moments exactly; what is saved but for small change, as of angles.

    Masks are compared at the share that they drop. Where tensors are dropped that is not quite the
    matrices' share: biases and norms, which have no products, are drawn by themselves.
    """
    name, module = model
    if way == "lora":
        pytest.importorskip("peft", reason="needs the extra lora")
    what = ways(LAYERS)[way]
    training = Training(module, what, LAYERS)
    training.want_gradients()
    tokens = torch.randint(300, small(name).batch, generator=torch.Generator().manual_seed(1))
    training.count(tokens)  # makes the moments
    drawn = [(training.dropped(), *training.count(tokens)) for _ in range(12 if what.masks else 1)]
    dropped, operations, gradients, saved = (mean(values) for values in zip(*drawn, strict=True))
    if what.masks:
        what = replace(what, knobs={**what.knobs, "drop_prob": dropped})
    found = savings.saving(small(name), what, **MODELS[name][3])
    tensors = way == "half-fine-tuning"
    assert found.gradients == pytest.approx(gradients, rel=1e-9)
    assert found.moments == training.moments()
    assert found.operations == pytest.approx(operations, rel=1e-3 if tensors else 1e-9)
    assert found.saved == pytest.approx(saved, rel=0.02, abs=4096)


def test_a_step_costs_what_it_reads_and_writes():
    """28 bytes per float32 entry; what is dropped has no gradient, what is frozen is not looked at.

    Seconds are the products' at a rate and the optimizer's at a bandwidth.
    """
    size, known = SIZES["xlm-roberta-large"], ways(24)
    standard, lisa, half = (
        savings.saving(size, known[w]) for w in ("standard", "lisa", "layer-graddrop 0.5")
    )
    entries = standard.moments / 8
    assert entries == 558_841_857 and standard.moved == 28 * entries
    assert half.moved == standard.moved - 4 * (standard.gradients - half.gradients) / 4
    assert lisa.moved == 7 * lisa.gradients
    assert half.seconds(62, 1.6) == half.operations / 62e12 + half.moved / 1.6e12
    with pytest.raises(ValueError, match="expected an encoder or a gated decoder, got a decoder"):
        savings.saving(SIZES["decoder"], known["standard"])


def test_the_page_has_what_the_command_prints(capsys):
    """The table between its marks in `docs/performance.md`."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    shown = re.search(r"(?<=<!-- savings -->\n).*?(?=<!-- /savings -->)", page, re.DOTALL)
    savings.main([])
    assert shown.group() == capsys.readouterr().out
    savings.main(["--tflops", "500", "--bandwidth", "0.1"])
    assert shown.group() != capsys.readouterr().out
