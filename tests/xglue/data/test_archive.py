"""Laws of the archive: it is read to its last byte, and used only if every byte is right."""

import gzip
import hashlib
import io
import os
import re
import shutil
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
from helpers.xglue_files import write_archive

from graddrop.xglue import locks
from graddrop.xglue.data import archive as archives
from graddrop.xglue.data.archive import unpacked
from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.data.sources import open_source
from graddrop.xglue.tasks import get_task

FILE = "xglue_full_dataset/POS/en.dev"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine toy tasks."""
    return write_archive(tmp_path_factory.mktemp("archive") / "xglue_full_dataset")


@pytest.fixture(scope="module")
def archive(root: Path) -> Path:
    """The same as a compressed archive."""
    path = root.parent / "xglue_full_dataset.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as file:
        file.add(root, arcname="xglue_full_dataset")
    return path


def cache() -> list[Path]:
    """What has been unpacked, or was begun to be."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "xglue-archives"
    return [path for path in folder.glob("*") if path.suffix != ".lock"]


def test_the_checksum_is_compared_on_request(
    root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another archive is refused; a folder has no checksum."""
    with pytest.raises(DataError, match=r"expected the official archive with SHA-256 e11016c02d"):
        open_source(str(archive), verify=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(archives, "ARCHIVE_SHA256", digest)
    assert open_source(str(archive), verify=True).has(get_task("pos"), "dev", "de")
    with pytest.raises(DataError, match=r"only the archive, a .tar.gz file, has a checksum"):
        open_source(str(root), verify=True)


def test_a_broken_archive_leaves_nothing_behind(archive: Path, tmp_path: Path) -> None:
    """A download cut short is named as such, and a whole one works afterwards."""
    broken = tmp_path / "xglue.tar.gz"
    broken.write_bytes(archive.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"expected a whole .tar.gz file"):
        open_source(str(broken))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "xglue-archives"
    assert not list(cache.glob("*.tmp"))
    broken.write_bytes(archive.read_bytes())
    assert open_source(str(broken)).has(get_task("pos"), "dev", "de")


def test_processes_that_begin_together_unpack_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for the first one."""
    copy = Path(shutil.copy(archive, tmp_path))
    unpacked: list[Path] = []

    def unpack_slowly(path: Path, folder: Path) -> None:
        unpacked.append(folder)
        waiting.start()
        waiting.join(0.1)
        unpack(path, folder)

    unpack = archives._unpack
    monkeypatch.setattr(archives, "_unpack", unpack_slowly)
    roots: list[Path] = []
    waiting = threading.Thread(target=lambda: roots.append(open_source(str(copy)).root))
    root = open_source(str(copy)).root
    waiting.join(10)
    assert roots == [root] and len(unpacked) == 1
    assert [path.name for path in unpacked[0].iterdir()] == ["xglue_full_dataset"]


def test_what_a_killed_process_left_goes(archive: Path, tmp_path: Path) -> None:
    """Its draft is no part of the folder, nor does it stay."""
    copy = Path(shutil.copy(archive, tmp_path))
    folder = unpacked(copy)
    left = folder.with_suffix(".123.tmp")
    folder.rename(left)
    (left / "half").write_text("")
    assert unpacked(copy) == folder
    assert not left.exists() and [path.name for path in folder.iterdir()] == ["xglue_full_dataset"]


def test_without_locks_a_draft_stays(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process may be at work: nothing says that it was killed."""
    copy = Path(shutil.copy(archive, tmp_path))
    folder = unpacked(copy)
    left = folder.with_suffix(".123.tmp")
    folder.rename(left)
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(RuntimeWarning, match="no locks"):
        assert unpacked(copy) == folder
    assert (left / FILE).is_file() and (folder / FILE).is_file()
    shutil.rmtree(left)


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    """Wherever it is: the archive is refused, or what was hit means nothing."""
    plain = make(
        tmp_path, [(tarfile.TarInfo(FILE), b"a NOUN\n"), (tarfile.TarInfo("x"), b"b" * 99)]
    )
    content = plain.read_bytes()
    before = cache()
    refused = 0
    for place in range(len(content)):
        damaged = tmp_path / f"{place}.tar.gz"
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            folder = unpacked(damaged)
        except DataError as error:
            assert str(error).startswith(f"{damaged}: ")
            refused += 1
        else:
            assert (folder / FILE).read_bytes() == b"a NOUN\n"
            shutil.rmtree(folder)
    assert refused > 0.9 * len(content)  # time and system in gzip's own header mean nothing
    assert cache() == before


def test_what_stands_in_a_damaged_header_is_not_passed_over(archive: Path, tmp_path: Path) -> None:
    """tarfile takes it for the end; with its own checksum put right it would be lost in silence."""
    content = bytearray(gzip.decompress(archive.read_bytes()))
    place = content.index(b"xglue_full_dataset/XNLI/en.dev")
    content[place] ^= 1
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=f"expected zeros after the last file.* {place:,} bytes"):
        unpacked(damaged)


@pytest.mark.parametrize(
    "more",
    [b"x", bytes(3 << 20) + b"x", gzip.compress(b"x", mtime=0)],
    ids=["byte", "padded", "gzip"],
)
def test_nothing_follows_the_end(more: bytes, archive: Path, tmp_path: Path) -> None:
    """Neither in the file nor in what it unpacks to; zeros may."""
    file = tmp_path / "more.tar.gz"
    for content in (archive.read_bytes() + more, _again(archive, more)):
        file.write_bytes(content)
        with pytest.raises(DataError, match="expected (zeros after|a whole .tar.gz file)"):
            unpacked(file)
    file.write_bytes(_again(archive, b"\0" * 9000))
    assert (unpacked(file) / FILE).is_file()


def _again(archive: Path, more: bytes) -> bytes:
    return gzip.compress(gzip.decompress(archive.read_bytes()) + more)


def make(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """An archive of such members."""
    path = folder / "made.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for member, content in members:
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def _sparse(member: tarfile.TarInfo) -> None:
    member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "3000000000"}


def _symlink(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def _hardlink(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.LNKTYPE, FILE


@pytest.mark.parametrize("change", [_sparse, _symlink, _hardlink, lambda member: None])
def test_only_plain_files_are_unpacked(
    change: Callable[[tarfile.TarInfo], None], tmp_path: Path
) -> None:
    """A few bytes must not become gigabytes, nor a file be lost that is there under two names."""
    odd = tarfile.TarInfo("xglue_full_dataset/POS/de.dev")
    change(odd)
    path = make(tmp_path, [(tarfile.TarInfo(FILE), b"a X\n"), (odd, b"b" * (not odd.issym()))])
    before = cache()
    if change.__name__ == "<lambda>":  # control
        assert (unpacked(path) / FILE).read_bytes() == b"a X\n"
        return
    with pytest.raises(DataError, match=r"made.tar.gz: expected plain files, found '.*/de.dev'"):
        unpacked(path)
    assert cache() == before


def test_an_archive_does_not_grow_beyond_measure(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text becomes some times as long; a thousand times is an attack on the disk."""
    path = make(tmp_path, [(tarfile.TarInfo(FILE), b"\0" * (1 << 21))])
    monkeypatch.setattr(archives, "SPARE", 1 << 20)
    with pytest.raises(DataError, match=r"expected at most 1,[0-9,]* bytes of text in 2,"):
        unpacked(path)
    copy = Path(shutil.copy(archive, tmp_path))
    assert unpacked(copy).is_dir()
    monkeypatch.undo()
    assert unpacked(path).is_dir()


@pytest.mark.parametrize("names", [f"{FILE}{{}}", "elsewhere/{}"], ids=["ours", "others"])
@pytest.mark.parametrize("size", [0, 1000])
def test_members_grow_together(
    names: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small ones are as much as a large one: with their headers, if empty or not ours too."""
    members = [(tarfile.TarInfo(names.format(n)), b"\0" * size) for n in range(1500)]
    path = make(tmp_path, [(tarfile.TarInfo(FILE), b"a X\n"), *members])
    sizes = [512 + -(-size // 512) * 512] * 1500
    assert max(sizes) < 2000 < sum(sizes)
    monkeypatch.setattr(archives, "MOST_GROWTH", 1)
    monkeypatch.setattr(archives, "SPARE", sum(sizes) - 2 * path.stat().st_size)
    before = cache()
    with pytest.raises(DataError, match=r"expected at most [0-9,]* bytes of text in [0-9,]*, "):
        unpacked(path)
    assert cache() == before
    monkeypatch.setattr(archives, "SPARE", sum(sizes) + 1024)
    assert (unpacked(path) / FILE).read_bytes() == b"a X\n"


LONG = 1 << 24
"""Bytes that a header claims, and has."""


def _header(kind: bytes, size: int, holes_go_on: bool = False) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[482] = holes_go_on
    block[148:155] = b"%06o\0" % tarfile.calc_chksums(block)[0]
    return bytes(block)


def _pax(**values: str) -> bytes:
    member = tarfile.TarInfo("xglue_full_dataset/POS/de.dev")
    member.pax_headers = {name.replace("_", "."): value for name, value in values.items()}
    return member.tobuf(tarfile.PAX_FORMAT)


HEADERS: dict[str, Callable[[], bytes]] = {
    "pax": lambda: _header(tarfile.XHDTYPE, LONG),
    "global": lambda: _header(tarfile.XGLTYPE, LONG),
    "name": lambda: _header(tarfile.GNUTYPE_LONGNAME, LONG),
    "link": lambda: _header(tarfile.GNUTYPE_LONGLINK, LONG),
    "many": lambda: (_header(tarfile.XHDTYPE, 60_000) + bytes(60_416)) * 200,
    "holes": lambda: (
        _pax(GNU_sparse_major="1", GNU_sparse_minor="0") + b"99999999\n" + b"0\n" * (LONG // 8)
    ),
    "old holes": lambda: (
        _header(tarfile.GNUTYPE_SPARSE, LONG, True)
        + (b"%011o\0" % 1 * 42 + b"\1" + bytes(7)) * (LONG // 2048)
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_take_no_more_memory_than_names(kind: str, tmp_path: Path) -> None:
    """Whatever a header claims: it is refused before it is read, with the archive's name."""
    begun = gzip.decompress(make(tmp_path, [(tarfile.TarInfo(FILE), b"a X\n")]).read_bytes())
    path = tmp_path / "long.tar.gz"
    path.write_bytes(gzip.compress(begun[:1024] + HEADERS[kind]() + bytes(LONG), 1))
    before = cache()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: expected "):
            unpacked(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 and cache() == before


def test_headers_may_say_what_names_and_attributes_take(tmp_path: Path) -> None:
    """Control; and what was read of one file is not counted for the next."""
    members = [(tarfile.TarInfo(f"{FILE}{n}"), b"a X\n") for n in range(3)]
    for member, _ in members:
        member.pax_headers = {"SCHILY.xattr.user.note": "x" * 60_000}
    folder = unpacked(make(tmp_path, members))
    assert [(folder / member.name).read_bytes() for member, _ in members] == [b"a X\n"] * 3


def test_members_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    """However many there are."""
    path = make(tmp_path, [(tarfile.TarInfo(f"elsewhere/{n}"), b"") for n in range(10_000)])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds none of"):
            unpacked(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # the end is read in pieces of one


def test_names_may_begin_with_a_dot(tmp_path: Path) -> None:
    """As those do that `tar -czf FILE ./FOLDER` writes."""
    path = make(tmp_path, [(tarfile.TarInfo(f"./{FILE}"), b"a X\n")])
    assert (unpacked(path) / FILE).read_bytes() == b"a X\n"


def test_the_folder_is_named_when_the_disk_has_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full in the middle, or just before the name, leaves nothing."""
    copy = Path(shutil.copy(archive, tmp_path))
    before = cache()
    for broken in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, _full)
            with pytest.raises(OSError, match="No space left"):
                unpacked(copy)
        assert cache() == before
    assert (unpacked(copy) / FILE).is_file()


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
