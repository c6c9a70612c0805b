"""Examples of one task, split and language, as a cached `datasets.Dataset`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graddrop.xglue.data.layouts import DataError, Example
from graddrop.xglue.data.sources import Source
from graddrop.xglue.locks import WITHOUT_LOCKS
from graddrop.xglue.tasks import TRAIN_LANGUAGE, Task

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 2
"""To be counted up when reading makes other examples of the same files."""


def load_split(
    task: Task,
    source: Source,
    split: str,
    language: str = TRAIN_LANGUAGE,
    limit: int | None = None,
) -> "Dataset":
    """Read the examples of one split in one language, or take them from the cache.

    Args:
        task: Row of the task table.
        source: Where the data come from.
        split: `train`, `dev` or `test`.
        language: Two-letter code.
        limit: Number of examples to keep from the beginning; None keeps all.

    Returns:
        A data set with the columns of the task's layout, see `graddrop.xglue.data.layouts`.

    Raises:
        DataError: If the split is missing, empty or malformed.
        OSError: If it cannot be read, or the cache cannot be written.
    """
    import datasets
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    if not source.has(task, split, language):
        raise DataError(
            f"{source.where(task, split, language)}: not there; expected the {split} set"
        )

    def generate() -> Iterator[Example]:
        return source.examples(task, split, language)

    version = source.version(task, split, language)
    try:
        dataset = Dataset.from_generator(
            generate, fingerprint=Hasher.hash([_VERSION, task.name, split, language, version])
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        # Which names no file.
        why = f"{error.strerror} in the cache of datasets; set HF_DATASETS_CACHE to a local folder"
        raise OSError(error.errno, why, str(datasets.config.HF_DATASETS_CACHE)) from error
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def evaluation_languages(
    task: Task, source: Source, split: str, wanted: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Sort the task's languages into those whose split is there and those whose is not.

    Args:
        task: Row of the task table.
        source: Where the data come from.
        split: `dev` or `test`.
        wanted: Languages to look for; none means all of the task.

    Returns:
        The languages found and the languages missing, in the order of the task table.
    """
    found: list[str] = []
    missing: list[str] = []
    for language in task.languages:
        if not wanted or language in wanted:
            (found if source.has(task, split, language) else missing).append(language)
    return found, missing


@contextmanager
def silent() -> Iterator[None]:
    """Keep `datasets` from drawing a progress bar for each small file."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
