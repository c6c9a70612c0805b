"""Laws of one label per word."""

import itertools
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
import numpy as np

from graddrop.xglue.heads import token as token_head
from graddrop.xglue.heads.encoding import encode, longest_first
from graddrop.xglue.heads.model import train_tokenizer
from graddrop.xglue.tasks import get_task


@pytest.mark.parametrize("max_length", [3, 8, 13, 128])
def test_every_word_is_labelled_and_predicted_once(
    tokenizer: Any, xlmr: Any, bert_like: Any, max_length: int
) -> None:
    """However short the window, and for words of which the tokenizer leaves nothing."""
    task = get_task("pos")
    sentences = [
        ["Antidisestablishmentarianism", "is", "not", "a", "quick", "fox", "."] * 5,
        ["\u200b", "北京", "\u00ad", "首都", "\u0000"],
        ["a"],
    ]
    tags = [[task.labels[n % 17] for n in range(len(words))] for words in sentences]
    examples = datasets.Dataset.from_dict({"words": sentences, "tags": tags})
    for each in (tokenizer, xlmr, bert_like):
        features = encode(task, examples, each, max_length)
        assert max(map(len, features["input_ids"])) <= max_length
        labelled = [
            (example, word, label)
            for example, words, labels in zip(
                features["example"], features["words"], features["labels"], strict=True
            )
            for word, label in zip(words, labels, strict=True)
            if word >= 0
        ]
        expected = [
            (example, word, task.labels.index(tag))
            for example, sentence in enumerate(tags)
            for word, tag in enumerate(sentence)
        ]
        assert sorted(labelled) == expected
        # A model that predicts the labels is decoded to the tags, whatever it says elsewhere.
        shuffled = longest_first(features)
        width = max(map(len, shuffled["labels"]))
        classes = np.full((len(shuffled), width), 3)
        for row, labels in zip(classes, shuffled["labels"], strict=True):
            row[: len(labels)] = [3 if label == token_head.IGNORED else label for label in labels]
        assert token_head.decode(task, examples, shuffled, classes) == tags


def labelled_pieces(tokenizer: Any, task: str, words: list[str]) -> list[str]:
    """The sub-words at which the words' labels sit."""
    labels = get_task(task).labels
    tags = [labels[number % len(labels)] for number in range(len(words))]
    encode_ = token_head.encoder(get_task(task), tokenizer, 64)
    (row,) = encode_({"words": [words], "tags": [tags]}, [0])
    places = [n for n, label in enumerate(row["labels"]) if label != token_head.IGNORED]
    assert [row["labels"][place] for place in places] == [labels.index(tag) for tag in tags]
    # Predictions are read where the labels are.
    assert [row["words"][place] for place in places] == list(range(len(words)))
    assert sum(word >= 0 for word in row["words"]) == len(words)
    return tokenizer.convert_ids_to_tokens([row["input_ids"][place] for place in places])


@pytest.mark.parametrize("task", ["pos", "ner"])
def test_the_label_sits_at_the_first_sub_word_with_text(
    xlmr: Any, bert_like: Any, task: str
) -> None:
    """Not at a space before it, with any kind of tokenizer; at the space if there is no text."""
    words = ["dog", "首都", "，", "\u3000", "fox", "天"]
    assert xlmr.tokenize("首都") == ["▁", "首", "都"]
    assert labelled_pieces(xlmr, task, words) == ["▁dog", "首", ",", "<unk>", "▁fox", "天"]
    # Bytes: the space is written Ġ, and what is less than a character is text, too.
    of_bytes = train_tokenizer(["the dog and the fox " * 9], 300)
    assert of_bytes.tokenize("首")[:2] == ["Ġ", "é"]
    found = labelled_pieces(of_bytes, task, ["dog", "首都", "\u3000", "fox"])
    assert found == ["Ġdog", "é", "Ġ", "Ġfox"]
    # Pieces of words: nothing stands for a space, so it is the first of them.
    assert labelled_pieces(bert_like, task, ["dog", "ox", "首"]) == ["d", "o", "[UNK]"]


def test_windows_of_a_sentence_share_a_quarter(tokenizer: Any) -> None:
    """Each neighbour sees what the other ends or begins with."""
    words = ["the", "quick", "brown", "fox"] * 10
    task, room = get_task("pos"), 16
    batch = {"words": [words], "tags": [["X"] * len(words)]}
    rows = token_head.encoder(task, tokenizer, room + 2)(batch, [0])
    inner = [row["input_ids"][1:-1] for row in rows]
    assert len(inner) > 2
    for a, b in itertools.pairwise(inner):
        assert a[-room // 4 :] == b[: room // 4]
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert sum(map(len, inner)) == len(encoded) + room // 4 * (len(inner) - 1)


def test_the_sub_words_between_labels_are_the_words(tokenizer: Any) -> None:
    """In order, without a rest."""
    task = get_task("pos")
    words = ["jumps", "Straße", "首都"]
    (row,) = token_head.encoder(task, tokenizer, 64)(
        {"words": [words], "tags": [["VERB", "NOUN", "NOUN"]]}, [0]
    )
    begins = [n for n, label in enumerate(row["labels"]) if label != token_head.IGNORED]
    ends = [*begins[1:], len(row["input_ids"]) - 1]
    pieces = [row["input_ids"][b:e] for b, e in zip(begins, ends, strict=True)]
    assert [tokenizer.decode(piece).strip() for piece in pieces] == words
