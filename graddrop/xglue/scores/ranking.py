"""The score of a ranking: normalised discounted cumulative gain over the pages of a query."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from graddrop.xglue.scores.columns import Columns


def ndcg(examples: Columns, predictions: Sequence[float | str], language: str) -> float:
    """Return the mean over queries of the normalised discounted cumulative gain.

    A query is a run of consecutive rows with the same text; a text that follows an empty one begins
    no new query. The gain is the label itself, there is no cutoff, rows of equal score share the
    mean of their places' discounts. A query of one row is left out; one whose labels are all zero
    scores 0.

    Raises:
        ValueError: If every query has a single row.
    """
    queries = _numbered(examples["query"])
    rows = zip(queries, examples["label"], predictions, strict=True)
    scores = []
    for _, group in groupby(rows, key=lambda row: row[0]):
        pairs = [(float(label), float(score)) for _, label, score in group]
        if len(pairs) > 1:
            scores.append(_ndcg_of_query(*zip(*pairs, strict=True)))
    if not scores:
        raise ValueError("nDCG needs a query with at least two rows; every query has one")
    return math.fsum(scores) / len(scores)


def _numbered(texts: Iterable[str]) -> Iterator[int]:
    """Return the number of each row's query, as the official scorer counts them."""
    number, before = 0, ""
    for text in texts:
        number += before not in ("", text)
        before = text
        yield number


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
