"""Laws of what is trained, and from when on: the head, and layers from the top down."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.recorded_runs import with_gradient
from helpers.small_bert import CLASSIFIER, POOLER, bert
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CanineConfig,
    FunnelConfig,
    XLMConfig,
)

from graddrop.exemptions import head_of
from graddrop.mask import layer_of
from graddrop.unfreezing import release_order
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.heads.model import load_model, load_tokenizer
from graddrop.xglue.methods import METHODS, check_layers, freeze_for, parameter_groups
from graddrop.xglue.tasks import get_task
from graddrop.xglue.training.run import _goes_by_layers


def test_head_only_trains_the_head(record: Any) -> None:
    """No other parameter gets a gradient, and none is in the optimizer."""
    seen, _ = record(with_gradient, method="head-only", max_steps=2)
    assert seen == [{"classifier.weight", "classifier.bias"}] * 2
    seen, _ = record(lambda model, o: sum(len(g["params"]) for g in o.param_groups), max_steps=1)
    assert seen[0] > 30  # negative control: the others train everything


def test_upper_half_trains_the_upper_layers_and_the_head(record: Any) -> None:
    """The second of two; no embedding, and nothing of the first, is in the optimizer."""
    seen, _ = record(with_gradient, method="upper-half", max_steps=2)
    for names in seen:
        assert {layer_of(name) for name in names if not name.startswith("classifier")} == {1}
        assert {"classifier.weight", "classifier.bias"} < names
    known, _ = record(
        lambda model, o: {n for group in o.param_groups for n in group["param_names"]},
        method="upper-half",
        max_steps=1,
    )
    assert known == seen[:1]


def test_gradual_unfreezing_goes_top_down_over_the_training(record: Any) -> None:
    """Head alone; then the upper of two layers; then the lower; embeddings in the last quarter."""
    seen, _ = record(with_gradient, method="gradual-unfreezing", epochs=4)
    assert len(seen) == 16
    for step, names in enumerate(seen):
        layers = {layer_of(name) for name in names if not name.startswith("classifier")}
        assert layers == [set(), {1}, {0, 1}, {0, 1, None}][step // 4]
        assert {"classifier.weight", "classifier.bias"} <= names
    # However few the epochs: everything is trained in the end, and longer than not at all.
    seen, _ = record(with_gradient, method="gradual-unfreezing", max_steps=4)
    everything, _ = record(with_gradient, max_steps=1)
    assert seen[-1] == everything[0] and seen[0] < seen[1] < seen[2] < seen[3]


def test_gradual_unfreezing_goes_evenly_over_a_share_of_the_training(record: Any) -> None:
    """Three stages after the head's own, each a quarter of the first half of 16 steps."""
    seen, _ = record(with_gradient, method="gradual-unfreezing", epochs=4, unfreeze_over=0.5)
    released = [len({layer_of(name) for name in names} - {None}) for names in seen]
    assert released == [0, 0, 1, 1, 2, 2, *[2] * 10]
    embedding = "roberta.embeddings.word_embeddings.weight"
    assert [embedding in names for names in seen] == [False] * 6 + [True] * 10


@pytest.mark.parametrize("pooler", [False, True])
def test_the_head_is_what_the_encoder_did_not_bring(tmp_path: Path, pooler: bool) -> None:
    """BERT's pooler, if the weights lack it; with a pooler of its own it is the encoder's top."""
    name = bert(tmp_path, pooler=pooler)
    task = get_task("xnli")
    model = load_model(name, task, load_tokenizer(name, ()), seed=0)
    head = CLASSIFIER if pooler else CLASSIFIER | POOLER
    assert head_of(model) == head
    groups = parameter_groups(model, 0.0, ("head",))
    assert {n for g in groups if "drop_prob" in g for n, _ in g["params"]} == head
    stages = release_order(model)
    assert (stages[0] >= POOLER) == pooler and not any(POOLER & stage for stage in stages[1:])
    assert {layer_of(name) for name in stages[0] - POOLER} == {1}
    assert [{layer_of(name) for name in stage} for stage in stages[1:]] == [{0}, {None}]
    assert frozenset().union(*stages) | head == {name for name, _ in model.named_parameters()}
    freeze_for(model, "head")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == head
    freeze_for(model, "upper-half")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == head | stages[0]
    # A fine-tuned model brings everything; random weights bring nothing: the first rule decides.
    model.save_pretrained(tmp_path / "tuned")
    tuned = load_model(str(tmp_path / "tuned"), task, load_tokenizer(name, ()), seed=0)
    assert head_of(tuned) == CLASSIFIER
    file = tmp_path / "tuned/model.safetensors"
    save_file({n: w for n, w in load_file(file).items() if n in CLASSIFIER}, file, {"format": "pt"})
    random = load_model(str(tmp_path / "tuned"), task, load_tokenizer(name, ()), seed=0)
    assert head_of(random) == CLASSIFIER


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AlbertConfig(embedding_size=16), "AlbertModel tells 0 of its 2 layers by name"),
        (XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=2), "XLMModel tells 0 of its"),
        (
            FunnelConfig(block_sizes=[2, 2], architectures=["FunnelModel"]),
            "FunnelModel tells 2 of its 4 layers by name",
        ),
        (CanineConfig(), "CanineModel has several stacks of them .*initial_char_encoder"),
    ],
)
def test_models_whose_layers_have_no_names_are_refused(config: Any, message: str) -> None:
    """Instead of taking all layers for none, or three for one; others are taken."""
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    for name, value in {**small, "num_hidden_layers": 2, "vocab_size": 64}.items():
        if not isinstance(config, XLMConfig | FunnelConfig):
            setattr(config, name, value)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
        check_layers(BertModel(BertConfig(**small, num_hidden_layers=2)))
    with pytest.raises(ValueError, match=message):
        check_layers(model)


def test_methods_that_go_by_layers_look_for_them() -> None:
    """By what they train or by what they drop, and by a knob of the user's; no other does."""
    config = FinetuneConfig("qam", "data", "out")
    found = {name for name in METHODS if _goes_by_layers(replace(config, method=name))}
    trains, drops = {"gradual-unfreezing", "upper-half"}, {"layer-graddrop", "lisa", "badam"}
    assert found == trains | drops | {"half-fine-tuning"}
    assert _goes_by_layers(replace(config, method="skip-update", granularity="layer"))
