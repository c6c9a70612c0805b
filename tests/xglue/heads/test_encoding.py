"""Laws of model inputs: made once, kept in a cache, no longer than the model takes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
from helpers.small_tokenizers import CONTEXTS, TEXT

from graddrop.xglue.heads import HEADS, encoding
from graddrop.xglue.heads import token as token_head
from graddrop.xglue.heads.encoding import encode
from graddrop.xglue.heads.model import train_tokenizer
from graddrop.xglue.tasks import get_task

ENCODED: dict[str, dict[str, Any]] = {
    "pos": {"words": ["the", "首都", "\u200b", "，"], "tags": ["DET", "NOUN", "X", "PUNCT"]},
    "qam": {"question": "the quick fox " * 9, "passage": "dog 北京", "label": "1"},
    "mlqa": {
        "question": "lazy dog",
        "context": CONTEXTS[0][0],
        "answers": {"text": ["brown"], "answer_start": [10]},
    },
}
"""One example for each head, those of the last two too long for one window."""


def test_model_inputs_are_made_once(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the tokenizer or the length changes; use of the tokenizer in between does not count."""
    task = get_task("pos")
    made: list[int] = []
    original = token_head.encoder

    def counted(*arguments: Any) -> Any:
        inner = original(*arguments)
        return lambda batch, indices: made.append(len(indices)) or inner(batch, indices)

    monkeypatch.setitem(
        HEADS, "token", type(HEADS["token"])(**{**vars(HEADS["token"]), "encoder": counted})
    )
    examples = datasets.Dataset.from_generator(
        lambda: iter([{"words": ["a", "b"], "tags": ["X", "X"]}] * 3), cache_dir=str(tmp_path)
    )
    encode(task, examples, tokenizer, 16)
    tokenizer("a b c", truncation=True, max_length=3, padding="max_length")
    encode(task, examples, tokenizer, 16)
    assert made == [3]
    encode(task, examples, tokenizer, 17)
    encode(task, examples, train_tokenizer(TEXT, 280), 16)
    assert made == [3, 3, 3]


def test_encoders_that_make_something_else_have_another_version(xlmr: Any) -> None:
    """What they make of a few examples, as numbers, belongs to one version of the cache."""
    made = []
    for name, values in ENCODED.items():
        task = get_task(name)
        batch = {column: [value] * 2 for column, value in values.items()}
        made.append(HEADS[task.head].encoder(task, xlmr, 32)(batch, [0, 1]))
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    assert {encoding._VERSION: digest} == {3: "ed1a0250c3e58205"}


def test_inputs_longer_than_the_models_are_refused(tokenizer: Any) -> None:
    """The tiny model takes 512 sub-words."""
    examples = datasets.Dataset.from_list([{"words": ["a"], "tags": ["X"]}])
    with pytest.raises(ValueError, match="max_length 513 exceeds the model's 512"):
        encode(get_task("pos"), examples, tokenizer, 513)
