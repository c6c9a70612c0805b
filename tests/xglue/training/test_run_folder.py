"""Laws of the run folder: what is in it is whole, and one process at a time changes it."""

import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from graddrop.xglue.training.run_folder import RunFolder, RunFolderBusyError, RunFolderError
from graddrop.xglue.training.seal import is_whole, seal, seal_note
from graddrop.xglue.whole_file import write_json, writing


def checkpoint(folder: RunFolder, step: int) -> Path:
    """A whole checkpoint."""
    path = folder.checkpoint(step)
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"123")
    seal(path, {})
    return path


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_an_error_of_the_device_is_not_the_disks(error: type[Exception], tmp_path: Path) -> None:
    """It stays what it is, so that nobody goes on with a broken device; others name the disk."""
    with pytest.raises(error, match="the device is broken"), writing(tmp_path):
        raise error("the device is broken")
    with pytest.raises(OSError, match="bytes are free there .unexpected pos"), writing(tmp_path):
        raise RuntimeError("unexpected pos")


def test_a_glance_at_a_folder_keeps_nobody_from_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be entered while somebody asks whether it is busy, not while somebody is in it."""
    folder = RunFolder(tmp_path)
    with folder.at_work():
        assert folder.is_busy()
        with pytest.raises(RunFolderBusyError), folder.at_work():
            pass
    entered = []
    lock = fcntl.flock

    def lock_and_wait(file: Any, kind: int) -> None:
        lock(file, kind)
        if kind & fcntl.LOCK_SH:
            worker.start()
            worker.join(0.03)

    def work() -> None:
        with folder.at_work():
            entered.append(True)

    worker = threading.Thread(target=work)
    monkeypatch.setattr(fcntl, "flock", lock_and_wait)
    assert not folder.is_busy()
    worker.join(10)
    assert entered == [True]


def test_what_a_kill_after_the_result_has_left_is_removed(tmp_path: Path) -> None:
    """Not before there is a result, nor where checkpoints are kept, nor while somebody works."""
    folder = RunFolder(tmp_path)
    kept = checkpoint(folder, 3)
    folder.tidy(keep_checkpoints=False)
    assert kept.exists()
    write_json(tmp_path / "result.json", {})
    folder.tidy(keep_checkpoints=True)
    with folder.at_work():
        folder.tidy(keep_checkpoints=False)
    assert kept.exists()
    folder.tidy(keep_checkpoints=False)
    assert not kept.exists()


def test_a_file_that_cannot_be_written_is_called_by_its_name(tmp_path: Path) -> None:
    """Not by that of its draft, which nobody has asked for."""
    with pytest.raises(FileNotFoundError, match=r"nowhere/scores\.json'$"):
        write_json(tmp_path / "nowhere/scores.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"^[^>]*/folder'$"):
        write_json(tmp_path / "folder", {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_only_what_is_not_whole_is_discarded_at_the_beginning(tmp_path: Path) -> None:
    """A checkpoint without its seal goes, and whole ones stay."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    first, last = checkpoint(folder, 9), checkpoint(folder, 10)
    folder.checkpoint(11).mkdir()
    assert folder.last_checkpoint() == last
    folder.claim({"lr": 1}, last)
    assert sorted(tmp_path.glob("checkpoint-*")) == sorted([first, last])


ODD_JSON = {
    "empty": b"",
    "cut": b'{"sizes": {"weights": 3}, "no',
    "not UTF-8": b"\xff",
    "a list": b"[]",
    "a number": b"3",
    "nothing in it": b"{}",
    "sizes a list": b'{"sizes": ["weights"], "note": {}}',
    "sizes of nothing": b'{"sizes": {}, "note": {}}',
    "size a text": b'{"sizes": {"weights": "3"}, "note": {}}',
    "no note": b'{"sizes": {"weights": 3}}',
    "note a text": b'{"sizes": {"weights": 3}, "note": {"seconds": "x"}}',
    "a name of no file": b'{"sizes": {"weig\\u0000hts": 3}, "note": {}}',
    "deep": b"[" * 100_000,
    "half a character": b'{"sizes": {"\\ud83d": 3}, "note": {}}',
}


@pytest.mark.parametrize("content", ODD_JSON.values(), ids=ODD_JSON)
def test_an_odd_seal_seals_nothing(content: bytes, tmp_path: Path) -> None:
    """The checkpoint before it is the last whole one, and it goes when the run goes on."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    first, last = checkpoint(folder, 3), checkpoint(folder, 10)
    assert folder.last_checkpoint() == last
    (last / "seal.json").write_bytes(content)
    assert folder.last_checkpoint() == first
    folder.claim({"lr": 1}, first)
    assert first.exists() and not last.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b"[" * 100_000, b'{"scores": 3}'])
def test_odd_files_of_a_run_are_named(content: bytes, tmp_path: Path) -> None:
    """A result that is none is refused; a record of failure is passed over, and replaced."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    (tmp_path / "failure.json").write_bytes(content)
    assert folder.failure() is None
    assert folder.fail("Error: x")["attempts"] == 1
    assert folder.fail("Error: y")["attempts"] == 2
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"result\.json.*expected .*; remove the file"):
        folder.check({"lr": 1}, resume=True)
    (tmp_path / "result.json").unlink()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.json.*; remove|of another configuration"):
        folder.check({"lr": 1}, resume=True)


@pytest.mark.parametrize("size", [0, 99, 101, None])
@pytest.mark.parametrize("name", ["a", "rng/b"])
def test_a_checkpoint_is_whole_while_every_file_has_its_size(
    name: str, size: int | None, tmp_path: Path
) -> None:
    """One byte less or more in any of its files, folders within it too, breaks it."""
    (tmp_path / "rng").mkdir()
    for each in ("a", "rng/b"):
        (tmp_path / each).write_bytes(b"x" * 100)
    (tmp_path / "empty").touch()
    seal(tmp_path, {"seconds": 1.5})
    assert is_whole(tmp_path) and seal_note(tmp_path) == {"seconds": 1.5}
    if size is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(b"x" * size)
    assert not is_whole(tmp_path)


def test_copies_that_a_user_made_are_no_checkpoints(tmp_path: Path) -> None:
    """They are neither gone on from nor removed, whatever they are called."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    last = checkpoint(folder, 4)
    copies = [tmp_path / name for name in ("checkpoint-4-old", "checkpoint-best", "checkpoint-")]
    for copy in copies:
        shutil.copytree(last, copy)
    assert folder.last_checkpoint() == last
    folder.claim({"lr": 1}, last)
    folder.finish({}, keep_checkpoints=False)
    assert not last.exists() and all(copy.exists() for copy in copies)


# -- the order of writes ---------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    """A disk that takes nothing more."""
    raise OSError(28, "No space left on device")


def test_a_file_stays_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new content is written and flushed under another name, which then replaces the old."""
    path = tmp_path / "a.json"
    write_json(path, 1)
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def look_and_fsync(number: int) -> None:
        (draft,) = tmp_path.glob("a.json.*.tmp")
        done.append(f"flush {path.read_text().strip()} {draft.read_text().strip()}")
        fsync(number)

    def look_and_replace(draft: Path, target: Path) -> None:
        done.append(f"replace {target.read_text().strip()} by {draft.read_text().strip()}")
        replace(draft, target)

    monkeypatch.setattr(os, "fsync", look_and_fsync)
    monkeypatch.setattr(os, "replace", look_and_replace)
    write_json(path, 2)
    assert done == ["flush 1 2", "replace 1 by 2"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_changes_no_file(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there is there, and nothing else."""
    path = tmp_path / "a.json"
    write_json(path, 1)
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left on device: '.*a.json'"):
        write_json(path, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "1\n"


def test_checkpoints_go_only_when_the_result_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose result cannot be written goes on from its last checkpoint."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    last = checkpoint(folder, 3)
    folder.fail("Error: x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            folder.finish({}, keep_checkpoints=False)
    assert folder.last_checkpoint() == last and not (tmp_path / "result.json").exists()
    removed: list[bool] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil,
        "rmtree",
        lambda *a, **k: (removed.append((tmp_path / "result.json").exists()), rmtree(*a, **k)),
    )
    folder.finish({}, keep_checkpoints=False)
    assert removed == [True] and not last.exists()
    assert not (tmp_path / "failure.json").exists()


def test_no_finished_run_is_also_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the failure goes before the result comes."""
    folder = RunFolder(tmp_path)
    folder.claim({"lr": 1})
    folder.fail("Error: x")
    replace = os.replace

    def look(draft: Path, target: Path) -> None:
        assert target.name != "result.json" or not (tmp_path / "failure.json").exists()
        replace(draft, target)

    monkeypatch.setattr(os, "replace", look)
    folder.finish({}, keep_checkpoints=True)
    assert (tmp_path / "result.json").exists()


def test_a_seal_comes_after_what_it_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is flushed to the disk first; a disk that fails then leaves no seal."""
    path = tmp_path / "checkpoint-1"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_text(name)
    flushed: list[int] = []
    fsync = os.fsync

    def look(number: int) -> None:
        assert not (path / "seal.json").exists()
        flushed.append(os.fstat(number).st_ino)
        fsync(number)

    monkeypatch.setattr(os, "fsync", look)
    seal(path, {})
    assert {(path / name).stat().st_ino for name in ("a", "b")} <= set(flushed)
    (path / "seal.json").unlink()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        seal(path, {})
    assert not is_whole(path)
