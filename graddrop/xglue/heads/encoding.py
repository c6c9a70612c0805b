"""Model inputs from examples, cached beside the data by what they depend on."""

import json
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads import HEADS
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_VERSION = 3
"""To be counted up when an encoder changes what it makes of the same examples."""


def encode(
    task: Task, examples: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "Dataset":
    """Turn examples into model inputs.

    Args:
        task: Row of the task table.
        examples: Examples with the columns of the task's layout.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per input, special tokens included.

    Returns:
        One row per input; an example may give several, column `example` says which gave it.

    Raises:
        ValueError: If `max_length` leaves no room for sub-words, or exceeds the model's.
    """
    from datasets.fingerprint import Hasher

    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length {max_length} exceeds the model's {tokenizer.model_max_length}"
        )
    encoder = HEADS[task.head].encoder(task, tokenizer, max_length)

    def columns(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = encoder(batch, indices)
        return {name: [row[name] for row in rows] for name in rows[0]}

    return examples.map(
        columns,
        batched=True,
        with_indices=True,
        remove_columns=examples.column_names,
        new_fingerprint=Hasher.hash(
            [_VERSION, task.name, examples._fingerprint, _content(tokenizer), max_length]
        ),
        desc=f"Tokenizing {task.name}",
    )


def longest_first(features: "Dataset") -> "Dataset":
    """Order model inputs by length, so that a batch of an evaluation needs little padding."""
    lengths = [len(ids) for ids in features["input_ids"]]
    return features.select(sorted(range(len(lengths)), key=lambda row: -lengths[row]))


def _content(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what a tokenizer does, without the padding and truncation of its latest use.

    That state would make every fingerprint that `datasets` computes from the tokenizer a new one.
    One string, since `datasets` hashes nested values an entry at a time: 0.3 s for 2,500 sub-words,
    and this is asked of every file.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.update(padding=None, truncation=None, inputs=tokenizer.model_input_names)
    return json.dumps(content, sort_keys=True)
