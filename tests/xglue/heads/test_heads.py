"""Laws of turning examples into model inputs and model outputs into predictions."""

import hashlib
import itertools
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import datasets
import numpy as np
import transformers
from helpers.xglue_files import NO_REAL_DATA, REAL_DATA
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from graddrop.xglue.data.sources import FolderSource
from graddrop.xglue.heads import HEADS, encoding
from graddrop.xglue.heads import sequence as sequence_head
from graddrop.xglue.heads import span as span_head
from graddrop.xglue.heads import token as token_head
from graddrop.xglue.heads.encoding import encode, longest_first
from graddrop.xglue.heads.model import train_tokenizer
from graddrop.xglue.heads.windows import Frame, windows
from graddrop.xglue.tasks import TASKS, get_task

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "eine Straße, naïve façade",
    "北京是中国的首都",
]


CONTEXTS = [
    ("The quick brown fox jumps over the lazy dog. " * 4 + "It is 12 km, naïvely!", "12 km"),
    ("北京是中国的首都，人口两千万。" * 3 + "今天 天气好 。", "天气好"),
    ("यह एक घर है। दिल्ली भारत की राजधानी है।", "दिल्ली"),
    ("تقع القاهرة على نهر النيل في مصر.", "نهر النيل"),
    ("𝔊othic 🦊 and e\u0301 combined", "🦊 and e\u0301"),
]


ENCODED: dict[str, dict[str, Any]] = {
    "pos": {"words": ["the", "首都", "\u200b", "，"], "tags": ["DET", "NOUN", "X", "PUNCT"]},
    "qam": {"question": "the quick fox " * 9, "passage": "dog 北京", "label": "1"},
    "mlqa": {
        "question": "lazy dog",
        "context": CONTEXTS[0][0],
        "answers": {"text": ["brown"], "answer_start": [10]},
    },
}
"""One example for each head, those of the last two too long for one window."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer of the tiny model."""
    return train_tokenizer(TEXT * 3, 300)


@pytest.fixture(scope="module")
def xlmr() -> Any:
    """The class of the published models, with a small vocabulary of every character at hand."""
    texts = [*TEXT, *(context for context, _ in CONTEXTS)]
    characters = sorted(set(unicodedata.normalize("NFKC", "".join(texts))) - {" "})
    words = sorted({"▁" + word for word in re.findall("[a-z]+", " ".join(texts))})
    vocabulary = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>", "▁")]
    vocabulary += [(word, -5.0) for word in words] + [(char, -9.0) for char in characters]
    made = transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=512)
    # In place of the published models' own table of characters.
    made.backend_tokenizer.normalizer = normalizers.NFKC()
    return made


@pytest.fixture(scope="module")
def bert_like() -> Any:
    """Another family: one separator, segments told apart by token types, pieces of words."""
    pieces = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


# -- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 7, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 31, 32, 33, 101])
def test_windows_cover_the_sequence_and_share_it_out(length: int, room: int) -> None:
    """No window is too long, none is needless, each position counts in exactly one of them."""
    for overlap in {0, room // 4, room - 1}:
        made = list(windows(length, room, overlap))
        assert all(window.end - window.start <= room for window in made)
        owned = [place for window in made for place in range(window.own_start, window.own_end)]
        assert owned == list(range(length))
        assert all(w.start <= w.own_start and w.own_end <= w.end for w in made)
        assert all(b.start == a.end - overlap for a, b in zip(made, made[1:], strict=False))
        assert len(made) == 1 or made[-2].end < length


@pytest.mark.parametrize(
    ("length", "room", "overlap"), [(101, 32, 8), (101, 32, 0), (200, 32, 31), (57, 7, 3)]
)
def test_positions_count_where_they_stand_further_from_a_cut(
    length: int, room: int, overlap: int
) -> None:
    """By one at most: an odd overlap has no middle. The ends of the sequence are no cuts."""
    made = list(windows(length, room, overlap))
    assert len(made) > 2

    def distance(window: Any, place: int) -> int:
        left = place - window.start if window.start else length
        right = window.end - 1 - place if window.end < length else length
        return min(left, right)

    for window in made:
        for place in range(window.own_start, window.own_end):
            others = [w for w in made if w.start <= place < w.end]
            assert distance(window, place) >= max(distance(w, place) for w in others) - 1


def test_a_frame_gives_what_the_tokenizer_gives(tokenizer: Any, xlmr: Any, bert_like: Any) -> None:
    """Special tokens and token types, for one segment and for two."""
    for each in (tokenizer, xlmr, bert_like):
        parts = [each(text, add_special_tokens=False)["input_ids"] for text in ("the fox", "dog")]
        for count, texts in ((1, ["the fox"]), (2, ["the fox", "dog"])):
            frame = Frame(each, count)
            features, begins = frame.assemble(*parts[:count])
            assert features == dict(each(*texts))
            assert frame.size == len(features["input_ids"]) - sum(map(len, parts[:count]))
            for begin, part in zip(begins, parts, strict=False):
                assert features["input_ids"][begin : begin + len(part)] == part
    assert "token_type_ids" not in Frame(tokenizer, 2).assemble([5], [6])[0]
    with pytest.raises(ValueError, match="max_length must be at least 6, 4 of them special"):
        Frame(tokenizer, 2).room(5)


# -- one label per word --------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [3, 8, 13, 128])
def test_every_word_is_labelled_and_predicted_once(
    tokenizer: Any, xlmr: Any, bert_like: Any, max_length: int
) -> None:
    """However short the window, and for words of which the tokenizer leaves nothing."""
    task = get_task("pos")
    sentences = [
        ["Antidisestablishmentarianism", "is", "not", "a", "quick", "fox", "."] * 5,
        ["\u200b", "北京", "\u00ad", "首都", "\u0000"],
        ["a"],
    ]
    tags = [[task.labels[n % 17] for n in range(len(words))] for words in sentences]
    examples = datasets.Dataset.from_dict({"words": sentences, "tags": tags})
    for each in (tokenizer, xlmr, bert_like):
        features = encode(task, examples, each, max_length)
        assert max(map(len, features["input_ids"])) <= max_length
        labelled = [
            (example, word, label)
            for example, words, labels in zip(
                features["example"], features["words"], features["labels"], strict=True
            )
            for word, label in zip(words, labels, strict=True)
            if word >= 0
        ]
        expected = [
            (example, word, task.labels.index(tag))
            for example, sentence in enumerate(tags)
            for word, tag in enumerate(sentence)
        ]
        assert sorted(labelled) == expected
        # A model that predicts the labels is decoded to the tags, whatever it says elsewhere.
        shuffled = longest_first(features)
        width = max(map(len, shuffled["labels"]))
        classes = np.full((len(shuffled), width), 3)
        for row, labels in zip(classes, shuffled["labels"], strict=True):
            row[: len(labels)] = [3 if label == token_head.IGNORED else label for label in labels]
        assert token_head.decode(task, examples, shuffled, classes) == tags


def labelled_pieces(tokenizer: Any, task: str, words: list[str]) -> list[str]:
    """The sub-words at which the words' labels sit."""
    labels = get_task(task).labels
    tags = [labels[number % len(labels)] for number in range(len(words))]
    encode_ = token_head.encoder(get_task(task), tokenizer, 64)
    (row,) = encode_({"words": [words], "tags": [tags]}, [0])
    places = [n for n, label in enumerate(row["labels"]) if label != token_head.IGNORED]
    assert [row["labels"][place] for place in places] == [labels.index(tag) for tag in tags]
    # Predictions are read where the labels are.
    assert [row["words"][place] for place in places] == list(range(len(words)))
    assert sum(word >= 0 for word in row["words"]) == len(words)
    return tokenizer.convert_ids_to_tokens([row["input_ids"][place] for place in places])


@pytest.mark.parametrize("task", ["pos", "ner"])
def test_the_label_sits_at_the_first_sub_word_with_text(
    xlmr: Any, bert_like: Any, task: str
) -> None:
    """Not at a space before it, with any kind of tokenizer; at the space if there is no text."""
    words = ["dog", "首都", "，", "\u3000", "fox", "天"]
    assert xlmr.tokenize("首都") == ["▁", "首", "都"]
    assert labelled_pieces(xlmr, task, words) == ["▁dog", "首", ",", "<unk>", "▁fox", "天"]
    # Bytes: the space is written Ġ, and what is less than a character is text, too.
    of_bytes = train_tokenizer(["the dog and the fox " * 9], 300)
    assert of_bytes.tokenize("首")[:2] == ["Ġ", "é"]
    found = labelled_pieces(of_bytes, task, ["dog", "首都", "\u3000", "fox"])
    assert found == ["Ġdog", "é", "Ġ", "Ġfox"]
    # Pieces of words: nothing stands for a space, so it is the first of them.
    assert labelled_pieces(bert_like, task, ["dog", "ox", "首"]) == ["d", "o", "[UNK]"]


def test_windows_of_a_sentence_share_a_quarter(tokenizer: Any) -> None:
    """Each neighbour sees what the other ends or begins with."""
    words = ["the", "quick", "brown", "fox"] * 10
    task, room = get_task("pos"), 16
    batch = {"words": [words], "tags": [["X"] * len(words)]}
    rows = token_head.encoder(task, tokenizer, room + 2)(batch, [0])
    inner = [row["input_ids"][1:-1] for row in rows]
    assert len(inner) > 2
    for a, b in itertools.pairwise(inner):
        assert a[-room // 4 :] == b[: room // 4]
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert sum(map(len, inner)) == len(encoded) + room // 4 * (len(inner) - 1)


def test_the_sub_words_between_labels_are_the_words(tokenizer: Any) -> None:
    """In order, without a rest."""
    task = get_task("pos")
    words = ["jumps", "Straße", "首都"]
    (row,) = token_head.encoder(task, tokenizer, 64)(
        {"words": [words], "tags": [["VERB", "NOUN", "NOUN"]]}, [0]
    )
    begins = [n for n, label in enumerate(row["labels"]) if label != token_head.IGNORED]
    ends = [*begins[1:], len(row["input_ids"]) - 1]
    pieces = [row["input_ids"][b:e] for b, e in zip(begins, ends, strict=True)]
    assert [tokenizer.decode(piece).strip() for piece in pieces] == words


# -- one label per example -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [t.name for t in TASKS.values() if t.head == "sequence"])
def test_columns_are_packed_into_two_segments(tokenizer: Any, name: str) -> None:
    """What fits is the tokenizer's own packing; else the longer one loses, the second if equal."""
    task = get_task(name)
    batch = {column: [f"the {column} fox " * 5] for column in task.columns}
    batch["label"] = [task.labels[-1]]
    (row,) = sequence_head.encoder(task, tokenizer, 512)(batch, [0])
    first, second = (
        " ".join(batch[column][0] for column in columns) for columns in (task.first, task.second)
    )
    assert row["input_ids"] == tokenizer(first, second)["input_ids"]
    assert row["labels"] == len(task.labels) - 1
    for max_length in (6, 20, 31):
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
        while len(a) + len(b) > max_length - 4:
            (a if len(a) > len(b) else b).pop()
        (row,) = sequence_head.encoder(task, tokenizer, max_length)(batch, [0])
        assert row["input_ids"] == [0, *a, 2, 2, *b, 2]


def test_ranking_predicts_an_expected_grade() -> None:
    """Probabilities times grades, where the class number would be a tie; classes elsewhere."""
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.0001, 0.4], [0.4, 0.3, 0.1, 0.1, 0.1]]))
    features = datasets.Dataset.from_dict({"example": [1, 0]})
    wpr, nc = get_task("wpr"), get_task("nc")
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (weights * np.arange(5)).sum(1)
    assert sequence_head.decode(wpr, features, features, logits) == pytest.approx(expected[::-1])
    assert sequence_head.decode(nc, features, features, logits) == [nc.labels[0], nc.labels[4]]


# -- answers -------------------------------------------------------------------------------------


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


# -- the cache -----------------------------------------------------------------------------------


def test_model_inputs_are_made_once(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the tokenizer or the length changes; use of the tokenizer in between does not count."""
    task = get_task("pos")
    made: list[int] = []
    original = token_head.encoder

    def counted(*arguments: Any) -> Any:
        inner = original(*arguments)
        return lambda batch, indices: made.append(len(indices)) or inner(batch, indices)

    monkeypatch.setitem(
        HEADS, "token", type(HEADS["token"])(**{**vars(HEADS["token"]), "encoder": counted})
    )
    examples = datasets.Dataset.from_generator(
        lambda: iter([{"words": ["a", "b"], "tags": ["X", "X"]}] * 3), cache_dir=str(tmp_path)
    )
    encode(task, examples, tokenizer, 16)
    tokenizer("a b c", truncation=True, max_length=3, padding="max_length")
    encode(task, examples, tokenizer, 16)
    assert made == [3]
    encode(task, examples, tokenizer, 17)
    encode(task, examples, train_tokenizer(TEXT, 280), 16)
    assert made == [3, 3, 3]


def test_encoders_that_make_something_else_have_another_version(xlmr: Any) -> None:
    """What they make of a few examples, as numbers, belongs to one version of the cache."""
    made = []
    for name, values in ENCODED.items():
        task = get_task(name)
        batch = {column: [value] * 2 for column, value in values.items()}
        made.append(HEADS[task.head].encoder(task, xlmr, 32)(batch, [0, 1]))
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    assert {encoding._VERSION: digest} == {3: "ed1a0250c3e58205"}


def test_inputs_longer_than_the_models_are_refused(tokenizer: Any) -> None:
    """The tiny model takes 512 sub-words."""
    examples = datasets.Dataset.from_list([{"words": ["a"], "tags": ["X"]}])
    with pytest.raises(ValueError, match="max_length 513 exceeds the model's 512"):
        encode(get_task("pos"), examples, tokenizer, 513)
