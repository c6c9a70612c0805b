"""Examples of one task, split and language, as a cached `datasets.Dataset`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graddrop.xglue.layout import DataError, Example, read_file
from graddrop.xglue.tasks import TRAIN_LANGUAGE, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataError", "evaluation_languages", "load_split"]


def load_split(
    task: Task, root: Path, split: str, language: str = TRAIN_LANGUAGE, limit: int | None = None
) -> "Dataset":
    """Read the examples of one split in one language.

    Args:
        task: Row of the task table.
        root: Folder that holds the tasks' folders, as the archive unpacks.
        split: `train`, `dev` or `test`.
        language: Two-letter code.
        limit: Number of examples to keep from the beginning; None keeps all.

    Returns:
        A data set with the columns of the task's layout, see `graddrop.xglue.layout`.

    Raises:
        DataError: If the file is missing, empty or malformed.
        ValueError: If `limit` is not positive.
    """
    from datasets import Dataset

    if limit is not None and limit <= 0:
        raise ValueError(f"limit must be positive, got {limit}")
    examples: list[Example] = []
    for example in _examples(task, root, split, language):
        examples.append(example)
        if len(examples) == limit:
            break
    return Dataset.from_list(examples)


def evaluation_languages(
    task: Task, root: Path, split: str, wanted: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Sort the task's languages into those whose file is there and those whose is not.

    Args:
        task: Row of the task table.
        root: Folder that holds the tasks' folders.
        split: `dev` or `test`.
        wanted: Languages to look for; none means all of the task.

    Returns:
        The languages found and the languages missing, in the order of the task table.

    Raises:
        ValueError: If a wanted language does not belong to the task.
    """
    for language in wanted:
        if language not in task.languages:
            raise ValueError(
                f"task {task.name} has no language {language!r}; "
                f"expected some of {', '.join(task.languages)}"
            )
    found: list[str] = []
    missing: list[str] = []
    for language in task.languages:
        if not wanted or language in wanted:
            there = (root / task.path(split, language)).is_file()
            (found if there else missing).append(language)
    return found, missing


def _examples(task: Task, root: Path, split: str, language: str) -> Iterator[Example]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the unpacked archive of XGLUE")
    yield from read_file(task, root / task.path(split, language), split)
