"""Which line of the user's a warning is about."""

import sys
from types import FrameType

_NOT_THE_USERS = {__name__.partition(".")[0], "torch", "contextlib"}


def users_line() -> int:
    """The ``stacklevel`` of ``warnings.warn`` in the caller that points below this package.

    How many calls lie between depends on what the user has called: torch wraps steps in hooks, and
    masks that are asked for come from knobs as steps do.
    """
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package_of(frame) in _NOT_THE_USERS:
        frame = frame.f_back
        level += 1
    return level


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
