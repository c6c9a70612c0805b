"""One label per word: sub-word encoding and its inverse, with windows over long sentences."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads.windows import Frame, windows
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
) -> Callable[[Batch, list[int]], list[dict[str, Any]]]:
    """Return the function that turns a batch of sentences into model inputs.

    The label of a word sits at its first sub-word that carries text: many tokenizers begin words,
    most of all in scripts without spaces, with a sub-word that is only the space before it. Where
    none carries text it is the first one. A sentence longer than the model's input is cut
    into windows that overlap by a quarter; each word counts in exactly one of them, so that every
    word is trained on and predicted once.

    Args:
        task: Row of the task table.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per window, special tokens included.

    Returns:
        A function from examples and their indices to model inputs, each with `labels`, `example`
        (index of the sentence) and `words` (index of the word that a position stands for, or -1).

    Raises:
        ValueError: If `max_length` leaves no room for sub-words.
    """
    frame = Frame(tokenizer, 1)
    room = frame.room(max_length)
    numbers = {label: number for number, label in enumerate(task.labels)}

    @cache
    def carries_text(subword: int) -> bool:
        text: str = tokenizer.backend_tokenizer.decode([subword], skip_special_tokens=False)
        return bool(text.strip())

    def encode(batch: Batch, indices: list[int]) -> list[dict[str, Any]]:
        rows = []
        for index, words, tags in zip(indices, batch["words"], batch["tags"], strict=True):
            subwords, of_words = _subwords(tokenizer, words)
            heads = [
                next((at for at in places if carries_text(subwords[at])), places[0])
                for places in of_words
            ]
            for window in windows(len(subwords), room, room // 4):
                row, (begin,) = frame.assemble(subwords[window.start : window.end])
                labels = [IGNORED] * len(row["input_ids"])
                stands_for = [-1] * len(row["input_ids"])
                for word, position in enumerate(heads):
                    if window.own_start <= position < window.own_end:
                        place = begin + position - window.start
                        labels[place] = numbers[tags[word]]
                        stands_for[place] = word
                rows.append({**row, "labels": labels, "example": index, "words": stands_for})
        return rows

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


def _subwords(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the sub-words of a sentence and the positions of each word's own, at least one."""
    # Not verbose: it would warn of the very lengths that are cut into windows afterwards.
    encoded = tokenizer(
        list(words), is_split_into_words=True, add_special_tokens=False, verbose=False
    )
    places: list[list[int]] = [[] for _ in words]
    for position, word in enumerate(encoded.word_ids()):
        places[word].append(position)
    if not all(places):
        # Normalisation may leave nothing of a word (a lone zero-width space, say); the unknown
        # token stands in, since that word wants a prediction too.
        unknown = tokenizer.unk_token
        kept = [word if own else unknown for word, own in zip(words, places, strict=True)]
        return _subwords(tokenizer, kept)
    return encoded["input_ids"], places
