"""The benchmark's official scores as one table, for one language at a time.

Every metric has the signature `metric(examples, predictions, language) -> float`: examples as
columns, one prediction per example in the same order, the score as a fraction from 0 to 1. What the
official scorer does is kept even where one would do otherwise, so that scores compare with
published ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

from graddrop.xglue.scores.answers import answer_f1, exact_match
from graddrop.xglue.scores.columns import Columns
from graddrop.xglue.scores.ranking import ndcg
from graddrop.xglue.scores.tagging import accuracy, chunk_precision, entity_f1, token_accuracy

METRICS: dict[str, Callable[[Columns, Sequence[Any], str], float]] = {
    "accuracy": accuracy,
    "answer_f1": answer_f1,
    "chunk_precision": chunk_precision,
    "entity_f1": entity_f1,
    "exact_match": exact_match,
    "ndcg": ndcg,
    "token_accuracy": token_accuracy,
}
