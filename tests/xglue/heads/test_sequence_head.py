"""Laws of one label per example."""

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
import numpy as np

from graddrop.xglue.heads import sequence as sequence_head
from graddrop.xglue.tasks import TASKS, get_task


@pytest.mark.parametrize("name", [t.name for t in TASKS.values() if t.head == "sequence"])
def test_columns_are_packed_into_two_segments(tokenizer: Any, name: str) -> None:
    """What fits is the tokenizer's own packing; else the longer one loses, the second if equal."""
    task = get_task(name)
    batch = {column: [f"the {column} fox " * 5] for column in task.columns}
    batch["label"] = [task.labels[-1]]
    (row,) = sequence_head.encoder(task, tokenizer, 512)(batch, [0])
    first, second = (
        " ".join(batch[column][0] for column in columns) for columns in (task.first, task.second)
    )
    assert row["input_ids"] == tokenizer(first, second)["input_ids"]
    assert row["labels"] == len(task.labels) - 1
    for max_length in (6, 20, 31):
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
        while len(a) + len(b) > max_length - 4:
            (a if len(a) > len(b) else b).pop()
        (row,) = sequence_head.encoder(task, tokenizer, max_length)(batch, [0])
        assert row["input_ids"] == [0, *a, 2, 2, *b, 2]


def test_ranking_predicts_an_expected_grade() -> None:
    """Probabilities times grades, where the class number would be a tie; classes elsewhere."""
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.0001, 0.4], [0.4, 0.3, 0.1, 0.1, 0.1]]))
    features = datasets.Dataset.from_dict({"example": [1, 0]})
    wpr, nc = get_task("wpr"), get_task("nc")
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (weights * np.arange(5)).sum(1)
    assert sequence_head.decode(wpr, features, features, logits) == pytest.approx(expected[::-1])
    assert sequence_head.decode(nc, features, features, logits) == [nc.labels[0], nc.labels[4]]
