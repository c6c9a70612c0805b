"""What was meant by a name that is not in a list."""

from collections.abc import Iterable
from difflib import get_close_matches


def meant(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: a question, if some name is close.

    Args:
        name: What was given.
        known: The names that there are.
    """
    close = get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
