"""Text and JSON files that others wrote: whatever is wrong in one is named with file and place."""

import json
import re
import reprlib
from pathlib import Path
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors write before the first character of a UTF-8 file; it is passed over."""

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair, one character
    r"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class TextFileError(ValueError):
    """A file that does not hold what its name or its place promises."""


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        TextFileError: If it is not UTF-8; names the line.
        OSError: If it cannot be read.
    """
    content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start : error.end]
        raise TextFileError(f"{path}:{line}: expected UTF-8, found {found!r}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Numbers that are not finite are read, since logs of training may hold them.

    Raises:
        TextFileError: If it is not UTF-8 or not JSON, is nested too deep, holds a number of
            thousands of digits or half of a surrogate pair, or names something twice in an object.
        OSError: If it cannot be read.
    """
    text = read_text(path)
    for escape in _ESCAPE.finditer(text) if "\\u" in text else ():
        if escape["lone"]:
            line = text.count("\n", 0, escape.start()) + 1
            raise TextFileError(
                f"{path}:{line}: expected whole characters, found half of a surrogate pair: "
                f"\\{escape['lone']}"
            )
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise TextFileError(f"{path}:{error.lineno}: expected JSON, found {error.msg}") from None
    except RecursionError:
        raise TextFileError(f"{path}: expected JSON, found it nested too deep") from None
    except ValueError as error:  # a number of too many digits, a name that stands twice
        raise TextFileError(f"{path}: expected JSON, found {error}") from None


def brief(value: object) -> str:
    """Return the representation of a value from a file, shortened, as a message shows it.

    Characters that would act on a terminal are escaped.
    """
    shortened = _Shortened()
    shortened.maxstring = shortened.maxother = 80
    shortened.maxlevel = 2
    return shortened.repr(value)


class _Shortened(reprlib.Repr):
    """Shows integers of any length: in hexadecimal where Python writes no decimal digits."""

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # too many of them
            digits = hex(x)
        return f"{digits[: self.maxlong // 2]}...{digits[-self.maxlong // 2 :]}"


def printable(text: str) -> str:
    """Escape what a terminal or a browser would obey, or not show, instead of showing it.

    That is what `repr` escapes (:meth:`str.isprintable`: control and format characters, unassigned
    and private ones, halves of surrogate pairs, and all that separates but the space), without line
    feeds and TABs.
    """
    return "".join(
        character if character in "\n\t" or character.isprintable() else ascii(character)[1:-1]
        for character in text
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{brief(twice)} twice in one object")
    return table
