"""A toy XGLUE in the archive's layout, in which every task can be learnt from one word."""

import json
import os
from pathlib import Path

from helpers.root import ROOT

from graddrop.xglue.tasks import TASKS, Task

REAL_DATA = Path(os.environ.get("GRADDROP_DATA", ROOT.parent / "shared/data")) / "xglue"
NO_REAL_DATA = f"no XGLUE files at {REAL_DATA} (set GRADDROP_DATA)"

LANGUAGES = {"train": ["en"], "dev": ["en", "de"], "test": ["en"]}
"""Languages that are written; de has no test set."""


def write_archive(root: Path, train: int = 32, evaluation: int = 7) -> Path:
    """Write all nine tasks.

    Args:
        root: The folder that will hold the tasks' folders.
        train: Examples in each training file.
        evaluation: Examples in each other file.
    """
    for task in TASKS.values():
        for split, languages in LANGUAGES.items():
            for language in languages:
                path = root / task.path(split, language)
                path.parent.mkdir(parents=True, exist_ok=True)
                count = train if split == "train" else evaluation
                with path.open("w", encoding="utf-8", newline="") as file:
                    file.write(WRITERS[task.layout](task, split, count))
    return root


def _words(task: Task, split: str, count: int) -> str:
    sentences = []
    for number in range(count):
        length = 2 + number % 3
        tags = [task.labels[(number + place) % len(task.labels)] for place in range(length)]
        sentences.append("".join(f"word{tag.lower()} {tag}\n" for tag in tags))
    # As in the archive, no blank line after the last sentence.
    return "\n".join(sentences)


def _rows(task: Task, split: str, count: int) -> str:
    lines = ["\t".join(task.columns)] if split in task.header else []
    for number in range(count):
        label = task.labels[number % len(task.labels)]
        # Two rows for each query: groups of one do not count in the ranking task.
        cells = [f"{name}{number // 2}" for name in task.first]
        cells += [f"{name} says {label}" for name in task.second]
        by_name = dict(zip((*task.first, *task.second), cells, strict=True))
        lines.append("\t".join([by_name.get(name, label) for name in task.columns]))
    # One kind of file ends its lines as some official ones do.
    return "".join(f"{line}\r\n" if task.name == "qam" else f"{line}\n" for line in lines)


def _squad(task: Task, split: str, count: int) -> str:
    paragraphs = []
    for number in range(count):
        answer = f"town{number % 5}"
        context = f"Somebody lives in {answer} since long ago."
        question = {
            "id": f"{split}-{number}",
            "question": "Where does somebody live?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        paragraphs.append({"context": context, "qas": [question]})
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


WRITERS = {"words": _words, "rows": _rows, "squad": _squad}
