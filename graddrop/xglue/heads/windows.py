"""Model inputs out of sub-words: special tokens around segments, windows over long ones."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Features = dict[str, list[int]]


class Window(NamedTuple):
    """A range of positions, and the part of it that counts.

    Neighbouring windows overlap; the parts that count are disjoint and cover the sequence, and
    each position counts where it stands further from a cut.
    """

    start: int
    end: int
    own_start: int
    own_end: int


def windows(length: int, room: int, overlap: int) -> Iterator[Window]:
    """Cut a sequence into windows.

    Args:
        length: Positions of the sequence.
        room: Positions of a window, at least 1.
        overlap: Positions that two neighbours share, less than `room`.

    Yields:
        The windows in order, at least one.
    """
    start = 0
    own_start = 0
    while start + room < length:
        own_end = start + room - overlap // 2
        yield Window(start, start + room, own_start, own_end)
        start += room - overlap
        own_start = own_end
    yield Window(start, length, own_start, length)


class Frame:
    """The special tokens that a tokenizer puts before, between and after segments.

    Args:
        tokenizer: A tokenizer of the tokenizers library.
        segments: 1 or 2.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", segments: int) -> None:
        sample = tokenizer(*["a"] * segments)
        types = sample.get("token_type_ids")
        # One run of (token, type) before each segment, and one after the last.
        self._runs: list[list[tuple[int, int]]] = [[] for _ in range(segments + 1)]
        self._types = [0] * segments
        seen = 0
        for position, segment in enumerate(sample.sequence_ids()):
            type_ = types[position] if types else 0
            if segment is None:
                self._runs[seen].append((sample["input_ids"][position], type_))
            else:
                seen = segment + 1
                self._types[segment] = type_
        self._has_types = types is not None
        self.size = sum(len(run) for run in self._runs)
        """Number of special tokens."""

    def assemble(self, *segments: list[int]) -> tuple[Features, list[int]]:
        """Put special tokens around sub-words.

        Args:
            *segments: Sub-words of each segment.

        Returns:
            The model input, and where each segment begins in it.
        """
        ids: list[int] = []
        types: list[int] = []
        begins: list[int] = []
        for number, run in enumerate(self._runs):
            ids += [token for token, _ in run]
            types += [type_ for _, type_ in run]
            if number < len(segments):
                begins.append(len(ids))
                ids += segments[number]
                types += [self._types[number]] * len(segments[number])
        features = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self._has_types:
            features["token_type_ids"] = types
        return features, begins

    def room(self, max_length: int) -> int:
        """Return how many sub-words fit beside the special tokens.

        Args:
            max_length: Length of a model input.

        Raises:
            ValueError: If there is no room for one sub-word per segment.
        """
        if max_length < self.size + len(self._types):
            raise ValueError(
                f"max_length must be at least {self.size + len(self._types)}, {self.size} of them "
                f"special tokens; got {max_length}"
            )
        return max_length - self.size
