"""Laws of the methods: what each row does to a model while it is trained."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.recorded_runs import with_gradient

from graddrop.exemptions import EXEMPTIONS
from graddrop.mask import layer_of
from graddrop.xglue.controls import mean_step
from graddrop.xglue.heads import model as model_module
from graddrop.xglue.heads.model import load_model, load_tokenizer
from graddrop.xglue.methods import parameter_groups
from graddrop.xglue.tasks import get_task
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.run import FinetuneConfig
from graddrop.xglue.training.steps import Steps


def mask(model: Any, optimizer: Any) -> torch.Tensor:
    """The next mask of one weight matrix."""
    return optimizer.keep_mask(model.roberta.encoder.layer[0].output.dense.weight).clone()


def test_graddrop_draws_each_step_and_its_epoch_variant_each_epoch(record: Any) -> None:
    """Masks differ from step to step; with period epoch from epoch to epoch alone."""
    masks, _ = record(mask, method="graddrop", epochs=2)
    assert all(not torch.equal(a, b) for a, b in zip(masks, masks[1:], strict=False))
    assert 0.4 < torch.stack(masks).float().mean() < 0.6
    masks, _ = record(mask, method="graddrop-epoch", epochs=2)
    same = [torch.equal(a, b) for a, b in zip(masks, masks[1:], strict=False)]
    assert same == [True, True, True, False, True, True, True]


def test_layer_graddrop_drops_whole_layers(record: Any) -> None:
    """Each mask is all kept or all dropped, equal within a layer; head and embeddings are kept."""

    def look(model: Any, optimizer: Any) -> dict[int | None, set[float]]:
        kept: dict[int | None, set[float]] = {}
        for name, parameter in model.named_parameters():
            share = optimizer.keep_mask(parameter).float().mean().item()
            kept.setdefault(layer_of(name), set()).add(share)
        return kept

    seen, _ = record(look, method="layer-graddrop", epochs=4)
    assert all(shares[None] == {1.0} for shares in seen)
    decisions = [tuple(shares[layer] for layer in (0, 1)) for shares in seen]
    assert all(shares in ({0.0}, {1.0}) for pair in decisions for shares in pair)
    assert {0.0} in {frozenset(shares) for pair in decisions for shares in pair}


def knobs(model: Any, optimizer: Any) -> list[tuple[Any, ...]]:
    """What the optimizer was given."""
    names = ("initial_lr", "drop_prob", "rescale", "granularity", "period", "site")
    return [tuple(group[name] for name in names) for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "standard"}, (1e-3, 0.0, False, "element", "step", "grad")),
        ({"method": "graddrop"}, (1e-3, 0.5, False, "element", "step", "grad")),
        ({"method": "batch-matched"}, (1e-3, 0.0, False, "element", "step", "grad")),
        (
            {"method": "lr-matched", "drop_prob": 0.36},
            (1e-3 * math.sqrt(0.64), 0.0, False, "element", "step", "grad"),
        ),
        (
            {"method": "graddrop", "granularity": "row", "site": "update", "period": 3},
            (1e-3, 0.5, False, "row", 3, "update"),
        ),
    ],
)
def test_a_row_sets_the_knobs_and_the_user_wins(
    record: Any, changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """Of every group, since nothing is exempt by default."""
    seen, _ = record(knobs, max_steps=1, **changes)
    assert set(seen[0]) == {expected}


def test_masks_of_layers_and_their_control_leave_all_else_alone(record: Any) -> None:
    """Outside the layers nothing is dropped, and no learning rate is lowered; so too if exempt."""

    def rates(model: Any, optimizer: Any) -> dict[str, tuple[float, float]]:
        """Learning rate and drop probability of each parameter."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            names[id(parameter)]: (group["initial_lr"], group["drop_prob"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def inside(name: str) -> bool:
        return layer_of(name) is not None

    def not_head(name: str) -> bool:
        return not name.startswith("classifier")

    lowered = 1e-3 * math.sqrt(0.5)
    for changes, masked, expected in (
        ({"method": "layer-graddrop"}, inside, (1e-3, 0.5)),
        ({"method": "lr-matched", "granularity": "layer"}, inside, (lowered, 0.0)),
        ({"method": "graddrop", "exempt": ("head",)}, not_head, (1e-3, 0.5)),
        ({"method": "lr-matched", "exempt": ("head",)}, not_head, (lowered, 0.0)),
    ):
        [seen], _ = record(rates, max_steps=1, **changes)
        assert {masked(name) for name in seen} == {True, False}
        assert seen == {name: expected if masked(name) else (1e-3, 0.0) for name in seen}


def test_the_controls_of_long_masks_follow_the_steps_of_the_run(record: Any) -> None:
    """3 epochs of 4 steps: the learning rate is that of masks which live 4 of 12 steps."""
    look = lambda model, optimizer: optimizer.param_groups[0]["initial_lr"]  # noqa: E731
    for changes, factor in (
        ({"period": "epoch"}, mean_step(0.5, steps=12, lifetime=4)),
        ({"period": 2}, mean_step(0.5, steps=12, lifetime=2)),
        ({"site": "update"}, 0.5),
        ({"site": "freeze", "granularity": "row"}, mean_step(0.5, steps=12, site="freeze")),
    ):
        seen, _ = record(look, method="lr-matched", **changes)
        assert seen == [1e-3 * factor] * 12


def test_batch_matched_takes_part_of_the_batch_over_as_many_steps(record: Any) -> None:
    """4 of 8 sentences a step, 12 steps as 3 epochs of the whole batch, evaluated as often."""
    sizes: list[int] = []
    inputs = trainer_module.ZeroShotTrainer.training_step
    for method, size in (("standard", 8), ("batch-matched", 4)):
        with pytest.MonkeyPatch.context() as patch:

            def step(trainer: Any, model: Any, batch: Any, *rest: Any) -> Any:
                sizes.append(len(batch["labels"]))
                return inputs(trainer, model, batch, *rest)

            patch.setattr(trainer_module.ZeroShotTrainer, "training_step", step)
            _, result = record(with_gradient, method=method)
        assert sizes == [size] * 12
        assert [row["step"] for row in result["history"] if "eval_en" in row] == [4, 8, 12]
        sizes.clear()
    with pytest.raises(ValueError, match=r"0.7 \* 8 here; choose numbers that make it a whole one"):
        record(with_gradient, method="batch-matched", drop_prob=0.3)


def test_drop_probabilities_change_with_the_epochs(record: Any) -> None:
    """One value per epoch of 4 steps, the last for those beyond; or a line over the training."""

    def look(model: Any, optimizer: Any) -> tuple[float, ...]:
        return tuple(group["drop_prob"] for group in optimizer.param_groups)

    def share(model: Any, optimizer: Any) -> float:
        return mask(model, optimizer).float().mean().item()

    seen, _ = record(share, drop_prob=(0.0, 0.75))
    assert seen[:4] == [1.0] * 4
    assert all(0.15 < kept < 0.35 for kept in seen[4:])
    seen, _ = record(share, drop_prob=(1.0, 0.0), drop_schedule="linear")
    assert all(abs(kept - step / 12) < 0.1 for step, kept in enumerate(seen))
    seen, _ = record(look, drop_prob=(0.25, 0.5), exempt=("head",), max_steps=1)
    assert [sorted(groups) for groups in seen] == [[0.0, 0.0, 0.25, 0.25]]


def test_steps_are_those_that_the_trainer_takes(record: Any) -> None:
    """32 sentences: whole batches, an uneven last one, micro-batches, a part of an epoch."""
    values: dict[str, Any]
    for values in ({}, {"batch_size": 6, "accumulation": 3}, {"epochs": 1.3}, {"max_steps": 5}):
        seen, result = record(with_gradient, **values)
        config = FinetuneConfig("pos", "D", "o", **{"epochs": 3, "batch_size": 8, **values})
        assert len(seen) == result["steps"] == Steps.of(config.resolved(), 32).total


def test_exempt_parameters_are_never_masked(record: Any) -> None:
    """Even when everything else is dropped."""

    def look(model: Any, optimizer: Any) -> set[str]:
        return {n for n, p in model.named_parameters() if optimizer.keep_mask(p).all()}

    seen, _ = record(look, max_steps=2, drop_prob=1.0, exempt=("head", "embeddings"))
    expected = {"classifier.weight", "classifier.bias"}
    expected |= {
        f"roberta.embeddings.{kind}_embeddings.weight"
        for kind in ("word", "position", "token_type")
    }
    assert seen == [expected] * 2


def test_groups_hold_every_parameter_once() -> None:
    """Four kinds of exemption cover head, embeddings, norms and biases; matrices are masked."""
    task = get_task("pos")
    model = load_model("tiny", task, load_tokenizer("tiny", ["a b"]), seed=0)
    names = [name for name, _ in model.named_parameters()]
    for exempt in ((), ("head",), EXEMPTIONS):
        groups = parameter_groups(model, 0.1, exempt)
        assert sorted(name for group in groups for name, _ in group["params"]) == sorted(names)
        unmasked = [n for group in groups if "drop_prob" in group for n, _ in group["params"]]
        assert all(group.get("drop_prob", 0) == 0 for group in groups)
        masked = set(names) - set(unmasked)
        if exempt == ("head",):
            assert sorted(unmasked) == ["classifier.bias", "classifier.weight"]
        if len(exempt) == len(EXEMPTIONS):
            assert masked and all(".dense." in n or ".self." in n for n in masked)
            assert all(name.endswith(".weight") for name in masked)
        decayed = [n for g in groups if g["weight_decay"] for n, _ in g["params"]]
        assert decayed and not any("LayerNorm" in n or n.endswith("bias") for n in decayed)


def test_a_model_with_another_head_is_refused(tmp_path: Path) -> None:
    """Weights for other labels are no weights to begin with; the same labels are."""
    pos, ner = get_task("pos"), get_task("ner")
    tokenizer = load_tokenizer("tiny", ["a b"])
    model = load_model("tiny", pos, tokenizer, seed=0)
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), pos, tokenizer, seed=0).num_labels == len(pos.labels)
    with pytest.raises(ValueError, match="than task ner with its 9 labels; name the encoder"):
        load_model(str(tmp_path), ner, tokenizer, seed=0)


def gradients(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """All gradients of a step."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_accumulated_micro_batches_are_one_batch(record: Any) -> None:
    """The gradient of 8 rows at once is that of 4 times 2 rows, not four times as large.

    The Trainer hands the number of items to models whose signature would take it, and then leaves
    dividing to them.
    """

    def without_dropout(vocab_size: int) -> Any:
        config = tiny_config(vocab_size)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        return config

    tiny_config = model_module.tiny_config
    values = {"task": "xnli", "max_steps": 1, "seed": 3, "max_grad_norm": 1e9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "tiny_config", without_dropout)
        (whole,), _ = record(gradients, **values)
        (parts,), _ = record(gradients, accumulation=4, **values)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3


def test_recomputed_activations_give_the_same_gradients(record: Any) -> None:
    """Checkpointing of activations saves memory and changes nothing."""
    (plain,), _ = record(gradients, max_steps=1)
    (saving,), _ = record(gradients, max_steps=1, activation_checkpointing=True)
    assert plain.keys() == saving.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient)


def test_patience_ends_a_training_that_does_not_get_better(record: Any) -> None:
    """With next to no learning rate the first evaluation stays the best."""
    for changes, steps in (({}, 12), ({"patience": 1}, 8)):
        _, result = record(with_gradient, lr=1e-12, **changes)
        assert result["steps"] == steps
        assert result["selected_step"] == 4


def test_mixed_precision_trains(record: Any) -> None:
    """bf16 gives other gradients than fp32, about as large; weights stay fp32."""
    (full,), _ = record(gradients, max_steps=1)
    (mixed,), _ = record(gradients, max_steps=1, precision="bf16")
    name = "roberta.encoder.layer.0.output.dense.weight"
    assert mixed[name].dtype == torch.float32
    assert not torch.equal(full[name], mixed[name])
    assert 0.5 < mixed[name].norm() / full[name].norm() < 2
