"""Scores of answers to questions, which are compared after normalisation."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from graddrop.xglue.scores.columns import Columns


def answer_f1(examples: Columns, predictions: Sequence[str], language: str) -> float:
    """Return the mean F1 of words shared with the best gold answer, after normalisation."""
    return _mean_over_questions(_overlap_f1, examples, predictions, language)


def exact_match(examples: Columns, predictions: Sequence[str], language: str) -> float:
    """Return the share of answers equal to a gold answer, after normalisation."""
    return _mean_over_questions(lambda a, b: float(a == b), examples, predictions, language)


def normalize_answer(text: str, language: str) -> str:
    """Bring an answer into the form in which MLQA compares answers.

    Lower case, no punctuation, no articles of the language, one space between words; in Chinese
    every ideograph is a word.

    Args:
        text: An answer.
        language: Two-letter code out of MLQA's seven.

    Raises:
        ValueError: If the language is none of them.
    """
    if language not in _ARTICLES:
        raise ValueError(f"MLQA has no language {language!r}; expected {', '.join(_ARTICLES)}")
    kept = "".join(char for char in text.lower() if char not in _punctuation())
    articles = _ARTICLES[language]
    if articles:
        kept = re.sub(articles, " ", kept)
    if language == "zh":
        kept = _IDEOGRAPH.sub(r" \g<0> ", kept)
    return " ".join(kept.split())


def _words(articles: str) -> str:
    return rf"\b(?:{'|'.join(articles.split())})\b"


_ARTICLES = {
    "en": _words("a an the"),
    "es": _words("un una unos unas el la los las"),
    "de": _words("ein eine einen einem eines einer der die das den dem des"),
    "vi": _words("của là cái chiếc những"),
    # In the first branch the text would have to begin after its end, so only the second matches:
    # the article goes wherever its letters stand. Kept, since published scores come from it.
    "ar": r"\sال^|ال",
    "hi": "",
    "zh": "",
}

_IDEOGRAPH = re.compile("[\u4e00-\u9fa5]")


@lru_cache(maxsize=1)
def _punctuation() -> frozenset[str]:
    """Return ASCII punctuation and all characters of a Unicode category P."""
    unicode = (chr(code) for code in range(sys.maxunicode))
    ascii_ = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    return frozenset(char for char in unicode if unicodedata.category(char)[0] == "P") | set(ascii_)


def _overlap_f1(predicted: str, gold: str) -> float:
    predicted_words, gold_words = predicted.split(), gold.split()
    shared = (Counter(predicted_words) & Counter(gold_words)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def _mean_over_questions(
    compare: Callable[[str, str], float],
    examples: Columns,
    predictions: Sequence[str | None],
    language: str,
) -> float:
    """Average over questions the best agreement with a gold answer; no answer scores 0."""
    total = 0.0
    for answers, predicted in zip(examples["answers"], predictions, strict=True):
        if predicted is not None:
            normalized = normalize_answer(predicted, language)
            total += max(
                compare(normalized, normalize_answer(gold, language)) for gold in answers["text"]
            )
    return total / len(predictions)
