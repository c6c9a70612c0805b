"""Model inputs from examples, cached beside the data by what they depend on."""

from typing import TYPE_CHECKING

from graddrop.xglue.heads import HEADS
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def encode(
    task: Task,
    examples: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    by_length: bool = False,
) -> "Dataset":
    """Turn examples into model inputs.

    Args:
        task: Row of the task table.
        examples: Examples with the columns of the task's layout.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per input, special tokens included.
        by_length: Put the longest inputs first, so that a batch needs little padding; column
            `example` tells which example an input came from.

    Returns:
        One row per input; an example may give several.
    """
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.fingerprint import Hasher

    # The fingerprint that `datasets` would compute from the function includes the tokenizer's
    # padding and truncation state, which every use changes.
    vocabulary = tokenizer.backend_tokenizer.to_str()
    # Evaluation goes through dozens of small files under a bar of its own.
    silenced = by_length and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        features = examples.map(
            HEADS[task.head].encoder(task, tokenizer, max_length),
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            new_fingerprint=Hasher.hash([_VERSION, examples._fingerprint, vocabulary, max_length]),
            desc=f"Tokenizing {task.name}",
        )
    finally:
        if silenced:
            enable_progress_bars()
    if by_length:
        lengths = [len(ids) for ids in features["input_ids"]]
        features = features.select(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    return features


_VERSION = 1
"""To be counted up when an encoder changes what it makes of the same examples."""
