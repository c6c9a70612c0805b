"""The benchmark's official scores, for one language at a time.

Every metric has the signature `metric(examples, predictions, language) -> float`: examples as
columns (see `graddrop.xglue.data.layouts`), one prediction per example in the same order, the
score as a fraction from 0 to 1. What the official scorer does is kept even where one
would do otherwise, so that scores compare with published ones.
"""

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any

Columns = Mapping[str, Sequence[Any]]


def accuracy(examples: Columns, predictions: Sequence[str], language: str) -> float:
    """Return the share of examples whose label was predicted."""
    return _share(zip(examples["label"], predictions, strict=True))


def token_accuracy(examples: Columns, predictions: Sequence[Sequence[str]], language: str) -> float:
    """Return the share of words whose tag was predicted, over all sentences together."""
    golds, tags = _padded(examples["tags"], predictions)
    return _share(zip(chain(*golds), chain(*tags), strict=True))


def entity_f1(examples: Columns, predictions: Sequence[Sequence[str]], language: str) -> float:
    """Return F1 over entities: a hit has the right type, first and last word."""
    hits, predicted, gold = _count_chunks(examples["tags"], predictions)
    return _harmonic_mean(hits / predicted, hits / gold) if hits else 0.0


def chunk_precision(
    examples: Columns, predictions: Sequence[Sequence[str]], language: str
) -> float:
    """Return the share of predicted chunks that are right, which XGLUE calls accuracy of POS.

    Part-of-speech tags have no B- or I- before them. Their first letter is read as one, and the
    whole tag as the type: equal neighbours merge into one chunk, but for SCONJ and SYM, since S
    stands for a chunk of one word.
    """
    hits, predicted, _ = _count_chunks(examples["tags"], predictions)
    return hits / predicted if predicted else 0.0


def ndcg(examples: Columns, predictions: Sequence[float | str], language: str) -> float:
    """Return the mean over queries of the normalised discounted cumulative gain.

    A query is a run of consecutive rows with the same text. The gain is the label itself, there is
    no cutoff, rows of equal score share the mean of their places' discounts. A query of one row is
    left out; one whose labels are all zero scores 0.

    Raises:
        ValueError: If every query has a single row.
    """
    rows = zip(examples["query"], examples["label"], predictions, strict=True)
    scores = []
    for _, group in groupby(rows, key=lambda row: row[0]):
        pairs = [(float(label), float(score)) for _, label, score in group]
        if len(pairs) > 1:
            scores.append(_ndcg_of_query(*zip(*pairs, strict=True)))
    if not scores:
        raise ValueError("nDCG needs a query with at least two rows; every query has one")
    return math.fsum(scores) / len(scores)


def answer_f1(examples: Columns, predictions: Sequence[str], language: str) -> float:
    """Return the mean F1 of words shared with the best gold answer, after normalisation."""
    return _mean_over_questions(_overlap_f1, examples, predictions, language)


def exact_match(examples: Columns, predictions: Sequence[str], language: str) -> float:
    """Return the share of answers equal to a gold answer, after normalisation."""
    return _mean_over_questions(lambda a, b: float(a == b), examples, predictions, language)


METRICS: dict[str, Callable[[Columns, Sequence[Any], str], float]] = {
    "accuracy": accuracy,
    "answer_f1": answer_f1,
    "chunk_precision": chunk_precision,
    "entity_f1": entity_f1,
    "exact_match": exact_match,
    "ndcg": ndcg,
    "token_accuracy": token_accuracy,
}


def chunks(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Find the chunks of a sentence as the conlleval script does, without strictness.

    Args:
        tags: One tag per word. The first letter is its prefix: O is outside, B and S begin a chunk,
            a change of type does, too. The type is what follows the last hyphen, the whole tag
            where there is none (as in seqeval 0.0.12, which published scores come from; later
            versions cut the first letter off).

    Yields:
        Type, first and last word.
    """
    begin = 0
    before, type_before = "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix = tag[0]
        type_ = tag.rpartition("-")[2]
        if (
            before in "ES"
            or (before in "BI" and prefix in "BSO")
            or (before not in "O." and type_before != type_)
        ):
            yield type_before, begin, position - 1
        if (
            prefix in "BS"
            or (before in "ESO" and prefix in "EI")
            or (prefix not in "O." and type_before != type_)
        ):
            begin = position
        before, type_before = prefix, type_


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


def _share(pairs: Iterator[tuple[str, str]]) -> float:
    hits = total = 0
    for gold, predicted in pairs:
        hits += gold == predicted
        total += 1
    return hits / total


def _padded(
    golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> tuple[Sequence[Sequence[str]], list[list[str]]]:
    """Fill short predictions with O; longer ones than their sentence are an error."""
    filled = []
    for number, (gold, tags) in enumerate(zip(golds, predictions, strict=True), start=1):
        if len(tags) > len(gold):
            raise ValueError(f"sentence {number} has {len(gold)} words, its prediction {len(tags)}")
        filled.append([*tags, *["O"] * (len(gold) - len(tags))])
    return golds, filled


def _count_chunks(
    golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> tuple[int, int, int]:
    """Return how many chunks agree, were predicted, and are right."""
    golds, filled = _padded(golds, predictions)
    # One long sequence, as in the official scorer: a chunk may reach back over the O in between.
    predicted = set(chunks([tag for sentence in filled for tag in [*sentence, "O"]]))
    gold = set(chunks([tag for sentence in golds for tag in [*sentence, "O"]]))
    return len(predicted & gold), len(predicted), len(gold)


def _ndcg_of_query(labels: Sequence[float], scores: Sequence[float]) -> float:
    discounts = [1 / math.log2(place + 2) for place in range(len(labels))]
    ideal = math.fsum(
        label * discount
        for label, discount in zip(sorted(labels, reverse=True), discounts, strict=True)
    )
    if ideal == 0:
        return 0.0
    gain = 0.0
    place = 0
    by_score = sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
    for _, tied in groupby(by_score, key=lambda pair: pair[0]):
        gains = [label for _, label in tied]
        share = math.fsum(discounts[place : place + len(gains)]) / len(gains)
        gain += share * math.fsum(gains)
        place += len(gains)
    return gain / ideal


def _overlap_f1(predicted: str, gold: str) -> float:
    predicted_words, gold_words = predicted.split(), gold.split()
    shared = (Counter(predicted_words) & Counter(gold_words)).total()
    if shared == 0:
        return 0.0
    return _harmonic_mean(shared / len(predicted_words), shared / len(gold_words))


def _harmonic_mean(precision: float, recall: float) -> float:
    """Return F1, rounded in the official scorer's order of operations."""
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
