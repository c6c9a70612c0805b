"""The one grammar of all invented languages: sentences as language-free words.

A sentence is drawn once as a sequence of `Word` (concept, inflection, part of speech, entity
tag) and spelt later, in any language, by `graddrop.xglue.mini.lexicon`. Word order is therefore
the same everywhere, which is what makes zero-shot transfer possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from graddrop.xglue.tasks import TASKS

TOPICS = TASKS["nc"].labels

# Concepts per group: topical open classes (per topic), then what all topics share.
TOPICAL = {"NOUN": 8, "VERB": 4, "ADJ": 3}
SHARED = {
    "DET": 3,
    "PRON": 4,
    "AUX": 2,
    "PART": 1,
    "ADP": 4,
    "ADV": 8,
    "CCONJ": 2,
    "SCONJ": 2,
    "INTJ": 3,
    "WHO": 1,
    "PER": 16,
    "LOC": 12,
    "ORG": 12,
    "MISC": 8,
}
ENTITIES = ("PER", "LOC", "ORG", "MISC")
UPOS = {"WHO": "PRON", **dict.fromkeys(ENTITIES, "PROPN")}
"""Part of speech of the groups whose name is not one already."""

TOPIC_FIDELITY = 0.85
"""Probability that a topical word comes from the sentence's own topic."""


@dataclass(frozen=True)
class Word:
    """One word before it is spelt.

    Attributes:
        concept: A key of `inventory()`, or the written form itself for digits, symbols and
            punctuation, which all languages write alike.
        upos: Universal part-of-speech tag.
        inflection: "", "plural" or "past".
        entity: BIO2 entity tag, "O" outside of names.
    """

    concept: str
    upos: str
    inflection: str = ""
    entity: str = "O"


Phrase = tuple[Word, ...]


def inventory() -> dict[str, tuple[str, ...]]:
    """All concepts that a language must name, by group (one group per class and topic)."""
    groups = {
        f"{group}.{topic}": tuple(f"{group}.{topic}.{i}" for i in range(count))
        for group, count in TOPICAL.items()
        for topic in TOPICS
    }
    shared = {
        group: tuple(f"{group}.{i}" for i in range(count)) for group, count in SHARED.items()
    }
    return groups | shared


CONCEPTS = inventory()


@dataclass(frozen=True)
class Clause:
    """One event: who did what to whom, how and where.

    Attributes:
        topic: The topic that its open-class words come from.
        subject: A noun phrase, a pronoun or a name.
        verb: One word.
        object: A noun phrase or a name.
        adverb: One word or nothing.
        place: A prepositional phrase or nothing.
        negated: Whether the event did not happen.
        fronted: Whether the place comes first; the meaning is the same.
    """

    topic: str
    subject: Phrase
    verb: Word
    object: Phrase
    adverb: Phrase = ()
    place: Phrase = ()
    negated: bool = False
    fronted: bool = False

    def words(self) -> Phrase:
        """The clause as a statement, without its full stop."""
        negation = (_shared("AUX", 0), _shared("PART", 0)) if self.negated else ()
        core = (*self.subject, *negation, *self.adverb, self.verb, *self.object)
        if self.fronted and self.place:
            return (*self.place, mark(","), *core)
        return (*core, *self.place)

    def question(self) -> Phrase:
        """The clause as the question whose answer is its subject."""
        return (_shared("WHO", 0), self.verb, *self.object, *self.place, mark("?"))


def mark(form: str) -> Word:
    """A punctuation mark, written alike in every language."""
    return Word(form, "PUNCT")


def _shared(group: str, index: int) -> Word:
    return Word(f"{group}.{index}", UPOS.get(group, group))


def pick(rng: Random, group: str) -> Word:
    """A word of a group that all topics share."""
    return Word(rng.choice(CONCEPTS[group]), UPOS.get(group, group))


def topical(rng: Random, upos: str, topic: str, inflection: str = "") -> Word:
    """A noun, verb or adjective, most often (`TOPIC_FIDELITY`) of the given topic."""
    source = topic if rng.random() < TOPIC_FIDELITY else rng.choice(TOPICS)
    return Word(rng.choice(CONCEPTS[f"{upos}.{source}"]), upos, inflection)


def name(rng: Random, entity: str) -> Phrase:
    """A name of one word, or of two for half of the people and organisations."""
    length = 2 if entity in ("PER", "ORG") and rng.random() < 0.5 else 1
    concepts = rng.sample(CONCEPTS[entity], length)
    tags = [f"B-{entity}", f"I-{entity}"]
    return tuple(Word(c, "PROPN", entity=tag) for c, tag in zip(concepts, tags, strict=False))


def noun_phrase(rng: Random, topic: str) -> Phrase:
    """A counted or determined noun, with an adjective in half of the cases."""
    adjective = (topical(rng, "ADJ", topic),) if rng.random() < 0.5 else ()
    if rng.random() < 0.2:
        number = Word(str(rng.randint(2, 99)), "NUM")
        return (number, *adjective, topical(rng, "NOUN", topic, "plural"))
    inflection = rng.choice(("", "plural"))
    return (pick(rng, "DET"), *adjective, topical(rng, "NOUN", topic, inflection))


def place_phrase(rng: Random, topic: str) -> Phrase:
    """A preposition before a place name or a noun phrase."""
    if rng.random() < 0.6:
        return (_shared("ADP", 0), *name(rng, "LOC"))
    return (pick(rng, "ADP"), *noun_phrase(rng, topic))


def clause(rng: Random, topic: str | None = None) -> Clause:
    """A random affirmative clause, of a random topic unless one is given."""
    topic = topic or rng.choice(TOPICS)
    draw = rng.random()
    if draw < 0.15:
        subject: Phrase = (pick(rng, "PRON"),)
    elif draw < 0.5:
        subject = name(rng, rng.choice(("PER", "PER", "ORG")))
    else:
        subject = noun_phrase(rng, topic)
    return Clause(
        topic=topic,
        subject=subject,
        verb=topical(rng, "VERB", topic, rng.choice(("", "past"))),
        object=name(rng, "MISC") if rng.random() < 0.15 else noun_phrase(rng, topic),
        adverb=(pick(rng, "ADV"),) if rng.random() < 0.3 else (),
        place=place_phrase(rng, topic) if rng.random() < 0.5 else (),
        fronted=rng.random() < 0.3,
    )


def sentence(rng: Random, topic: str | None = None) -> Phrase:
    """A whole sentence with its final mark: one clause, two joined, a question or a price."""
    first = clause(rng, topic)
    draw = rng.random()
    if draw < 0.1:
        return first.question()
    if draw < 0.2:
        amount = (Word("€", "SYM"), Word(str(rng.randint(2, 99)), "NUM"))
        return (*first.subject, _shared("AUX", 1), *amount, mark("."))
    if draw < 0.25:
        return (pick(rng, "INTJ"), mark(","), *first.words(), mark("!"))
    if draw < 0.4:
        joint = pick(rng, rng.choice(("CCONJ", "SCONJ")))
        second = clause(rng, first.topic)
        return (*first.words(), joint, *second.words(), mark("."))
    if draw < 0.5:
        first = replace(first, negated=True)
    return (*first.words(), mark("."))
