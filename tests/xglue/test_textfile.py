"""Laws of text and JSON files from elsewhere."""

import ast
import json
import sys
import unicodedata
from pathlib import Path

import pytest

from graddrop.xglue.textfile import TextFileError, brief, printable, read_json, read_text


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    """One at the beginning, and no other."""
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf{}\xef\xbb\xbf")
    assert read_text(path) == "\ufeff{}\ufeff"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_json(path) == {"a": [1]}


@pytest.mark.parametrize(
    "text", ["\ud83d\ude00", "\\\\ud83d", "\\", "\U0001f600", "a\\u", "\ud83d\ude00\ud83d\ude00"]
)
@pytest.mark.parametrize("escaped", [True, False])
def test_whole_characters_are_read_in_any_spelling(
    text: str, escaped: bool, tmp_path: Path
) -> None:
    """Pairs of escapes are one character; a backslash before a u may be text."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    path = tmp_path / "file"
    path.write_text(json.dumps([text], ensure_ascii=escaped), encoding="utf-8")
    assert read_json(path) == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"\\ud83d"', r":1: expected whole characters, found half of a.*: \\ud83d$"),
        (b'"\\ude00\\ud83d"', r":1: .*: \\ude00$"),
        (b'[1,\n"\\\\\\uD83d\\u0041"]', r":2: .*: \\uD83d$"),
        (b'"\xed\xa0\xbd"', r":1: expected UTF-8, found b'\\xed'"),
        (b'["a",\n "\xff"]', r":2: expected UTF-8, found b'\\xff'"),
        (b"", ":1: expected JSON, found Expecting value"),
        (b"{}\n{}", ":2: expected JSON, found Extra data"),
        (b"[" * 100_000, ": expected JSON, found it nested too deep"),
        (b"9" * 5000, ": expected JSON, found Exceeds the limit"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', ": expected JSON, found 'c' twice in one object"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """With the file, and the line where there is one."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TextFileError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))


def test_values_are_shown_in_a_few_characters() -> None:
    """However large they are, and without what a terminal would obey."""
    shared: list[object] = ["x"]
    for _ in range(100):
        shared = [shared] * 9
    for value in ("x" * 10_000, 10**4000, list(range(10_000)), shared, b"x" * 10_000):
        assert len(brief(value)) < 500
    for huge in (16**9000 + 5, [{"a": -(16**9000)}]):
        assert "0x10000" in brief(huge) and len(brief(huge)) < 100
    assert brief(10**30) == f"1{'0' * 30}"
    assert brief("\x1b[2J\u202e") == r"'\x1b[2J\u202e'"


def test_only_what_shows_itself_is_shown() -> None:
    """Of all characters; the others are told from each other, and nothing is lost."""
    hidden = set()
    for character in map(chr, range(sys.maxunicode + 1)):
        shown = printable(character)
        if shown != character:
            assert shown.isascii() and ast.literal_eval(f"'{shown}'") == character
            hidden.add(character)
    categories = {unicodedata.category(character) for character in hidden}
    assert categories == {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
    others = set(map(chr, range(sys.maxunicode + 1))) - hidden
    assert {c for c in others if unicodedata.category(c)[0] in "CZ"} == {" ", "\n", "\t"}


@pytest.mark.parametrize("line", "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_a_line_of_data_stays_one_line(line: str) -> None:
    """Whatever ends one somewhere is shown, as in the middle of a text of any length."""
    assert printable(f"a{line}b\nc") == f"a{ascii(line)[1:-1]}b\nc"
    assert len(printable(f"a{line}b").splitlines()) == 1
