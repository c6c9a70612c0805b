"""Laws of categories: each drops its own share, within each layer where that can be halved."""

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")

import torch
import transformers

from graddrop import FusedGradDropAdamW
from graddrop.categories import by_category, category_of
from graddrop.exemptions import is_bias, owned_parameters
from graddrop.mask import layer_of
from graddrop.methods import PRESETS
from graddrop.xglue.methods import parameter_groups

SIZE = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50}
MODELS = {  # matrices of attention, of the feed-forward part, and norms, in each layer
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(**SIZE)), (4, 2, 2)),
    "llama": (
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZE, intermediate_size=32)),
        (4, 3, 2),
    ),
    "gpt2": (
        lambda: transformers.GPT2Model(
            transformers.GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=50)
        ),
        (2, 2, 2),
    ),
    "distilbert": (
        lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(n_layers=4, dim=16, n_heads=2, vocab_size=50)
        ),
        (4, 2, 2),
    ),
}
CATEGORIES = ("attention", "feed-forward", "norm")


def kinds_of(model):
    """Of each parameter by name: category, whether a bias, layer."""
    return {
        name: (category_of(name, module), is_bias(name), layer_of(name))
        for name, _, module in owned_parameters(model)
    }


def dropped(optimizer):
    """Names of what the next step drops as a whole."""
    names = {}
    for group in optimizer.param_groups:
        names |= dict(zip(group["params"], group["param_names"], strict=True))
    return {names[param] for param in optimizer.dropped_params()}


@pytest.mark.parametrize("name", MODELS)
def test_half_of_each_category_of_each_layer_is_dropped(name):
    """Of an odd number half over all layers; embeddings and what else is in no layer never."""
    make, expected = MODELS[name]
    model = make()
    kinds = kinds_of(model)
    for category, number in zip(CATEGORIES, expected, strict=True):
        for layer in range(4):
            assert list(kinds.values()).count((category, False, layer)) == number
    optimizer = FusedGradDropAdamW(
        by_category(model), drop_prob=0.5, **PRESETS["half-fine-tuning"].knobs
    )
    stages = []
    for stage in range(8):
        optimizer.new_mask(stage)
        gone = dropped(optimizer)
        for category, biased, layer in set(kinds.values()):
            alike = {n for n, kind in kinds.items() if kind == (category, biased, layer)}
            if category is None:
                assert not gone & alike
            elif len(alike) % 2 == 0:
                assert len(gone & alike) == len(alike) / 2, (category, biased, layer)
            else:
                of_all = {n for n, kind in kinds.items() if kind[:2] == (category, biased)}
                assert len(gone & of_all) == len(of_all) / 2, (category, biased)
        stages.append(frozenset(gone))
    assert len(set(stages)) == 8
    # The layers, and the categories, have masks of their own.
    by_layer = [{n.replace(f".{i}.", ".") for n in stages[0] if f".{i}." in n} for i in range(4)]
    assert any(by_layer[0] != other for other in by_layer[1:])


def test_attention_is_told_within_the_layer():
    """Whatever the model around it is called."""
    module = torch.nn.Linear(1, 1)
    kinds = {"attn.qkv": "attention", "self_attention.out": "attention", "mlp.fc1": "feed-forward"}
    for around in ("blocks.3", "attn_pool.blocks.3", "flatten.encoder.layer.3"):
        for name, kind in kinds.items():
            assert category_of(f"{around}.{name}.weight", module) == kind
    assert category_of("attn_pool.query", module) is None


def test_all_tensors_together_do_not_do_so():
    """Control: without categories half of all is dropped, of most categories another share."""
    model = MODELS["bert"][0]()
    kinds = kinds_of(model)
    optimizer = FusedGradDropAdamW(
        model.named_parameters(), drop_prob=0.5, **PRESETS["half-fine-tuning"].knobs
    )
    gone = dropped(optimizer)
    shares = {
        kind: sum(kinds[n] == kind for n in gone) / list(kinds.values()).count(kind)
        for kind in set(kinds.values())
    }
    assert len(gone) == round(len(kinds) / 2)
    assert any(share != 0.5 for share in shares.values())


def test_groups_keep_their_other_values():
    """Decay goes with its parameters, each once; what is exempt stays so and in its group."""
    model = MODELS["bert"][0]()
    groups = parameter_groups(model, 0.1, ("biases",), masked={"lr": 3.0})
    divided = by_category(model, groups, seed=2**64 - 1)
    names = [name for group in divided for name, _ in group["params"]]
    assert sorted(names) == sorted(kinds_of(model))
    for group in divided:
        of_group = {name for name, _ in group["params"]}
        (origin,) = [g for g in groups if of_group <= {name for name, _ in g["params"]}]
        own = {key: group[key] for key in group if key not in ("params", "seed", "drop_prob")}
        assert own == {key: origin[key] for key in origin if key not in ("params", "drop_prob")}
        in_no_layer = all(layer_of(name) is None for name in of_group)
        assert group.get("drop_prob") == (0.0 if in_no_layer or "drop_prob" in origin else None)
        assert ("seed" in group) != ("drop_prob" in group)
    seeds = [group["seed"] for group in divided if "seed" in group]
    assert len(set(seeds)) == len(seeds) == 4 * 3  # matrices of three categories in four layers
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert not set(seeds) & {g["seed"] for g in by_category(model, seed=0) if "seed" in g}


def test_what_has_no_layers_is_refused():
    """By name; and a parameter of another model."""
    with pytest.raises(ValueError, match="no parameter of Linear is in a layer by its name"):
        by_category(torch.nn.Linear(2, 2))
    stranger = [{"params": [("layer.0.x", torch.nn.Parameter(torch.ones(1)))]}]
    with pytest.raises(ValueError, match=r"got 'layer.0.x', which is not"):
        by_category(MODELS["bert"][0](), stranger)
    model = MODELS["bert"][0]()
    with pytest.raises(TypeError, match=r"pairs of names and parameters in param group 0, got"):
        by_category(model, [{"params": list(model.parameters())}])
