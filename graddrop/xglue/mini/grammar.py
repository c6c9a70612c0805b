"""The one grammar of all invented languages: sentences as language-free words.

A sentence is drawn once as a sequence of `Word` (concept, inflection, part of speech, entity
tag) and spelt later, in any language, by `graddrop.xglue.mini.lexicon`. Word order is therefore
the same everywhere, which is what makes zero-shot transfer possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from graddrop.xglue.tasks import TASKS

TOPICS = TASKS["nc"].labels[:5]
"""Half of the categories: fewer words to learn, and real samples lack some as well."""

# Concepts per group: topical open classes (per topic), then what all topics share.
TOPICAL = {"NOUN": 6, "VERB": 3, "ADJ": 2}
SHARED = {
    "DET": 5,
    "PRON": 5,
    "AUX": 5,
    "PART": 5,
    "ADP": 5,
    "ADV": 10,
    "CCONJ": 5,
    "SCONJ": 5,
    "INTJ": 5,
    "WHO": 5,
    "PER": 15,
    "LOC": 10,
    "ORG": 10,
    "MISC": 10,
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
    shared = {group: tuple(f"{group}.{i}" for i in range(count)) for group, count in SHARED.items()}
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
        denial: An auxiliary with a negative particle, or nothing.
        fronted: Whether the place comes first; the meaning is the same.
    """

    topic: str
    subject: Phrase
    verb: Word
    object: Phrase
    adverb: Phrase = ()
    place: Phrase = ()
    denial: Phrase = ()
    fronted: bool = False

    def words(self) -> Phrase:
        """The clause as a statement, without its full stop."""
        core = (*self.subject, *self.denial, *self.adverb, self.verb, *self.object)
        if self.fronted and self.place:
            return (*self.place, mark(","), *core)
        return (*core, *self.place)

    def question(self, rng: Random) -> Phrase:
        """The clause as a question whose answer is its subject."""
        return (pick(rng, "WHO"), self.verb, *self.object, *self.place, mark("?"))


def mark(form: str) -> Word:
    """A punctuation mark, written alike in every language."""
    return Word(form, "PUNCT")


def pick(rng: Random, group: str) -> Word:
    """A word of a group that all topics share."""
    return Word(rng.choice(CONCEPTS[group]), UPOS.get(group, group))


def topical(rng: Random, upos: str, topic: str, inflection: str = "") -> Word:
    """A noun, verb or adjective, most often (`TOPIC_FIDELITY`) of the given topic."""
    chosen = topic if rng.random() < TOPIC_FIDELITY else rng.choice(TOPICS)
    return Word(rng.choice(CONCEPTS[f"{upos}.{chosen}"]), upos, inflection)


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
        return (pick(rng, "ADP"), *name(rng, "LOC"))
    return (pick(rng, "ADP"), *noun_phrase(rng, topic))


def denial(rng: Random) -> Phrase:
    """What turns a clause into its contrary."""
    return (pick(rng, "AUX"), pick(rng, "PART"))


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
        return first.question(rng)
    if draw < 0.2:
        amount = (Word("€", "SYM"), Word(str(rng.randint(2, 99)), "NUM"))
        return (*first.subject, pick(rng, "AUX"), *amount, mark("."))
    if draw < 0.25:
        return (pick(rng, "INTJ"), mark(","), *first.words(), mark("!"))
    if draw < 0.4:
        joint = pick(rng, rng.choice(("CCONJ", "SCONJ")))
        second = clause(rng, first.topic)
        return (*first.words(), joint, *second.words(), mark("."))
    if draw < 0.5:
        first = replace(first, denial=denial(rng))
    return (*first.words(), mark("."))
