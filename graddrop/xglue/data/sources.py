"""Where the benchmark's data come from: a folder, the archive, or the Hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from graddrop.xglue.data.archive import ARCHIVE_FOLDER, unpacked, verify_archive
from graddrop.xglue.data.layouts import DataError, Example, read_file
from graddrop.xglue.tasks import TASKS, Task
from graddrop.xglue.textfile import brief

HUB = "hub"
"""Names the parquet mirror on the Hub; `hub@REVISION` pins a commit."""

HUB_ARCHIVE = "hub-archive"
"""Names the archive kept as a file on the Hub."""

MIRROR_REPOSITORY = "hgissbkh/xglue"
ARCHIVE_REPOSITORY = "microsoft/xglue"
ARCHIVE_REVISION = "refs/pr/7"
ARCHIVE_FILE = f"{ARCHIVE_FOLDER}.tar.gz"


class Source(Protocol):
    """Something that examples can be read from."""

    name: str
    """What the source is called in a run's configuration: the same name, the same data."""

    def has(self, task: Task, split: str, language: str) -> bool:
        """Return whether a split exists in a language."""

    def where(self, task: Task, split: str, language: str) -> str:
        """Return the place of a split as error messages call it."""

    def file(self, task: Task, split: str, language: str) -> Path | None:
        """Return the official file that a split is read from, if it is."""

    def version(self, task: Task, split: str, language: str) -> list[Any]:
        """Return what the examples depend on, for caching."""

    def examples(self, task: Task, split: str, language: str) -> Iterator[Example]:
        """Read a split.

        Raises:
            DataError: If it is missing, empty or malformed.
        """


def open_source(data: str, *, verify: bool = False) -> Source:
    """Open what the user calls the data.

    Args:
        data: A folder in the layout of the archive; the archive as a `.tar.gz` file, unpacked once
            into the cache of `datasets`; `hub` or `hub@REVISION`; or `hub-archive`. What lies there
            goes before these names.
        verify: Compare the archive's SHA-256 with the official one. Folders and the mirror have
            none to compare with.

    Raises:
        DataError: If there is no such place, it does not look like XGLUE, or the checksum differs.
        OSError: If it cannot be read, downloaded or unpacked.
    """
    name, _, revision = data.partition("@")
    if Path(data).exists():
        name = ""
    if name == HUB:
        return HubSource(revision or "main")
    if name == HUB_ARCHIVE:
        import huggingface_hub

        path = Path(
            huggingface_hub.hf_hub_download(
                ARCHIVE_REPOSITORY, ARCHIVE_FILE, repo_type="dataset", revision=ARCHIVE_REVISION
            )
        )
    else:
        path = Path(data)
    if path.is_file():
        if verify:
            verify_archive(path)
        return FolderSource(unpacked(path), name=data if name == HUB_ARCHIVE else None)
    if verify:
        raise DataError(f"{data}: only the archive, a .tar.gz file, has a checksum to verify")
    return FolderSource(path)


class FolderSource:
    """A folder in the layout of the archive.

    Args:
        path: The folder that holds the tasks' folders, or the one that holds `xglue_full_dataset`.
        name: Name in a run's configuration; None means the absolute path.

    Raises:
        DataError: If no task's folder is there.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; expected XGLUE in the archive's layout")
        self.root = path / ARCHIVE_FOLDER if (path / ARCHIVE_FOLDER).is_dir() else path
        if not any((self.root / task.folder).is_dir() for task in TASKS.values()):
            folders = ", ".join(task.folder for task in TASKS.values())
            raise DataError(f"{self.root}: holds none of the tasks' folders ({folders})")
        self.name = name or str(path.absolute())

    def file(self, task: Task, split: str, language: str) -> Path:
        """Return the file of a split."""
        return self.root / task.path(split, language)

    def has(self, task: Task, split: str, language: str) -> bool:
        """Return whether the file exists."""
        return self.file(task, split, language).is_file()

    def where(self, task: Task, split: str, language: str) -> str:
        """Return the path of the file."""
        return str(self.file(task, split, language))

    def version(self, task: Task, split: str, language: str) -> list[Any]:
        """Return path, size and time of the file's last change."""
        path = self.file(task, split, language)
        if not path.is_file():
            return [str(path), None, None]
        status = path.stat()
        return [str(path.absolute()), status.st_size, status.st_mtime_ns]

    def examples(self, task: Task, split: str, language: str) -> Iterator[Example]:
        """Read the file.

        Raises:
            DataError: If it is missing, empty or malformed.
        """
        return read_file(task, self.file(task, split, language), split)


class HubSource:
    """The parquet mirror on the Hub.

    It was made with a reader that lost the last sentence of every POS and NER file that ends
    without a blank line, and it lacks some languages; where every sentence counts, take the
    archive.

    Args:
        revision: Branch, tag or commit; resolved to the commit at once.

    Raises:
        DataError: If the Hub cannot be reached, or does not have it.
    """

    def __init__(self, revision: str) -> None:
        import huggingface_hub

        try:
            info = huggingface_hub.HfApi().dataset_info(MIRROR_REPOSITORY, revision=revision)
        except Exception as error:  # of whatever library does the talking
            raise DataError(
                f"{MIRROR_REPOSITORY} at {revision}: not to be had from the Hub ({error}); check "
                "network and revision, or name a folder or an archive"
            ) from error
        self.commit = str(info.sha)
        self.name = f"{HUB}@{self.commit}"
        self._splits: dict[str, list[str]] = {}

    def has(self, task: Task, split: str, language: str) -> bool:
        """Return whether the mirror lists the split."""
        import datasets

        if task.hub_config not in self._splits:
            self._splits[task.hub_config] = datasets.get_dataset_split_names(
                MIRROR_REPOSITORY, task.hub_config, revision=self.commit
            )
        return _hub_split(split, language) in self._splits[task.hub_config]

    def where(self, task: Task, split: str, language: str) -> str:
        """Return repository, configuration and split."""
        return f"{MIRROR_REPOSITORY}/{task.hub_config}/{_hub_split(split, language)}"

    def file(self, task: Task, split: str, language: str) -> None:
        """Return nothing: parquet files have other rows."""

    def version(self, task: Task, split: str, language: str) -> list[Any]:
        """Return the commit and the place in it."""
        return [self.commit, self.where(task, split, language)]

    def examples(self, task: Task, split: str, language: str) -> Iterator[Example]:
        """Read a split, brought into the archive's columns and label spellings.

        Raises:
            DataError: If it is missing, or has other columns or labels than expected.
        """
        import datasets

        where = self.where(task, split, language)
        if not self.has(task, split, language):
            raise DataError(f"{where}: the mirror has no such split")
        table = datasets.load_dataset(
            MIRROR_REPOSITORY,
            task.hub_config,
            split=_hub_split(split, language),
            revision=self.commit,
        )
        columns = {
            name: _hub_column(task, name, table.column_names, where) for name in _needs(task)
        }
        for number, row in enumerate(table, start=1):
            example = {name: row[column] for name, column in columns.items()}
            if task.layout == "squad":
                example["id"] = str(number)
            for name in ("label", "tags"):
                if name in example:
                    names = _class_names(table.features[columns[name]])
                    example[name] = _hub_label(task, example[name], names, f"{where}:{number}")
            yield example


def _hub_split(split: str, language: str) -> str:
    names = {"train": "train", "dev": f"validation.{language}", "test": f"test.{language}"}
    return names[split]


def _needs(task: Task) -> tuple[str, ...]:
    """Return the columns that are read from the mirror; ids are not among them."""
    return {
        "words": ("words", "tags"),
        "rows": (*task.first, *task.second, "label"),
        "squad": ("question", "context", "answers"),
    }[task.layout]


def _hub_column(task: Task, name: str, there: list[str], where: str) -> str:
    spellings = task.hub_columns.get(name, (name,))
    for spelling in spellings:
        if spelling in there:
            return spelling
    raise DataError(
        f"{where}: expected a column {' or '.join(spellings)}, found {', '.join(there)}"
    )


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a class label, or of a list of them; None for plain text."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _hub_label(task: Task, value: Any, names: list[str] | None, where: str) -> Any:
    if isinstance(value, list):
        return [_hub_label(task, item, names, where) for item in value]
    if names is not None and len(names) == len(task.labels):
        # The mirror spells some classes in words; their order is that of our labels. A class that
        # is not known is -1, which must not become the last label.
        known = isinstance(value, int) and 0 <= value < len(names)
        value = task.labels[value] if known else value
    label = task.aliases.get(value, value)
    if label not in task.labels:
        raise DataError(
            f"{where}: expected a label out of {', '.join(task.labels)}, found {brief(value)}"
        )
    return label
