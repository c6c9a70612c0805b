"""Invented languages: how each one spells the concepts of the shared grammar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from graddrop.xglue.mini.grammar import CONCEPTS, ENTITIES, Word
from graddrop.xglue.tasks import TRAIN_LANGUAGE

# Raw text per language as a share of the training language's; the codes are borrowed from
# XGLUE so that each task finds languages it knows, in the order of its languages' sizes.
RESOURCES: dict[str, float] = {
    TRAIN_LANGUAGE: 1.0,
    "ru": 0.7,
    "de": 0.5,
    "fr": 0.35,
    "es": 0.25,
    "zh": 0.18,
    "hi": 0.12,
    "ur": 0.06,
    "sw": 0.03,
}

COGNATES = 0.4
"""Share of the stems of each group, and of the endings, that a language has in common with the
training language: the same for all, so that languages differ in their resources alone."""

# (consonants, vowels) of each language's own words: alike within a language, unlike across.
_SOUNDS: dict[str, tuple[str, str]] = {
    "en": ("b d f g h l m n p r s t w", "a e i o u"),
    "ru": ("b ch d g k l m n r st v z zh", "a e i o y"),
    "de": ("b d f g h k l m n r sch st w z", "a e i o u ü ö ä"),
    "fr": ("b c d f j l m n p r s v", "a e é i o u ou eu"),
    "es": ("b c d g j ll m n ñ p r s t", "a e i o u á ó"),
    "zh": ("b d g j l m n q sh x z zh", "a ai ao e i ou u ü"),
    "hi": ("bh d dh g gh j k kh l m n p r", "a ā i ī o u"),
    "ur": ("b d gh h j k kh l m n q r sh z", "a ā e i o u ū"),
    "sw": ("b ch d g k m mb n nd ng w y z", "a e i o u"),
}

_ENDINGS = {
    "noun": ("NOUN", ""),
    "plural": ("NOUN", "plural"),
    "verb": ("VERB", ""),
    "past": ("VERB", "past"),
    "adjective": ("ADJ", ""),
}


@dataclass(frozen=True)
class Lexicon:
    """One language's spelling.

    Attributes:
        stems: Written stem of each concept.
        endings: Written ending of each (part of speech, inflection); none where absent.
    """

    stems: Mapping[str, str]
    endings: Mapping[tuple[str, str], str]

    def spell(self, word: Word) -> str:
        """The written form of one word; digits, symbols and punctuation spell themselves."""
        stem = self.stems.get(word.concept, word.concept)
        return stem + self.endings.get((word.upos, word.inflection), "")

    def write(self, words: Iterable[Word]) -> str:
        """The words as running text."""
        return run_on((word, self.spell(word)) for word in words)


def run_on(spelt: Iterable[tuple[Word, str]]) -> str:
    """Join written words by one space, none before punctuation."""
    text = ""
    for word, form in spelt:
        text += ("" if word.upos == "PUNCT" or not text else " ") + form
    return text


def build_lexicons(seed: int) -> dict[str, Lexicon]:
    """Invent all languages.

    Args:
        seed: Decides every form; the same seed gives the same languages.

    Returns:
        A lexicon per code of `RESOURCES`. No written stem has two meanings, within a language or
        across languages.
    """
    taken: set[str] = set()
    first = _invent(TRAIN_LANGUAGE, seed, taken, origin=None)
    others = [code for code in RESOURCES if code != TRAIN_LANGUAGE]
    return {TRAIN_LANGUAGE: first} | {
        code: _invent(code, seed, taken, origin=first) for code in others
    }


def _invent(code: str, seed: int, taken: set[str], origin: Lexicon | None) -> Lexicon:
    rng = Random(f"lexicon/{seed}/{code}")
    consonants, vowels = (letters.split() for letters in _SOUNDS[code])

    def fresh(syllables: int) -> str:
        while True:
            form = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(syllables))
            if form not in taken:
                taken.add(form)
                return form

    stems: dict[str, str] = {}
    for group, concepts in CONCEPTS.items():
        inherited = _cognates(rng, concepts) if origin else set()
        for concept in concepts:
            if origin and concept in inherited:
                stems[concept] = origin.stems[concept]
            else:
                open_class = "." in group or group in ENTITIES
                form = fresh(rng.choice((2, 3)) if open_class else rng.choice((1, 2)))
                stems[concept] = form.capitalize() if group in ENTITIES else form

    inherited = _cognates(rng, tuple(_ENDINGS)) if origin else set()
    own = iter(rng.sample([v + c for v in vowels for c in consonants], len(_ENDINGS)))
    endings = {
        key: origin.endings[key] if origin and label in inherited else next(own)
        for label, key in _ENDINGS.items()
    }
    return Lexicon(stems, endings)


def _cognates(rng: Random, concepts: tuple[str, ...]) -> set[str]:
    """A quota rather than a coin per concept: every language gets exactly the same share."""
    return set(rng.sample(concepts, round(COGNATES * len(concepts))))
