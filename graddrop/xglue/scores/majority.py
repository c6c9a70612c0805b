"""The score of a trivial answer: the most frequent training label, given to everything."""

from collections import Counter
from itertools import chain, islice
from typing import Any

from graddrop.xglue.data.sources import Source
from graddrop.xglue.data.splits import evaluation_languages
from graddrop.xglue.scores.columns import columns_of
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.tasks import TRAIN_LANGUAGE, Task


def majority_scores(
    task: Task, source: Source, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Score the trivial answer on the test sets.

    Args:
        task: Row of the task table.
        source: Where the data come from.
        limit: Examples of each test set to use; None means all.

    Returns:
        Fractions by metric and language; nothing for a task without labels.

    Raises:
        DataError: If a file is missing, empty or malformed.
    """
    if task.head == "span":
        return {}
    column = "tags" if task.head == "token" else "label"
    labels: Any = (example[column] for example in source.examples(task, "train", TRAIN_LANGUAGE))
    ((common, _),) = Counter(
        chain.from_iterable(labels) if task.head == "token" else labels
    ).most_common(1)
    scores: dict[str, dict[str, float]] = {name: {} for name in task.metrics}
    for language in evaluation_languages(task, source, "test")[0]:
        examples = columns_of(islice(source.examples(task, "test", language), limit))
        if task.head == "token":
            answers: list[Any] = [[common] * len(tags) for tags in examples["tags"]]
        else:
            answers = [common] * len(examples["label"])
        for name in task.metrics:
            scores[name][language] = METRICS[name](examples, answers, language)
    return scores
