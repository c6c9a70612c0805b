"""One label per word: sub-word encoding and its inverse, with windows over long sentences."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that carry no loss, as `torch.nn.functional.cross_entropy` has it."""

Batch = dict[str, list[Any]]


def encoder(
    task: Task, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Callable[[Batch, list[int]], Batch]:
    """Return the function that turns a batch of sentences into model inputs.

    The label of a word sits at its first sub-word. A sentence longer than the model's input is cut
    into windows that overlap by a quarter; each word counts in exactly one of them, the one where
    it stands further from a cut, so that every word is trained on and predicted once.

    Args:
        task: Row of the task table.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per window, special tokens included.

    Returns:
        A function for `datasets.Dataset.map` that yields `input_ids`, `attention_mask`, `labels`,
        `example` (index of the sentence) and `words` (index of the word that a position stands
        for, or -1).

    Raises:
        ValueError: If `max_length` leaves no room for sub-words.
    """
    prefix, suffix = special_frame(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise ValueError(f"max_length must exceed the special tokens, got {max_length}")
    numbers = {label: number for number, label in enumerate(task.labels)}

    def encode(batch: Batch, indices: list[int]) -> Batch:
        features: Batch = {
            name: [] for name in ("input_ids", "attention_mask", "labels", "example", "words")
        }
        for index, words, tags in zip(indices, batch["words"], batch["tags"], strict=True):
            subwords, first = _subwords(tokenizer, words)
            for start, end, own_start, own_end in windows(len(subwords), room, room // 4):
                ids = [*prefix, *subwords[start:end], *suffix]
                # Sub-word position g of the sentence is position g + shift of the window.
                shift = len(prefix) - start
                labels = [IGNORED] * len(ids)
                stands_for = [-1] * len(ids)
                for word, position in enumerate(first):
                    if own_start <= position < own_end:
                        labels[position + shift] = numbers[tags[word]]
                        stands_for[position + shift] = word
                features["input_ids"].append(ids)
                features["attention_mask"].append([1] * len(ids))
                features["labels"].append(labels)
                features["example"].append(index)
                features["words"].append(stands_for)
        return features

    return encode


def decode(
    task: Task, examples: "Dataset", features: "Dataset", classes: "np.ndarray"
) -> list[list[str]]:
    """Turn predicted class numbers into one tag per word.

    Args:
        task: Row of the task table.
        examples: The sentences, N of them.
        features: What `encoder` made of them, M windows in any order.
        classes: Class numbers of shape (M, longest window), one row per window.

    Returns:
        N lists, each as long as its sentence.
    """
    tags = [[""] * len(words) for words in examples["words"]]
    columns = zip(features["example"], features["words"], classes, strict=True)
    for example, stands_for, row in columns:
        for word, number in zip(stands_for, row, strict=False):
            if word >= 0:
                tags[example][word] = task.labels[int(number)]
    assert all(tag for sentence in tags for tag in sentence), "a word without a prediction"
    return tags


def windows(length: int, room: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a sequence into overlapping windows that share out its positions.

    Args:
        length: Positions of the sequence.
        room: Positions of a window.
        overlap: Positions that two neighbours share, less than `room`.

    Yields:
        Start and end of the window, start and end of the positions that count in it. The latter
        ranges are disjoint and cover the sequence.
    """
    step = room - overlap
    start = 0
    own_start = 0
    while start + room < length:
        own_end = start + room - overlap // 2
        yield start, start + room, own_start, own_end
        start += step
        own_start = own_end
    yield start, length, own_start, length


def special_frame(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a single segment."""
    marked = tokenizer("a", return_special_tokens_mask=True)
    special: list[int] = marked["special_tokens_mask"]
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return marked["input_ids"][:first], marked["input_ids"][last:]


def _subwords(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the sub-words of a sentence and the position of each word's first one."""
    # Not verbose: it would warn of the very lengths that are cut into windows afterwards.
    encoded = tokenizer(
        list(words), is_split_into_words=True, add_special_tokens=False, verbose=False
    )
    first: dict[int, int] = {}
    for position, word in enumerate(encoded.word_ids()):
        first.setdefault(word, position)
    if len(first) < len(words):
        # Normalisation may leave nothing of a word (a lone zero-width space, say); the unknown
        # token stands in, since that word wants a prediction too.
        unknown = tokenizer.unk_token
        kept = [word if number in first else unknown for number, word in enumerate(words)]
        return _subwords(tokenizer, kept)
    return encoded["input_ids"], [first[number] for number in range(len(words))]
