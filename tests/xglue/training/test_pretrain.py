"""Laws of pretraining: an ordinary model folder, whole or absent, that has learnt something."""

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    XLMRobertaForMaskedLM,
)

from graddrop.cli import main
from graddrop.xglue.mini import RESOURCES, MiniSize, write_mini_xglue
from graddrop.xglue.training import pretrain as pretrain_module
from graddrop.xglue.training.hidden_words import hidden_words_model
from graddrop.xglue.training.pretrain import in_batches, pretrain
from graddrop.xglue.training.pretrain_config import PretrainConfig
from graddrop.xglue.training.raw_text import read_texts, smoothed

LINES = 400


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw text of the invented languages."""
    root = tmp_path_factory.mktemp("data") / "mini"
    write_mini_xglue(root, MiniSize(1, 1, 1, text_lines=LINES))
    return root / "text"


def config(text: Path, output: Path, **changes: Any) -> PretrainConfig:
    """A model of one narrow layer, trained for a few seconds."""
    values: dict[str, Any] = {
        "vocab_size": 500,
        "hidden_size": 32,
        "layers": 1,
        "epochs": 0.25,
        "lr": 5e-3,
    }
    return PretrainConfig(text=str(text), output=str(output), **{**values, **changes})


@pytest.fixture(scope="module")
def folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made through the command line."""
    output = tmp_path_factory.mktemp("pretrain") / "models" / "small"
    size = ["--vocab-size", "500", "--hidden-size", "32", "--layers", "1"]
    arguments = [*size, "--epochs", "3", "--lr", "5e-3"]
    assert main(["pretrain", "--text", str(text), "--output", str(output), *arguments]) == 0
    return output


def test_the_folder_is_one_that_transformers_loads(folder: Path) -> None:
    """Model and tokenizer load by the Auto classes, warn of nothing, and fit each other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is XLMRobertaForMaskedLM
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 32)
    assert model.config.vocab_size == len(tokenizer)
    names = ("<s>", "<pad>", "</s>", "<unk>")
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    inputs = tokenizer(["ga mime", "x"], ["ni", "99 €"], padding=True, return_tensors="pt")
    logits = model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, len(tokenizer))
    assert logits.isfinite().all()
    head = AutoModelForTokenClassification.from_pretrained(folder, num_labels=17)
    encoder = load_file(folder / "model.safetensors")
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(head.state_dict()[name], encoder[name])


def test_nothing_but_the_model_folder_is_left(folder: Path) -> None:
    """No checkpoints, no drafts, and the record of how it was made."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "pretrain.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    record = json.loads((folder / "pretrain.json").read_text())
    assert record["lines"] == {
        code: round(LINES * share) for code, share in sorted(RESOURCES.items())
    }
    text = Path(record["config"]["text"])
    assert record["bytes"] == {code: (text / f"{code}.txt").stat().st_size for code in RESOURCES}


def masked_loss(model: XLMRobertaForMaskedLM, folder: Path, text: Path) -> float:
    """Loss of guessing one hidden sub-word in each of some lines."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = read_texts(text)["en"][:100]
    inputs = tokenizer(lines, padding=True, return_tensors="pt")
    rows = torch.arange(len(lines))
    places = inputs["attention_mask"].sum(1) // 2
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[rows, places] = inputs["input_ids"][rows, places]
    inputs["input_ids"][rows, places] = tokenizer.mask_token_id
    with torch.no_grad():
        return float(model.eval()(**inputs, labels=labels).loss)


def test_pretraining_teaches(folder: Path, text: Path) -> None:
    """Hidden words are guessed far better than by chance, which an untrained model does not do."""
    trained = AutoModelForMaskedLM.from_pretrained(folder)
    torch.manual_seed(0)
    untrained = XLMRobertaForMaskedLM(trained.config)
    chance = math.log(trained.config.vocab_size)
    assert masked_loss(trained, folder, text) < chance - 0.5
    assert masked_loss(untrained, folder, text) > chance - 0.2  # negative control


def test_the_loss_is_that_of_the_whole_model() -> None:
    """Scoring hidden words alone gives the loss and gradients of scoring every word."""
    settings = PretrainConfig(text="", output="", hidden_size=32, layers=1)
    model = hidden_words_model(settings, 101)
    whole = XLMRobertaForMaskedLM(model.config)
    whole.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    ids = torch.randint(5, 101, (3, 7))
    labels = torch.where(torch.rand(3, 7) < 0.4, ids, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    losses = [some(**inputs).loss for some in (model, whole)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, ours), (_, theirs) in zip(
        model.named_parameters(), whole.named_parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    inputs["labels"] = torch.full_like(ids, -100)
    assert model(**inputs).loss == 0  # and no NaN where a batch hides nothing


def test_same_seed_same_weights(text: Path, tmp_path: Path) -> None:
    """The seed decides every bit of the model; another one gives another model."""
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        pretrain(config(text, tmp_path / name, seed=seed))
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_small_languages_are_repeated() -> None:
    """n lines count as n^a N^(1-a), by repeating them in order; exponent 1 changes nothing."""
    texts = {"big": [str(number) for number in range(400)], "small": ["x", "y", "z", "w"]}
    assert smoothed(texts, 1.0) == texts
    half = smoothed(texts, 0.5)
    assert half["big"] == texts["big"]
    assert half["small"] == texts["small"] * 10  # sqrt(4 * 400) = 40 lines
    assert len(smoothed(texts, 0.25)["small"]) == 126  # 4^(1/4) 400^(3/4) = 126.49


def test_batches_are_even_within_and_shuffled_among() -> None:
    """Little padding, each example once per epoch, and no drift from long to short."""
    rng = random.Random(0)
    features = [{"input_ids": [number] * rng.randint(4, 40)} for number in range(8 * 150 + 3)]
    settings = PretrainConfig(text="", output="", batch_size=8, epochs=2.0)
    ordered = in_batches(features, settings)
    assert len(ordered) == 8 * round(2.0 * len(features) / 8)
    assert len({example["input_ids"][0] for example in ordered[: 8 * 150]}) == 8 * 150

    def padding(examples: list[dict[str, list[int]]]) -> float:
        """Share of a batch that is padding, on average."""
        lengths = [[len(e["input_ids"]) for e in examples[i : i + 8]] for i in range(0, 1200, 8)]
        return 1 - sum(map(sum, lengths)) / sum(8 * max(batch) for batch in lengths)

    assert padding(ordered) < 0.1 < 0.3 < padding(features)
    longest = [max(len(e["input_ids"]) for e in ordered[i : i + 8]) for i in range(0, 1200, 8)]
    places = list(range(len(longest)))
    assert abs(statistics.correlation(places[:50], longest[:50])) < 0.5
    assert abs(statistics.correlation(places[:50], sorted(longest[:50]))) > 0.9  # control
    assert in_batches(features, settings) == ordered
    few = in_batches(features[:3], settings)
    assert [example in features[:3] for example in few] == [True] * 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": 33}, "multiple of 32, got 33"),
        ({"hidden_size": 0}, "hidden_size must be positive and finite, got 0"),
        ({"layers": 0}, "layers must be positive and finite, got 0"),
        ({"epochs": -1.0}, "epochs must be positive and finite, got -1.0"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"batch_size": 0}, "batch_size must be positive and finite, got 0"),
        ({"max_length": 3}, r"max_length must be in \[4, 512\], got 3"),
        ({"max_length": 513}, r"max_length must be in \[4, 512\], got 513"),
        ({"mask_prob": 0.0}, r"mask_prob must be in \(0, 1\), got 0.0"),
        ({"mask_prob": 1.0}, r"mask_prob must be in \(0, 1\), got 1.0"),
        ({"smoothing": 0.0}, r"smoothing must be in \(0, 1\], got 0.0"),
        ({"vocab_size": 100}, "vocab_size must be at least"),
    ],
)
def test_bad_values_are_refused(
    text: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """A value out of range is named with its range, and nothing is written."""
    with pytest.raises(ValueError, match=message):
        pretrain(config(text, tmp_path / "model", **change))
    assert list(tmp_path.iterdir()) == []


def test_raw_text_is_read_by_lines(tmp_path: Path) -> None:
    """LF and CR LF end one, nothing else does; blank ones and a byte order mark are no text."""
    (tmp_path / "en.txt").write_bytes("\ufeffa b\r\n\r\n \nc\u2028d\n".encode())
    (tmp_path / "de.txt").write_bytes("\ufeff\ufeffa".encode())
    assert read_texts(tmp_path) == {"de": ["\ufeffa"], "en": ["a b", "c\u2028d"]}


def test_bad_text_is_refused(tmp_path: Path) -> None:
    """No text, an empty one, and one that is not UTF-8 are named by their file."""
    folder = tmp_path / "text"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="expected files named <language>.txt"):
        pretrain(config(folder, tmp_path / "model"))
    (folder / "de.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"de\.txt: expected a sentence per line"):
        pretrain(config(folder, tmp_path / "model"))
    (folder / "de.txt").write_bytes(b"gr\xfc\xdfe\n")
    with pytest.raises(ValueError, match=r"de\.txt:1: expected UTF-8"):
        pretrain(config(folder, tmp_path / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_existing_model_is_left_alone(
    folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says in one line that the folder is taken, and does not touch it."""
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["pretrain", "--text", str(text), "--output", str(folder)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_processes_that_would_share_a_model_are_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several would write over each other's folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected one process to pretrain, .* started 2"):
        pretrain(PretrainConfig(text=str(text), output=str(tmp_path / "model")))
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last file cannot be written there is no model folder, not a part of one."""
    seen = []

    def fill_disk(path: Path, value: object) -> None:
        seen.extend(entry.name for entry in path.parent.iterdir())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrain_module, "write_json", fill_disk)
    with pytest.raises(OSError, match="No space"):
        pretrain(config(text, tmp_path / "model", epochs=0.01))
    assert "model.safetensors" in seen
    assert list(tmp_path.iterdir()) == []
