"""Laws of masks that the harness makes, or cuts by category: what is trained is as published."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
import transformers
from helpers.xglue_files import write_archive
from transformers import TrainerCallback

from graddrop.categories import category_of
from graddrop.exemptions import head_of, is_bias, owned_parameters
from graddrop.mask import layer_of
from graddrop.methods import PRESETS
from graddrop.xglue.heads import model as model_module
from graddrop.xglue.heads.model import tiny_config, train_tokenizer
from graddrop.xglue.methods import METHODS
from graddrop.xglue.training import run as run_module
from graddrop.xglue.training.run import FinetuneConfig, finetune

MADE = [name for name, preset in PRESETS.items() if preset.made is not None]


def test_every_preset_is_a_method_with_its_own_masks() -> None:
    """And so an arm of sweeps; `test_every_method_runs_and_resumes` runs them all."""
    assert {name: METHODS[name].masks for name in PRESETS} == dict(PRESETS)
    assert all(METHODS[name].drop_prob for name in PRESETS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy tasks, of 32 sentences each."""
    return write_archive(tmp_path_factory.mktemp("archive"), train=32, evaluation=3)


Look = Callable[[Any, Any], Any]


@pytest.fixture
def record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
    """A function that runs a method; what was seen between backward pass and update, the result.

    The model drops nothing out: gradients that make masks are those that are trained with.
    """

    def without_dropout(vocab_size: int) -> Any:
        config = tiny_config(vocab_size)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        return config

    monkeypatch.setattr(model_module, "tiny_config", without_dropout)
    callbacks = run_module._callbacks

    def run(look: Look, **changes: Any) -> tuple[list[Any], dict[str, Any]]:
        seen: list[Any] = []

        class Recorder(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
                """Look."""
                seen.append(look(kw["model"], kw["optimizer"].optimizer))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module, "_callbacks", lambda c: [*callbacks(c), Recorder()])
            values = {"task": "pos", "data": str(root), "lr": 1e-3, "max_steps": 2, "batch_size": 8}
            values |= {"max_length": 32, "evaluate": ("en-dev",), "select": "last"}
            values |= {"output": str(tmp_path / f"run{len(list(tmp_path.iterdir()))}")}
            result = finetune(FinetuneConfig(**{**values, **changes}))
        return seen, result

    return run


def masks_and_grads(model: Any, optimizer: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """Mask, gradient and value of each parameter by name."""
    return {
        name: (optimizer.keep_mask(p).clone(), p.grad.clone(), p.detach().clone())
        for name, p in model.named_parameters()
    }


def assert_largest(sets: list[list[tuple[torch.Tensor, ...]]], density: float) -> None:
    """In each set together so many entries are kept, and none whose gradient is below a dropped."""
    for together in sets:
        keep = torch.cat([mask.flatten() for mask, *_ in together])
        size = torch.cat([grad.flatten().abs() for _, grad, *_ in together])
        assert int(keep.sum()) == round(density * len(keep))
        if keep.any() and not keep.all():
            assert size[keep].min() >= size[~keep].max() * (1 - 1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "child-tuning-d", "drop_prob": 0.7},
        {"method": "child-tuning-d", "drop_prob": 0.7, "accumulation": 4},
        {"method": "sift", "drop_prob": 0.9, "seed": 3},
        {"method": "sift", "drop_prob": 0.9, "accumulation": 2},
        {"method": "fish-mask", "drop_prob": 0.99, "batch_size": 1},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_masks_are_of_the_gradients_of_the_first_batches(
    record: Any, changes: dict[str, Any]
) -> None:
    """Of one batch, or example: those that the first step has; the head is trained whole.

    Where the batch comes in micro-batches its gradient is the same. Masks stay; what they drop
    never moves under `freeze`; and the result says of what they were made.
    """
    (first, second), result = record(masks_and_grads, mask_batches=1, **changes)
    preset = METHODS[changes["method"]].masks
    density = 1 - changes["drop_prob"]
    head = {name for name in first if name.startswith("classifier")}
    masked = {name for name in first if preset.made.within in name} - head
    assert masked and head
    assert all(first[name][0].all() for name in first.keys() - masked)
    together = [first[name] for name in first if name in masked]
    assert_largest([[one] for one in together] if preset.made.per_tensor else [together], density)
    with pytest.raises(AssertionError):  # control: of the second step's gradients they are not
        together = [(first[name][0], *second[name][1:]) for name in first if name in masked]
        assert_largest(
            [[one] for one in together] if preset.made.per_tensor else [together], density
        )
    for name, (keep, _, value) in first.items():
        assert torch.equal(keep, second[name][0])
        moved = value != second[name][2]
        assert moved.any() or not keep.any()
        if preset.knobs.get("site") == "freeze":
            assert not moved[~keep].any()
    assert result["masks"] == {
        "density": density,
        "batches": 1,
        "batch_size": changes.get("batch_size", 8),
    }
    assert result["config"]["mask_batches"] == 1


def masks(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Mask of each parameter by name."""
    return {name: optimizer.keep_mask(p).clone() for name, p in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same masks."""
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", MADE)
def test_as_many_batches_as_published_make_them_unless_the_user_says(
    record: Any, method: str
) -> None:
    """The configuration says so, or how many there are; more batches, or another seed: others."""
    made = METHODS[method].masks.made
    size = 1 if made.losses == "one example" else 8
    (few,), few_result = record(masks, method=method, max_steps=1, mask_batches=2)
    (usual,), result = record(masks, method=method, max_steps=1)
    (again,), _ = record(masks, method=method, max_steps=1, mask_batches=made.n_losses)
    (other,), _ = record(masks, method=method, max_steps=1, seed=1)
    assert same(usual, again) and not same(usual, few) and not same(usual, other)
    assert few_result["masks"]["batches"] == 2
    expected = min(made.n_losses or math.inf, 32 / size)
    assert result["masks"]["batches"] == expected and result["masks"]["batch_size"] == size
    assert result["config"]["mask_batches"] == made.n_losses


def test_what_is_exempt_has_no_mask(record: Any) -> None:
    """Embeddings and biases are trained whole, and the others' share is of themselves."""
    (seen,), _ = record(
        masks, method="fish-mask", max_steps=1, mask_batches=4, exempt=("embeddings", "biases")
    )
    exempt = {name for name in seen if "_embeddings" in name or name.endswith("bias")}
    whole = exempt | {"classifier.weight"}
    assert {name for name, keep in seen.items() if keep.all()} >= whole
    rest = torch.cat([seen[name].flatten() for name in seen.keys() - whole])
    assert int(rest.sum()) == round(0.005 * len(rest))


def test_a_run_that_goes_on_makes_no_masks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the checkpoint's; without one they are made again, of the same weights."""
    values: dict[str, Any] = {"task": "pos", "data": str(root), "method": "sift", "lr": 1e-2}
    values |= {"batch_size": 8, "max_length": 32, "max_steps": 3, "save_steps": 2, "select": "last"}
    config = FinetuneConfig(**values, output=str(tmp_path / "run"))
    callbacks = run_module._callbacks
    seen: list[dict[str, torch.Tensor]] = []
    stops = [1, 4]  # before the first checkpoint, after it

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            """Remember the masks; end two attempts."""
            seen.append(masks(kw["model"], kw["optimizer"].optimizer))
            if len(seen) - 1 in stops:
                raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_callbacks", lambda c: [*callbacks(c), Stop()])
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            finetune(config, resume=resume)
    with monkeypatch.context() as patch:
        patch.delattr(run_module, "load_made_masks")  # whose call would fail
        result = finetune(config, resume=True)
    assert result["steps"] == 3 and len(seen) == 6
    assert all(same(seen[0], later) for later in seen[1:])
    assert not all(keep.all() for keep in seen[0].values())


def kept_of_categories(model: Any, optimizer: Any) -> dict[Any, list[bool]]:
    """By category, whether biases, and layer: of each tensor whether it is kept."""
    kept: dict[Any, list[bool]] = {}
    for name, param, module in owned_parameters(model):
        keep = optimizer.keep_mask(param)
        assert keep.all() or not keep.any()
        category = "head" if name in head_of(model) else category_of(name, module)
        kind = category, is_bias(name), layer_of(name)
        kept.setdefault(kind, []).append(bool(keep.all()))
    return kept


def test_half_fine_tuning_freezes_half_of_each_category(record: Any) -> None:
    """Of each layer, matrices and biases by themselves, anew each epoch; head, embeddings never."""
    seen, _ = record(kept_of_categories, method="half-fine-tuning", epochs=2, max_steps=None)
    assert len(seen) == 8
    for step in seen:
        assert {category for category, *_ in step} == {
            "attention",
            "feed-forward",
            "norm",
            "head",
            None,
        }
        for (category, _, layer), kept in step.items():
            if layer is None:
                assert all(kept)
            else:
                assert sum(kept) == len(kept) / 2, category
    assert all(step == seen[step_of - step_of % 4] for step_of, step in enumerate(seen))
    assert seen[0] != seen[4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "graddrop", "mask_batches": 3}, "graddrop makes no masks; leave out mask_ba"),
        ({"method": "sift", "mask_batches": 0}, "mask_batches must be positive and finite, got 0"),
        ({"method": "sift", "granularity": "row"}, "sift makes masks once .*; leave out granular"),
        ({"method": "fish-mask", "period": 3}, "makes masks once and loads them; leave out period"),
        ({"method": "child-tuning-d", "rescale": True}, "loads them; leave out rescale"),
        ({"method": "sift", "drop_prob": (0.5, 0.2)}, "sift takes one drop_prob for the whole"),
        ({"method": "half-fine-tuning", "granularity": "layer"}, "goes by tensors; leave out gran"),
    ],
)
def test_settings_that_such_masks_do_not_have_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=message):
        FinetuneConfig("pos", "DATA", "output", **changes)


def test_models_without_what_is_masked_are_refused(root: Path, tmp_path: Path) -> None:
    """Before anything is written: no layers by name, or no "layer" in any name."""
    tokenizer = train_tokenizer(["a b"], 300)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300}
    albert = transformers.AlbertConfig(
        **sizes, embedding_size=8, intermediate_size=16, num_hidden_layers=1
    )
    gpt2 = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=300)
    for method, config, message in (
        ("half-fine-tuning", albert, "AlbertForTokenClassification tells 0 of its 1 layers"),
        ("child-tuning-d", gpt2, "with 'layer' in their names, .* GPT2ForTokenClass.* has none"),
    ):
        model = tmp_path / config.model_type
        transformers.AutoModel.from_config(config).save_pretrained(model)
        tokenizer.save_pretrained(model)
        run = FinetuneConfig(
            "pos",
            str(root),
            str(tmp_path / "o"),
            method=method,
            model=str(model),
            max_steps=1,
            max_length=32,
        )
        with pytest.raises(ValueError, match=message):
            finetune(run)
    assert not (tmp_path / "o").exists()


def test_processes_load_the_same_masks(root: Path, tmp_path: Path) -> None:
    """Two train what one does whose batches are whole: a first batch in two makes the same masks.

    Of premise and hypothesis, where each example has one label; a process with masks of its own
    would go another way.
    """
    tokenizer = train_tokenizer(["nothing in particular"], 300)
    config = tiny_config(len(tokenizer))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    transformers.set_seed(0)
    transformers.XLMRobertaModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    values: dict[str, Any] = {"task": "xnli", "data": str(root), "model": str(tmp_path / "model")}
    values |= {"method": "sift", "lr": 1e-3, "max_steps": 4, "max_length": 32, "log_steps": 1}
    values |= {"select": "last", "evaluate": ["en-dev"], "drop_prob": 0.9}
    (tmp_path / "run.toml").write_text(
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["graddrop.cli", "finetune", "--config", str(tmp_path / "run.toml")]
    command += ["--output", str(tmp_path / "two"), "--batch-size", "4", "--mask-batches", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two/result.json").read_text())
    values["evaluate"] = ("en-dev",)
    output = str(tmp_path / "one")
    one = finetune(FinetuneConfig(**values, output=output, batch_size=8, mask_batches=1))
    losses, expected = (
        [entry["loss"] for entry in run["history"] if "loss" in entry] for run in (two, one)
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    found, whole = (
        transformers.AutoModel.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("two", "one")
    )
    start = transformers.AutoModel.from_pretrained(tmp_path / "model").state_dict()
    moved = {name: (found[name] != start[name], whole[name] != start[name]) for name in start}
    n_entries = sum(value.numel() for value in start.values())
    differ = sum(int((a != b).sum()) for a, b in moved.values())
    assert differ < 1e-4 * n_entries, "entries whose scores are rounded otherwise"
    assert 0 < sum(int(a.sum()) for a, _ in moved.values()) < 0.15 * n_entries
