"""Locks on files, which one process holds at a time, where the system has them."""

import errno
import warnings
from enum import Enum
from types import ModuleType
from typing import IO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that have none, as some that are shared over a network."""


class Lock(Enum):
    """What became of the wish for a lock."""

    HELD = "held"
    BUSY = "held by another process"
    ABSENT = "not to be had from this system"


def take(file: IO[str], *, shared: bool = False, wait: bool = False) -> Lock:
    """Take the lock of an open file; it goes when the file is closed or its process ends.

    Where there are no locks it warns: nothing keeps a second process out then.

    Args:
        file: The open file.
        shared: Whether others may share it: enough to ask whether somebody holds it alone.
        wait: Wait for it, as long as it takes.

    Raises:
        OSError: If the file system fails; names the file.
    """
    if fcntl is None:
        _warn(file.name, "this system has no locks on files")
        return Lock.ABSENT
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.BUSY
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise OSError(error.errno, error.strerror, file.name) from error
        _warn(file.name, f"its file system has no locks ({error.strerror})")
        return Lock.ABSENT
    return Lock.HELD


def _warn(name: str, why: str) -> None:
    warnings.warn(
        f"{name}: {why}, so nothing keeps two processes apart that write here; start one at a time",
        RuntimeWarning,
        stacklevel=3,
    )
