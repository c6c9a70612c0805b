"""The three file layouts of the archive: from the lines of one file to examples.

An example is a dictionary. `words`: `words` and `tags`, lists of equal length. `rows`: one string
per column, the label under `label`. `squad`: `id`, `question`, `context` and `answers`, a
dictionary of the lists `text` and `answer_start` (characters).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from graddrop.xglue.tasks import Task
from graddrop.xglue.textfile import BYTE_ORDER_MARK, TextFileError, brief, read_json

Example = dict[str, Any]


class DataError(ValueError):
    """A file of the archive that is missing, empty or malformed."""

    @classmethod
    def at(cls, path: Path, line: int, expected: str, found: object) -> "DataError":
        """Name the place, what was expected there, what was found."""
        return cls(f"{path}:{line}: expected {expected}, found {brief(found)}")


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
    `str.splitlines` splits at. A byte order mark at the beginning is passed over.

    Raises:
        DataError: If a line is not UTF-8, or holds a CR, which other readers would end it at.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(BYTE_ORDER_MARK)
            try:
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                found = raw[error.start : error.end]
                raise DataError.at(path, number, "UTF-8", found) from None
            if "\r" in line:
                raise DataError.at(path, number, "lines that end in LF or CR LF, no other CR", line)
            yield number, line


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
    n_spaces: list[int] = []
    for number, line in lines(path):
        if not is_blank(line):
            # The tag follows the last space: some words contain one. No other character separates:
            # some words are nothing but a no-break space.
            word, _, tag = line.rpartition(" ")
            if not word or not tag or word != word.strip(" "):
                raise DataError.at(path, number, "'word tag' with one space between", line)
            words.append(word)
            tags.append(_label(task, tag, path, number))
            n_spaces.append(line.count(" "))
        elif words:
            yield {"words": words, "tags": tags}
            words, tags = [], []
    # The last sentence need not be followed by a blank line.
    if words:
        yield {"words": words, "tags": tags}
    # A space in some words is theirs; one in every line, always at the same place, is a column's.
    if len(n_spaces) > 1 and set(n_spaces) == {max(n_spaces)} and n_spaces[0] > 1:
        raise DataError(
            f"{path}: expected two columns, 'word tag', found {n_spaces[0] + 1} in every line; "
            "leave out those between"
        )


def _read_rows(task: Task, path: Path, split: str) -> Iterator[Example]:
    for number, line in lines(path):
        cells = line.split("\t")
        # Copies of the official files are about whose header is gone.
        if number == 1 and split in task.header and cells[-1].lower() == "label":
            continue
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
        document = _Node(read_json(path), "", path)
    except TextFileError as error:
        raise DataError(str(error)) from None
    for article in document.items("data"):
        for paragraph in article.items("paragraphs"):
            context = paragraph.text("context")
            for question in paragraph.items("qas"):
                name = question.name("id")
                # Which can be looked for in a file of one line.
                question = question._replace(place=f"{question.place} (id {brief(name)})")
                yield {
                    "id": name,
                    "question": question.text("question"),
                    "context": context,
                    "answers": _answers(question, context),
                }


class _Node(NamedTuple):
    """A value in a SQuAD file and where it stands, such as `data[0].paragraphs[2]`."""

    value: Any
    place: str
    path: Path

    def items(self, name: str) -> Iterator["_Node"]:
        place = self._place(name)
        for number, value in enumerate(self._field(name, "a list", list)):
            yield _Node(value, f"{place}[{number}]", self.path)

    def text(self, name: str) -> str:
        return self._field(name, "a text", str)

    def name(self, name: str) -> str:
        return str(self._field(name, "a text", str, int))

    def number(self, name: str) -> int:
        value = self._field(name, "a whole number from 0", int)
        if value < 0:
            raise self.error(f"{name}: expected a whole number from 0, found {brief(value)}")
        return value

    def error(self, message: str) -> DataError:
        return DataError(f"{self.path}: {self.place}.{message}")

    def _place(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def _field(self, name: str, expected: str, *kinds: type) -> Any:
        known = isinstance(self.value, dict) and name in self.value
        value = self.value[name] if known else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            found = brief(value) if known else "nothing"
            raise DataError(
                f"{self.path}: {self._place(name)}: expected {expected}, as in SQuAD v1.1, "
                f"found {found}"
            )
        return value


def _answers(question: _Node, context: str) -> dict[str, list[Any]]:
    texts: list[str] = []
    starts: list[int] = []
    for answer in question.items("answers"):
        text, start = answer.text("text"), answer.number("answer_start")
        found = context[start : start + len(text)]
        if found != text:
            raise answer.error(
                f"text: expected {brief(text)} at character {brief(start)} of the context, found "
                f"{brief(found)}"
            )
        texts.append(text)
        starts.append(start)
    if not texts:
        raise question.error("answers: expected at least one, found none")
    return {"text": texts, "answer_start": starts}


LAYOUTS: dict[str, Callable[[Task, Path, str], Iterator[Example]]] = {
    "words": _read_words,
    "rows": _read_rows,
    "squad": _read_squad,
}
