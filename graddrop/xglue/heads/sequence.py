"""One label per example: encoding of two segments and its inverse."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads.windows import Frame
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, list[Any]]


def encoder(
    task: Task, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Callable[[Batch, list[int]], list[dict[str, Any]]]:
    """Return the function that turns a batch of rows into model inputs.

    Each segment is its columns joined by a space. Where both do not fit, sub-words are dropped
    from the end of the longer one, as in the published baseline.

    Args:
        task: Row of the task table.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per input, special tokens included.

    Returns:
        A function from examples and their indices to model inputs, each with `labels` and
        `example` (index of the row).

    Raises:
        ValueError: If `max_length` leaves no room for sub-words.
    """
    frame = Frame(tokenizer, 2)
    room = frame.room(max_length)
    numbers = {label: number for number, label in enumerate(task.labels)}

    def encode(batch: Batch, indices: list[int]) -> list[dict[str, Any]]:
        first, second = (
            tokenizer(_joined(batch, columns), add_special_tokens=False, verbose=False)["input_ids"]
            for columns in (task.first, task.second)
        )
        rows = []
        for index, a, b, label in zip(indices, first, second, batch["label"], strict=True):
            row, _ = frame.assemble(*_longest_first(a, b, room))
            rows.append({**row, "labels": numbers[label], "example": index})
        return rows

    return encode


def decode(task: Task, examples: "Dataset", features: "Dataset", logits: "np.ndarray") -> list[Any]:
    """Turn logits into one prediction per example.

    Args:
        task: Row of the task table.
        examples: The rows, N of them.
        features: What `encoder` made of them, in any order.
        logits: Array of shape (N, number of labels), one row per input.

    Returns:
        N labels; where the task is to rank, N expected labels: the labels as numbers, weighted
        with the probabilities. Class numbers would leave most rows of a query tied.
    """
    predictions: list[Any] = [None] * len(examples)
    for example, row in zip(features["example"], logits.astype("float64"), strict=True):
        if task.ranks:
            predictions[example] = float(_softmax(row) @ [float(label) for label in task.labels])
        else:
            predictions[example] = task.labels[int(row.argmax())]
    return predictions


def _joined(batch: Batch, columns: tuple[str, ...]) -> list[str]:
    return [" ".join(parts) for parts in zip(*(batch[name] for name in columns), strict=True)]


def _longest_first(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut two segments to `room` sub-words together, one by one from the longer."""
    excess = len(a) + len(b) - room
    if excess > 0:
        # Until they are equally long only the longer one loses, then both by turns.
        from_a = min(max(len(a) - len(b), 0), excess)
        from_b = min(max(len(b) - len(a), 0), excess)
        rest = excess - from_a - from_b
        a = a[: len(a) - from_a - rest // 2]
        b = b[: len(b) - from_b - (rest - rest // 2)]
    return a, b


def _softmax(row: "np.ndarray") -> "np.ndarray":
    import numpy as np

    weights = np.exp(row - row.max())
    return weights / weights.sum()
