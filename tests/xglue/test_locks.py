"""Laws of locks, and of systems that have none."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from graddrop.xglue import locks
from graddrop.xglue.locks import Lock, take
from graddrop.xglue.training.run_folder import RunFolder


def test_one_holds_it_and_many_may_ask(tmp_path: Path) -> None:
    """It goes with the file; those who share it keep out only who wants it alone."""
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert take(first) is Lock.HELD
        assert take(second) is take(second, shared=True) is Lock.BUSY
        first.close()
        assert take(second, shared=True) is Lock.HELD
        with path.open("w") as third:
            assert take(third, shared=True) is Lock.HELD
            assert take(third) is Lock.BUSY


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_without_locks_it_goes_on_with_a_warning(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On file systems that have none, and where Python has no fcntl; the file is named."""

    def refuse(*_: Any) -> None:
        raise OSError(number, "not implemented")

    if number is None:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    folder = RunFolder(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=r"run/\.lock: .* has no locks.*one at a time"):
        with folder.at_work():
            folder.claim({"lr": 1})
        assert not folder.is_busy()


def test_a_file_system_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk is none of the lock's."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(OSError, match=r"Input/output error: '.*/\.lock'"),
        RunFolder(tmp_path).at_work(),
    ):
        pass
