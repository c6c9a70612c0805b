"""An answer out of a context: overlapping windows, and the best span over all of them."""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from graddrop.xglue.heads.windows import Frame, windows
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# As the published baseline has them, in sub-words.
LONGEST_QUESTION = 64
LONGEST_ANSWER = 30
STEP = 128
"""From the beginning of a window over the context to that of the next."""

Batch = dict[str, list[Any]]


class Candidate(NamedTuple):
    """A possible answer: start logit plus end logit, and its characters in the context."""

    score: float
    start: int
    end: int


def encoder(
    task: Task, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Callable[[Batch, list[int]], list[dict[str, Any]]]:
    """Return the function that turns a batch of questions into model inputs.

    A window in which the first gold answer does not lie as a whole is trained to point at its
    first token.

    Args:
        task: Row of the task table.
        tokenizer: A tokenizer of the tokenizers library.
        max_length: Sub-words per window, question and special tokens included.

    Returns:
        A function from examples and their indices to model inputs, each with `labels` (where the
        answer begins and ends), `example` (index of the question), `context` (where the context's
        sub-words begin and end in it, and which of them may begin an answer: those that count in
        this window) and `offsets` (characters of each of these sub-words).

    Raises:
        ValueError: If `max_length` leaves no room for sub-words.
    """
    frame = Frame(tokenizer, 2)
    room = frame.room(max_length)

    def encode(batch: Batch, indices: list[int]) -> list[dict[str, Any]]:
        questions = tokenizer(batch["question"], add_special_tokens=False, verbose=False)
        contexts = tokenizer(
            batch["context"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = []
        for number, index in enumerate(indices):
            question = questions["input_ids"][number][: min(LONGEST_QUESTION, room // 2)]
            subwords = contexts["input_ids"][number]
            text = batch["context"][number]
            offsets = _characters(text, contexts["offset_mapping"][number])
            answer = _positions(batch["answers"][number], offsets)
            space = room - len(question)
            overlap = space - max(1, min(STEP, space // 2))
            for window in windows(len(subwords), space, overlap):
                row, (_, begin) = frame.assemble(question, subwords[window.start : window.end])
                shift = begin - window.start
                first, last = answer
                inside = window.start <= first <= last < window.end
                rows.append(
                    {
                        **row,
                        "labels": [first + shift, last + shift] if inside else [0, 0],
                        "example": index,
                        "context": [place + shift for place in window],
                        "offsets": offsets[window.start : window.end],
                    }
                )
        return rows

    return encode


def decode(task: Task, examples: "Dataset", features: "Dataset", logits: "np.ndarray") -> list[str]:
    """Turn logits into one answer per question.

    Args:
        task: Row of the task table.
        examples: The questions, N of them.
        features: What `encoder` made of them, M windows in any order.
        logits: Array of shape (M, longest window, 2): start and end.

    Returns:
        N answers, each a piece of its context without white space around it; empty only where the
        context is. Of equal spans the first in the context, then the shortest.
    """
    best: list[Candidate | None] = [None] * len(examples)
    columns = zip(
        features["example"], features["context"], features["offsets"], logits, strict=True
    )
    for example, context, offsets, row in columns:
        for candidate in n_best(row, context, offsets, 1):
            kept = best[example]
            if kept is None or _rank(candidate) > _rank(kept):
                best[example] = candidate
    return [
        context[candidate.start : candidate.end] if candidate else ""
        for context, candidate in zip(examples["context"], best, strict=True)
    ]


def n_best(
    logits: "np.ndarray", context: list[int], offsets: list[list[int]], count: int
) -> list[Candidate]:
    """Return the best spans of one window, best first; of equal ones the first, then the shortest.

    The search is complete: every span is looked at that begins at a sub-word counting in this
    window, is not longer than `LONGEST_ANSWER` sub-words, and holds more than white space.

    Args:
        logits: Array of shape (window or longer, 2): start and end.
        context: Where the context begins and ends, and which of it may begin an answer.
        offsets: Characters of each sub-word of the context.
        count: Most spans to return.
    """
    import numpy as np

    begin, end, own_begin, own_end = context
    if own_begin == own_end:
        return []
    # Row i, column j: the span of j + 1 sub-words from the i-th that may begin one.
    rows = slice(own_begin - begin, own_end - begin)
    characters = np.array(offsets)
    starts = logits[own_begin:own_end, 0, None].astype("float64")
    scores = starts + _following(logits[begin:end, 1].astype("float64"), -np.inf)[rows]
    # Beyond the context the last character is 0, so that no span reaches there.
    scores[_following(characters[:, 1], 0)[rows] <= characters[rows, 0, None]] = -np.inf
    order = (
        np.argsort(-scores, axis=None, kind="stable")[:count] if count > 1 else [scores.argmax()]
    )
    candidates = []
    for row, column in (divmod(int(place), LONGEST_ANSWER) for place in order):
        if scores[row, column] > -np.inf:
            first = own_begin - begin + row
            start, stop = characters[first, 0], characters[first + column, 1]
            candidates.append(Candidate(float(scores[row, column]), int(start), int(stop)))
    return candidates


def _rank(candidate: Candidate) -> tuple[float, int]:
    """Return what the best one has most of; no two windows have spans that begin together."""
    return candidate.score, -candidate.start


def _following(values: "np.ndarray", beyond: float) -> "np.ndarray":
    """Return for each place the `LONGEST_ANSWER` values from there on, `beyond` after the last."""
    import numpy as np

    padded = np.concatenate([values, np.full((LONGEST_ANSWER - 1,), beyond)])
    return np.lib.stride_tricks.sliding_window_view(padded, LONGEST_ANSWER)


def _characters(text: str, offsets: list[tuple[int, int]]) -> list[list[int]]:
    """Return the characters of each sub-word, so that its piece of the text reads well.

    White space goes: many tokenizers put the space before a word into it. Combining marks that
    normalisation has merged into the character before them come back; their places are in no
    sub-word.
    """
    pieces = []
    beyond = (len(text), len(text))
    for (start, end), (following, _) in pairwise([*offsets, beyond]):
        while end < following and unicodedata.combining(text[end]):
            end += 1
        piece = text[start:end]
        if piece.strip():
            pieces.append([end - len(piece.lstrip()), start + len(piece.rstrip())])
        else:
            pieces.append([end, end])
    return pieces


def _positions(answers: dict[str, list[Any]], offsets: list[list[int]]) -> tuple[int, int]:
    """Return the first and last sub-word that the first gold answer touches."""
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = bisect_right([offset[1] for offset in offsets], start)
    last = bisect_left([offset[0] for offset in offsets], end) - 1
    # An answer of which no sub-word is left, or only white space: nothing to point at.
    return (first, last) if first <= last else (-1, -1)
