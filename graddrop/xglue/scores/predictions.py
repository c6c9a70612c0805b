"""Prediction files in the benchmark's official format, `TASK/LANGUAGE.prediction`.

One line per line of the input file, blank where that is (NER, POS); for PAWS-X without the header;
for MLQA one JSON object from question ids to answers.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graddrop.xglue.data.layouts import DataError, is_blank, lines
from graddrop.xglue.scores.columns import Columns
from graddrop.xglue.tasks import Task
from graddrop.xglue.textfile import TextFileError, brief, read_json


def prediction_file(folder: Path, task: Task, language: str) -> Path:
    """Return the official place of a prediction file below a folder."""
    return folder / task.folder / f"{language}.prediction"


def write_predictions(
    task: Task, path: Path, examples: Columns, predictions: Sequence[Any], gold: Path | None
) -> None:
    """Write the predictions of one language.

    Args:
        task: Row of the task table.
        path: The file to write; its folder is made.
        examples: The examples, as columns.
        predictions: One for each of them.
        gold: The input file, whose blank lines are kept (`words` only); None puts one blank line
            after each sentence.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = FORMATS[task.layout].write(examples, predictions, gold)
    path.write_text(text, encoding="utf-8")


def read_predictions(task: Task, path: Path, examples: Columns) -> list[Any]:
    """Read the predictions of one language.

    Args:
        task: Row of the task table.
        path: The file.
        examples: The examples that it is about, as columns.

    Returns:
        One prediction per example; None for a question without an answer.

    Raises:
        DataError: If the file is missing or malformed, is about another number of examples, or
            answers none of the questions.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected predictions for task {task.name}")
    predictions = FORMATS[task.layout].read(task, path, examples)
    expected = len(next(iter(examples.values())))
    if len(predictions) != expected:
        raise DataError(f"{path}: expected {expected} predictions, found {len(predictions)}")
    return predictions


def strangers(task: Task, predictions: Sequence[Any]) -> list[str]:
    """Return what the predictions hold that is no label of the task; the scorer counts it wrong."""
    if task.layout == "squad" or task.ranks:
        return []
    flat: Iterable[str] = (
        (tag for sentence in predictions for tag in sentence)
        if task.layout == "words"
        else predictions
    )
    return sorted(set(flat) - set(task.labels))


def _write_words(examples: Columns, predictions: Sequence[Sequence[str]], gold: Path | None) -> str:
    if gold is None:
        return "\n".join("".join(f"{tag}\n" for tag in sentence) for sentence in predictions)
    tags = iter([tag for sentence in predictions for tag in sentence])
    return "".join(f"{'' if is_blank(line) else next(tags)}\n" for _, line in lines(gold))


def _read_words(task: Task, path: Path, examples: Columns) -> list[list[str]]:
    sentences: list[list[str]] = [[]]
    for _, line in lines(path):
        tag = line.strip()
        if tag:
            sentences[-1].append(tag)
        elif sentences[-1]:
            sentences.append([])
    predictions = sentences if sentences[-1] else sentences[:-1]
    for number, (words, tags) in enumerate(
        zip(examples["words"], predictions, strict=False), start=1
    ):
        if len(tags) > len(words):
            raise DataError(
                f"{path}: sentence {number} has {len(words)} words, its prediction {len(tags)}"
            )
    return predictions


def _write_rows(examples: Columns, predictions: Sequence[Any], gold: Path | None) -> str:
    return "".join(f"{prediction}\n" for prediction in predictions)


def _read_rows(task: Task, path: Path, examples: Columns) -> list[str]:
    predictions = []
    for number, line in lines(path):
        if task.ranks and not _is_finite(line):
            raise DataError.at(path, number, "a finite number to rank by", line)
        predictions.append(line.strip())
    return predictions


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _write_answers(examples: Columns, predictions: Sequence[str], gold: Path | None) -> str:
    answers = dict(zip(examples["id"], predictions, strict=True))
    return json.dumps(answers, ensure_ascii=False, indent=1) + "\n"


def _read_answers(task: Task, path: Path, examples: Columns) -> list[str | None]:
    expected = "a JSON object from question ids to answers"
    try:
        answers = read_json(path)
    except TextFileError as error:
        raise DataError(f"{error}; should be {expected}") from None
    if not isinstance(answers, dict):
        raise DataError(f"{path}: expected {expected}, found {brief(answers)}")
    for question, answer in answers.items():
        if not isinstance(answer, str):
            raise DataError(
                f"{path}: expected a text as answer to {brief(question)}, found {brief(answer)}"
            )
    if answers.keys().isdisjoint(examples["id"]):
        found = brief(next(iter(answers))) if answers else "nothing"
        raise DataError(
            f"{path}: expected answers to questions such as {brief(examples['id'][0])}, found none "
            f"of them but {found}"
        )
    return [answers.get(question) for question in examples["id"]]


@dataclass(frozen=True)
class _Format:
    write: Callable[[Columns, Sequence[Any], Path | None], str]
    read: Callable[[Task, Path, Columns], list[Any]]


FORMATS = {
    "words": _Format(_write_words, _read_words),
    "rows": _Format(_write_rows, _read_rows),
    "squad": _Format(_write_answers, _read_answers),
}
