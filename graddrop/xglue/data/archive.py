"""The benchmark's archive, a `.tar.gz` file: unpacked once, if every byte of it is right."""

import gzip
import hashlib
import os
import shutil
import tarfile
from pathlib import Path

from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.locks import Lock, take
from graddrop.xglue.tasks import TASKS

ARCHIVE_FOLDER = "xglue_full_dataset"
ARCHIVE_SHA256 = "e11016c02d8565d00119833a16679bbbe0fec437f5ad53c2d3f9eef6fa03f65b"

MOST_GROWTH = 50
"""Most unpacked bytes per byte of the archive, beyond `SPARE`; text grows by 3 to 10."""

SPARE = 1 << 26
"""Bytes that any archive may unpack to: a small one is padding for the most part."""

MOST_HEADERS = 1 << 16
"""Bytes of headers before one file: a long name takes some thousand, an attribute up to as many."""


def verify_archive(path: Path) -> None:
    """Compare a file with the official archive.

    Raises:
        DataError: If its SHA-256 differs.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE_SHA256:
        raise DataError(
            f"{path}: expected the official archive with SHA-256 {ARCHIVE_SHA256}, found {found}"
        )


def unpacked(archive: Path) -> Path:
    """Unpack the folders of the nine tasks into the cache of `datasets`, once.

    Args:
        archive: A `.tar.gz` file. Another size or time of its last change makes it another one.

    Returns:
        The folder that holds `xglue_full_dataset`.

    Raises:
        DataError: If the archive is damaged, was cut short, has something after its end, holds none
            of the tasks, or holds what no official one does.
        OSError: If it cannot be read, or the cache cannot be written.
    """
    import datasets

    status = archive.stat()
    key = f"{archive.absolute()} {status.st_size} {status.st_mtime_ns}"
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "xglue-archives"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            # Processes that begin together wait for the first one, which unpacks.
            if take(lock, wait=True) is Lock.HELD:
                for draft in cache.glob(f"{folder.name}.*.tmp"):  # of processes that were killed
                    shutil.rmtree(draft, ignore_errors=True)
            if not folder.is_dir():
                _unpack(archive, folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Make a folder of the tasks of the table, which is there as a whole or not at all."""
    draft = folder.with_suffix(f".{os.getpid()}.tmp")
    try:
        with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as file:
            found = _extract(file, stream, draft, archive)
            _read_to_the_end(stream, file.offset, archive)
        if not found:
            prefixes = ", ".join(_prefixes())
            raise DataError(f"{archive}: holds none of {prefixes}")
        draft.rename(folder)
    except DataError:
        raise
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise
        raise _damaged(archive, error) from error
    except Exception as error:  # tarfile and zlib have many of their own
        raise _damaged(archive, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class _Stream(gzip.GzipFile):
    """What the archive unpacks to, of which headers may take only so much.

    `tarfile` reads whatever length a header names in one piece, before anybody can look at it.

    Attributes:
        left: Bytes that may be read before the next file; None: as many as one likes.
    """

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self.left: int | None = MOST_HEADERS

    def read(self, size: int | None = -1) -> bytes:
        if self.left is not None:
            if size is None or not 0 <= size <= self.left:
                raise DataError(
                    f"{self.name}: expected at most {MOST_HEADERS:,} bytes of headers before a "
                    "file, found more"
                )
            self.left -= size
        return super().read(size)


def _extract(file: tarfile.TarFile, stream: _Stream, draft: Path, archive: Path) -> bool:
    """Write the tasks' files below a folder; return whether there were any."""
    most = SPARE + MOST_GROWTH * archive.stat().st_size
    found = False
    while True:
        stream.left = MOST_HEADERS
        member = file.next()
        stream.left = None
        file.members.clear()  # type: ignore[attr-defined]  # or they would pile up
        if member is None:
            return found
        if member.size < 0 or member.issparse():
            raise DataError(f"{archive}: expected plain files, found {member.name!r} with holes")
        if member.offset_data + member.size > most:
            raise DataError(
                f"{archive}: expected at most {most:,} bytes of text in "
                f"{archive.stat().st_size:,}, found more"
            )
        name = member.name.removeprefix("./")
        inside = name.startswith(_prefixes()) and ".." not in name.split("/")
        if not inside or member.isdir():
            continue
        # By hand: extract() is safe only since Python 3.11.4.
        content = file.extractfile(member) if member.isfile() else None
        if content is None:
            raise DataError(f"{archive}: expected plain files, found {member.name!r}, a link")
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as copy:
            shutil.copyfileobj(content, copy)
            # The folder must not get its name before the disk has what is in it.
            copy.flush()
            os.fsync(copy.fileno())
        found = True


def _read_to_the_end(stream: _Stream, position: int, archive: Path) -> None:
    """Read what follows the last member, after which the checksum stands.

    `tarfile` stops at whatever is no header, as if the archive ended there.
    """
    stream.seek(position)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise DataError(
                f"{archive}: expected zeros after the last file, found something else "
                f"{position:,} bytes after the beginning; download it again"
            )


def _prefixes() -> tuple[str, ...]:
    return tuple(f"{ARCHIVE_FOLDER}/{task.folder}/" for task in TASKS.values())


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(f"{archive}: expected a whole .tar.gz file ({error}); download it again")
