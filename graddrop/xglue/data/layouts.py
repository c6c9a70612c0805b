"""The three file layouts of the archive: from the lines of one file to examples.

An example is a dictionary. `words`: `words` and `tags`, lists of equal length. `rows`: one string
per column, the label under `label`. `squad`: `id`, `question`, `context` and `answers`, a
dictionary of the lists `text` and `answer_start` (characters).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graddrop.xglue.tasks import Task

Example = dict[str, Any]


class DataError(ValueError):
    """A file of the archive that is missing, empty or malformed."""

    @classmethod
    def at(cls, path: Path, line: int, expected: str, found: object) -> "DataError":
        """Name the place, what was expected there, what was found."""
        return cls(f"{path}:{line}: expected {expected}, found {found!r}")


def read_file(task: Task, path: Path, split: str) -> Iterator[Example]:
    """Read one file of the archive.

    Args:
        task: Row of the task table.
        path: The file.
        split: `train`, `dev` or `test`.

    Raises:
        DataError: If the file is absent, not UTF-8, empty, or malformed; the message names file
            and line.
        OSError: If the file cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the {split} set of task {task.name}")
    found = False
    for example in LAYOUTS[task.layout](task, path, split):
        found = True
        yield example
    if not found:
        raise DataError(f"{path}: empty; expected at least one example of task {task.name}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers from 1 and lines without their ends.

    Only LF, or CR and LF, end a line: sentences may hold the other characters that
    `str.splitlines` splits at.

    Raises:
        DataError: If a line is not UTF-8.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError.at(path, number, "UTF-8", raw[error.start : error.end]) from None


def is_blank(line: str) -> bool:
    """Return whether a line of the `words` layout separates sentences."""
    return not line or line.startswith("-DOCSTART-")


def _label(task: Task, text: str, path: Path, number: int) -> str:
    label = task.aliases.get(text, text)
    if label not in task.labels:
        raise DataError.at(path, number, f"a label out of {', '.join(task.labels)}", text)
    return label


def _read_words(task: Task, path: Path, split: str) -> Iterator[Example]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in lines(path):
        if not is_blank(line):
            # The tag follows the last space: some words contain one.
            word, _, tag = line.rpartition(" ")
            if not word.strip():
                raise DataError.at(path, number, "'word tag' with one space between", line)
            words.append(word)
            tags.append(_label(task, tag, path, number))
        elif words:
            yield {"words": words, "tags": tags}
            words, tags = [], []
    # The last sentence need not be followed by a blank line.
    if words:
        yield {"words": words, "tags": tags}


def _read_rows(task: Task, path: Path, split: str) -> Iterator[Example]:
    for number, line in lines(path):
        if number == 1 and split in task.header:
            continue
        cells = line.split("\t")
        if len(cells) != len(task.columns):
            raise DataError.at(
                path,
                number,
                f"{len(task.columns)} TAB-separated columns ({', '.join(task.columns)})",
                f"{len(cells)} in {line[:80]}",
            )
        example = dict(zip(task.columns, cells, strict=True))
        example["label"] = _label(task, example["label"], path, number)
        yield example


def _read_squad(task: Task, path: Path, split: str) -> Iterator[Example]:
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {
                        "id": str(question["id"]),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": _answers(question, paragraph["context"], path),
                    }
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError.at(path, error.lineno, "JSON", error.msg) from None
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected SQuAD v1.1, missing or of wrong type: {error}") from None


def _answers(question: dict[str, Any], context: str, path: Path) -> dict[str, list[Any]]:
    texts = [answer["text"] for answer in question["answers"]]
    starts = [int(answer["answer_start"]) for answer in question["answers"]]
    place = f"{path}: question {question['id']}"
    if not texts:
        raise DataError(f"{place}: expected at least one answer, found none")
    for text, start in zip(texts, starts, strict=True):
        if context[start : start + len(text)] != text:
            found = context[start : start + len(text)]
            raise DataError(f"{place}: expected {text!r} at character {start}, found {found!r}")
    return {"text": texts, "answer_start": starts}


LAYOUTS: dict[str, Callable[[Task, Path, str], Iterator[Example]]] = {
    "words": _read_words,
    "rows": _read_rows,
    "squad": _read_squad,
}
