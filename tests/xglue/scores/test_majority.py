"""Laws of the trivial baseline: one answer for everything, judged by the official metrics."""

from pathlib import Path

import pytest

from graddrop.xglue.data.layouts import read_file
from graddrop.xglue.data.sources import Source, open_source
from graddrop.xglue.mini import MiniSize, write_mini_xglue
from graddrop.xglue.scores.majority import majority_scores
from graddrop.xglue.tasks import TASKS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A small benchmark."""
    root = tmp_path_factory.mktemp("majority") / "data"
    write_mini_xglue(root, MiniSize(train=41, dev=3, test=13, text_lines=5))
    return open_source(str(root))


def gold(source: Source, name: str, split: str, language: str) -> list[str]:
    """The labels of a file, read without the code that is tested."""
    task = TASKS[name]
    path = Path(source.where(task, split, language))
    column = "tags" if task.head == "token" else "label"
    values = [example[column] for example in read_file(task, path, split)]
    return [tag for tags in values for tag in tags] if task.head == "token" else values


@pytest.mark.parametrize(
    ("name", "metric"), [("pos", "token_accuracy"), ("nc", "accuracy"), ("xnli", "accuracy")]
)
def test_it_is_the_share_of_one_label(source: Source, name: str, metric: str) -> None:
    """The label is the most frequent of the English training set, not of the test set."""
    train = gold(source, name, "train", "en")
    common = max(dict.fromkeys(train), key=train.count)
    found = majority_scores(TASKS[name], source)[metric]
    assert len(found) >= 5
    for language, score in found.items():
        labels = gold(source, name, "test", language)
        assert score == labels.count(common) / len(labels)
        assert 0 < score < 0.6


def test_every_task_with_labels_has_one(source: Source) -> None:
    """All metrics of all languages found; answers that are spans have no most frequent label."""
    for name, task in TASKS.items():
        found = majority_scores(task, source)
        assert tuple(found) == (() if name == "mlqa" else task.metrics)
        for by_language in found.values():
            assert by_language and all(0 <= score <= 1 for score in by_language.values())


def test_a_limit_takes_the_first_examples(source: Source) -> None:
    """As a run does that evaluates on few examples."""
    labels = gold(source, "qam", "test", "de")[:4]
    train = gold(source, "qam", "train", "en")
    common = max(dict.fromkeys(train), key=train.count)
    found = majority_scores(TASKS["qam"], source, limit=4)
    assert found["accuracy"]["de"] == labels.count(common) / 4
