"""Laws of the three layouts: every trap of the official files, everything that a file can hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from graddrop.xglue.data.layouts import DataError, read_file
from graddrop.xglue.tasks import get_task


def read(task: str, text: str, tmp_path: Path, split: str = "dev") -> list[dict[str, Any]]:
    """What is read from a file with this text."""
    path = tmp_path / "file"
    path.write_bytes(text.encode("utf-8"))
    return list(read_file(get_task(task), path, split))


def test_the_last_sentence_needs_no_blank_line(tmp_path: Path) -> None:
    """Blank lines separate sentences, several do so once, -DOCSTART- lines are blank ones."""
    text = "-DOCSTART- X\n\nA DET\ncat NOUN\n\n\nIt PRON\nsleeps VERB"
    assert read("pos", text, tmp_path) == [
        {"words": ["A", "cat"], "tags": ["DET", "NOUN"]},
        {"words": ["It", "sleeps"], "tags": ["PRON", "VERB"]},
    ]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """A line separator or a form feed inside of a sentence is text; CR LF is one end."""
    text = "a\u2028b NOUN\r\nc\x0cd\x85e NOUN\r\n"
    assert read("pos", text, tmp_path)[0]["words"] == ["a\u2028b", "c\x0cd\x85e"]
    rows = read("qam", "a\u2028b\tc\x0bd\t1\r\n", tmp_path)
    assert rows == [{"question": "a\u2028b", "passage": "c\x0bd", "label": "1"}]


def test_the_tag_follows_the_last_space(tmp_path: Path) -> None:
    """A word may hold a space, as some languages write them."""
    assert read("pos", "Việt Nam PROPN\n", tmp_path)[0]["words"] == ["Việt Nam"]


LIKE_SPACES = [
    "\xa0",
    "\u3000",
    "\u2003",
    "\x85",
    "\u2028",
    "\x1f",
    "\x0c",
    "\u200b",
    "a\xa0",
    "\ufeff",
]


@pytest.mark.parametrize("word", LIKE_SPACES)
def test_only_spaces_separate(word: str, tmp_path: Path) -> None:
    """Characters that look like a space are words, or parts of words."""
    text = f"a NOUN\n{word} PUNCT\n"
    assert read("pos", text, tmp_path)[0] == {"words": ["a", word], "tags": ["NOUN", "PUNCT"]}


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """At the beginning of a file, in every layout; anywhere else it is a character of the text."""
    texts = {
        "pos": "-DOCSTART- X\n\n\ufeffa NOUN\n",
        "qam": "q\t\ufeffp\t1\nr\ts\t0\n",
        "mlqa": squad("ab", 0),
    }
    for task, text in texts.items():
        assert read(task, "\ufeff" + text, tmp_path) == read(task, text, tmp_path)
    assert read("pos", texts["pos"], tmp_path)[0]["words"] == ["\ufeffa"]
    assert read("qam", texts["qam"], tmp_path)[0]["passage"] == "\ufeffp"


def test_a_file_of_more_columns_is_no_file_of_words_with_spaces(tmp_path: Path) -> None:
    """Some words hold a space; where every line has as many, the file is in another format."""
    conll = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nBob NNP I-NP I-PER\n"
    with pytest.raises(DataError, match=r"expected two columns, 'word tag', found 4 in every line"):
        read("ner", conll, tmp_path)
    words = read("pos", "Việt Nam PROPN\nlà VERB\nHà Nội PROPN\n", tmp_path)[0]["words"]
    assert words == ["Việt Nam", "là", "Hà Nội"]


def test_columns_are_split_at_tabs_alone(tmp_path: Path) -> None:
    """Quotes are text, empty fields and white space at the ends stay."""
    text = '"a "quoted" b\t\t\tGood\n x \t"\ty\tBad\n'
    assert read("qadsm", text, tmp_path) == [
        {"query": '"a "quoted" b', "title": "", "description": "", "label": "Good"},
        {"query": " x ", "title": '"', "description": "y", "label": "Bad"},
    ]


def test_the_training_file_of_xnli_has_a_header_and_its_own_spelling(tmp_path: Path) -> None:
    """`contradictory` is `contradiction`; dev and test have no header."""
    text = "premise\thypo\tlabel\np\th\tcontradictory\n"
    assert read("xnli", text, tmp_path, "train") == [
        {"premise": "p", "hypothesis": "h", "label": "contradiction"}
    ]
    with pytest.raises(DataError, match=r":1: expected a label out of entailment.*found 'label'"):
        read("xnli", text, tmp_path, "dev")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_is_skipped_where_there_is_one(mark: str, tmp_path: Path) -> None:
    """A file whose header is gone keeps its first row; one with another first row is refused."""
    for task, split, header, rows in (
        ("xnli", "train", "premise\thypo\tlabel\n", "p\th\tneutral\nq\ti\tneutral\n"),
        ("paws-x", "dev", "id\tsentence1\tsentence2\tLabel\r\n", "1\ta\tb\t1\n2\tc\td\t0\n"),
    ):
        assert read(task, mark + header + rows, tmp_path, split) == read(
            task, mark + rows, tmp_path, split
        )
        assert len(read(task, mark + rows, tmp_path, split)) == 2
        with pytest.raises(DataError, match=":1: expected a label out of"):
            read(task, header.replace("abel", "abels") + rows, tmp_path, split)


def test_rows_marked_ns_stay(tmp_path: Path) -> None:
    """Every line but the header is a row of PAWS-X: predictions are counted by lines."""
    text = "id\tsentence1\tsentence2\tlabel\n1\tNS\tNS\t0\n2\ta\tb\t1\n"
    assert [row["sentence1"] for row in read("paws-x", text, tmp_path)] == ["NS", "a"]


def squad(answer: str, start: int) -> str:
    """A file with one question."""
    asked = {"id": 1, "question": "q", "answers": [{"text": answer, "answer_start": start}]}
    return json.dumps({"data": [{"paragraphs": [{"context": "ab 中文 cd", "qas": [asked]}]}]})


def test_answers_are_counted_in_characters(tmp_path: Path) -> None:
    """The text stands where `answer_start` says, in any script."""
    (example,) = read("mlqa", squad("中文", 3), tmp_path)
    assert example["answers"] == {"text": ["中文"], "answer_start": [3]}
    assert example["id"] == "1"


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("pos", "", "empty; expected at least one example of task pos"),
        ("pos", "\n\n", "empty; expected"),
        ("pos", "a NOUN\nb\n", r":2: expected 'word tag' with one space between, found 'b'"),
        ("pos", "a NOUN\n  NOUN\n", ":2: expected 'word tag' with one space .*found '  NOUN'"),
        ("pos", "a  NOUN\n", ":1: expected 'word tag' with one space between, found 'a  NOUN'"),
        ("pos", " a NOUN\n", ":1: expected 'word tag' with one space between, found ' a NOUN'"),
        ("pos", "a NOUN\n \nb X\n", ":2: expected 'word tag' with one space between, found ' '"),
        ("pos", "a NOUN\n\u3000\nb X\n", r":2: expected 'word tag' .*, found '\\u3000'"),
        ("pos", "a NOUN \n", ":1: expected 'word tag' with one space between, found 'a NOUN '"),
        ("pos", "a NOUN\rb VERB\r", r":1: expected lines that end in LF or CR LF.*'a NOUN\\rb V"),
        ("qam", "a\tb\t1\n\r\na\rc\tb\t1\n", ":2: expected 3 TAB-separated columns"),
        ("qam", "a\tb\t1\na\rc\tb\t1\n", r":2: expected lines that end in LF or CR LF"),
        ("pos", "a NOUN\r\r\nb VERB\r\r\n", r":1: expected lines that end in LF or CR LF"),
        ("qam", "a\tb\t1 \n", ":1: expected a label out of 0, 1, found '1 '"),
        ("pos", "a NUON\n", r":1: expected a label out of ADJ, .*, found 'NUON'"),
        ("ner", "a O\n\nb B-TIME\n", r":3: expected a label out of O, B-PER.*found 'B-TIME'"),
        ("nc", "t\tb\tsports\nt\tsports\n", r":2: expected 3 TAB-separated columns \(title, body"),
        ("qam", "a\tb\tc\t1\n", r":1: expected 3 TAB-separated columns .*found '4 in a"),
        ("wpr", "a\tb\tc\t5\n", r":1: expected a label out of 0, 1, 2, 3, 4, found '5'"),
        ("nc", "", "empty"),
        ("paws-x", "id\tsentence1\tsentence2\tlabel\n", "empty"),
        ("paws-x", "id\ta\tb\tlabel\n" * 2, ":2: expected a label out of 0, 1, found 'label'"),
        ("mlqa", "{", r":1: expected JSON"),
        (
            "mlqa",
            '{"data": [{"paragraphs": [{}]}]}',
            r"raphs\[0\].context: expected a text.*found nothing",
        ),
        ("mlqa", '{"data": []}', "empty"),
        ("mlqa", squad("cd", 5), r"text: expected 'cd' at character 5 of the context, found ' c'"),
    ],
)
def test_malformed_files_are_named_with_the_line(
    task: str, text: str, message: str, tmp_path: Path
) -> None:
    """The message says where, what was expected, what was found."""
    with pytest.raises(DataError, match=message) as error:
        read(task, text, tmp_path)
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "abc"}, r" \(id '1'\).answers\[0\].answer_start: expected a whole num.*'abc'"),
        ({"start": 2.0}, "answer_start: expected a whole number from 0, as in SQuAD.*found 2.0"),
        ({"start": True}, "answer_start: expected a whole number from 0.*found True"),
        ({"start": False}, "answer_start: expected a whole number from 0.*found False"),
        ({"start": -2}, "answer_start: expected a whole number from 0, found -2"),
        ({"start": None}, "answer_start: expected a whole number from 0.*found None"),
        ({"start": float("nan")}, "answer_start: expected a whole number from 0.*found nan"),
        ({"start": 10**4000}, r"text: expected 'cd' at character 10+\.\.\.0+ of the context"),
        ({"answer": 7}, r"answers\[0\].text: expected a text, .*found 7"),
        ({"question": None}, r"\(id '1'\).question: expected a text.*found None"),
        ({"question": ["q"]}, r"\(id '1'\).question: expected a text.*found \['q'\]"),
        ({"id": True}, r"qas\[0\].id: expected a text.*found True"),
        ({"id": "\x1b[2J", "question": 0}, r"\(id '\\x1b\[2J'\).question: expected a text"),
    ],
)
def test_every_value_of_an_answer_file_is_of_its_type(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Nothing is converted: another type is another format, and the message says where it is."""
    values = {"start": 2, "answer": "cd", "question": "q", "id": "1"}
    assert read("mlqa", _asked("abcd", **values), tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read("mlqa", _asked("abcd", **values | changes), tmp_path)
    assert "file: data[0].paragraphs[0].qas[0]" in str(error.value)


def _asked(context: Any, *, start: Any, answer: Any, question: Any, id: Any) -> str:
    answers = [{"text": answer, "answer_start": start}]
    asked = {"id": id, "question": question, "answers": answers}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


def test_every_gold_answer_stands_where_it_says(tmp_path: Path) -> None:
    """Each of a question's answers is looked up, not the first alone."""
    answers = [{"text": "ab", "answer_start": 0}, {"text": "cd", "answer_start": 1}]
    asked = {"id": "1", "question": "q", "answers": answers}
    document = {"data": [{"paragraphs": [{"context": "ab cd", "qas": [asked]}]}]}
    with pytest.raises(DataError, match=r"answers\[1\].text: expected 'cd' at character 1.*'b '"):
        read("mlqa", json.dumps(document), tmp_path)
    answers[1]["answer_start"] = 3
    assert read("mlqa", json.dumps(document), tmp_path)[0]["answers"]["answer_start"] == [0, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "file: data: expected a list, as in SQuAD v1.1, found nothing"),
        ('{"data": {}}', "file: data: expected a list, as in SQuAD v1.1, found {}"),
        ('{"data": [7]}', r"file: data\[0\].paragraphs: expected a list.*found nothing"),
        ("[" * 100_000, "file: expected JSON, found it nested too deep"),
        ("1" * 5000, "file: expected JSON, found Exceeds the limit"),
        ('{"data":\n["\\ud83d"]}', r"file:2: expected whole characters.*\\ud83d$"),
    ],
)
def test_what_is_no_answer_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    """JSON of another shape, and what is hardly JSON."""
    with pytest.raises(DataError, match=message):
        read("mlqa", text, tmp_path)


def test_other_encodings_are_named_with_the_line(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are not guessed at."""
    path = tmp_path / "file"
    path.write_bytes(b"a NOUN\nna\xefve ADJ\n")
    with pytest.raises(DataError, match=r"file:2: expected UTF-8, found b'\\xef'"):
        list(read_file(get_task("pos"), path, "dev"))
