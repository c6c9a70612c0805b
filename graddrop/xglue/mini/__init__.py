"""Mini-XGLUE: the nine tasks in invented languages, in the official layout.

    from graddrop.xglue.mini import MiniSize, write_mini_xglue
    write_mini_xglue(Path("mini"), MiniSize(train=1000), seed=0)

All languages share one grammar (`grammar`), so that transfer is possible; each spells it in its
own words (`lexicon`); some have far less raw text than others, so that transfer is harder for
those. What the tasks ask is in `examples`, what the files look like in `writers`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from graddrop.xglue.mini.examples import draw
from graddrop.xglue.mini.grammar import TOPICS, sentence
from graddrop.xglue.mini.lexicon import RESOURCES, Lexicon, build_lexicons, run_on
from graddrop.xglue.mini.writers import ner_labels, task_files
from graddrop.xglue.tasks import TASKS, TRAIN_LANGUAGE

__all__ = ["RESOURCES", "MiniSize", "is_mini_xglue", "write_mini_xglue"]

CODE_SWITCHING = 0.3
"""Share of the words of raw text that speakers borrow from the training language as they stand;
with the cognates, this is what ties the languages together in pretraining."""

_TITLE = "# Mini-XGLUE"

_README = """\
{title}

Nothing here is natural language. Every language is invented, as are all sentences and labels;
the codes (en, de, ...) are borrowed from XGLUE only so that programs find the files they expect.
"en" is the training language. All languages share one grammar and differ in their words and in
the amount of raw text: {resources}.

Made by `graddrop.xglue.mini` with seed {seed} and {size}.
"""


@dataclass(frozen=True)
class MiniSize:
    """How much to write.

    Attributes:
        train: English training examples per task.
        dev: Examples per language and task.
        test: Examples per language and task.
        text_lines: Lines of raw text of the training language; the others have their share
            (`RESOURCES`) of it.
    """

    train: int = 800
    dev: int = 100
    test: int = 200
    text_lines: int = 6000


def is_mini_xglue(folder: Path) -> bool:
    """Return whether a folder holds a benchmark in invented languages, which was made here."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    with readme.open("rb") as file:
        return file.read(len(_TITLE)) == _TITLE.encode()


def write_mini_xglue(root: Path, size: MiniSize = MiniSize(), seed: int = 0) -> None:
    """Write the benchmark: all of it or, when anything fails, nothing.

    Dev and test ask the same of every language, word for word; no example is in two splits.

    Args:
        root: Folder to make; the tasks' folders and `text/` are put into it.
        size: Number of examples and lines.
        seed: Decides languages, examples and text; equal seeds give equal bytes.

    Raises:
        FileExistsError: If `root` exists.
        ValueError: If a number in `size` is not positive.
    """
    if min(vars(size).values()) < 1:
        raise ValueError(f"every number in size must be at least 1, but got {size}")
    if root.exists():
        raise FileExistsError(f"{root} exists: choose another folder or remove it")
    unfinished = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        for path, content in _files(size, seed).items():
            target = unfinished / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8", newline="\n")
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _files(size: MiniSize, seed: int) -> dict[str, str]:
    lexicons = build_lexicons(seed)
    resources = ", ".join(f"{code} {share:g}" for code, share in RESOURCES.items())
    readme = _README.format(title=_TITLE, resources=resources, seed=seed, size=size)
    files = {"README.md": readme} | ner_labels(TASKS["ner"])
    splits = {"train": size.train, "dev": size.dev, "test": size.test}
    for name, task in TASKS.items():
        files |= task_files(task, draw(name, seed, splits), lexicons)
    for code, share in RESOURCES.items():
        lines = max(1, round(share * size.text_lines))
        files[f"text/{code}.txt"] = _raw_text(code, lines, lexicons, seed)
    return files


def _raw_text(code: str, lines: int, lexicons: Mapping[str, Lexicon], seed: int) -> str:
    """Sentences, one per line, about one topic for a while."""
    rng = Random(f"text/{seed}/{code}")
    text = []
    topic = rng.choice(TOPICS)
    for _ in range(lines):
        if rng.random() < 0.2:
            topic = rng.choice(TOPICS)
        spelt = []
        for word in sentence(rng, topic):
            borrowed = rng.random() < CODE_SWITCHING
            spelt.append((word, lexicons[TRAIN_LANGUAGE if borrowed else code].spell(word)))
        text.append(run_on(spelt) + "\n")
    return "".join(text)
