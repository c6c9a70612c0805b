"""Laws of sources: every kind of them, and the cache."""

import errno
import fcntl
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs the extra xglue")
pytest.importorskip("huggingface_hub", reason="needs the extra xglue")

import datasets
import huggingface_hub
from helpers.xglue_files import LANGUAGES, NO_REAL_DATA, REAL_DATA, write_archive

from graddrop.xglue.data.layouts import DataError, read_file
from graddrop.xglue.data.sources import FolderSource, open_source
from graddrop.xglue.data.splits import evaluation_languages, load_split
from graddrop.xglue.tasks import TASKS, get_task

# -- the sources ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine toy tasks."""
    return write_archive(tmp_path_factory.mktemp("archive") / "xglue_full_dataset")


@pytest.fixture(scope="module")
def archive(root: Path) -> Path:
    """The same as a compressed archive, with a task in it that is none of ours."""
    path = root.parent / "xglue_full_dataset.tar.gz"
    (root / "QG").mkdir()
    (root / "QG/other").write_text("not one of the nine")
    with tarfile.open(path, "w:gz") as file:
        file.add(root, arcname="xglue_full_dataset")
        file.addfile(tarfile.TarInfo("xglue_full_dataset/POS/../../../escaped"))
    return path


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is named hub, hub@x or hub-archive is a folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("hub", "hub@x", "hub-archive"):
        write_archive(tmp_path / name, train=2, evaluation=2)
        assert open_source(name).name == str(tmp_path / name)


def test_folder_and_archive_hold_the_same(root: Path, archive: Path) -> None:
    """The folder itself, the one above it and the .tar.gz file give equal examples."""
    for where in (root, root.parent, archive):
        source = open_source(str(where))
        for task in TASKS.values():
            dataset = load_split(task, source, "train")
            assert dataset.to_list() == list(read_file(task, root / task.path("train"), "train")), (
                task.name
            )
            found, missing = evaluation_languages(task, source, "dev")
            assert sorted(found) == sorted(LANGUAGES["dev"])
            assert sorted(found + missing) == sorted(task.languages)
    unpacked = open_source(str(archive)).root  # type: ignore[attr-defined]
    assert not (unpacked / "QG").exists()
    assert not list(unpacked.parents[1].rglob("escaped"))


def test_a_hub_out_of_reach_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever library the error comes from."""

    class ConnectError(Exception):
        """As HTTP clients have their own."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match="hgissbkh/xglue at v1: not to be had from the Hub .*-2"):
        open_source("hub@v1")


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    """The message lists the folders that were looked for."""
    with pytest.raises(DataError, match=r"holds none of the tasks' folders \(NER, POS, NC"):
        open_source(str(tmp_path))


def test_the_archive_on_the_hub_is_downloaded_at_its_revision(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repository, file and revision are the known ones."""
    asked: list[Any] = []

    def download(repository: str, file: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, revision))
        return str(archive)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = open_source("hub-archive")
    assert asked == [("microsoft/xglue", "xglue_full_dataset.tar.gz", "dataset", "refs/pr/7")]
    assert source.name == "hub-archive"
    assert len(load_split(get_task("ner"), source, "dev")) == 7


def mirror_row(task: str, example: dict[str, Any]) -> dict[str, Any]:
    """An example as the mirror has it: its column names, no ids, classes as numbers or words."""
    renamed = {
        "pos": {"words": "words", "tags": "pos"},
        "ner": {"words": "words", "tags": "ner"},
        "nc": {"title": "news_title", "body": "news_body", "label": "news_category"},
        "qadsm": {
            "query": "query",
            "title": "ad_title",
            "description": "ad_description",
            "label": "relevance_label",
        },
        "wpr": {
            "query": "query",
            "title": "wed_page_title",
            "snippet": "web_page_snippet",
            "label": "relavance_label",
        },
        "qam": {"question": "question", "passage": "annswer", "label": "label"},
    }.get(task, {name: name for name in example if name != "id"})
    return {new: example[old] for old, new in renamed.items()}


MIRROR_CLASSES = {
    "paws-x": ["different", "same"],
    "qam": ["False", "True"],
    "wpr": ["Bad", "Fair", "Good", "Excellent", "Perfect"],
}


def test_the_mirror_gives_the_archives_examples(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other column names, class numbers and lost ids are undone; the commit is pinned."""
    plain = FolderSource(root)

    def load(repository: str, name: str, *, split: str, revision: str) -> Any:
        assert (repository, revision) == ("hgissbkh/xglue", "c0ffee")
        kind, _, language = split.partition(".")
        task = get_task(name)
        examples = plain.examples(task, kind.replace("validation", "dev"), language or "en")
        dataset = datasets.Dataset.from_list([mirror_row(name, row) for row in examples])
        if name in MIRROR_CLASSES:
            numbers = [task.labels.index(label) for label in _column(dataset)]
            classes = datasets.ClassLabel(names=MIRROR_CLASSES[name])
            column = _label_column(dataset)
            dataset = dataset.remove_columns(column).add_column(column, numbers)
            dataset = dataset.cast_column(column, classes)
        return dataset

    def _label_column(dataset: Any) -> str:
        return next(name for name in dataset.column_names if "label" in name)

    def _column(dataset: Any) -> list[str]:
        return list(dataset[_label_column(dataset)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        datasets,
        "get_dataset_split_names",
        lambda *_, revision: ["train", "validation.en", "validation.de", "test.en"],
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, repository, revision: SimpleNamespace(sha="c0ffee"),
    )
    source = open_source("hub")
    assert source.name == "hub@c0ffee"
    assert evaluation_languages(get_task("pos"), source, "test")[0] == ["en"]
    for task in TASKS.values():
        expected = [
            {name: value for name, value in row.items() if name != "id"}
            for row in plain.examples(task, "dev", "de")
        ]
        rows = load_split(task, source, "dev", "de").to_list()
        if task.layout == "squad":
            assert [row.pop("id") for row in rows] == [str(n) for n in range(1, 8)]
        assert rows == expected, task.name
    with pytest.raises(DataError, match=r"hgissbkh/xglue/pos/test.th: not there"):
        load_split(get_task("pos"), source, "test", "th")


# -- the cache -----------------------------------------------------------------------------------


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run takes the cache; another content of the file is read anew."""
    write_archive(tmp_path)
    task, source = get_task("pos"), FolderSource(tmp_path)
    reads: list[str] = []
    examples = FolderSource.examples

    def counted(self: FolderSource, *arguments: Any) -> Any:
        reads.append(arguments[1])
        return examples(self, *arguments)

    monkeypatch.setattr(FolderSource, "examples", counted)
    first = load_split(task, source, "dev")
    again = load_split(task, source, "dev")
    assert reads == ["dev"] and first.to_list() == again.to_list()
    path = source.file(task, "dev", "en")
    path.write_text(path.read_text() + "\nnew X\n")
    changed = load_split(task, source, "dev")
    assert reads == ["dev", "dev"] and len(changed) == len(first) + 1


def test_an_edit_of_equal_length_is_seen(tmp_path: Path) -> None:
    """The file's time tells, where its size does not."""
    write_archive(tmp_path)
    task, source = get_task("pos"), FolderSource(tmp_path)
    path = source.file(task, "dev", "en")
    texts = [path.read_text(), path.read_text().replace("word", "mark")]
    found = []
    for seconds, text in enumerate(texts, start=1):
        path.write_text(text)
        os.utime(path, (seconds, seconds))
        found.append(load_split(task, source, "dev").to_list())
    assert len(texts[0]) == len(texts[1]) and found[0] != found[1]


def test_a_cache_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library locks it, and says neither where it is nor what to do."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    write_archive(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    cache = str(datasets.config.HF_DATASETS_CACHE)
    with pytest.raises(
        OSError, match="No locks available in the cache.*HF_DATASETS_CACHE"
    ) as error:
        load_split(get_task("pos"), FolderSource(tmp_path), "dev")
    assert error.value.filename == cache


def test_errors_pass_through_the_cache(tmp_path: Path) -> None:
    """A malformed line is reported as itself, and again after it was reported once."""
    write_archive(tmp_path)
    (tmp_path / "POS/en.dev").write_text("a NOUN\nb c d\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"en\.dev:2: expected a label"):
            load_split(get_task("pos"), FolderSource(tmp_path), "dev")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=NO_REAL_DATA)
@pytest.mark.parametrize("name", TASKS)
def test_every_real_file_is_read(name: str) -> None:
    """Each file gives as many examples as lines, sentences or questions can be counted in it."""
    task, source = TASKS[name], FolderSource(REAL_DATA)
    read_any = False
    for split in ("train", "dev", "test"):
        for language in task.languages if split != "train" else ("en",):
            if not source.has(task, split, language):
                continue
            read_any = True
            path = source.file(task, split, language)
            examples = list(source.examples(task, split, language))
            if task.layout == "words":
                raw = path.read_bytes().decode()
                expected = sum(bool(block.strip()) for block in raw.split("\n\n"))
            elif task.layout == "rows":
                expected = len(path.read_bytes().splitlines()) - (split in task.header)
            else:
                expected = path.read_text(encoding="utf-8").count('"answers":')
            assert len(examples) == expected, path
    assert read_any


@pytest.mark.skipif(not (REAL_DATA / "POS").is_dir(), reason=NO_REAL_DATA)
@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.layout == "words"])
def test_dev_sets_that_hold_the_sentences_of_test_are_marked(task: Any) -> None:
    """All of them, and no other."""
    source = FolderSource(REAL_DATA)
    leaking = set()
    for language in task.languages:
        if source.has(task, "dev", language) and source.has(task, "test", language):
            dev, test = (
                {tuple(row["words"]) for row in source.examples(task, split, language)}
                for split in ("dev", "test")
            )
            if len(dev & test) > len(dev) / 2:
                leaking.add(language)
    assert leaking == task.leaking
