"""Scores of labels: of whole examples, of words, and of chunks of words."""

from collections.abc import Iterator, Sequence
from itertools import chain

from graddrop.xglue.scores.columns import Columns


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
    if not hits:
        return 0.0
    precision, recall = hits / predicted, hits / gold
    return 2 * precision * recall / (precision + recall)


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
