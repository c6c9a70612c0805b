"""Laws of answers: spans of a context, from characters to sub-words and back."""

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
import numpy as np
from helpers.small_tokenizers import CONTEXTS
from helpers.xglue_files import NO_REAL_DATA, REAL_DATA

from graddrop.xglue.data.sources import FolderSource
from graddrop.xglue.heads import span as span_head
from graddrop.xglue.heads.encoding import encode
from graddrop.xglue.heads.model import train_tokenizer
from graddrop.xglue.tasks import get_task


def question(context: str, answer: str) -> dict[str, Any]:
    """An example."""
    return {
        "id": context[:9],
        "question": "what then?",
        "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }


def spans(features: Any) -> list[Any]:
    """Logits of a model that points where it was trained to, surest where the answer is."""
    width = max(map(len, features["input_ids"]))
    logits = np.zeros((len(features), width, 2))
    for row, (start, end) in zip(logits, features["labels"], strict=True):
        row[start, 0] = row[end, 1] = 9.0 if start else 5.0
    return logits


@pytest.mark.parametrize("family", ["bytes", "pieces"])
@pytest.mark.parametrize("max_length", [48, 64, 128])
def test_answers_come_back_exactly_in_every_script(xlmr: Any, max_length: int, family: str) -> None:
    """From characters to sub-words and back, also where the context takes several windows."""
    task = get_task("mlqa")
    bytes_ = train_tokenizer([context for context, _ in CONTEXTS] * 3, 600)
    tokenizer = xlmr if family == "pieces" else bytes_
    examples = datasets.Dataset.from_list([question(*pair) for pair in CONTEXTS])
    features = encode(task, examples, tokenizer, max_length)
    assert max(map(len, features["input_ids"])) <= max_length
    predicted = span_head.decode(task, examples, features, spans(features))
    assert predicted == [answer for _, answer in CONTEXTS]
    if max_length == 48:
        assert len(features) > len(examples)
        # Negative control: without the windows that hold the answer it cannot be found.
        kept = [n for n, (start, _) in enumerate(features["labels"]) if not start]
        without = features.select(kept)
        others = span_head.decode(task, examples, without, spans(features)[kept])
        assert sum(a in b for (_, a), b in zip(CONTEXTS, others, strict=True)) < len(CONTEXTS)


def test_answers_point_into_their_window_or_at_its_first_token() -> None:
    """Answers at every place of a context that takes several windows, at their edges too."""
    task = get_task("mlqa")
    words = [f"{'bcdfg'[n % 5]}{'aeiou'[n // 5 % 5]}{n}" for n in range(60)]
    context = " ".join(words)
    made = train_tokenizer([context] * 3, 300)
    answers = [" ".join(words[n : n + 3]) for n in range(57)]
    examples = datasets.Dataset.from_list([question(context, answer) for answer in answers])
    at_the_edges = set()
    for max_length in (33, 36, 37, 40):
        features = encode(task, examples, made, max_length)
        for (start, end), (begin, stop, *_) in zip(
            features["labels"], features["context"], strict=True
        ):
            assert (start, end) == (0, 0) or begin <= start <= end < stop
            if end:
                at_the_edges |= {start - begin, end - stop}
    # Negative control: some begin or end with their window.
    assert {0, -1} <= at_the_edges


def test_the_best_spans_are_found_by_complete_search() -> None:
    """Equal to trying every span of at most the longest answer's length."""
    generator = np.random.default_rng(0)
    length, begin = 80, 6
    logits = generator.normal(size=(100, 2))
    offsets = [[3 * n, 3 * n + (2 if n % 9 else 0)] for n in range(length)]
    own = (begin + 10, begin + 70)
    found = span_head.n_best(logits, [begin, begin + length, *own], offsets, 20)
    every = [
        span_head.Candidate(logits[s, 0] + logits[e, 1], offsets[s - 6][0], offsets[e - 6][1])
        for s in range(*own)
        for e in range(s, min(s + span_head.LONGEST_ANSWER, begin + length))
        if offsets[s - 6][0] < offsets[e - 6][1]
    ]
    expected = sorted(every, key=lambda candidate: -candidate.score)[:20]
    assert found == [span_head.Candidate(*map(pytest.approx, e)) for e in expected]
    best = span_head.n_best(logits, [begin, begin + length, *own], offsets, 1)
    assert best == found[:1]


@pytest.mark.parametrize("step", [1, -1])
def test_of_equal_spans_the_first_is_the_answer(tokenizer: Any, step: int) -> None:
    """Then the shortest: in a window, and in whatever order the windows of a context come."""
    task = get_task("mlqa")
    examples = datasets.Dataset.from_list(
        [question("z" + " fox" * 40, "fox"), question("a fox", "fox")]
    )
    features = encode(task, examples, tokenizer, 32)
    features = features.select(range(len(features))[::step])
    assert len(features) > 3
    logits = np.zeros((len(features), 32, 2), dtype="float32")
    for count in (1, 5):
        found = span_head.n_best(logits[0], [4, 30, 10, 20], [[n, n + 1] for n in range(26)], count)
        assert found == [span_head.Candidate(0.0, 6, 7 + n) for n in range(count)]
    assert span_head.decode(task, examples, features, logits) == ["z", "a"]


def test_a_long_question_leaves_room_for_the_context(tokenizer: Any) -> None:
    """It is cut to half of the input; an empty context has an empty answer."""
    task = get_task("mlqa")
    example = question("the fox", "fox")
    example["question"] = "why " * 500
    rows = [example, {**example, "context": "", "answers": {"text": [""], "answer_start": [0]}}]
    examples = datasets.Dataset.from_list(rows)
    features = encode(task, examples, tokenizer, 32)
    assert max(map(len, features["input_ids"])) <= 32
    assert span_head.decode(task, examples, features, spans(features)) == ["fox", ""]


@pytest.mark.skipif(not (REAL_DATA / "MLQA").is_dir(), reason=NO_REAL_DATA)
@pytest.mark.parametrize("language", get_task("mlqa").languages)
def test_real_answers_come_back(tokenizer: Any, language: str) -> None:
    """Of real questions at least nearly all answers survive encoding and decoding unchanged."""
    task, source = get_task("mlqa"), FolderSource(REAL_DATA)
    if not source.has(task, "dev", language):
        pytest.skip(f"no {source.where(task, 'dev', language)}")
    rows = list(source.examples(task, "dev", language))[:60]
    examples = datasets.Dataset.from_list(rows)
    features = encode(task, examples, tokenizer, 384)
    predicted = span_head.decode(task, examples, features, spans(features))
    kept = [
        (row["answers"]["text"][0].strip(), found)
        for row, found in zip(rows, predicted, strict=True)
        # Longer answers than the search allows are lost by design.
        if len(tokenizer(row["answers"]["text"][0])["input_ids"]) < span_head.LONGEST_ANSWER - 4
    ]
    assert len(kept) > 10
    assert sum(answer in found for answer, found in kept) == len(kept)
