"""Laws of prediction files: their format, their scores, the command `graddrop score`."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.xglue_files import write_archive

from graddrop.cli import main
from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.data.sources import FolderSource
from graddrop.xglue.scores.columns import columns_of
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.scores.predictions import (
    prediction_file,
    read_predictions,
    write_predictions,
)
from graddrop.xglue.tasks import TASKS, get_task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine toy tasks."""
    return write_archive(tmp_path_factory.mktemp("archive"))


def gold(task: Any, examples: dict[str, list[Any]]) -> list[Any]:
    """Predictions without a mistake."""
    if task.layout == "squad":
        return [answers["text"][0] for answers in examples["answers"]]
    return examples["tags" if task.layout == "words" else "label"]


@pytest.mark.parametrize("name", TASKS)
def test_what_is_written_is_read(name: str, root: Path, tmp_path: Path) -> None:
    """Predictions without a mistake score 1; one line per line of the input file."""
    task, source = TASKS[name], FolderSource(root)
    examples = columns_of(source.examples(task, "dev", "de"))
    path = prediction_file(tmp_path, task, "de")
    assert path.parent.name == task.folder
    file = source.file(task, "dev", "de")
    write_predictions(task, path, examples, gold(task, examples), file)
    assert read_predictions(task, path, examples) == gold(task, examples)
    if task.layout != "squad":
        lines, inputs = path.read_text().splitlines(), file.read_text().splitlines()
        inputs = inputs[1:] if "dev" in task.header else inputs
        assert [bool(line) for line in lines] == [bool(line) for line in inputs]
    write_predictions(task, path, examples, gold(task, examples), None)
    assert read_predictions(task, path, examples) == gold(task, examples)
    for metric in task.metrics:
        assert METRICS[metric](examples, gold(task, examples), "de") == 1, metric


def test_blank_lines_of_the_input_are_blank_in_the_predictions(tmp_path: Path) -> None:
    """Several at once, -DOCSTART- lines, after a byte order mark: line by line."""
    gold = tmp_path / "gold"
    gold.write_text("\ufeff-DOCSTART- O\n\nA O\nb O\n\n\nc O\n", encoding="utf-8")
    task = get_task("ner")
    words = {"words": [["A", "b"], ["c"]]}
    write_predictions(task, tmp_path / "p", words, [["O", "B-PER"], ["O"]], gold)
    assert (tmp_path / "p").read_text() == "\n\nO\nB-PER\n\n\nO\n"
    assert read_predictions(task, tmp_path / "p", words) == [["O", "B-PER"], ["O"]]


def test_ranking_scores_survive_the_file(tmp_path: Path) -> None:
    """Floats are written so that the same ones are read."""
    task, path = get_task("wpr"), tmp_path / "p"
    numbers = [0.1 + 0.2, 1e-17, 3.9999999999999996]
    write_predictions(task, path, {"label": ["0"] * 3}, numbers, None)
    assert [float(line) for line in read_predictions(task, path, {"label": ["0"] * 3})] == numbers


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qam", "1\n0\n", "expected 7 predictions, found 2"),
        ("pos", "X\n\nX\n", "expected 7 predictions, found 2"),
        ("pos", "X\n" * 9, "sentence 1 has 2 words, its prediction 9"),
        (
            "mlqa",
            "town1\n",
            ":1: expected JSON, found .*; should be a JSON object from question ids to answers",
        ),
        ("mlqa", "[]", r"expected a JSON object from question ids to answers, found \[\]"),
        ("mlqa", '{"dev-0": 7}', "expected a text as answer to 'dev-0', found 7"),
        (
            "mlqa",
            '{"q": "a"}',
            "expected answers to questions such as 'dev-0', found none of them but 'q'",
        ),
        ("mlqa", "{}", "found none of them but nothing"),
        ("mlqa", '{"dev-0": null}', "expected a text as answer to 'dev-0', found None"),
        ("mlqa", '{"\\u001b[2J": 7}', r"as answer to '\\x1b\[2J', found 7"),
        (
            "mlqa",
            '{"dev-0": "a", "dev-0": "b"}',
            "expected JSON, found 'dev-0' twice in one object",
        ),
        (
            "mlqa",
            '{"dev-0": "\\ud83d"}',
            r":1: expected whole characters.*\\ud83d; should be a JSON",
        ),
        ("mlqa", "[" * 100_000, "expected JSON, found it nested too deep"),
        ("qam", "1\r0\r", ":1: expected lines that end in LF or CR LF"),
        ("wpr", "1\n" * 6 + "1e999\n", ":7: expected a finite number to rank by, found '1e999'"),
        ("wpr", "1\n" * 6 + "nan\n", ":7: expected a finite number to rank by, found 'nan'"),
        ("wpr", "1\ngood\n", ":2: expected a finite number to rank by, found 'good'"),
    ],
)
def test_malformed_predictions_are_named(
    name: str, text: str, message: str, root: Path, tmp_path: Path
) -> None:
    """The file, what was expected, what was found."""
    task = get_task(name)
    examples = columns_of(FolderSource(root).examples(task, "dev", "en"))
    path = tmp_path / "en.prediction"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(task, path, examples)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="no such file; expected predictions for task"):
        read_predictions(task, tmp_path / "nowhere", examples)


def test_the_command_prints_and_writes_scores(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table for people, full precision for programs; what is missing is said."""
    (tmp_path / "QAM").mkdir()
    # The gold labels alternate from 0: 4 of 7 are 0. A word that is no label counts as wrong.
    (tmp_path / "QAM/en.prediction").write_text("0\n" * 6 + "no\n")
    arguments = ["score", "--task", "qam", "--predictions", str(tmp_path), "--data", str(root)]
    assert main([*arguments, "--split", "dev", "--json", str(tmp_path / "scores.json")]) == 0
    shown = capsys.readouterr().out
    assert "42.86" in shown
    assert "no predictions, skipped: de" in shown and "no dev file, skipped: fr" in shown
    assert "no labels, counted wrong: 'no'" in shown
    assert json.loads((tmp_path / "scores.json").read_text()) == {"en": {"accuracy": 3 / 7}}


def test_an_unknown_language_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not ignored, as if it had been scored."""
    arguments = ["score", "--task", "qam", "--predictions", str(tmp_path), "--data", str(root)]
    assert main([*arguments, "--languages", "en", "xx"]) == 2
    assert "task qam has no language 'xx'; expected some of en, de, fr" in capsys.readouterr().err


def test_nothing_to_score_is_an_error(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names both folders."""
    arguments = ["score", "--task", "pos", "--predictions", str(tmp_path), "--data", str(root)]
    assert main(arguments) == 2
    assert "nothing to score: no language with both a test file" in capsys.readouterr().err


def test_missing_answers_score_nothing(root: Path, tmp_path: Path) -> None:
    """A question that the file does not answer counts, with 0; unknown ids do not."""
    task = get_task("mlqa")
    examples = columns_of(FolderSource(root).examples(task, "dev", "en"))
    path = tmp_path / "en.prediction"
    path.write_text(json.dumps({"dev-0": "the Town0!", "other": "town1"}))
    predictions = read_predictions(task, path, examples)
    assert predictions == ["the Town0!", *[None] * 6]
    assert METRICS["answer_f1"](examples, predictions, "en") == 1 / 7


def test_document_marks_are_blank_lines_of_the_predictions(tmp_path: Path) -> None:
    """One line per line of the input, which may begin with several blank ones."""
    gold_file = tmp_path / "gold"
    gold_file.write_text("-DOCSTART- O\n\nA O\nb O\n\n\nc O\n")
    examples = {"words": [["A", "b"], ["c"]]}
    predictions = [["O", "B-PER"], ["B-LOC"]]
    write_predictions(get_task("ner"), tmp_path / "p", examples, predictions, gold_file)
    assert (tmp_path / "p").read_text() == "\n\nO\nB-PER\n\n\nB-LOC\n"
    assert read_predictions(get_task("ner"), tmp_path / "p", examples) == predictions
