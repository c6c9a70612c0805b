"""The official files: how examples are laid out on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from graddrop.xglue.mini.examples import Example
from graddrop.xglue.mini.grammar import Phrase
from graddrop.xglue.mini.lexicon import RESOURCES, Lexicon
from graddrop.xglue.tasks import EVAL_SPLITS, TRAIN_LANGUAGE, Task

_IOB1 = ("en", "de")
"""Languages whose official NER files write B- only where a name follows another of its kind."""


def task_files(
    task: Task, splits: Mapping[str, Sequence[Example]], lexicons: Mapping[str, Lexicon]
) -> dict[str, str]:
    """Write one task in every language that it shares with ours.

    Args:
        task: Row of the table of tasks, which knows paths and columns.
        splits: Examples of `train`, `dev` and `test`; the last two are asked in all languages.
        lexicons: Spelling per language.

    Returns:
        Path relative to the root of the archive -> content.
    """
    write = _WRITERS[task.layout]
    languages = [code for code in RESOURCES if code in task.languages]
    wanted = [("train", TRAIN_LANGUAGE)]
    wanted += [(split, code) for code in languages for split in EVAL_SPLITS]
    return {
        task.path(split, code): write(task, split, code, splits[split], lexicons[code])
        for split, code in wanted
    }


def ner_labels(task: Task) -> dict[str, str]:
    """The list of tags that lies beside the NER files."""
    return {f"{task.folder}/labels.txt": "".join(f"{label}\n" for label in sorted(task.labels))}


def iob1(words: Phrase) -> list[str]:
    """Entity tags in which a name starts with I- unless it touches another of its kind."""
    tags = []
    previous = "O"
    for word in words:
        begins_freely = word.entity.startswith("B-") and previous[2:] != word.entity[2:]
        tags.append("I-" + word.entity[2:] if begins_freely else word.entity)
        previous = word.entity
    return tags


def _words(task: Task, split: str, code: str, examples: Sequence[Example], lexicon: Lexicon) -> str:
    """One word and its tag per line, a blank line between sentences; POS lacks the last one."""
    blocks = []
    for example in examples:
        (words,) = example.texts
        if task.name == "pos":
            tags = [word.upos for word in words]
        else:
            tags = iob1(words) if code in _IOB1 else [word.entity for word in words]
        lines = zip(map(lexicon.spell, words), tags, strict=True)
        blocks.append("".join(f"{form} {tag}\n" for form, tag in lines))
    return "\n".join(blocks) + ("" if task.name == "pos" else "\n")


def _rows(task: Task, split: str, code: str, examples: Sequence[Example], lexicon: Lexicon) -> str:
    """TAB columns; training files use the other spelling of a label where there is one."""
    spelt = {label: alias for alias, label in task.aliases.items()} if split == "train" else {}
    rows = [list(task.columns)] if split in task.header else []
    for number, example in enumerate(examples, 1):
        identity = [str(number)] if "id" in task.columns else []
        label = spelt.get(example.label, example.label)
        rows.append([*identity, *map(lexicon.write, example.texts), label])
    return "".join("\t".join(row) + "\n" for row in rows)


def _squad(task: Task, split: str, code: str, examples: Sequence[Example], lexicon: Lexicon) -> str:
    """SQuAD 1.1 JSON, one paragraph per question, the answer located by its first character."""
    paragraphs = []
    for number, example in enumerate(examples, 1):
        question, passage = map(lexicon.write, example.texts)
        answer = lexicon.write(example.answer)
        start = len(lexicon.write((*example.texts[1][: example.start], *example.answer)))
        found = {"text": answer, "answer_start": start - len(answer)}
        qas = [{"id": f"{split}-{number}", "question": question, "answers": [found]}]
        paragraphs.append({"context": passage, "qas": qas})
    data = [{"title": "Mini-XGLUE", "paragraphs": paragraphs}]
    return json.dumps({"version": "1.1", "data": data}, ensure_ascii=False) + "\n"


_WRITERS: dict[str, Callable[[Task, str, str, Sequence[Example], Lexicon], str]] = {
    "words": _words,
    "rows": _rows,
    "squad": _squad,
}
