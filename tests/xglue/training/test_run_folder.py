"""Laws of the run folder: what is in it is whole, and one process at a time changes it."""

import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from graddrop.xglue.training.run_folder import (
    RunFolder,
    RunFolderBusyError,
    seal,
    write_json,
    writing,
)


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
