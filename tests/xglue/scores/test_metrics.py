"""Laws of the official scores, each on a case computed by hand, then against known packages."""

import math
import random
import warnings
from typing import Any

import pytest

from graddrop.xglue.scores.answers import normalize_answer
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.scores.tagging import chunks
from graddrop.xglue.tasks import TASKS


def score(metric: str, gold: dict[str, Any], predictions: list[Any], language: str = "en") -> float:
    """One metric."""
    return METRICS[metric](gold, predictions, language)


def test_every_task_has_metrics() -> None:
    """The names in the task table are rows of the scorer's table."""
    assert all(name in METRICS for task in TASKS.values() for name in task.metrics)


def test_accuracy_is_the_share_of_equal_labels() -> None:
    """2 of 3."""
    assert score("accuracy", {"label": ["1", "0", "1"]}, ["1", "1", "1"]) == 2 / 3


# -- NER and POS ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        # A chunk begins at B, and at I of another type or after O, so IOB1 and BIO2 read alike.
        ("I-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("O O", []),
        # Tags without prefix: the first letter is taken for one, the whole tag is the type.
        ("NOUN NOUN VERB", [("NOUN", 0, 1), ("VERB", 2, 2)]),
        ("ADJ ADV ADV AUX", [("ADJ", 0, 0), ("ADV", 1, 2), ("AUX", 3, 3)]),
        ("PRON PROPN PUNCT PUNCT", [("PRON", 0, 0), ("PROPN", 1, 1), ("PUNCT", 2, 3)]),
        ("X X DET X", [("X", 0, 1), ("DET", 2, 2), ("X", 3, 3)]),
        # I goes on, and begins where there was something else.
        ("INTJ INTJ NUM INTJ", [("INTJ", 0, 1), ("NUM", 2, 2), ("INTJ", 3, 3)]),
        # S stands for one word.
        ("SYM SYM", [("SYM", 0, 0), ("SYM", 1, 1)]),
        ("INTJ SYM INTJ", [("INTJ", 0, 0), ("SYM", 1, 1), ("INTJ", 2, 2)]),
        ("SCONJ CCONJ", [("SCONJ", 0, 0), ("CCONJ", 1, 1)]),
        ("CCONJ SCONJ", [("CCONJ", 0, 0), ("SCONJ", 1, 1)]),
        ("CCONJ CCONJ SCONJ SCONJ", [("CCONJ", 0, 1), ("SCONJ", 2, 2), ("SCONJ", 3, 3)]),
        # Of several hyphens the last one counts.
        ("B-A-PER I-B-PER", [("PER", 0, 1)]),
    ],
)
def test_chunks_are_those_of_the_lenient_script(tags: str, expected: list[Any]) -> None:
    """By hand."""
    assert list(chunks(tags.split())) == expected


def test_entity_f1_wants_type_and_both_ends() -> None:
    """Gold 3 entities, predicted 3, of which 1 right: precision and recall 1/3."""
    gold = {"tags": [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG"]]}
    predicted = [["B-PER", "I-PER", "O"], ["B-ORG", "O", "B-ORG"]]
    assert score("entity_f1", gold, predicted) == pytest.approx(2 / 3)
    predicted = [["B-PER", "O", "O"], ["B-LOC", "O", "B-LOC"]]
    assert score("entity_f1", gold, predicted) == pytest.approx(1 / 3)
    assert score("entity_f1", gold, [["O"] * 3] * 2) == 0


def test_short_predictions_are_filled_with_o() -> None:
    """A sentence cut off loses what stood behind the cut; a longer one is an error."""
    gold = {"tags": [["B-PER", "O", "B-LOC"]]}
    assert score("entity_f1", gold, [["B-PER"]]) == pytest.approx(2 / 3)
    assert score("token_accuracy", gold, [["B-PER"]]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="sentence 1 has 3 words, its prediction 4"):
        score("entity_f1", gold, [["O"] * 4])


@pytest.mark.parametrize("tag", TASKS["pos"].labels)
def test_equal_neighbours_are_one_chunk_unless_they_begin_with_s(tag: str) -> None:
    """For every tag of the task."""
    alone = tag in ("SCONJ", "SYM")
    expected = [(tag, 0, 0), (tag, 1, 1)] if alone else [(tag, 0, 1)]
    assert list(chunks([tag, tag])) == expected
    assert list(chunks(["O", tag, "O"])) == [(tag, 1, 1)]


def test_pos_merges_equal_neighbours_and_tells_cconj_from_sconj() -> None:
    """The oddity of the official score, next to the plain accuracy over words."""
    gold = {"tags": [["DET", "NOUN", "NOUN", "VERB", "CCONJ"]]}
    predicted = [["DET", "NOUN", "VERB", "VERB", "SCONJ"]]
    # Predicted: DET 0-0, NOUN 1-1, VERB 2-3, SCONJ 4-4; gold: DET 0-0, NOUN 1-2, VERB 3-3, CCONJ.
    assert score("chunk_precision", gold, predicted) == 1 / 4
    assert score("token_accuracy", gold, predicted) == 3 / 5


@pytest.mark.parametrize("task", ["ner", "pos"])
def test_chunk_scores_equal_seqeval(task: str) -> None:
    """On random sentences, to the last digit; a scorer of single words would not be equal."""
    seqeval = pytest.importorskip("seqeval.metrics", reason="needs the extra xglue")
    generator = random.Random(0)
    labels = TASKS[task].labels
    gold = [[generator.choice(labels) for _ in range(n % 9 + 1)] for n in range(300)]
    predicted = [
        [tag if generator.random() < 0.6 else generator.choice(labels) for tag in sentence]
        for sentence in gold
    ]
    name = {"ner": "entity_f1", "pos": "chunk_precision"}[task]
    official = {"ner": seqeval.f1_score, "pos": seqeval.precision_score}[task]

    def spelt(sentences: list[list[str]]) -> list[list[str]]:
        """Bare tags such that the installed version, too, takes all of them for the type."""
        if task == "ner":
            return sentences
        return [[f"{tag[0]}-{tag}" for tag in sentence] for sentence in sentences]

    with warnings.catch_warnings():
        # seqeval says so of every prefix that it does not know.
        warnings.filterwarnings("ignore", ".* seems not to be NE tag", UserWarning)
        expected = official(spelt(gold), spelt(predicted))
    assert score(name, {"tags": gold}, predicted) == expected
    assert score("token_accuracy", {"tags": gold}, predicted) != pytest.approx(expected, abs=1e-3)


# -- WPR -----------------------------------------------------------------------------------------


def pages(*groups: tuple[str, str]) -> dict[str, list[str]]:
    """Rows of the ranking task from pairs of a query and its labels."""
    return {
        "query": [query for query, labels in groups for _ in labels],
        "label": [label for _, labels in groups for label in labels],
    }


def test_ndcg_by_hand() -> None:
    """Linear gain, discount 1/log2(place + 1), divided by the best order's."""
    ideal = 4 + 1 / math.log2(3)
    got = 1 + 4 / math.log2(3)
    assert score("ndcg", pages(("q", "410")), [0.2, 0.9, 0.1]) == pytest.approx(got / ideal)
    assert score("ndcg", pages(("q", "410")), ["3", "2", "1"]) == 1


def test_equal_scores_share_their_places() -> None:
    """Two tied rows at the top each get the mean discount of the first two places."""
    share = (1 + 1 / math.log2(3)) / 2
    assert score("ndcg", pages(("q", "40")), [7, 7]) == pytest.approx(share * 4 / 4)


def test_a_query_is_a_run_of_rows() -> None:
    """The same text further down is another query; single rows are left out; all zeros score 0."""
    gold = pages(("a", "10"), ("b", "4"), ("a", "10"), ("c", "00"))
    predictions = [1, 0, 9, 0, 1, 5, 4]
    assert score("ndcg", gold, predictions) == pytest.approx((1 + 1 / math.log2(3) + 0) / 3)
    with pytest.raises(ValueError, match="a query with at least two rows"):
        score("ndcg", pages(("a", "1"), ("b", "2")), [1, 2])


@pytest.mark.parametrize(
    ("queries", "groups"),
    [
        # An empty query ends the one before it, and what follows it is still its own.
        ("aa.bb", ["aa", ".bb"]),
        ("..aab", ["..aa"]),
        ("aa..", ["aa", ".."]),
        ("aa..aa", ["aa", "..aa"]),
        ("aa.b.cc", ["aa", ".b", ".cc"]),
    ],
)
def test_what_follows_an_empty_query_begins_no_new_one(queries: str, groups: list[str]) -> None:
    """As the official scorer counts: the mean over these groups, of two rows and more."""
    labels = "1302431"[: len(queries)]
    predictions = [3, 1, 4, 1, 5, 9, 2][: len(queries)]
    gold = {"query": [query.strip(".") for query in queries], "label": list(labels)}
    expected, begin = [], 0
    for group in groups:
        end = begin + len(group)
        alone = pages(("q", labels[begin:end]))
        expected.append(score("ndcg", alone, predictions[begin:end]))
        begin = end
    assert score("ndcg", gold, predictions) == pytest.approx(sum(expected) / len(expected))


def test_ndcg_equals_scikit_learn() -> None:
    """On random queries with and without ties."""
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra xglue")
    generator = random.Random(0)
    for levels in (5, 1000):
        groups = [(str(n), generator.choices("01234", k=n % 7 + 2)) for n in range(200)]
        gold = pages(*((query, "".join(labels)) for query, labels in groups))
        predictions = [generator.randrange(levels) for _ in gold["query"]]
        expected, begin = [], 0
        for _, labels in groups:
            end = begin + len(labels)
            truth = [[float(label) for label in labels]]
            expected.append(metrics.ndcg_score(truth, [predictions[begin:end]]))
            begin = end
        assert score("ndcg", gold, predictions) == pytest.approx(sum(expected) / 200, abs=1e-12)


# -- MLQA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The  Cat's a (big) one.", "cats big one"),
        ("en", "Theatre, an $5 — «ant»", "theatre 5 ant"),
        ("es", "Las casas de la Señora el", "casas de señora"),
        ("de", "Der Hut des Mannes einer Stadt", "hut mannes stadt"),
        ("vi", "Những cái bàn của tôi", "bàn tôi"),
        # The article of Arabic goes wherever its letters stand, inside of words as well.
        ("ar", "الكتاب الجديد", "كتاب جديد"),
        ("ar", "مثالي", "مث ي"),
        ("hi", "वह एक घर है।", "वह एक घर है"),
        # Ideographs are words of their own, other runs stay whole.
        ("zh", "《北京》市 in 2008年", "北 京 市 in 2008 年"),
        ("zh", "the 人", "the 人"),
    ],
)
def test_answers_are_normalised_by_language(language: str, text: str, expected: str) -> None:
    """Lower case, no punctuation, no articles, one space between words."""
    assert normalize_answer(text, language) == expected


def test_a_language_without_rules_is_refused() -> None:
    """The message lists the seven."""
    with pytest.raises(ValueError, match="no language 'fr'; expected en, es, de"):
        normalize_answer("x", "fr")


def test_answer_f1_takes_the_best_gold_answer() -> None:
    """Words counted as often as they are shared; an unanswered question scores 0."""
    gold = {"answers": [{"text": ["the red red house", "house"]}, {"text": ["sea"]}]}
    # Against the first: 2 of 3 predicted words, 2 of 3 gold words.
    assert score("answer_f1", gold, ["red red car", None]) == pytest.approx(2 / 3 / 2)
    assert score("answer_f1", gold, ["A house!", "the sea"]) == 1
    assert score("exact_match", gold, ["A house!", "the sea"]) == 1
    assert score("exact_match", gold, ["red house", None]) == 0
    assert score("answer_f1", gold, ["", ""]) == 0


ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
    "hi": "",
    "zh": "",
}
"""Those of MLQA's evaluation script."""


@pytest.mark.parametrize("language", ARTICLES)
def test_every_article_goes_and_no_other_word(language: str) -> None:
    """Also the capital ones; a word that only begins or ends like one stays."""
    for article in ARTICLES[language].split():
        assert normalize_answer(f"x {article} y {article.title()}", language) == "x y", article
        assert normalize_answer(f"x{article} {article}x", language) == f"x{article} {article}x"
    others = {"a", "the", "el", "der", "la"} - set(ARTICLES[language].split())
    for word in others:
        assert normalize_answer(f"x {word} y", language) == f"x {word} y"


def test_a_mean_over_questions_weighs_them_alike() -> None:
    """However many gold answers each has, and where the best of them stands."""
    gold = {"answers": [{"text": ["one two", "one", "six"]}, {"text": ["three"]}, {"text": ["x"]}]}
    predicted = ["one", "three four", "y"]
    assert score("exact_match", gold, predicted) == pytest.approx(1 / 3)
    assert score("answer_f1", gold, predicted) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_where_nothing_is_predicted_the_score_is_zero() -> None:
    """Not an error, of a whole file without a chunk as of one without a right one."""
    for predicted in (["O", "O"], ["VERB", "O"]):
        assert score("chunk_precision", {"tags": [["NOUN", "NOUN"]]}, [predicted]) == 0
    assert score("entity_f1", {"tags": [["O"], ["B-PER"]]}, [["O"], ["O"]]) == 0
    assert score("entity_f1", {"tags": [["O"], ["O"]]}, [["B-PER"], ["O"]]) == 0


def test_chunks_end_with_their_sentence() -> None:
    """Two sentences that meet in the same tag are two chunks; unequal lengths count as they are."""
    gold = {"tags": [["NOUN"], ["NOUN", "VERB", "DET"]]}
    assert score("chunk_precision", gold, [["NOUN"], ["NOUN", "NOUN", "DET"]]) == 2 / 3
    assert score("token_accuracy", gold, [["VERB"], ["NOUN", "VERB", "DET"]]) == 3 / 4
