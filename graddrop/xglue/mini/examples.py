"""What each task asks: labelled examples made of language-free words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

from graddrop.xglue.mini import grammar
from graddrop.xglue.mini.grammar import TOPICS, Clause, Phrase, Word, mark


@dataclass(frozen=True)
class Example:
    """One labelled example of one task.

    Attributes:
        texts: The fields before the label, in the order of the official columns.
        label: The label as the official files write it; empty where the words carry their own
            labels (NER, POS) or where the answer is a span (MLQA).
        start: For a span: number of words of the last text before the answer.
        answer: For a span: the words that answer.
    """

    texts: tuple[Phrase, ...]
    label: str = ""
    start: int = 0
    answer: Phrase = ()


def tagged(rng: Random) -> list[Example]:
    """POS and NER: a sentence whose words carry their own labels."""
    return [Example((grammar.sentence(rng),))]


def topic(rng: Random) -> list[Example]:
    """NC: the topic of a title and a body of three sentences."""
    label = rng.choice(TOPICS)
    title = grammar.noun_phrase(rng, label)
    body = _join(grammar.sentence(rng, label) for _ in range(3))
    return [Example((title, body), label)]


def inference(rng: Random) -> list[Example]:
    """XNLI: the hypothesis says less, says more or denies the premise."""
    event = _full_clause(rng)
    bare = _less(event)
    label = rng.choice(("entailment", "neutral", "contradiction"))
    if label == "contradiction":
        hypothesis = replace(bare, denial=grammar.denial(rng))
        premise = rng.choice((event, bare))
    elif label == "entailment":
        hypothesis = bare
        premise = event
    else:
        hypothesis = event
        premise = bare
    return [Example((_statement(premise), _statement(hypothesis)), label)]


def paraphrase(rng: Random) -> list[Example]:
    """PAWS-X: the same event in another order of phrases, or with its two sides exchanged."""
    event = _full_clause(rng)
    moved = replace(event, fronted=not event.fronted)
    label = rng.choice(("0", "1"))
    second = moved if label == "1" else replace(moved, subject=event.object, object=event.subject)
    return [Example((_statement(event), _statement(second)), label)]


def answer_span(rng: Random) -> list[Example]:
    """MLQA: who did it, asked of a passage of three events."""
    events = [replace(event, fronted=False) for event in _distinct_clauses(rng, 3)]
    index = rng.randrange(len(events))
    asked = events[index]
    start = len(_join(_statement(event) for event in events[:index]))
    passage = _join(_statement(event) for event in events)
    return [Example((asked.question(rng), passage), start=start, answer=asked.subject)]


def answers(rng: Random) -> list[Example]:
    """QAM: whether the passage contains the event that the question asks for."""
    *events, other = _distinct_clauses(rng, 3)
    label = rng.choice(("0", "1"))
    asked = rng.choice(events) if label == "1" else other
    passage = _join(_statement(event) for event in events)
    return [Example((asked.question(rng), passage), label)]


def advertisement(rng: Random) -> list[Example]:
    """QADSM: whether an advertisement offers the thing that the query names."""
    label = rng.choice(("Good", "Bad"))
    wanted = rng.choice(TOPICS)
    query = tuple(_keywords(rng, wanted, 2))
    if label == "Good":
        offered, title = wanted, query
    else:
        offered = rng.choice([other for other in TOPICS if other != wanted])
        title = tuple(_keywords(rng, offered, 2))
    description = _statement(grammar.clause(rng, offered))
    return [Example((query, title, description), label)]


def ranking(rng: Random) -> list[Example]:
    """WPR: pages of one query, graded by how many of its four words they hold."""
    theme = rng.choice(TOPICS)
    query = tuple(_keywords(rng, theme, 4))
    grades = rng.sample(range(5), 4)
    rows = []
    for grade in grades:
        away = rng.choice([other for other in TOPICS if other != theme])
        held = rng.sample(query, grade) + _keywords(rng, away, 4 - grade)
        rng.shuffle(held)
        snippet = _statement(grammar.clause(rng, theme if grade > 2 else away))
        rows.append(Example((query, tuple(held), snippet), str(grade)))
    return rows


DRAW: dict[str, Callable[[Random], list[Example]]] = {
    "ner": tagged,
    "pos": tagged,
    "nc": topic,
    "mlqa": answer_span,
    "xnli": inference,
    "paws-x": paraphrase,
    "qadsm": advertisement,
    "wpr": ranking,
    "qam": answers,
}
"""Task name -> function that draws one example, or the rows of one query."""


def draw(task: str, seed: int, splits: dict[str, int]) -> dict[str, list[Example]]:
    """Draw the splits of a task so that no example is in two of them.

    Args:
        task: A key of `DRAW`.
        seed: Decides the examples.
        splits: Name -> number of examples, in the order in which they are drawn.

    Returns:
        Name -> that many examples (for WPR rounded down to whole queries).
    """
    rng = Random(f"{task}/{seed}")
    seen: set[tuple[Phrase, ...]] = set()
    drawn: dict[str, list[Example]] = {}
    for split, count in splits.items():
        drawn[split] = []
        while True:
            rows = DRAW[task](rng)
            if len(drawn[split]) + len(rows) > count:
                break
            if seen.isdisjoint(row.texts for row in rows):
                seen.update(row.texts for row in rows)
                drawn[split] += rows
    return drawn


def _statement(event: Clause) -> Phrase:
    return (*event.words(), mark("."))


def _join(sentences: Iterable[Phrase]) -> Phrase:
    return tuple(word for words in sentences for word in words)


def _keywords(rng: Random, theme: str, count: int) -> list[Word]:
    """Different nouns of one topic."""
    concepts = rng.sample(grammar.CONCEPTS[f"NOUN.{theme}"], count)
    return [Word(concept, "NOUN") for concept in concepts]


def _less(event: Clause) -> Clause:
    """The event without adjectives, adverb or place: what it entails."""

    def bare(phrase: Phrase) -> Phrase:
        return tuple(word for word in phrase if word.upos != "ADJ")

    return replace(
        event, subject=bare(event.subject), object=bare(event.object), adverb=(), place=()
    )


def _full_clause(rng: Random) -> Clause:
    """A clause that has something to leave out, sides that differ and a place to move."""
    while True:
        event = grammar.clause(rng)
        if event.place and event.subject != event.object:
            return event


def _distinct_clauses(rng: Random, count: int) -> list[Clause]:
    """Clauses no two of which share a subject, or a verb with its object."""
    events: list[Clause] = []
    while len(events) < count:
        event = grammar.clause(rng)
        if all(
            event.subject != other.subject
            and (event.verb, event.object) != (other.verb, other.object)
            for other in events
        ):
            events.append(event)
    return events
