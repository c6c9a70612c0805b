"""Laws of Mini-XGLUE: what is written can be read, means what it says, and never differs."""

import re
from collections import Counter
from pathlib import Path

import pytest

from graddrop.xglue.data.layouts import DataError, read_file
from graddrop.xglue.mini import CODE_SWITCHING, RESOURCES, MiniSize, write_mini_xglue
from graddrop.xglue.mini.examples import DRAW, Example, draw
from graddrop.xglue.mini.grammar import CONCEPTS, TOPIC_FIDELITY, TOPICS, Phrase, Word
from graddrop.xglue.mini.lexicon import COGNATES, build_lexicons
from graddrop.xglue.mini.writers import iob1
from graddrop.xglue.scores.tagging import chunks
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS, TRAIN_LANGUAGE

SIZE = MiniSize(train=61, dev=13, test=17, text_lines=211)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mini-XGLUE."""
    folder = tmp_path_factory.mktemp("mini") / "xglue"
    write_mini_xglue(folder, SIZE, seed=7)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def languages(task: str) -> list[str]:
    """Our languages that a task has."""
    return [code for code in RESOURCES if code in TASKS[task].languages]


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    """The seed decides every byte; another seed changes every file that holds words."""
    write_mini_xglue(tmp_path / "again", SIZE, seed=7)
    assert contents(tmp_path / "again") == contents(root)
    write_mini_xglue(tmp_path / "other", SIZE, seed=8)
    other, first = contents(tmp_path / "other"), contents(root)
    assert other.keys() == first.keys()
    equal = {name for name in first if other[name] == first[name]}
    assert equal == {"NER/labels.txt"}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_back_in_full(root: Path, name: str) -> None:
    """Readers of the official layout accept each file and find every example in it."""
    task = TASKS[name]
    expected = {"train": SIZE.train, "dev": SIZE.dev, "test": SIZE.test}
    per_draw = 4 if name == "wpr" else 1  # rows of one query
    assert len(languages(name)) >= 3
    for split, code in [("train", TRAIN_LANGUAGE)] + [
        (split, code) for split in EVAL_SPLITS for code in languages(name)
    ]:
        found = list(read_file(task, root / task.path(split, code), split))
        assert len(found) == expected[split] // per_draw * per_draw
    with pytest.raises(DataError):  # negative control
        list(read_file(task, root / task.path("dev", "xx"), "dev"))


def test_nothing_but_the_official_files_is_written(root: Path) -> None:
    """There is English training data alone, and no file that the layout does not know."""
    known = {"README.md", "NER/labels.txt", *(f"text/{code}.txt" for code in RESOURCES)}
    for name, task in TASKS.items():
        known.add(task.path("train"))
        known |= {task.path(split, code) for split in EVAL_SPLITS for code in languages(name)}
    assert contents(root).keys() == known
    labels = (root / "NER/labels.txt").read_text().split()
    assert set(labels) == set(TASKS["ner"].labels)


@pytest.mark.parametrize("name", TASKS)
def test_no_example_is_in_two_splits(name: str) -> None:
    """What is tested was not trained on, in any language: examples differ before they are spelt."""
    splits = draw(name, 3, {"train": 301, "dev": 31, "test": 53})
    texts = [{example.texts for example in examples} for examples in splits.values()]
    assert all(texts)
    assert sum(map(len, texts)) == sum(map(len, splits.values())) == len(set.union(*texts))


@pytest.mark.parametrize("name", TASKS)
def test_all_languages_are_asked_the_same(root: Path, name: str) -> None:
    """Labels, and the number of words, do not depend on the language; the words do."""
    task = TASKS[name]

    def shape(code: str) -> list[object]:
        found = []
        for example in read_file(task, root / task.path("test", code), "test"):
            if task.layout == "words":
                tags = example["tags"]
                found.append((len(tags), list(chunks(tags)) if name == "ner" else tags))
            elif task.layout == "squad":
                found.append(len(example["answers"]["text"][0].split()))
            else:
                found.append([example["label"], *(len(v.split()) for v in example.values())])
        return found

    shapes = [shape(code) for code in languages(name)]
    assert all(other == shapes[0] for other in shapes)
    texts = {(root / task.path("test", code)).read_bytes() for code in languages(name)}
    assert len(texts) == len(languages(name))


def test_raw_text_is_as_unequal_as_it_says(root: Path) -> None:
    """Lines per language follow the table of resources, whose order is strict."""
    shares = list(RESOURCES.values())
    assert shares == sorted(set(shares), reverse=True)
    lines = {code: len((root / f"text/{code}.txt").read_text().splitlines()) for code in RESOURCES}
    assert lines == {
        code: max(1, round(SIZE.text_lines * share)) for code, share in RESOURCES.items()
    }


def test_languages_are_equally_related_to_the_training_language() -> None:
    """Each language shares the same number of stems with English, close to the quota."""
    lexicons = build_lexicons(5)
    first = lexicons.pop(TRAIN_LANGUAGE)
    shared = [
        sum(lexicon.stems[concept] == first.stems[concept] for concept in first.stems)
        for lexicon in lexicons.values()
    ]
    assert len(set(shared)) == 1
    assert shared[0] / len(first.stems) == pytest.approx(COGNATES, abs=0.05)
    assert first.stems.keys() == {concept for group in CONCEPTS.values() for concept in group}


def test_no_stem_has_two_meanings() -> None:
    """A written stem stands for one concept, whatever the language."""
    meanings: dict[str, set[str]] = {}
    for lexicon in build_lexicons(5).values():
        for concept, stem in lexicon.stems.items():
            meanings.setdefault(stem, set()).add(concept)
    assert {stem for stem, concepts in meanings.items() if len(concepts) > 1} == set()


def test_raw_text_borrows_from_the_training_language(tmp_path: Path) -> None:
    """Closed-class words are English as often as cognates and code-switching say."""
    write_mini_xglue(tmp_path / "mini", MiniSize(1, 1, 1, text_lines=4001), seed=2)
    lexicons = build_lexicons(2)
    english = {lexicons["en"].stems[concept] for concept in CONCEPTS["DET"]}
    german = {lexicons["de"].stems[concept] for concept in CONCEPTS["DET"]}
    words = Counter(re.findall(r"\w+", (tmp_path / "mini/text/de.txt").read_text()))
    foreign = sum(words[word] for word in english - german)
    own = sum(words[word] for word in german - english)
    total = sum(words[word] for word in english | german)
    own_share = 1 - COGNATES  # of the concepts: 3 of 5 determiners
    # Five standard deviations of a share of `total` words.
    bound = 5 * (0.25 / total) ** 0.5
    assert total > 1000
    assert foreign / total == pytest.approx(CODE_SWITCHING * own_share, abs=bound)
    assert own / total == pytest.approx((1 - CODE_SWITCHING) * own_share, abs=bound)


def forms(phrase: Phrase) -> Counter[str]:
    """Concepts of a phrase, without punctuation."""
    return Counter(word.concept for word in phrase if word.upos != "PUNCT")


def drawn(name: str) -> list[Example]:
    """Many examples of a task, of all labels."""
    examples = draw(name, 11, {"some": 401})["some"]
    labels = {example.label for example in examples}
    assert len(labels) == 5 if name in ("nc", "wpr") else len(labels) in (2, 3)
    return examples


def test_inference_labels_follow_from_the_words() -> None:
    """A denial contradicts, a part is entailed, more than was said is neutral."""
    for example in drawn("xnli"):
        premise, hypothesis = map(forms, example.texts)
        denied = any(word.upos == "PART" for word in example.texts[1])
        assert denied == (example.label == "contradiction")
        if not denied:
            assert (hypothesis < premise) == (example.label == "entailment")
            assert (premise < hypothesis) == (example.label == "neutral")


def test_paraphrases_have_the_same_words() -> None:
    """A phrase moved to the other end keeps the order otherwise; exchanged sides do not."""
    for example in drawn("paws-x"):
        first, second = ([w for w in text if w.upos != "PUNCT"] for text in example.texts)
        assert Counter(first) == Counter(second)
        moved = any(first[i:] + first[:i] == second for i in range(1, len(first)))
        assert moved == (example.label == "1")


def test_a_passage_that_answers_contains_the_event() -> None:
    """The question's verb and object stand in the passage if and only if it answers."""
    for example in drawn("qam"):
        question, passage = example.texts
        asked = question[1:3]  # verb and the first word of the object
        found = any(passage[i : i + 2] == asked for i in range(len(passage)))
        assert found or example.label == "0"
        assert (forms(question[1:]) <= forms(passage)) == (example.label == "1")


def test_an_answer_is_the_subject_of_the_event_asked_for() -> None:
    """The words after the answer's place are the answer, and the question's verb follows."""
    starts = set()
    for example in draw("mlqa", 11, {"some": 201})["some"]:
        question, passage = example.texts
        end = example.start + len(example.answer)
        assert passage[example.start : end] == example.answer
        after = [word for word in passage[end : end + 2] if word.upos == "VERB"]
        assert after[0] == question[1]
        starts.add(example.start)
    assert len(starts) > 10


def test_advertisements_and_pages_hold_as_many_query_words_as_their_grade() -> None:
    """A good advertisement holds all words of the query, a bad one none; a page of grade n, n."""
    for example in drawn("qadsm"):
        held = forms(example.texts[0]) & forms(example.texts[1])
        assert held.total() == {"Good": 2, "Bad": 0}[example.label]
    for example in drawn("wpr"):
        assert (forms(example.texts[0]) & forms(example.texts[1])).total() == int(example.label)


def test_a_topic_colours_its_text() -> None:
    """Topical words come from the labelled topic as often as the grammar says."""
    topics = [
        (word.concept.split(".")[1], example.label)
        for example in drawn("nc")
        for text in example.texts
        for word in text
        if word.upos in ("NOUN", "VERB", "ADJ")
    ]
    share = sum(topic == label for topic, label in topics) / len(topics)
    expected = TOPIC_FIDELITY + (1 - TOPIC_FIDELITY) / len(TOPICS)
    # Five standard deviations of a share of that many words.
    assert share == pytest.approx(expected, abs=5 * (0.25 / len(topics)) ** 0.5)


def test_iob1_differs_from_bio2_only_in_the_first_word_of_a_name() -> None:
    """B- is written only between names of a kind; both schemes have the same chunks."""
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-ORG", "O", "B-PER"]
    words = tuple(Word("x", "PROPN", entity=tag) for tag in tags)
    assert iob1(words) == ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-ORG", "O", "I-PER"]
    assert list(chunks(iob1(words))) == list(chunks(tags))


def test_every_task_of_the_table_is_drawn() -> None:
    """A task that is added to the table needs its examples here."""
    assert DRAW.keys() == TASKS.keys()


@pytest.mark.parametrize("field", ["train", "dev", "test", "text_lines"])
def test_an_empty_benchmark_is_refused(tmp_path: Path, field: str) -> None:
    """Each number must be positive; nothing is written otherwise."""
    with pytest.raises(ValueError, match=f"{field}=0"):
        write_mini_xglue(tmp_path / "mini", MiniSize(**{field: 0}))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full there is no folder, not a part of one."""
    written = []
    write_text = Path.write_text

    def fill_disk(self: Path, *args: object, **kwargs: object) -> int:
        written.append(self)
        if len(written) == 20:
            raise OSError(28, "No space left on device")
        return write_text(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", fill_disk)
    with pytest.raises(OSError, match="No space"):
        write_mini_xglue(tmp_path / "mini", SIZE)
    assert len(written) == 20
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(root: Path) -> None:
    """What is there already is never written over."""
    before = contents(root)
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_mini_xglue(root, SIZE, seed=8)
    assert contents(root) == before
